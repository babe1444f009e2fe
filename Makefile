# Every target works in a fresh clone: it makes what it needs and says so in one line a step.
PYTHON ?= python3
DATA ?=
ARGS ?=
SERVERS := mysql mariadb postgres
PY := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test bench lint wheel env programs clean distclean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: env ## run the whole way on a generated fleet, or on DATA=path/to/train_FD001.txt[.gz]
	@$(PY) -m demo $(if $(DATA),--data "$(DATA)") $(ARGS)

test: env programs ## run the tests on real servers, two at once; ARGS="-k name" are passed to pytest, ARGS=--all adds the long ones
	@echo "compiling the kernels once, for both halves of the tests"
	@$(PY) -m replicator.compile & $(PY) -m scorer.compile; wait $$!
	@$(PY) -m pytest -n 2 --dist worksteal $(ARGS)

bench: env programs ## run every script in bench/, one JSON object per figure; ARGS=--quick for short runs
	@tools/run-benches $(ARGS)

lint: env ## ruff, mypy and the import contracts
	@echo "checking style (ruff), types (mypy) and imports (import-linter)"
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --quiet --check .
	@$(PY) -m mypy --no-error-summary
	@PYTHONPATH=. .venv/bin/lint-imports --no-logo

wheel: env ## build the wheel into dist/
	@echo "building the wheel"
	@$(PY) -m build --wheel --outdir dist . >/dev/null && ls dist/*.whl

env: ## make or mend .venv from constraints.txt
	@tools/make-env "$(PYTHON)"

programs: env ## find or fetch the server programs that the tests need
	@$(PY) -m demo.servers provide $(SERVERS)

clean: ## stop what runs from .tailrace, and remove it with everything built (keeps .venv)
	@$(PYTHON) -m demo.folders clean .tailrace
	@rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv too
	@rm -rf .venv
