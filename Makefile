# make site | test | lab | bench | ablations | detector | refresh | clean. Needs Python >= 3.10 (with venv) and make, nothing else.
PYTHON ?= python3
PORT ?= 8000
SERVE ?= 1
BENCH ?=
BIN := .venv/bin

.PHONY: site test lab bench ablations detector refresh clean

site: .venv/installed  ## build the course as a website into _docs/ and serve it (SERVE=0: only build; PORT=8000)
	@$(BIN)/python nbs/_tools/site.py build
ifneq ($(SERVE),0)
	@$(BIN)/python nbs/_tools/site.py serve --port $(PORT)
endif

test: .venv/installed  ## run every notebook and everything in tests/
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --do_print --timing  # notebooks run side by side
	$(BIN)/python -m pytest tests

lab: .venv/installed  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) nbs

bench: .venv/installed  ## time and memory against the reference packages, about 20 minutes (BENCH="--help" lists options)
	$(BIN)/python nbs/_tools/bench.py $(BENCH)
ifeq ($(BENCH),)
	$(BIN)/python nbs/_tools/bench_models.py
endif

ablations: .venv/installed  ## cost and quality of propagation between windows, and the weights of one small encoder, about an hour; goes on where it was stopped
	$(BIN)/python nbs/_tools/propagation.py

detector: .venv/installed  ## train the detector of chapter 11 on drawn shapes, about ten minutes for each of three seeds
	$(BIN)/python nbs/_tools/train_drawn.py

refresh: .venv/installed  ## export, execute all notebooks, store their outputs, clean them
	$(BIN)/nbdev_export
	$(BIN)/python nbs/_tools/notebooks.py refresh

.venv/installed: settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("vitdet_nb needs Python 3.10 or newer, this is %s: name another with make PYTHON=..." % sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install --editable ".[dev]"
	@$(BIN)/python -c 'import smalldocs' 2>/dev/null || \
	    $(BIN)/python -m pip install --ignore-requires-python --no-deps $$(grep -o 'smalldocs==[0-9.]*' settings.ini)
	@touch $@

clean:  ## remove what the commands above made, the environment too
	rm -rf .venv _docs _proc .quarto build dist .pytest_cache *.egg-info nbs/nbdev.yml nbs/sidebar.yml
	find nbs vitdet_nb tests -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
