# Two commands on a fresh machine: `make demo` and `make test`. Nothing is downloaded but packages.
PYTHON ?= python3
VENV ?= .venv
COMPAT ?= .venv-compat
NEWEST ?= .venv-newest
PYTEST = -m pytest -n auto --maxprocesses 8 --dist worksteal

FAST = -m "not slow and not distributed and not browser and not gpu"
# Tests of code that calls transformers.
WITH_TRANSFORMERS = tests/janus tests/decoding tests/tasks tests/recipes tests/test_benchmarks.py \
	tests/test_cli.py tests/test_evaluation.py tests/test_pipeline.py tests/test_recorded.py

.PHONY: demo test test-fast lint test-compat test-newest shapes-janus study clean

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

# The figures of docs/study.md: about an hour on 2 cores. Run it again to continue.
study: $(VENV)/installed
	PYTHON=$(VENV)/bin/python recipes/shapes/study/study.sh

# The tests that involve transformers, on its oldest supported version.
test-compat: $(COMPAT)/installed
	$(COMPAT)/bin/python $(PYTEST) $(FAST) $(WITH_TRANSFORMERS)

# The fast tests and the demo on the newest release of everything but torch, also of a transformers
# that pyproject.toml does not admit yet.
test-newest: $(NEWEST)/installed
	$(NEWEST)/bin/python main.py predict --config configs/demo.yaml --writer.output_dir $(NEWEST)/demo
	$(NEWEST)/bin/python $(PYTEST) $(FAST) $(WITH_TRANSFORMERS)

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

$(NEWEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet -c constraints.txt torch
	$(NEWEST)/bin/pip install --quiet -e ".[test]"
	$(NEWEST)/bin/pip install --quiet --upgrade transformers
	touch $@

clean:
	rm -rf $(VENV) $(COMPAT) $(NEWEST) outputs build *.egg-info
