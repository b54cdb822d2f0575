# The commands of the README.  CASEMATE_ADDRESS, CASEMATE_DATA_DIR, CASEMATE_ADMIN_TOKEN, CASEMATE_CACHE_DIR
# are read from the environment.
.PHONY: run test setup setup-dev lint bench torture lock image format

run: setup
	@.venv/bin/casemate up $(if $(ONCE),--once)

# The tests that boot machines have them for themselves: under emulation two at once are slow, not fast.
test: setup-dev lint
	.venv/bin/pytest -n 2 tests/unit tests/api tests/style
	.venv/bin/pytest tests/system tests/peer tests/browser tests/fuzz

setup:
	@./setup.sh

setup-dev:
	@./setup.sh dev

lint:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/mypy

format:
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: setup-dev
	.venv/bin/python -m tests.bench

# Random kills of everything, over and over: make torture CYCLES=100
torture: setup-dev
	.venv/bin/python -m tests.torture $(or $(CYCLES),1000) $(if $(SEED),--seed $(SEED))

image: setup
	.venv/bin/casemate image build

# Resolves the Python packages anew; image/packages.lock has its own command (casemate image lock).
PIP_COMPILE = .venv/lock/bin/pip-compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-header --no-annotate --strip-extras --allow-unsafe --upgrade
lock: setup
	python3 -m venv .venv/lock && .venv/lock/bin/pip install --quiet pip-tools
	$(PIP_COMPILE) -o requirements.lock setup.cfg
	$(PIP_COMPILE) --extra dev -c requirements.lock -o requirements-dev.lock setup.cfg
	for each in tests/peer/*/requirements.in; do $(PIP_COMPILE) -o $${each%.in}.txt $$each; done
