# Everything from a clean clone: `make demo` and `make test` need Python 3.11 to 3.13 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS := .venv-docs
DOCS_READY := $(DOCS)/.ready
INTEROP_READY := $(patsubst %,.interop/%/.ready,cellpose3 nnunet stardist torchem)
# Python compiles what it imports, once: of what is installed most is never imported, the rest hundreds of times.
unexport PYTHONDONTWRITEBYTECODE


.PHONY: demo test pytest test-long check bench bench-quick bench-objects bench-scaling bench-growth bench-gpu simulate interop
.PHONY: score-tables docs clean requirements
.DEFAULT_GOAL := test

# Whatever is installed must have one of the hashes in requirements/: pip and setuptools first, then the rest.
PIP_INSTALL := -m pip install --quiet --require-hashes --requirement

$(READY): pyproject.toml requirements/installer.txt requirements/dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) requirements/installer.txt
	$(BIN)/python $(PIP_INSTALL) requirements/dev.txt --no-deps --no-compile --only-binary :all:
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --no-build-isolation --editable .
	touch $(READY)

$(DOCS_READY): requirements/installer.txt requirements/docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python $(PIP_INSTALL) requirements/installer.txt
	$(DOCS)/bin/python $(PIP_INSTALL) requirements/docs.txt --no-deps --only-binary :all:
	touch $(DOCS_READY)

# The pins and hashes of requirements/ from the lower bounds of pyproject.toml, for Python 3.11 to 3.13 on Linux and
# macOS; what is pinned stays where it still fits. All newer: make requirements UPGRADE=--upgrade
LOCK = $(BIN)/python -m uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11.5 \
	--generate-hashes --no-annotate --no-emit-index-url --custom-compile-command 'make requirements' $(UPGRADE)
requirements: $(READY)
	$(LOCK) pyproject.toml --extra dev --output-file requirements/dev.txt
	grep -o '^[^ ]*==[^ ]*' requirements/dev.txt > requirements/.pins
	$(LOCK) pyproject.toml --extra azure --extra bioimageio --extra cellpose --extra formats --extra nnunet \
		--extra onnx --extra openvino --constraint requirements/.pins --output-file requirements/run.txt
	for use in docs installer release workflows; do \
		$(LOCK) --group $$use --constraint requirements/.pins --output-file requirements/$$use.txt || exit; done
	rm requirements/.pins

# A sample plate, a small ensemble trained on the spot, predict (it says whether on Ray), the ranking and a page to look at.
demo: $(READY)
	$(BIN)/python -m chorus.demo demo

# Lint and types beside all tests: both must pass. On a make of 2 jobs, so that neither waits for the other.
test: $(READY)
	$(MAKE) --no-print-directory --jobs=2 check pytest

# All tests, file by file on up to 4 cores.
pytest: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# All that needs Ray, the rest of the kill runs and spreads over actors included: ten kills in all.
test-long: $(READY)
	$(BIN)/python -m pytest -m "ray or kill or long"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The tables of scores and flags in the docs, from their registry.
score-tables: $(READY)
	$(BIN)/python -m chorus.pipeline.scores.documentation README.md docs/glossary.md docs/trust.md

bench: $(READY)
	PYTHONPATH=. $(BIN)/python benchmarks/run.py

bench-quick: $(READY)
	PYTHONPATH=. $(BIN)/python benchmarks/run.py --quick

# What changed since an earlier run: PYTHONPATH=. .venv/bin/python benchmarks/compare.py OLD.json NEW.json

# 1, 2, 4 and 8 times the images and the pixels, and 1,000 small fields against one large plane.
bench-growth: $(READY)
	PYTHONPATH=. $(BIN)/python benchmarks/growth.py

# On a machine with a GPU, unattended, under 8 minutes: backends, share of the peak, whole runs.
bench-gpu: $(READY)
	PYTHONPATH=. $(BIN)/python benchmarks/gpu.py
	PYTHONPATH=. $(BIN)/python benchmarks/fused.py --device cuda --tile 512 --encoder resnet34 --precision bf16 --seconds 3

# Objects of a plane: seconds a megapixel beside Cellpose's, what halos cost, one worker and two.
bench-objects: $(READY)
	PYTHONPATH=. $(BIN)/python benchmarks/objects.py

# Members that sleep on 1 to 16 actors of Ray, and what a block costs the driver (half an hour).
bench-scaling: $(READY)
	PYTHONPATH=. $(BIN)/python benchmarks/scaling.py weak
	PYTHONPATH=. $(BIN)/python benchmarks/scaling.py driver

# Chorus beside the tools whose networks it takes, each in an environment of its own (3 GB beside torch, which is shared);
# models and images of your own: make interop INTEROP=FOLDER. See docs/interop.md.
interop: $(INTEROP_READY)
	PYTHONPATH=. $(BIN)/python benchmarks/interop/all_tools.py $(INTEROP)

.interop/%/.ready: benchmarks/interop/requirements/%.txt $(READY)
	rm -rf .interop/$*
	$(PYTHON) -m venv .interop/$*
	$(if $(filter stardist,$*),,$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > \
		"$$(.interop/$*/bin/python -c 'import site; print(site.getsitepackages()[0])')/zz_chorus.pth")
	.interop/$*/bin/python -m pip install --quiet --requirement $<
	touch $@

# The schedule from 1 to 1,000 GPUs, simulated: docs/scale.csv and docs/images/scale.png.
simulate: $(READY)
	PYTHONPATH=. $(BIN)/python benchmarks/simulate.py main

# The documentation, into site/: read it from there, no server is needed. A warning is an error.
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build

clean:
	rm -rf $(VENV) $(DOCS) .interop demo site build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
