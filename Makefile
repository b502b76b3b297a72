# Everything happens in .venv, which the first command makes by itself.
PYTHON ?= python3
PORT   ?= 8080
VENV   := .venv
BIN    := $(VENV)/bin
# torch first and pinned, so that the build the machine offers for this version is taken, and
# nothing else pulls in another.
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

TYPES  := MYPYPATH=server $(BIN)/mypy -p letstalk_rt -p letstalk_server

.PHONY: demo test test-system test-slow test-pipecat test-livekit soak fuzz bad-network lint types format bench bench-all picture picture-films screenshot readme wheel \
  venv clean

demo: $(VENV)/demo.stamp
	$(BIN)/letstalk demo --port $(PORT)

# A wheel that runs without the clone: pip install ./dist/*.whl
wheel: $(VENV)/demo.stamp
	$(PIP) wheel --no-deps --wheel-dir dist .

# The half of the suite that takes minutes, two files at a time, or the tests that TESTS names; then,
# one by one, what needs the machine for itself. Both are all tests but those of `make test-slow`.
WORKERS ?= 2
HALF    := -m "not slow and not gpu and not system" -n $(WORKERS) --dist loadfile
test: lint $(VENV)/werift.stamp
	$(BIN)/python -m pytest $(if $(TESTS),$(TESTS),$(HALF))

test-system: $(VENV)/werift.stamp
	$(BIN)/python -m pytest -m "system and not slow and not gpu" $(TESTS)

# The adapter for Pipecat, in an environment of its own, because Pipecat pins what letstalk-rt leaves open.
PIPECAT := .venv-pipecat
test-pipecat: $(PIPECAT)/dev.stamp
	cd client_examples/pipecat && MYPYPATH=$(CURDIR) $(CURDIR)/$(PIPECAT)/bin/mypy \
	  --config-file $(CURDIR)/pyproject.toml --follow-imports=silent -p pipecat_letstalk
	cd client_examples/pipecat && $(CURDIR)/$(PIPECAT)/bin/python -m pytest $(TESTS)

$(PIPECAT)/dev.stamp: pyproject.toml constraints.txt client_examples/pipecat/pyproject.toml \
  client_examples/pipecat/constraints.txt
	$(PYTHON) -m venv $(PIPECAT)
	$(PIPECAT)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -c client_examples/pipecat/constraints.txt $(shell grep '^torch==' constraints.txt)
	$(PIPECAT)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -c client_examples/pipecat/constraints.txt -e . -e 'client_examples/pipecat[dev]'
	touch $@

# The plugin for LiveKit Agents, likewise: LiveKit brings a hundred packages along. With LIVEKIT_URL,
# LIVEKIT_API_KEY and LIVEKIT_API_SECRET set, its tests run against that server.
LIVEKIT := .venv-livekit
test-livekit: $(LIVEKIT)/dev.stamp
	cd client_examples/livekit && MYPYPATH=$(CURDIR) $(CURDIR)/$(LIVEKIT)/bin/mypy \
	  --config-file $(CURDIR)/pyproject.toml --follow-imports=silent -p livekit.plugins.letstalk
	cd client_examples/livekit && $(CURDIR)/$(LIVEKIT)/bin/python -m pytest $(TESTS)

$(LIVEKIT)/dev.stamp: pyproject.toml constraints.txt client_examples/livekit/pyproject.toml \
  client_examples/livekit/constraints.txt
	$(PYTHON) -m venv $(LIVEKIT)
	$(LIVEKIT)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -c client_examples/livekit/constraints.txt $(shell grep '^torch==' constraints.txt)
	$(LIVEKIT)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -c client_examples/livekit/constraints.txt -e . -e 'client_examples/livekit[test]'
	touch $@

# Tests that take long: an hour of clock drift, two hundred sessions, what needs a GPU if there is one.
test-slow: $(VENV)/werift.stamp
	$(BIN)/python -m pytest -m "slow or gpu" $(TESTS)

# Hours of live sessions, and thousands that come and go; PARTS takes some of "mock embedded churn".
HOURS ?= 2
PARTS ?= mock embedded churn
soak: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/bench_soak.py --hours $(HOURS) --parts "$(PARTS)" \
	  --output benchmarks/results $(ARGS)

# Hostile input: ARGS="--inputs 100000 --seed 0"; and bad networks, which need root.
fuzz: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/fuzz_server.py $(ARGS)

bad-network: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/bench_network.py $(ARGS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(TYPES)

types: $(VENV)/dev.stamp
	$(TYPES)

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/demo.stamp
	$(BIN)/python benchmarks/bench_stages.py $(ARGS)

# Every row of speed and latency, with each instruction set of this processor, on an idle machine.
bench-all: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/run_all.py $(ARGS)

# The images of the README (they need espeak-ng and Chromium) and its table of figures.
picture: $(VENV)/demo.stamp
	$(BIN)/python benchmarks/readme_picture.py $(ARGS)

# Camera drive and dubbing in moving pictures; ARGS="--driver FILM" names who moves the avatar.
picture-films: $(VENV)/demo.stamp
	$(BIN)/python benchmarks/readme_films.py $(ARGS)

screenshot: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/readme_page.py $(ARGS)

readme: | $(VENV)/bin/python
	$(BIN)/python benchmarks/readme_table.py

venv: $(VENV)/dev.stamp

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "letstalk_rt needs Python 3.11 or newer"'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml setup.py constraints.txt | $(VENV)/bin/python
	$(PIP) $(shell grep '^torch==' constraints.txt)
	$(PIP) -e '.[server]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(PIP) -e '.[server,mic,paper,train,dev]'
	touch $@

# A second WebRTC stack, for one test; without npm that test is skipped.
WERIFT := 0.25.2
$(VENV)/werift.stamp: Makefile | $(VENV)/bin/python
	if command -v npm >/dev/null; then npm install --silent --no-audit --no-fund \
	  --no-package-lock --ignore-scripts --prefix $(VENV)/werift werift@$(WERIFT) \
	  || echo "werift cannot be installed: its test is skipped"; fi
	touch $@

clean:
	rm -rf $(VENV) $(PIPECAT) $(LIVEKIT) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache \
	  .hypothesis
