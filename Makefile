# Two commands on a fresh machine: `make demo` and `make test`. Nothing is downloaded but packages.
PYTHON ?= python3
VENV ?= .venv
COMPAT ?= .venv-compat
NEWEST ?= .venv-newest
REHEARSAL ?= .venv-rehearsal
REHEARSED ?= torch transformers<5.25
REHEARSED_PARTS = [same_image,images_per_second,steps,dola_over_baseline,promises,other_loops,windows]
PYTEST = -m pytest -n auto --maxprocesses 8 --dist worksteal

FAST = -m "not slow and not distributed and not browser and not gpu"
# Tests of code that calls transformers.
WITH_TRANSFORMERS = tests/janus tests/decoding tests/tasks tests/recipes tests/test_benchmarks.py \
	tests/test_cli.py tests/test_evaluation.py tests/pipeline tests/test_recorded.py

.PHONY: demo test test-fast test-thorough lint test-compat test-newest rehearse-gpu shapes-janus shapes-siglip shapes-lens study clean

demo: $(VENV)/demo
	$(VENV)/bin/python main.py predict --config configs/demo.yaml
	$(VENV)/bin/python main.py rank --config configs/demo-rank.yaml
	$(VENV)/bin/python main.py answer --config configs/demo-answer.yaml
	@echo "Look at outputs/demo/index.html and outputs/demo-answers/index.html"

test: $(VENV)/installed
	$(VENV)/bin/python $(PYTEST)

# One to two minutes on 2 idle cores.
test-fast: $(VENV)/installed
	$(VENV)/bin/python $(PYTEST) $(FAST)

# Everything, and searches with more examples, other ones each time.
test-thorough: $(VENV)/installed
	$(VENV)/bin/python $(PYTEST) --hypothesis-profile thorough

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

# Train the small Janus of this repository again: about 95 minutes on 2 cores. Run it again to continue.
shapes-janus: $(VENV)/installed
	$(VENV)/bin/python -m recipes.shapes.train fit --config recipes/shapes/vq.yaml
	$(VENV)/bin/python -m recipes.shapes.train fit --config recipes/shapes/language.yaml
	@echo "Checkpoint: outputs/shapes/janus"

shapes-siglip: $(VENV)/installed
	$(VENV)/bin/python -m recipes.shapes.train fit --config recipes/shapes/siglip.yaml
	@echo "Checkpoint: outputs/shapes/siglip"

# Train its lenses again, on its own images: about 15 minutes on a core.
shapes-lens: $(VENV)/installed
	$(VENV)/bin/python -m recipes.shapes.training_set outputs/shapes/training 3000
	$(VENV)/bin/python main.py predict --config configs/demo.yaml --data.prompt_json outputs/shapes/training/captions.jsonl \
		--model.dola false --model.cfg_weight 1 --model.parallel_size 1 --model.seed 77 \
		--writer.save_tokens true --writer.gallery false --writer.output_dir outputs/shapes/own
	$(VENV)/bin/python main.py lens --config recipes/shapes/lens.yaml
	@echo "Lenses: outputs/shapes/lens.safetensors"

# The figures of docs/study.md: two and a half hours on 2 cores. Run it again to continue.
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

# What the project itself needs, and nothing else.
$(VENV)/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -c constraints.txt torch
	$(VENV)/bin/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/installed: $(VENV)/demo
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

# What can be tried for a GPU without one, in an environment of 6 GB: the loops on fake CUDA tensors, and
# the table of benchmarks/gpu.sh with the sizes of a toy. Other versions, as GPU images have them:
#   make rehearse-gpu REHEARSAL=.venv-rehearsal-old REHEARSED="torch==2.11.* transformers==5.17.*"
rehearse-gpu: $(REHEARSAL)/installed
	$(REHEARSAL)/bin/python -m pytest tests/test_rehearsal.py
	$(REHEARSAL)/bin/python -m benchmarks.gpu --preset tiny --device cpu --dtype float32 --compile false \
		--tokens 4 --short 4 --parts "$(REHEARSED_PARTS)"

# Not the project itself, whose requirements other versions may not meet.
$(REHEARSAL)/installed: pyproject.toml
	$(PYTHON) -m venv $(REHEARSAL)
	$(REHEARSAL)/bin/pip install --quiet $(foreach package,$(REHEARSED),'$(package)') 'lightning<2.7' \
		'jsonargparse[signatures]<5' jinja2 filelock pillow pyyaml tqdm pytest hypothesis
	touch $@

clean:
	rm -rf $(VENV) $(COMPAT) $(NEWEST) $(REHEARSAL) outputs build *.egg-info
