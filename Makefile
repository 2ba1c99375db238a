.PHONY: help setup test lint demo lab bench
BIN := .venv/bin

help:
	@echo "make demo    two real containers, their policies and a published port, step by step (root)"
	@echo "make lab     a cluster of HOSTS=3 on this machine, to try things and set faults (root)"
	@echo "make test    the whole suite; without root the tests that need it are skipped"
	@echo "make lint    formatting, lint, types, layers"
	@echo "make bench   what things cost, beside the floor and the peers (root, minutes)"
	@echo "make setup   what the others need: Debian packages (root) and .venv"

setup:
	@tools/setup.sh

# Real packets on a machine that others use as well: what fails is asked once more, and said.
# Most of it waits for packets that must not come, so there is one worker more than there are processors.
test: setup
	$(BIN)/pytest -raR --reruns 1 --numprocesses $$(($$(nproc) + 1)) --dist loadfile

lint: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: setup
	@$(BIN)/python demo/run

HOSTS ?= 3

lab: setup
	@$(BIN)/python -m lab $(HOSTS)

bench: setup
	@$(BIN)/python -m bench
