# The commands of this project; `make help` lists them.
# PYTHON chooses the interpreter the environment is made with: make tutorial PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
STUDENT := student
OFFLINE := offline
PINS := environment.yml
OLDEST := runs/oldest
PIP := $(PY) -m pip --disable-pip-version-check -qq
TORCH_INDEX := https://download.pytorch.org/whl/cpu
TORCH := $(shell sed -n 's/^cpu = \["torch>=.*,<=\([0-9.]*\)"\].*/torch==\1/p' pyproject.toml)
TEST_ENV := COUNTDOWN_PROFILE=cpu-short COUNTDOWN_DATA=shipped \
	COUNTDOWN_RUNS="$(CURDIR)/runs/test" HF_HUB_OFFLINE=1

RIGHT_PYTHON := import sys; (3, 11) <= sys.version_info[:2] <= (3, 14)

GPU_ENV = $(PYTHON) -c 'import pytest, torch, helpers' 2>/dev/null || { \
	echo "This runs in the GPU environment, not in .venv: conda env create -f environment.yml &&" \
	"conda activate countdown-grpo" >&2; exit 1; }

# make lab WHEELS=../folder: a folder that `make offline` gathered, instead of a package index.
ifdef WHEELS
ifeq ($(wildcard $(WHEELS)/torch-*.whl),)
$(error There are no wheels in WHEELS=$(WHEELS): name a folder that `make offline` gathered, without spaces in it)
endif
export PIP_NO_INDEX := 1
export PIP_FIND_LINKS := $(WHEELS)
endif

# What would lead pip or Python away from .venv, or leave half of it out.
export PIP_USER := 0
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_DRY_RUN PIP_NO_DEPS PYTHONHOME
ifneq ($(origin PY),command line)
unexport PYTHONPATH
endif

.DEFAULT_GOAL := help
.PHONY: help tutorial test lab student slides offline test-oldest test-gpu test-gpu-notebooks clean

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 26

tutorial: $(STAMP)  ## run the six notebooks; results under runs/tutorial/
	@$(PY) -m lab.tutorial

test: $(STAMP)  ## lint, unit tests, and every notebook in its short CPU form
	@rm -rf runs/test
	@failed=; \
	echo "== ruff: code and notebooks"; \
	$(PY) -m ruff check . || failed="$$failed ruff"; \
	echo "== unit tests"; \
	$(TEST_ENV) $(PY) -m pytest tests || failed="$$failed unit-tests"; \
	echo "== notebooks: every cell runs, marked outputs are compared"; \
	$(TEST_ENV) $(PY) -m pytest --nbval-lax --nbval-current-env notebooks \
		|| failed="$$failed notebooks"; \
	echo "Left out here: tests marked gpu and the GPU profiles (on a GPU machine: make test-gpu)."; \
	test -z "$$failed" || { echo "make test FAILED in:$$failed" >&2; exit 1; }

test-oldest: $(STAMP)  ## with the oldest versions that pyproject.toml allows: what needs no long training
	@mkdir -p runs
	@$(PY) -m uv pip compile -q pyproject.toml --extra cpu --extra dev --resolution lowest-direct \
		--no-header --no-annotate -o $(OLDEST).txt
	@$(MAKE) --no-print-directory VENV=$(OLDEST) PINS=$(OLDEST).txt $(OLDEST)/.installed
	@$(TEST_ENV) $(OLDEST)/bin/python -m pytest $(patsubst %,tests/test_%.py,arithmetic dataset \
		evaluation exercises forecast intervals paths playground plots preflight profiles prompts \
		puzzles rewards runs solver)
	@$(TEST_ENV) $(OLDEST)/bin/python -m pytest --nbval-lax --nbval-current-env notebooks/0[123]*.ipynb

lab: $(STAMP)  ## open the first notebook in JupyterLab
	@test "$$(id -u)" != 0 || case "$(LAB_OPTIONS)" in *--allow-root*) ;; *) \
	echo "As root JupyterLab asks for: make lab LAB_OPTIONS=--allow-root" >&2;; esac
	@$(PY) -m jupyterlab --notebook-dir=. notebooks/01_explore_the_dataset.ipynb $(LAB_OPTIONS)

student: $(STAMP)  ## write the student edition to student/: no solutions, no answers to predictions
	@test ! -e "$(STUDENT)/01_explore_the_dataset.ipynb" || { echo "$(STUDENT)/ is there, perhaps with" \
	"answers in it: move it, or write another one: make student STUDENT=student-2" >&2; exit 1; }
	@for part in . more; do \
	$(PY) -m nbconvert --log-level=WARN --to notebook --output-dir="$(STUDENT)/$$part" \
		--TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_cell_tags=solution \
		--TagRemovePreprocessor.remove_all_outputs_tags=answer notebooks/$$part/*.ipynb || exit 1; done
	@echo "Written to $(STUDENT)/: open it in JupyterLab like notebooks/."

slides: $(STAMP)  ## one HTML file of the workshop's slides: runs/slides.html
	@$(PY) -m lab.slides

offline: $(STAMP)  ## gather what laptops without a network need (PLATFORMS="windows-amd64 ..." PYTHONS="3.12 ...")
	@$(PY) -m lab.offline --folder "$(OFFLINE)" --torch-index "$(TORCH_INDEX)" \
		$(if $(PLATFORMS),--platforms $(PLATFORMS)) $(if $(PYTHONS),--pythons $(PYTHONS))

test-gpu:  ## the tests that need a GPU, in the activated environment of environment.yml
	@$(GPU_ENV)
	@$(PYTHON) -m pytest -m gpu tests || { status=$$?; test $$status -eq 5 || exit $$status; \
	echo "No test is marked gpu: nothing ran."; }

test-gpu-notebooks:  ## every notebook under smollm2 (a whole training); in the same environment
	@$(GPU_ENV)
	@rm -rf runs/test-gpu/smollm2
	@COUNTDOWN_PROFILE=smollm2 COUNTDOWN_RUNS="$(CURDIR)/runs/test-gpu" $(PYTHON) -m pytest --nbval-lax \
	--nbval-current-env --nbval-cell-timeout=7200 notebooks

clean:  ## remove the environment, caches and the tests' runs (keeps your other runs)
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis runs/test $(OLDEST) $(OLDEST).txt
	find helpers lab tests notebooks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) \
		-prune -exec rm -rf {} +

# A folder that was renamed or copied has an environment of the first folder, which would run that
# folder's helpers: it is made anew. venv and uv write the place into one of these two files.
PLACE := $(if $(filter /%,$(VENV)),$(VENV),$(CURDIR)/$(VENV))
MOVED := $(shell test ! -e $(VENV)/pyvenv.cfg || grep -qsF -e " $(PLACE)" -e "=$(PLACE)" \
	-e "='$(PLACE)" -e '="$(PLACE)' $(VENV)/pyvenv.cfg $(VENV)/bin/activate || echo moved)
ifneq ($(MOVED),)
.PHONY: $(STAMP)
endif

# The pinned CPU set. The versions come from environment.yml's list, all but torch and the
# libraries that only torch's CUDA build asks for (its CPU version asks for others or none).
$(STAMP): pyproject.toml environment.yml
	@command -v $(PYTHON) >/dev/null || { \
	echo "No '$(PYTHON)' found. Install Python 3.11 to 3.14, or name it: make tutorial PYTHON=python3.12" >&2; \
	exit 1; }
	@$(PYTHON) -c '$(RIGHT_PYTHON) or sys.exit(1)' || { \
	echo "Python 3.11 to 3.14 is needed: the packages have no wheels for others. $(PYTHON) is" \
	"$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')." \
	"Name another one: make tutorial PYTHON=python3.12" >&2; exit 1; }
	@test -z "$(MOVED)" || echo "$(VENV) was made for another folder (this one was renamed or" \
	"copied): it is made anew."
	@echo "Setting up $(VENV) ($$($(PYTHON) --version), CPU packages): 1 to 5 minutes, 2 GB on disk."
	@{ test -z "$(MOVED)" && $(PY) -c 'import pip; $(RIGHT_PYTHON) or sys.exit(1)'; } \
		>/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@sed -n 's/^[ -]*\([A-Za-z0-9_.-]*==.*\)$$/\1/p' $(PINS) \
		| grep -vE '^(torch|triton|nvidia-|cuda-)' > $(VENV)/constraints.txt
	@echo "  1/3 build tools"
	@$(PIP) install --retries 1 --timeout 20 -c $(VENV)/constraints.txt setuptools wheel \
	2> $(VENV)/pip.log || { \
	echo "pip could not install them. Its own words:" >&2; cat $(VENV)/pip.log >&2; \
	echo "If it cannot reach a package index: connect to the network, point pip at a mirror" >&2; \
	echo "(PIP_INDEX_URL=address) or name a folder that \`make offline\` gathered (WHEELS=folder)," >&2; \
	echo "then run the same command again." >&2; exit 1; }
	@echo "  2/3 $(TORCH)"
	@if [ "$$(uname -s)" != Linux ]; then $(PIP) install $(TORCH); \
	elif [ -n "$$PIP_NO_INDEX" ]; then $(PIP) install --no-deps $(TORCH); \
	elif $(PY) -c 'import urllib.request; urllib.request.urlopen("$(TORCH_INDEX)/torch/", timeout=5)' \
		>/dev/null 2>&1; \
	then $(PIP) install --no-deps --index-url $(TORCH_INDEX) $(TORCH); \
	else echo "      $(TORCH_INDEX) cannot be reached: taking torch from pip's own index"; \
	$(PIP) install --no-deps $(TORCH); fi || { \
	echo "torch could not be installed (pip's own words are above): run the same command again," >&2; \
	echo "or put a wheel of $(TORCH) in a folder and name it in PIP_FIND_LINKS." >&2; exit 1; }
	@echo "  3/3 everything else"
	@$(PIP) install --no-build-isolation -c $(VENV)/constraints.txt -e '.[cpu,dev]' || { \
	echo "The installation did not finish (pip's own words are above). After a broken" >&2; \
	echo "connection run the same command again: what has been downloaded is kept." >&2; exit 1; }
	@! ls -d $(VENV)/lib/python*/site-packages/nvidia >/dev/null 2>&1 || \
	echo "      Note: this index gave torch's CUDA build: it works on a CPU, but takes more disk."
	@$(PY) -c 'import importlib.util as u, sys; away = [name for name in ("jupyterlab", "nbval", "torch", \
	"trl") if not u.find_spec(name)]; away and sys.exit("pip put %s elsewhere than into $(VENV), or \
	nowhere: look at `$(PY) -m pip config list`, then run the same command again" % ", ".join(away))'
	@touch $@
	@echo "Set up: $$($(PY) -m pip list --format=freeze 2>/dev/null | wc -l) packages in $(VENV)."
