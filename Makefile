PYTHON ?= python3

# One command a target: `make -n` then says in one line what it does.
LINT = .venv/bin/ruff check . \
	&& .venv/bin/ruff format --check . \
	&& .venv/bin/lint-imports \
	&& .venv/bin/mypy \
	&& .venv/bin/deptry bertfast kernels export \
	&& .venv/bin/deptry . --requirements-files .venv/requirements.txt,.venv/requirements-dev.txt

# All but whole trainings, of which one, and but what compiles for minutes.
OLDEST = OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n 2 --dist loadfile -m 'not runs and not network' \
	--deselect tests/checks/test_kernels.py::test_every_shipped_config_fits_every_target \
	&& OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest tests/house/test_packaging.py::test_the_installed_command_trains_and_predicts

# Files go to two processes in their order, the slow ones first (tests/conftest.py).
TEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo check test clients bench bench-full findings lint oldest gpu-kit

demo: .venv/installed
	.venv/bin/python -m bertfast.demo

# All that is quick: no training process, no Triton.
check: .venv/installed
	$(LINT) && $(TEST) -q -m 'not network and not runs and not triton'

test: .venv/installed
	$(TEST)

clients: .clients/installed

bench: .venv/installed
	.venv/bin/python -m bench --quick

bench-full: .venv/installed
	.venv/bin/python -m bench --output bench/results
	.venv/bin/python -m bench.report

# Each shows where another library surprises, with packages of its own and without bertfast. All of them run; the exit code tells whether one failed.
findings:
	@failed=; for finding in findings/*.sh; do \
	    [ -e "$$finding" ] || continue; \
	    echo "== $$finding"; bash "$$finding" || failed="$$failed $$finding"; \
	done; [ -z "$$failed" ] || { echo "no longer as described:$$failed" >&2; exit 1; }

lint: .venv/installed
	$(LINT)

# What setup.py promises to work with at the least, on Python 3.11.
oldest: .venv-oldest/installed
	$(OLDEST)

# The stamp comes last, so that an install that was cut short is taken up again. deptry cannot read setup.py: what it declares is written down for it.
.venv/installed: setup.py pyproject.toml constraints.txt
	rm -f $@
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --constraint constraints.txt pip setuptools wheel
	.venv/bin/python -m pip install --constraint constraints.txt --build-constraint constraints.txt --editable '.[test,bench,export,openvino,sweep]'
	.venv/bin/python -I -c 'from importlib.metadata import requires; print(*requires("bertfast"), sep="\n")' > .venv/declared.txt
	grep -Ev 'extra == .(bench|test)' .venv/declared.txt > .venv/requirements.txt
	grep -E 'extra == .(bench|test)' .venv/declared.txt > .venv/requirements-dev.txt
	touch $@

# Without a build of torch for CPUs at hand, some gigabytes: that for GPUs does not even import without CUDA's libraries.
.venv-oldest/installed: setup.py pyproject.toml constraints-oldest.txt
	rm -f $@
	python3.11 -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --constraint constraints-oldest.txt pip setuptools wheel
	.venv-oldest/bin/python -m pip install --constraint constraints-oldest.txt --build-constraint constraints-oldest.txt --editable '.[test,bench,export,openvino,sweep]'
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

# For a measuring machine that can fetch nothing: wheels for its Python 3.12 of what bertfast needs beside torch, Triton and transformers, and a peer of the kernels.
gpu-kit: .venv/installed
	mkdir -p .gpu-kit
	.venv/bin/python -m pip download --constraint constraints.txt --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest .gpu-kit \
	    annotated_types datasets dill google_crc32c hjson lazy_loader liger_kernel msgpack multiprocess py-cpuinfo pydantic pydantic_core typing_inspection
	.venv/bin/python -m pip wheel --constraint constraints.txt --no-deps --wheel-dir .gpu-kit deepspeed
