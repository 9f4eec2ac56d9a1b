# make train   set up, then train a ConvNet on real images through pyconv's kernels
# make test    set up, then run the tests
# The rest: test-all, sanitize, bench, gpu, gates, lint, format, tables, clean. Set-up is done once and kept in $(VENV).

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
ARGS ?=
PROCESSES ?= 2

# Where there is an NVIDIA driver, set-up brings what launches the CUDA kernels too.
EXTRAS := train dev $(if $(wildcard /proc/driver/nvidia/version)$(shell command -v nvidia-smi),cuda)

NATIVE_SOURCES := CMakeLists.txt setup.py $(shell find kernels -name '*.cpp' -o -name '*.h')
LIBRARY := pyconv/lib/libpyconv_cpu.so
CPP_SOURCES := $(shell find kernels tests/native -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: train test test-all sanitize bench gpu gates lint format tables setup native clean

train: setup
	@echo "== training (digits by default; another data set: make train ARGS='--data fashion-mnist')"
	$(PY) -m pyconv train $(ARGS)

test: setup native
	@echo "== tests (the exhaustive sweep is: make test-all)"
	$(PY) -m pytest -n $(PROCESSES) -m "not exhaustive" $(ARGS)

test-all: setup native
	@echo "== tests, exhaustive sweep included"
	$(PY) -m pytest -n $(PROCESSES) $(ARGS)

sanitize: setup native
	@echo "== the CPU kernels of every instruction set under AddressSanitizer, UndefinedBehaviorSanitizer and"
	@echo "   ThreadSanitizer, and on fenced memory (minutes to build, once)"
	$(PY) -m pytest -n $(PROCESSES) tests/test_sanitizers.py tests/test_bounds.py $(ARGS)

bench: setup native
	@echo "== benchmark: pyconv against torch's own kernels"
	$(PY) -m bench.run $(ARGS)

# With PYTHON given it needs no network and no virtual environment, but a Python that has torch, CuPy, pytest, cmake
# and ninja: make gpu PYTHON=python3
ifeq ($(origin PYTHON),command line)
gpu:
	@echo "== the native library, into the checkout"
	@PYCONV_REQUIRE_NATIVE=1 $(PYTHON) setup.py --quiet build_ext --inplace
	$(PYTHON) -m bench.gpu $(ARGS)
else
gpu: setup
	$(PY) -m bench.gpu $(ARGS)
endif

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP_SOURCES)

format: setup
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CPP_SOURCES)

tables: setup gates
	$(PY) -m pyconv.tables --write
	$(PY) -m pyconv.excerpts --write

gates: setup
	@echo "== every CUDA kernel compiled for every architecture, checked, and listed in kernels/RESOURCES.md (with"
	@echo "   ARGS='--only direct --arch sm_80' some are checked and none listed)"
	$(PY) -m pyconv.gates $(or $(ARGS),--write)
	@echo "== every Numba kernel likewise, listed in kernels/RESOURCES_NUMBA.md"
	$(PY) -m pyconv.gates.numba_kernels

setup: $(VENV)/.native

# Without a C++ compiler training goes on, through the Numba kernels; what is tested and measured is the library too.
native: setup
	@test -e $(LIBRARY) || PYCONV_REQUIRE_NATIVE=1 $(PY) setup.py --quiet build_ext --inplace

$(VENV)/.packages: pyproject.toml constraints.txt
	@echo "== set-up 1/2: Python packages into $(VENV) (about 1 GB, once)"
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	  { echo "pyconv needs Python >= 3.11, and $(PYTHON) is older; try: make PYTHON=python3.12"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet -c constraints.txt torch setuptools wheel cmake ninja
	@$(PY) -c 'import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  extras = [p["optional-dependencies"][extra] for extra in sys.argv[1:]]; \
	  print(*p["dependencies"], *sum(extras, []), sep="\n")' $(EXTRAS) | grep -v "^pyconv" > $(VENV)/requirements.txt
	@$(PY) -m pip install --quiet -c constraints.txt -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/.native: $(VENV)/.packages $(NATIVE_SOURCES)
	@echo "== set-up 2/2: the native library, once per instruction set"
	@$(PY) -m pip install --quiet --no-build-isolation --no-deps -e .
	@if test -e $(LIBRARY); then touch $@; else \
	  echo "warning: the native library was not built, for want of a C++17 compiler or because it failed."; \
	  echo "         pyconv works without it, through its Numba kernels, which are slower. To see what is amiss:"; \
	  echo "         $(PY) setup.py build_ext --inplace"; fi

clean:
	rm -rf build *.egg-info pyconv/lib/*.so
