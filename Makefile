# Two commands on a fresh machine: `make demo` and `make test`. Nothing is downloaded but packages.
PYTHON ?= python3
VENV ?= .venv
COMPAT ?= .venv-compat
PYTEST = -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo test lint test-compat shapes-janus study clean

demo: $(VENV)/installed
	$(VENV)/bin/python main.py predict --config configs/demo.yaml
	@echo "Look at outputs/demo/index.html"

test: $(VENV)/installed
	$(VENV)/bin/python $(PYTEST)

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Train the small Janus that ships, anew: under an hour on 2 cores. Stopped, it goes on.
shapes-janus: $(VENV)/installed
	$(VENV)/bin/python -m recipes.shapes.train fit --config recipes/shapes/vq.yaml
	$(VENV)/bin/python -m recipes.shapes.train fit --config recipes/shapes/language.yaml
	@echo "Checkpoint: outputs/shapes/janus"

# What docs/study.md tells of: about 40 minutes on 2 cores. Stopped, it goes on.
study: $(VENV)/installed
	PYTHON=$(VENV)/bin/python recipes/shapes/study.sh

# The same tests on the oldest transformers that is supported, but for those where it has no part.
test-compat: $(COMPAT)/installed
	$(COMPAT)/bin/python $(PYTEST) $(foreach part, faults distributed image_logger gallery compare \
		pages shell, --ignore tests/test_$(part).py)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -c constraints.txt torch
	$(VENV)/bin/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

$(COMPAT)/installed: pyproject.toml constraints-compat.txt
	$(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/pip install --quiet -c constraints-compat.txt torch
	$(COMPAT)/bin/pip install --quiet -c constraints-compat.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(COMPAT) checkpoints/tiny-janus outputs build *.egg-info
