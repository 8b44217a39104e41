# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export DO_NOT_TRACK := true

.PHONY: demo test quick faults lint clean

demo: $(STAMP)  ## the main job: search the digits network, verify and show the result
	$(BIN)/mixq search experiments/digits/task.py:Digits --space experiments/digits/demo.yaml --trials 16 --out runs/demo
	$(BIN)/mixq verify runs/demo
	@echo "open runs/demo/report.html"

test: lint quick  ## lint, types and all tests
	$(BIN)/pytest -n 2 --dist loadfile -m slow

quick: $(STAMP)  ## tests without the slow ones
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

faults: $(STAMP)  ## searches killed in every phase, disks, servers, hosts and clocks that fail: minutes; `make test` has some
	MIXQ_ALL_FAULTS=1 $(BIN)/pytest tests/end_to_end/test_kills.py tests/end_to_end/test_workers.py tests/end_to_end/test_faults_*.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
