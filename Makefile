# `make studio` on a bare machine is all a person needs; the rest is for developers. Run `make` for the list.

VENV    := .venv
PYTHON  := $(VENV)/bin/python
STAMPS  := $(VENV)/stamps
INSTALL  = $(PYTHON) -m pip install --disable-pip-version-check --constraint constraints.txt
PYTEST   = $(PYTHON) -m pytest
TESTS_test-rooms := tests/adapters tests/training tests/kernels $(wildcard tests/test_*.py)
TESTS_test-app   := tests/app tests/e2e
QUICK   := tests/test_house.py tests/kernels $(addprefix tests/adapters/,kinds/test_laws.py formats/test_native.py \
           attach/test_mount.py core/test_settings.py initialization/test_rank_budget.py formats/test_compatibility.py) \
           $(addprefix tests/training/,config/test_train_config.py config/test_events.py loop/test_losses.py \
           loop/test_noise.py data/test_buckets.py) $(addprefix tests/app/,store/test_home.py web/test_security.py)
ROOMS   := app training adapters kernels assets
LINKS   := $(addprefix build/types/atelier/,$(ROOMS))
# TORCH=cpu is the build of torch without CUDA, from PyTorch's own index; TORCH=cuda is the ordinary one, on Linux
# gigabytes larger. Without either, make takes the one it took before, and the first time the one that fits the machine.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
DEVICES      = $(wildcard /dev/nvidia[0-9]* /proc/driver/nvidia/version)
NVIDIA       = $(DEVICES)$(shell nvidia-smi -L 2>/dev/null)
TORCH       ?= $(or $(shell cat $(STAMPS)/torch 2>/dev/null),$(if $(filter Linux,$(shell uname)),$(if $(NVIDIA),cuda,cpu),cuda))
# Whether an index answers within five seconds. SIGALRM ends look-ups of names as well, which no timeout of Python does.
ANSWERS      = $(PYTHON) -c 'import signal, sys, urllib.request; signal.alarm(5); \
               sys.argv[1].startswith("http") and urllib.request.urlopen(sys.argv[1])'
# Newest first. torch has no wheels for a Python that came out yesterday, so the list ends where ours were tried.
PYTHONS ?= python3.14 python3.13 python3.12 python3.11 python3 python

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup dev chromium studio test test-rooms test-app check check-types check-tests slow gpu gpu-tests base bench FORCE

help:            ## show this list
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile | expand -t 15

setup: $(STAMPS)/runtime | $(LINKS)    ## make .venv with everything that runs Atelier

studio: setup    ## set up, start Atelier and open it in the browser (TORCH=cpu or TORCH=cuda chooses torch's build)
	@$(VENV)/bin/atelier serve --open

test: dev chromium    ## set up and run every test but the slow ones
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-rooms test-app

# Two halves side by side, each with one thread and a folder of its own for device locks: half the time on two cores.
test-rooms test-app:
	@mkdir -p build/$@ && TMPDIR="$$PWD/build/$@" OMP_NUM_THREADS=1 \
	  $(PYTEST) -m "not slow and not gpu" -o cache_dir=build/$@/cache --durations=12 $(TESTS_$@)

check: dev       ## before a commit: style, types, laws and fast tests
	$(PYTHON) -m ruff check .
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target check-types check-tests

check-types:
	$(PYTHON) -m pyright

# Every kind through every law on one of the layers; `make test` has them on all.
check-tests:
	OMP_NUM_THREADS=1 $(PYTEST) -q -k "tall or not test_laws" $(QUICK)

slow: dev        ## the tests that take minutes
	$(PYTEST) -m "slow and not gpu"

# Without .venv, what torch and triton of the machine can check: the kernels.
gpu:             ## what only an NVIDIA GPU can show, in 11 minutes: kernels, tests, speed, memory against the plan
	@if [ ! -x $(PYTHON) ] && python3 -c 'import torch, triton' 2>/dev/null; then \
	  python3 tests/kernels/twins.py --device cuda --dtypes float32 float16 bfloat16; \
	else $(MAKE) --no-print-directory gpu-tests; fi

gpu-tests: dev
	$(INSTALL) --quiet --editable '.[gpu]'
	$(PYTHON) -m benchmarks.gpu --minutes 11; failed=$$?; $(PYTHON) -m benchmarks --render; exit $$failed

base: dev        ## train the embedded base model from nothing, or go on where it stopped (hours on a CPU)
	$(INSTALL) --quiet --editable '.[base]'
	nice -n 19 $(PYTHON) -m atelier.training.embedded_base.pictures --out build/base
	nice -n 19 $(PYTHON) -m atelier.training.embedded_base.build --work build/base --out assets/base
	nice -n 19 $(PYTHON) -m atelier.training.recipes.prior_preservation

bench: dev       ## measured comparisons of speed, side by side with others' (hours on a small CPU; -m benchmarks --quick)
	$(PYTHON) -m benchmarks
	$(PYTHON) -m benchmarks --render

dev: $(STAMPS)/dev | $(LINKS)

# An interrupted installation leaves no stamp, so the next `make` takes it up again.
$(STAMPS)/runtime: pyproject.toml constraints.txt $(STAMPS)/place $(STAMPS)/torch
	@echo 'Installing Atelier and the libraries it needs into $(VENV). The first time this takes a few minutes.'
	$(INSTALL) --editable .
	@touch $@

# Only the CPU build has to be installed by itself. The ordinary one comes with the rest, once the other is out of its way.
$(STAMPS)/torch: FORCE | $(PYTHON)
	@mkdir -p $(STAMPS); if echo '$(TORCH)' | cmp -s - $@; then exit 0; fi; \
	case '$(TORCH)' in \
	cpu)  echo 'Installing torch without CUDA, about 200 MB, from $(TORCH_INDEX)'; \
	      echo 'For an NVIDIA card: make studio TORCH=cuda'; \
	      if { $(ANSWERS) '$(TORCH_INDEX)/torch/'; } 2>/dev/null && \
	        $(INSTALL) --force-reinstall --no-deps --index-url '$(TORCH_INDEX)' torch; then echo cpu > $@; exit 0; fi; \
	      echo 'The CPU build could not be installed from there. Installing the ordinary torch instead,'; \
	      echo 'which on Linux is gigabytes larger. To try again: make studio TORCH=cpu' ;; \
	cuda) $(PYTHON) -m pip uninstall --quiet --yes torch ;; \
	*)    echo 'TORCH is cpu or cuda, not $(TORCH).' >&2; exit 2 ;; \
	esac; echo cuda > $@

$(STAMPS)/dev: $(STAMPS)/runtime
	@echo 'Installing what the tests need.'
	$(INSTALL) --quiet --editable '.[dev]'
	@touch $@

# The environment holds absolute paths: a copied or moved project must install itself again.
$(STAMPS)/place: FORCE | $(PYTHON)
	@mkdir -p $(STAMPS); pwd | cmp -s - $@ || pwd > $@

$(PYTHON):
	@for name in $(PYTHONS); do \
	  "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  echo "Making $(VENV) with $$("$$name" --version)"; exec "$$name" -m venv --clear $(VENV); \
	done; \
	echo "Atelier needs Python 3.11 or newer with its venv module; found: $$(python3 --version 2>&1 || true)." >&2; \
	echo "  Debian, Ubuntu: sudo apt-get install python3 python3-venv     macOS: brew install python" >&2; \
	echo "  Python somewhere else: make setup PYTHONS=/path/to/python3.12" >&2; \
	exit 1

# Type checkers and doctests can't follow an editable install: they see the same names through these links.
$(LINKS):
	@mkdir -p $(@D) && ln -sfn ../../../$(@F) $@

# The browser tests need Chromium. Without it they are skipped, and everything else still runs.
chromium:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
	  if command -v $$name >/dev/null; then exit 0; fi; \
	done; \
	if [ "$$(id -u)" = 0 ]; then sudo=; else sudo='sudo -n'; fi; \
	if command -v apt-get >/dev/null && $$sudo true 2>/dev/null; then \
	  echo 'Installing Chromium for the browser tests.'; \
	  $$sudo apt-get update -qq </dev/null && $$sudo env DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends chromium </dev/null >/dev/null && exit 0; \
	fi; \
	echo 'Chromium is not here and could not be installed, so the browser tests will be skipped.' >&2; \
	echo 'To run them: install Chromium or Google Chrome, then make test again.' >&2

FORCE:
