# make demo      three stages on simulated scenes: detection, segmentation, lanes; one table, one report.html
# make quick     the tests of freezing, operators, metrics, configs and commands: under two minutes on two cores
# make test      all tests but those marked `slow`: under eight minutes
# make test-all  all tests: under 25 minutes
# make lint      ruff and mypy
# make docs      the documentation as a site: site/index.html, which needs no network (docs-serve: with search)
# make check     lint, then test
# Each builds its environment in .venv from nothing, and again only when the pins change.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PINS := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
RUN := $(VENV)/.installed-$(PINS)
DEV := $(VENV)/.installed-dev-$(PINS)
# what tests need includes what the site needs
SITE_EXTRAS := .[docs,vis]
DOCS := $(if $(wildcard $(DEV)),$(DEV),$(VENV)/.installed-docs-$(PINS))

# the folders of `make quick`
QUICK := tests/freezing tests/ops tests/evaluation tests/utils tests/cli tests/engine/optim tests/test_config.py \
	tests/test_architecture.py

# a process for each core, at most four; the tests of a file share one, since they share its fixtures
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo quick test test-slow test-all lint docs docs-serve check clean

demo: $(RUN)
	$(PY) tools/three_stages.py

quick: $(DEV)
	$(PYTEST) -q -m "not slow" $(QUICK)

test: $(DEV)
	$(PYTEST) -m "not slow"

test-slow: $(DEV)
	$(PYTEST) -m slow

test-all: $(DEV)
	$(PYTEST)

lint: $(DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

docs-serve: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs serve --strict

check: lint test

clean:
	rm -rf $(VENV) site .venv-oldest-torch .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(RUN):
	$(call install,.[vis])

$(DEV):
	$(call install,.[dev])

$(VENV)/.installed-docs-$(PINS):
	$(call install,$(SITE_EXTRAS))

# the pinned versions are in constraints.txt; the time is printed, since it is no part of the demo's time
define install
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "pcdet_freeze needs Python 3.10 or later; found " + sys.version.split()[0] + " (make PYTHON=python3.11 ...)")'
	@start=$$(date +%s); rm -f $(VENV)/.installed*; \
	$(PYTHON) -m venv $(VENV) && \
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "$(1)" && \
	touch $(RUN) $@ && echo "installation: $$(( $$(date +%s) - start )) s ($(VENV))"
endef
