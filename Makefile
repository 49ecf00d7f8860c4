# Everything starts here; each target sets up what it needs in .venv first.
PYTHON ?= python3
AIRFLOW_PORT ?= 8080
MLFLOW_PORT ?= 5000
BIN := .venv/bin
# Words that the field has better ones for.
GIVEN_UP := WorldError|OF_THE_WORLD|Meeting|Member|Board|Tally|Parcel|Leg|Dealing|Moment|RivalAccuracy|rival|complaints|blame|mended|dealt_anew|normalisation|centre_crop|colours

.PHONY: help demo test test-cluster check up doctor clean clean-data

help:
	@echo "make demo        the whole pipeline on 1,797 handwritten digits"
	@echo "make up          Airflow and MLflow on this machine (AIRFLOW_PORT=8080 MLFLOW_PORT=5000), until Ctrl-C"
	@echo "make test        all checks: format, lint, types, import rules, tests"
	@echo "make test-cluster  the longer tests: real clusters, the whole stack, a browser, environments of their own"
	@echo "make doctor      what is wrong with the environment"
	@echo "make clean       remove the environment, .venv; the next target installs it again"
	@echo "make clean-data  remove .shardmean: DataSets, checkpoints, registered models, all outputs"

demo:
	@$(PYTHON) -m shardmean.jobs.local.bootstrap demo
	@$(BIN)/shardmean demo

up:
	@$(PYTHON) -m shardmean.jobs.local.bootstrap demo
	@$(BIN)/shardmean up --airflow-port $(AIRFLOW_PORT) --mlflow-port $(MLFLOW_PORT)

doctor:
	@$(PYTHON) -m shardmean.jobs.local.bootstrap
	@$(BIN)/shardmean doctor

test:
	@$(PYTHON) -m shardmean.jobs.local.bootstrap test
	@$(MAKE) --no-print-directory check

# What CI runs too; needs `make test`'s environment.
check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	@! git grep -nE '(^|[^A-Za-z])($(GIVEN_UP))([^a-z]|$$)' -- dags jobs model configs shardmean ':!*former_names.py'
	$(BIN)/pytest -m "not cluster" --cov --cov-report=term

test-cluster:
	@$(PYTHON) -m shardmean.jobs.local.bootstrap test
	$(BIN)/pytest -m cluster

clean:
	rm -rf .venv

clean-data:
	rm -rf .shardmean
