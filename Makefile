# Two commands for a newcomer: `make run` and `make test`. Both set up what they need in .venv.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
TORCH  := $(shell sed -n 's/^ *"\(torch==[^"]*\)",/\1/p' pyproject.toml)

# uv, where it is on the PATH, installs in seconds what takes pip a minute or two; `make UV=` takes
# pip. Both compile the modules, since many processes import them, and some users switch off that
# Python writes what it has compiled.
UV     := $(shell command -v uv 2>/dev/null)
PIP    := $(if $(UV),$(UV) pip install --quiet --compile-bytecode \
	--python "$(CURDIR)/$(BIN)/python",\
	"$(CURDIR)/$(BIN)/pip" install --disable-pip-version-check -qq)

# A further index to take torch from. PyPI's torch for Linux is the CUDA build; of an index that
# also has a CPU build, pip takes that one, because 2.13.0+cpu counts as newer than 2.13.0.
TORCH_INDEX ?=
TORCH_FROM  := $(TORCH) $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)")

# The peer of the comparisons, in an environment of its own.
PEER   := .venv-peer
AUDIT  := .venv-audit

# The docs site has its own as well.
DOCS   := .venv-docs

.PHONY: help setup run test faults test-all test-cluster lint format bench soak large physics parity \
	peer docs images lock audit clean

help:
	@echo "make run      calibrate generated jets here: search, train, export, validate, serve"
	@echo "make test     lint, then the tests but the slow ones (10 minutes on 2 cores)"
	@echo "make test-all lint, then all tests, with floors of coverage (up to half an hour)"
	@echo "make faults   the tests that try a fault on purpose (docs/reliability.md)"
	@echo "make test-cluster  every object and right against a real API server (KUBEBUILDER_ASSETS)"
	@echo "make lint     ruff, the order of imports between rooms, types"
	@echo "make format   ruff format, and what ruff can mend by itself"
	@echo "make parity   every array of weaver-core 0.5.3 against ours, on the same files"
	@echo "make bench    speed beside weaver-core 0.5.3 and the published networks (long)"
	@echo "make soak     40 searches in one process: does anything grow? (half an hour)"
	@echo "make large    a data set of ten times its memory limit (root on Linux, 9 GB of disk)"
	@echo "make physics  what each input of the network brings, on generated jets (an hour or two)"
	@echo "make docs     build the docs site into site/; a broken link fails it"
	@echo "make setup TORCH_INDEX=URL            torch from a further index, such as one of CPU builds"
	@echo "make images REGISTRY=registry/project build and push the images (docker, podman, buildah)"
	@echo "make lock     resolve pyproject.toml into the hash-pinned locks (needs uv)"
	@echo "make audit    known weaknesses of the locked packages, as PyPI lists them"
	@echo "make clean    remove the environments and caches; runs/ stays"

setup: $(VENV)/.whole

# torch comes first and by itself: each machine takes its own build of it (CPU or CUDA), so it is
# not in the lock. Triton's wheel needs glibc 2.35 or newer; where it does not install, kserve's
# model server answers in its place. The client is installed last; the checkout itself finds it
# without, by the link jec_client. An environment that is a link belongs to another checkout.
$(VENV)/.whole: requirements.lock requirements-triton.lock pyproject.toml Makefile
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) 2>/dev/null || python3 -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
		|| { echo "error: Python 3.11 or 3.12 is needed; type:" \
			"make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "installing $(TORCH) and the locked packages into $(VENV): a few minutes," \
		"6 GB with the CUDA build of torch, 2 GB with a CPU build ..."
	@cd / && $(PIP) $(TORCH_FROM)  # elsewhere, uv would read what pyproject.toml says for the lock
	@$(PIP) --no-deps --require-hashes -r requirements.lock
	@$(PIP) --no-deps --require-hashes -r requirements-triton.lock >/dev/null 2>&1 \
		|| echo "note: no Triton server for this machine; kserve's model server answers instead"
	@test -L $(VENV) || $(PIP) --no-deps --no-build-isolation --editable clients/python
	@$(BIN)/python -c 'import torch'
	@touch $@

# ARGS are passed on, as in
# make run ARGS="--data-train 'train/*.root' --data-val 'val/*.root' --data-test 'test/*.root'"
run: setup
	@$(BIN)/python pipeline.py --runner local --data-config data/jec_pfn_full.yaml \
		--search-space training/search_space_small.yaml --max-trials 4 --parallel-trials 2 \
		--num-epochs 15 --batch-size 128 $(ARGS)

# Rooms whose types are checked strictly.
STRICT := common clusters components operations training exporting evaluating serving physics \
	reporting jec_client pipeline.py

test: lint
	@$(BIN)/python -m pytest -n 3 --dist loadfile -m "not slow and not cluster" $(ARGS)

# Faults tried on purpose: what each must lead to is in docs/reliability.md. `make test` has the
# quick ones.
faults: setup
	@$(BIN)/python -m pytest -n 3 --dist loadfile -m faults $(ARGS)

# Coverage's tracer slows every process, so each test has more time.
test-all: lint
	@$(BIN)/python -m pytest -n 2 --dist loadfile --timeout 600 \
		--cov --cov-report=json:.coverage.json $(ARGS)
	@$(BIN)/python -m tests.coverage_floors .coverage.json

# KUBEBUILDER_ASSETS: folder of kube-apiserver and etcd; without it every test fails.
test-cluster: setup
	@$(BIN)/python -m pytest -m cluster tests/cluster $(ARGS)

lint: setup
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "type: make format" >&2; exit 1; }
	@$(BIN)/lint-imports --no-logo --no-cache
	@$(BIN)/mypy --strict $(STRICT)
	@$(BIN)/mypy weaver networks data

format: setup
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

peer: $(PEER)/.whole

$(PEER)/.whole:
	@test -x $(PEER)/bin/python || $(PYTHON) -m venv $(PEER)
	@echo "installing weaver-core 0.5.3 into $(PEER) ..."
	@$(PEER)/bin/pip install --disable-pip-version-check -qq $(TORCH_FROM)
	@$(PEER)/bin/pip install --disable-pip-version-check -qq weaver-core==0.5.3 vector pyarrow
	@touch $@

# WRITE=1 stores weaver-core's arrays anew.
parity: setup peer
	@$(BIN)/python -m tests.weaver.peer.parity --peer-python $(PEER)/bin/python $(if $(WRITE),--write)

# Each writes its part of benchmarks/results/; keep the machine free of other work meanwhile.
bench: setup peer
	@$(BIN)/python -m benchmarks.feeding
	@$(BIN)/python -m benchmarks.remote
	@$(BIN)/python -m benchmarks.training
	@$(BIN)/python -m benchmarks.networks
	@$(BIN)/python -m benchmarks.serving
	@$(BIN)/python -m benchmarks.search

soak: setup
	@$(BIN)/python -m benchmarks.soak $(ARGS)

large: setup
	@$(BIN)/python -m benchmarks.large $(ARGS)

# What each input and option brings; finished trainings in runs/physics are not done again.
physics: setup
	@$(BIN)/python -m benchmarks.physics --folder runs/physics $(ARGS)

# The site has an environment of its own, of the extra `docs`. It reads the code and never imports it.
docs: $(DOCS)/.whole
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict
	@echo "open site/index.html; for the search: $(PYTHON) -m http.server -d site -b 127.0.0.1 8080"

$(DOCS)/.whole: pyproject.toml
	@test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -c 'import tomllib; \
		extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
		print("\n".join(extras["docs"]))' > $(DOCS)/requirements.txt
	@$(DOCS)/bin/pip install --disable-pip-version-check -qq -r $(DOCS)/requirements.txt
	@touch $@

images:
	@$(PYTHON) -m images.build --registry "$(REGISTRY)" $(ARGS)

# After a change of requirements.lock: make setup, then make lock again for the locks of the images.
# torch's own lock is made without pyproject.toml, which leaves out what only the CUDA build needs.
UV := uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11
lock:
	$(UV) pyproject.toml --extra train --extra local --extra hdf5 --extra generate \
		--extra xrootd --extra mlflow --extra test \
		--no-emit-package torch --python-platform x86_64-manylinux_2_36 -o requirements.lock
	echo 'nvidia-pytriton==0.7.0' | $(UV) - --no-deps \
		--python-platform x86_64-manylinux_2_36 -o requirements-triton.lock
	echo "$(TORCH)" | env -u UV_FIND_LINKS $(UV) - --no-config --constraint requirements.lock \
		--python-platform x86_64-manylinux_2_28 -o images/torch-cuda.lock
	$(BIN)/python -m images.locks

# --strict: an index that does not answer for a package is no clean bill of health. pip-audit then
# ends with one package's name or a traceback, and with the exit code of weaknesses that it found.
audit:
	@test -x $(AUDIT)/bin/pip-audit \
		|| { $(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/pip install -qq pip-audit; }
	@$(AUDIT)/bin/pip-audit --strict --disable-pip --progress-spinner off \
		--requirement requirements.lock --requirement requirements-triton.lock \
		2>$(AUDIT)/said || { grep '^Found ' $(AUDIT)/said >&2 && exit 1; \
			echo "error: the packages were not checked, because PyPI's list of known weaknesses" \
				"could not be asked ($$(tail -n 1 $(AUDIT)/said)); type make audit where" \
				"https://pypi.org is reached" >&2; exit 1; }
	@cat $(AUDIT)/said

clean:
	rm -rf $(VENV) $(PEER) $(AUDIT) $(DOCS) site .venv-onnxruntime-* .pytest_cache .ruff_cache .coverage*
