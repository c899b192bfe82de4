# Two commands on a fresh machine: `make demo` and `make test`. Nothing is downloaded but packages.
PYTHON ?= python3
VENV ?= .venv
COMPAT ?= .venv-compat
PYTEST = -m pytest -n auto --maxprocesses 8 --dist worksteal

FAST = -m "not slow and not distributed and not browser and not gpu"
# Tests of code that calls transformers.
WITH_TRANSFORMERS = tests/janus tests/decoding tests/tasks tests/recipes tests/test_benchmarks.py \
	tests/test_cli.py tests/test_evaluation.py tests/test_pipeline.py tests/test_recorded.py

.PHONY: demo test test-fast lint test-compat shapes-janus study clean

demo: $(VENV)/installed
	$(VENV)/bin/python main.py predict --config configs/demo.yaml
	@echo "Look at outputs/demo/index.html"

test: $(VENV)/installed
	$(VENV)/bin/python $(PYTEST)

# Under a minute on 2 idle cores.
test-fast: $(VENV)/installed
	$(VENV)/bin/python $(PYTEST) $(FAST)

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

# Train the small Janus of this repository again: under an hour on 2 cores. Run it again to continue.
shapes-janus: $(VENV)/installed
	$(VENV)/bin/python -m recipes.shapes.train fit --config recipes/shapes/vq.yaml
	$(VENV)/bin/python -m recipes.shapes.train fit --config recipes/shapes/language.yaml
	@echo "Checkpoint: outputs/shapes/janus"

# The figures of docs/study.md: about 40 minutes on 2 cores. Run it again to continue.
study: $(VENV)/installed
	PYTHON=$(VENV)/bin/python recipes/shapes/study.sh

# The tests that involve transformers, on its oldest supported version.
test-compat: $(COMPAT)/installed
	$(COMPAT)/bin/python $(PYTEST) $(WITH_TRANSFORMERS)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -c constraints.txt torch
	$(VENV)/bin/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

$(COMPAT)/installed: pyproject.toml constraints-compat.txt
	$(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/pip install --quiet -c constraints-compat.txt torch
	$(COMPAT)/bin/pip install --quiet -c constraints-compat.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) $(COMPAT) outputs build *.egg-info
