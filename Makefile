PYTHON ?= python3

.PHONY: demo test bench bench-full lint

demo: .venv/installed
	.venv/bin/python -m bertfast.demo

test: .venv/installed
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile

bench: .venv/installed
	.venv/bin/python -m bench --quick

bench-full: .venv/installed
	.venv/bin/python -m bench --output bench/results
	.venv/bin/python -m bench.report --readme README.md

lint: .venv/installed
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

# The stamp comes last, so that an install that was cut short is taken up again.
.venv/installed: setup.py pyproject.toml constraints.txt
	rm -f $@
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --constraint constraints.txt pip setuptools wheel
	.venv/bin/python -m pip install --constraint constraints.txt --build-constraint constraints.txt --editable '.[test,bench,export]'
	touch $@
