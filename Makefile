# Every target makes .venv itself; a machine needs Python (>= 3.11), pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# one thread per process: walkers and tests share the cores, and oversubscribed threads are far slower
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint bench pretrain clean

demo: $(VENV)/.installed
	$(BIN)/geomgnn demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .

bench: $(VENV)/.installed
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

pretrain: $(VENV)/.installed
	$(BIN)/torchmd-train --conf protocols/pretrain.yaml

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt setuptools wheel
	# torch first: it alone decides which build of it the others are content with
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e ".[all,test,lint]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
