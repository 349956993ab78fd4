# Every target makes .venv itself; a machine needs Python (3.11 to 3.13), pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_VENV ?= .venv-openmm-torch
LOWEST_VENV ?= .venv-lowest
# one thread per process: walkers and tests share the cores, and oversubscribed threads are far slower
export OMP_NUM_THREADS ?= 1
# tests run side by side, one process for each core
WORKERS ?= auto
PYTEST = -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast test-lowest test-openmm-torch lint docs bench pretrain soak clean

demo: $(VENV)/.installed
	$(BIN)/geomgnn demo

test: $(VENV)/.installed
	$(BIN)/python $(PYTEST) $(PYTEST_ARGS)

# for people who change code: the tests that are not marked slow
test-fast: $(VENV)/.installed
	$(BIN)/python $(PYTEST) -m "not slow" $(PYTEST_ARGS)

# the tests of test-fast with the lowest versions that setup.cfg allows, in an environment of its own (Python 3.11): 4 GB to
# download, 7 GB on the disk
test-lowest: $(LOWEST_VENV)/.installed
	$(LOWEST_VENV)/bin/python $(PYTEST) -m "not slow" $(PYTEST_ARGS)

# openmm-torch's TorchForce with the released wheels, in an environment of its own: 4 GB to download, 7 GB on the disk
test-openmm-torch: $(TORCH_VENV)/.installed
	$(TORCH_VENV)/bin/python $(PYTEST) tests/force/test_openmm_torch.py tests/force/test_backends.py $(PYTEST_ARGS)

# `geomgnn run` killed at a hundred random moments and resumed each time: half an hour on two idle cores
soak: $(VENV)/.installed
	$(BIN)/python tests/helpers/soak.py $(SOAK_ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the site, in docs/_build/html; a warning is an error. Everything is read again: pages are also made from the package.
docs: $(VENV)/.installed
	$(BIN)/sphinx-build -E -n -W --keep-going -j auto docs docs/_build/html

bench: $(VENV)/.installed
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

pretrain: $(VENV)/.installed
	$(BIN)/torchmd-train --conf protocols/pretrain.yaml

# torch comes first: it alone decides which build of it the others are content with. What is published as source only
# (torchmd-net, openmmml, pdbfixer) is built with what its own pyproject.toml asks for, so pip's build isolation stays on.
# --no-compile: to compile 20,000 modules takes minutes, and most are never imported; Python compiles those that are.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile -c constraints.txt torch
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e ".[all,test,interoperability,lint,docs]"
	touch $@

$(TORCH_VENV)/.installed: setup.cfg pyproject.toml constraints-openmm-torch.txt
	test -x $(TORCH_VENV)/bin/python || $(PYTHON) -m venv $(TORCH_VENV)
	$(TORCH_VENV)/bin/python -m pip install --no-compile -c constraints-openmm-torch.txt torch openmmtorch openmm-cuda-12
	$(TORCH_VENV)/bin/python -m pip install --no-compile -c constraints-openmm-torch.txt -e ".[fast,test]"
	touch $@

$(LOWEST_VENV)/.installed: setup.cfg pyproject.toml constraints-lowest.txt
	test -x $(LOWEST_VENV)/bin/python || $(PYTHON) -m venv $(LOWEST_VENV)
	$(LOWEST_VENV)/bin/python -m pip install --no-compile -c constraints-lowest.txt torch
	$(LOWEST_VENV)/bin/python -m pip install --no-compile -c constraints-lowest.txt -e ".[all,test]"
	touch $@

clean:
	rm -rf $(VENV) $(TORCH_VENV) $(LOWEST_VENV) build dist docs/_build docs/reference/api/generated *.egg-info
