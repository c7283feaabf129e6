PYTHON ?= python3

.PHONY: demo test clients bench bench-full lint

demo: .venv/installed
	.venv/bin/python -m bertfast.demo

test: .venv/installed
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile

clients: .clients/installed

bench: .venv/installed
	.venv/bin/python -m bench --quick

bench-full: .venv/installed
	.venv/bin/python -m bench --output bench/results
	.venv/bin/python -m bench.report

# Each shows where another library surprises, with packages of its own and without bertfast. All of them run; the exit code tells whether one failed.
.PHONY: findings
findings:
	@failed=; for finding in findings/*.sh; do \
	    [ -e "$$finding" ] || continue; \
	    echo "== $$finding"; bash "$$finding" || failed="$$failed $$finding"; \
	done; [ -z "$$failed" ] || { echo "no longer as described:$$failed" >&2; exit 1; }

lint: .venv/installed
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

# The stamp comes last, so that an install that was cut short is taken up again.
.venv/installed: setup.py pyproject.toml constraints.txt
	rm -f $@
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --constraint constraints.txt pip setuptools wheel
	.venv/bin/python -m pip install --constraint constraints.txt --build-constraint constraints.txt --editable '.[test,bench,export,sweep]'
	touch $@

# Other people's programs that read a bundle, for tests/export/test_clients.py: Node's, and Optimum with the older transformers that it asks for.
.clients/installed: .venv/installed tests/support/clients.txt
	rm -f $@
	mkdir -p .clients/node
	cd .clients/node && npm install --ignore-scripts --no-audit --no-fund onnxruntime-node@1.30.0 @huggingface/transformers@4.3.1
	$(PYTHON) -m venv .clients/optimum
	.clients/optimum/bin/python -m pip install --no-deps --requirement tests/support/clients.txt
	.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > "$$(.clients/optimum/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_bertfast.pth"
	touch $@
