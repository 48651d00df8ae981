# SPDX-License-Identifier: Apache-2.0
# Two commands for a newcomer: `make demo` and `make test`. Each sets up what it needs in .venv.

PYTHON ?= python3
BUNDLE ?= nano
SECONDS ?= 600
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check -q

.PHONY: demo soak bench test test-slow check format lock clean

demo: $(VENV)/.runtime ## three processes over DDS: player, node, recorder; then pictures and a report in out/demo
	$(RUN) -m lidargen_ros.cli demo --bundle $(BUNDLE)

soak: $(VENV)/.runtime ## the sample drive in a loop for SECONDS: frames, memory, threads, files, age; report in out/soak
	$(RUN) -m lidargen_ros.ros.soak --seconds $(SECONDS) --bundle $(BUNDLE)

bench: $(VENV)/.runtime ## BUNDLE on this machine: time per stage and end to end, for each engine that runs here
	$(RUN) -m lidargen_ros.cli bench $(BUNDLE)

test: $(VENV)/.dev ## lint, types and the whole suite
	$(MAKE) --no-print-directory check
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist loadfile -m "not slow"

test-slow: $(VENV)/.dev ## what takes longer, e.g. the compiled scene generator against the eager one, all commands of the tutorial
	$(RUN) -m pytest -q -m slow

check: $(VENV)/.dev
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

format: $(VENV)/.dev
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than 3.10; run make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }

$(VENV)/.runtime: requirements/runtime.lock setup.py | $(RUN)
	@echo "installing (once) ..."
	$(PIP) install -r requirements/runtime.lock
	$(PIP) install --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements/dev.lock requirements/torch.txt requirements/tensorrt-rtx.txt setup.py | $(RUN)
	@echo "installing (once) ..."
	$(PIP) install -r requirements/dev.lock
	$(PIP) install -r requirements/torch.txt -r requirements/tensorrt-rtx.txt
	$(PIP) install --no-deps -e .
	@touch $@ $(VENV)/.runtime

lock: | $(RUN) ## resolves requirements/*.lock anew for Python 3.10 to 3.13
	$(PIP) install uv
	$(VENV)/bin/uv pip compile -q --universal --python-version 3.10 --no-header --no-annotate --extra ros \
		setup.py -o requirements/runtime.lock
	$(VENV)/bin/uv pip compile -q --universal --python-version 3.10 --no-header --no-annotate --extra ros \
		-c requirements/runtime.lock setup.py requirements/dev.in -o requirements/dev.lock

clean:
	rm -rf out build install log .pytest_cache .mypy_cache .ruff_cache
