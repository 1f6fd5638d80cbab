# Everything from a fresh machine with Python and make: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where the runs of a benchmark are made: processes, ray (with ARGUMENTS="--address ..." on a cluster), or here.
ENGINE ?= processes
# Ray's own switch for what it reports to its makers.
export RAY_USAGE_STATS_ENABLED := 0
READY := $(VENV)/.ready

.PHONY: demo test comfyui benchmark benchmark-quick benchmark-long tiny-base clean

$(READY): requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $(READY)

demo: $(READY)
	$(BIN)/python -m trainer demo

# bitsandbytes comes here: peft loads it wherever it is, and on some CPUs it prints a line about a package of its own.
test: $(READY) comfyui
	$(BIN)/python -m pip install --quiet bitsandbytes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

comfyui: $(READY)
	$(BIN)/python -m scripts.comfyui build/comfyui

# A quarter of an hour on two cores.
benchmark-quick: $(READY)
	$(BIN)/python -m benchmarks quick --engine $(ENGINE) $(ARGUMENTS)

# Two hours on two cores; goes on where it was stopped.
benchmark: $(READY)
	$(BIN)/python -m benchmarks table --engine $(ENGINE) $(ARGUMENTS)

# Fifty concepts in sequence, an hour and a half; their drawings come from the same packages as the base's.
benchmark-long: $(READY)
	npm install --no-save --ignore-scripts --prefix build/emoji $(shell cat scripts/tiny_base/packages.txt)
	$(BIN)/python -m scripts.tiny_base.samples --node-modules build/emoji/node_modules --long
	$(BIN)/python -m benchmarks long --engine $(ENGINE) $(ARGUMENTS)

# Hours on two cores; goes on from build/tiny_base when it is run again. NODE_MODULES holds the emoji packages.
tiny-base: $(READY)
	npm install --no-save --ignore-scripts --prefix build/emoji $(shell cat scripts/tiny_base/packages.txt)
	$(BIN)/python -m scripts.tiny_base.train --node-modules build/emoji/node_modules
	$(BIN)/python -m scripts.tiny_base.samples --node-modules build/emoji/node_modules
	$(BIN)/python -m scripts.tiny_base.quality --node-modules build/emoji/node_modules

clean:
	rm -rf $(VENV) build
