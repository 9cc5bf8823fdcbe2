# Two commands: `make demo` and `make test`. Both set everything up themselves.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# Test processes share the cores; one thread each is fastest.
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: demo test lint system docs benchmark fuzz lock hashes sbom audit clean

demo: $(VENV)/.train
	$(BIN)/leukoscope demo -o demo

test: lint system
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --ignore=tests/test_arms.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist load tests/test_arms.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every table of speed in one run, on real images and weights; nothing else should run beside it.
DATA ?= ../shared/data/pbc-mini
WEIGHTS ?= ../shared/weights/mobilenetv2_100_in1k.safetensors
benchmark: $(VENV)/.dev
	$(BIN)/python benchmarks/inference.py --data $(DATA) --memory
	$(BIN)/python benchmarks/training.py $(DATA) --weights $(WEIGHTS)
	$(BIN)/python benchmarks/imaging.py $(DATA)
	$(BIN)/python benchmarks/indexing.py $(DATA)
	$(BIN)/python benchmarks/intervals.py
	$(BIN)/python benchmarks/review.py
	$(BIN)/python benchmarks/classical.py

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

# Chromium for the tests that look at pages, PostgreSQL for those of the review application:
# installed where they may be, otherwise those tests are skipped and say so.
system:
	@missing=""; \
	command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing="chromium"; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || \
	missing="$$missing postgresql"; \
	test -z "$$missing" || \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; } || \
	echo "Missing and not to be installed here:$$missing; their tests will be skipped."

# One reader of tests/fuzz/readers.py for so many minutes; what is found lands in fuzzing/READER.
READER ?= image
MINUTES ?= 30
fuzz: $(VENV)/.dev
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[fuzz]' || \
	{ echo "atheris has no wheel for this computer: no fuzzing here."; exit 1; }
	$(BIN)/python tests/fuzz/run.py $(READER) --minutes $(MINUTES)

# The supply chain (docs/supply-chain.md). Its tools stand apart from what they look at.
TOOLS := $(VENV)/tools
lock: constraints-hashed.txt
constraints-hashed.txt: constraints.txt $(TOOLS)/.made
	$(TOOLS)/bin/uv pip compile -q --no-deps --universal --python-version 3.11 --generate-hashes \
	--default-index https://pypi.org/simple --no-emit-package torch --no-annotate --no-header \
	constraints.txt -o $@

hashes: $(VENV)/.train
	$(BIN)/python -m pip download -q --no-deps --require-hashes -d build/wheels -r constraints-hashed.txt

sbom: $(VENV)/.dev $(TOOLS)/.made
	mkdir -p build
	$(TOOLS)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml \
	--output-reproducible -o build/sbom.json
	$(BIN)/python .ci/supply.py core | $(TOOLS)/bin/python .ci/supply.py sbom build/sbom.json

audit: $(TOOLS)/.made
	mkdir -p build
	$(TOOLS)/bin/pip-audit --disable-pip --no-deps -r constraints-hashed.txt -f json \
	-o build/audit.json || true
	$(TOOLS)/bin/python .ci/supply.py audit build/audit.json

$(TOOLS)/.made: constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; found none."; exit 1; }
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install -q -c constraints.txt cyclonedx-bom pip-audit uv
	touch $@

$(VENV)/.train: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; found none."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[train,serve]'
	touch $@

$(VENV)/.dev: $(VENV)/.train
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[train,serve,fast,ray,dev]'
	touch $@

clean:
	rm -rf $(VENV) demo build
