# make demo    three stages on simulated scenes: detection, segmentation, lanes; one table
# make test    the tests
# make check   ruff, mypy and the tests: what CI runs
# Each builds its environment in .venv from nothing, and again only when the pins change.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PINS := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
RUN := $(VENV)/.installed-$(PINS)
DEV := $(VENV)/.installed-dev-$(PINS)

.PHONY: demo test lint check clean

demo: $(RUN)
	$(PY) tools/three_stages.py

test: $(DEV)
	$(PY) -m pytest

lint: $(DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

check: lint test

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(RUN):
	$(call install,.)

$(DEV):
	$(call install,.[dev])

# the pinned versions are in constraints.txt; the time is printed, since it is not the demo's
define install
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "pcdet_freeze needs Python 3.10 or later; found " + sys.version.split()[0] + " (make PYTHON=python3.11 ...)")'
	@start=$$(date +%s); rm -f $(VENV)/.installed*; \
	$(PYTHON) -m venv $(VENV) && \
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "$(1)" && \
	touch $(RUN) $@ && echo "installation: $$(( $$(date +%s) - start )) s ($(VENV))"
endef
