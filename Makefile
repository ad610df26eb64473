# Two targets are for users: `make run` and `make test`. The rest is for developers; CI runs them all.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?=

.DEFAULT_GOAL := help
.PHONY: help run test slow kill-loop faults check format lock test-clients conformance bench image clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The stamps hold the lock's hash in effect: a changed lock makes the environment anew.
$(VENV)/.run: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Entrepot needs Python 3.11 or later, and this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@touch $@

$(VENV)/.bench: requirements-bench.lock $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-bench.lock
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

run: $(VENV)/.run ## serve on 127.0.0.1:5000 (CONFIG=proxy.toml to use a configuration)
	@exec $(BIN)/python -m proxy serve $(if $(CONFIG),--config $(CONFIG))

test: $(VENV)/.dev ## the whole suite that needs no root
	$(BIN)/pytest -m "not slow" -n $$(( $$(nproc) * 2 )) --dist worksteal # they wait more than they work

slow: $(VENV)/.dev ## what of it takes its time: whole caches moved, buckets that fail and fill, by servers that start and die
	$(BIN)/pytest -m slow -n $$(( $$(nproc) * 3 / 2 )) --dist worksteal

kill-loop: $(VENV)/.dev ## kill -9 under load, five hundred times; nothing that is published may be wrong (make test does four)
	ENTREPOT_KILLS=500 $(BIN)/pytest -n auto tests/e2e/test_kill_loop.py

# Points of each kind and scenario; "all" takes ten minutes.
BUCKET_FAULTS ?= 20
faults: $(VENV)/.dev ## let every call to the disk, and many a request to a bucket, go wrong in turn (make test and make slow try a few); as root, cut the power of loop images
	$(BIN)/pytest -s tests/faults
	ENTREPOT_FAULTS=all $(BIN)/pytest -n auto tests/e2e/test_faults.py
	ENTREPOT_FAULTS=$(BUCKET_FAULTS) $(BIN)/pytest -n auto tests/e2e/test_bucket_faults.py

test-clients: $(VENV)/.dev ## pull with Docker, containerd, podman and skopeo, from Ceph too (root, on Debian; run .ci/install-clients first; Go for an S3 server)
	$(BIN)/pytest --timeout 180 tests/clients

conformance: $(VENV)/.dev ## the OCI conformance suite, read-only, through a proxy (Go, on Debian; run .ci/install-clients first)
	@$(BIN)/python -m tests.clients.conformance

check: $(VENV)/.dev ## format, lint, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/.dev ## resolve the dependencies anew into the three locks
	$(BIN)/uv pip compile pyproject.toml --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements.lock
	$(BIN)/uv pip compile pyproject.toml --upgrade --group dev --constraint requirements.lock --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements-dev.lock
	$(BIN)/uv pip compile --upgrade --group bench --constraint requirements-dev.lock --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements-bench.lock

# With BENCH="--case herd --repeats 5" only the first of these runs, with these options; --help says which there are.
BENCH ?=
bench: $(VENV)/.bench ## the benchmarks, beside the peers that are installed (Debian: nginx varnish wrk docker-registry containerd)
	@$(BIN)/python -m benchmarks $(BENCH) || failed=1; \
	$(if $(BENCH),,for one in s3 wan full; do $(BIN)/python -m benchmarks.$$one || failed=1; done;) \
	exit $${failed:-0}

image: ## the container image, by Docker (BASE=image to use another base than python:3.12-slim)
	docker build --tag entrepot $(if $(BASE),--build-arg BASE=$(BASE)) .

clean: ## remove what make made
	rm -rf $(VENV) .work .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
