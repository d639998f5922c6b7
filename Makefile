# make demo   the main job: two trained models, profiled per modality on real images and compared
# make test   lint, types and every test, offline
# make test-pages   the code of README, docs and tutorials, on few samples; about five minutes
# make test-families   every check of the conformance suite on every family: five minutes
# make test-oldest, make test-latest   every test with the oldest, the newest versions that
#                  pyproject.toml allows (torch as pinned), each in an environment of its own
# make test-loaded   every test three times on a machine that is busy with other things
# make test-slow   what takes minutes: coverage of the intervals over 200 repetitions
# make test-browser  the pages in Chromium (Debian: apt-get install chromium), looked over by axe-core
# make test-upstream   TransformerLens's own tests on our bridge: what passes on the plain one and fails
#                      here. Fetches them once; about half an hour
# make fuzz   5,000 damaged files: none may end in a traceback, or in another result without a word
# make mutants  small faults put into ten modules: how many the tests notice; about an hour
# make bench  speed and memory, each as a ratio from one run: about an hour
# make site   the documentation site, in build/site/html: warnings are errors, links are checked
# make release  sdist and wheel, checked, and the wheel tried in an empty environment
#
# Each creates the environment if it is missing. Needs Python >= 3.11 (PYTHON=… to choose one).

PYTHON ?= $(firstword $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p"; done))
VENV ?= .venv
PINS ?= constraints.txt
TESTS ?=
SAMPLES ?= 500
TORCHVISION ?= 0.28.0
NNSIGHT ?= nnsight==0.8.1 greenlet cloudpickle websocket-client zstandard
CASES ?= 5000
TRIAL ?= build/trial
BIN := $(VENV)/bin
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 PIP_NO_INDEX=1
SOURCES := mm_lens adapters/mm_lens_adapters

.PHONY: demo test suite test-oldest test-latest test-families test-pages test-loaded test-slow test-browser fuzz mutants test-upstream lint bench constraints site release clean

demo: $(VENV)/.installed
	@echo "Profiles two small models on $(SAMPLES) questions of easy-VQA, then compares them: about five"
	@echo "minutes on two cores with 500 questions. Ctrl-C is safe: make demo goes on where it was."
	@for model in llava-next omnifusion; do \
		echo "== Profile of demo/$$model"; \
		$(OFFLINE) $(BIN)/mm-lens profile --model demo/$$model --data easy-vqa --samples $(SAMPLES) \
			--out runs/$$model --overwrite || exit; \
	done
	@echo "== Comparison"
	@$(OFFLINE) $(BIN)/mm-lens compare runs/llava-next runs/omnifusion --out runs/compare --overwrite
	@echo
	@echo "Open runs/compare/compare.html ($(BIN)/mm-lens open runs/compare): the models side by side."
	@echo "Then runs/llava-next/report.html and runs/omnifusion/report.html: every curve of each model."
	@echo "What the findings mean: docs/findings.md. Next: tutorials/01_hook_points_and_profiles.ipynb"

test: lint suite

suite: $(VENV)/.installed
	$(OFFLINE) $(BIN)/pytest -n 2 --dist worksteal -m "not slow and not families and not pages and not browser" $(TESTS)

test-oldest:
	$(MAKE) suite VENV=build/oldest PINS=oldest.txt

# Anew each time: what is newest changes from day to day.
test-latest:
	rm -rf build/latest
	mkdir -p build
	grep '^torch==' constraints.txt > build/latest.txt
	$(MAKE) suite VENV=build/latest PINS=build/latest.txt

test-loaded: $(VENV)/.installed
	$(OFFLINE) $(BIN)/python tests/loaded.py $(TESTS)

test-families: $(VENV)/.installed
	$(OFFLINE) $(BIN)/pytest -n 2 --dist worksteal -m families

test-pages: $(VENV)/.installed
	$(OFFLINE) $(BIN)/pytest -n 2 --dist worksteal -m "pages and not slow"

test-slow: $(VENV)/.installed
	$(OFFLINE) $(BIN)/pytest -n 2 --dist worksteal -m slow

test-browser: $(VENV)/.installed
	mkdir -p build/axe
	test -f build/axe/package/axe.min.js || (cd build/axe && npm pack --silent axe-core@4.14.1 \
		&& tar xzf axe-core-4.14.1.tgz)
	$(OFFLINE) $(BIN)/pytest -m browser tests/drawing/test_in_browser.py

test-upstream: $(VENV)/.installed
	$(BIN)/python tests/transformer_lens_suite/run.py

fuzz: $(VENV)/.installed
	PYTHONPATH=. $(OFFLINE) $(BIN)/python tests/fuzz/run.py --cases $(CASES)

# mutmut copies what is new and never takes away what is gone.
mutants: $(VENV)/.installed
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,mutants]"
	rm -rf mutants
	PYTHONPATH=tests $(OFFLINE) $(BIN)/mutmut run --max-children 1
	$(BIN)/python tests/mutation/score.py

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --upgrade --target $(VENV)/nnsight \
		$(NNSIGHT)
	$(OFFLINE) $(BIN)/python benchmarks/blocks.py --nnsight $(VENV)/nnsight
	$(OFFLINE) $(BIN)/python benchmarks/gpu.py
	$(OFFLINE) $(BIN)/python benchmarks/hooks.py
	$(OFFLINE) $(BIN)/python benchmarks/metrics.py --full
	$(OFFLINE) $(BIN)/python benchmarks/profile_time.py
	$(OFFLINE) $(BIN)/python benchmarks/profile_time.py --real
	$(OFFLINE) $(BIN)/python benchmarks/profile_memory.py
	$(OFFLINE) $(BIN)/python benchmarks/patching.py demo/llava-next
	$(OFFLINE) $(BIN)/python benchmarks/patching.py demo/omnifusion

# torch first and pinned: resolved together with the rest, pip may take another build of it.
$(VENV)/.installed: pyproject.toml $(PINS)
	@test -n "$(PYTHON)" || { echo "mm_lens needs Python >= 3.11: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c $(PINS) torch
	$(BIN)/pip install -q --disable-pip-version-check -c $(PINS) -e ".[dev]"
# Only tests look there (tests/before_transformers.py): a torchvision that was built for another torch
# than the one that is here takes transformers with it.
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --upgrade --target $(VENV)/torchvision \
		torchvision==$(TORCHVISION)
	touch $@

site: $(VENV)/.installed
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,docs]"
	$(OFFLINE) $(BIN)/python docs/site/build.py

# The wheel is tried outside of the checkout (-I: nothing but what is installed can be imported).
release: $(VENV)/.installed
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,release]"
	rm -rf dist $(TRIAL)
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv $(TRIAL)
	$(TRIAL)/bin/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(TRIAL)/bin/pip install -q --disable-pip-version-check -c constraints.txt dist/*.whl
	cd $(TRIAL) && $(OFFLINE) bin/python -I $(CURDIR)/tests/smoke.py

constraints: $(VENV)/.installed
	$(BIN)/pip install -q --disable-pip-version-check -e ".[dev,docs,mutants,release]"
	@{ echo "# Versions that CI runs with: pip install -c constraints.txt. Made by: make constraints"; \
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu//' | grep -viE '^(pip|setuptools|wheel)=='; } > .constraints
	@mv .constraints constraints.txt

clean:
	rm -rf $(VENV) runs build dist mutants .mypy_cache .ruff_cache .pytest_cache
