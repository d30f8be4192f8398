# Every command prepares what it needs first: tests/bootstrap.py installs missing Debian packages and makes .venv from
# requirements.lock, and does nothing at all when both are as they should be.
.DEFAULT_GOAL := help
.NOTPARALLEL:
PYTHON ?= python3
BIN := .venv/bin
UV_VERSION := 0.13.9
# The tree at hand is what is checked and tested, whatever tree an installed copy came from.
# What Python compiles is kept, whatever the caller's environment says: each process of a test run would do it again.
IN_TREE := PYTHONDONTWRITEBYTECODE= PYTHONPATH=.:cli:protos
# Each has servers of its own. Much of a test is waiting, so there are more than most computers have cores for.
PROCESSES ?= 6
SHIM := .make/pkcs11-shim.so

define prepare
@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11 or newer (Debian and Ubuntu: apt-get install python3 python3-venv)."; exit 1; }
@$(PYTHON) -I tests/bootstrap.py $(1)
endef

# $(1): the folder to write to
define generate
PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I protos --python_out=$(1) --grpc_python_out=$(1) \
	--mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) protos/broker_api/v1/*.proto
endef

.PHONY: help
help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

.PHONY: demo
demo:  ## the main jobs on real parts: a key generated in SoftHSM, imported into OpenBao and a vault, proven there
	$(call prepare,demo)
	@$(IN_TREE) $(BIN)/python -m tests.demo

.PHONY: test
test:  ## everything: check, then all tests on real SoftHSM, OpenBao and PostgreSQL
	$(call prepare,test)
	@# pytest compiles each file of tests anew for its assertions: once, beside the check, and not in each of its processes.
	@$(IN_TREE) $(BIN)/python -m pytest --collect-only -qq >/dev/null 2>&1 & \
		$(MAKE) --no-print-directory check; checked=$$?; wait; exit $$checked
	$(IN_TREE) $(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal

.PHONY: check
check: fresh  ## lint, formatting, types, import rules, protos and their stubs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(IN_TREE) $(BIN)/lint-imports --no-logo
	$(BIN)/buf lint

.PHONY: fresh
fresh:  ## compare the committed stubs and docs/errors.md with freshly generated ones
	$(call prepare,check)
	@rm -rf .make/stubs && mkdir -p .make/stubs
	@$(call generate,.make/stubs)
	@diff -r -x '*.proto' -x __init__.py -x __pycache__ .make/stubs/broker_api protos/broker_api || \
		{ echo "The committed stubs differ from the .proto files: run 'make protos' and commit the result."; exit 1; }
	@$(IN_TREE) $(BIN)/python -m tests.house.errors_page --check

.PHONY: fast
fast:  ## the tests that need no token and no server, in half a minute
	$(call prepare,test)
	$(IN_TREE) $(BIN)/python -m pytest -n 2 --dist worksteal tests/unit tests/house \
		--ignore=tests/house/test_supply.py --ignore=tests/house/test_bootstrap.py

.PHONY: soak
soak:  ## the long forms of the proofs (hours)
	$(call prepare,soak)
	$(IN_TREE) $(BIN)/python -m pytest -m "soak or hypothesis" --hypothesis-profile=soak --timeout=0

.PHONY: bench
bench:  ## broker and OpenBao side by side under the same load (BENCH=--write: into docs/benchmarks.md)
	$(call prepare,bench)
	@$(IN_TREE) $(BIN)/python -m tests.bench.run $(BENCH)

.PHONY: dev
dev:  ## a broker for trying out, everything in a temporary folder
	$(call prepare,dev)
	@$(IN_TREE) $(BIN)/broker dev

.PHONY: shim
shim:  ## the PKCS#11 shim of softhsm/README.md: exact key wrap, faults on demand, a log of calls
	$(call prepare,shim)
	@$(MAKE) --no-print-directory $(SHIM)

# No group or other may write it, whatever the umask: the broker refuses to load such a module.
$(SHIM): $(wildcard softhsm/shim/*.c softhsm/shim/*.h) Makefile
	@mkdir -p $(@D)
	$(CC) -std=c11 -D_GNU_SOURCE -O2 -g -Wall -Wextra -Werror -fPIC -shared -Wl,-Bsymbolic -Wl,-z,defs \
		-I/usr/include/p11-kit-1 -o $@.$$$$ $(filter %.c,$^) -ldl -lpthread && chmod 755 $@.$$$$ && mv $@.$$$$ $@

.PHONY: fake-azure
fake-azure:  ## a fake Azure Key Vault to try imports with (FAKE="--kind managed-hsm --port 8443")
	$(call prepare,dev)
	@$(IN_TREE) $(BIN)/python -m tests.servers.azure_key_vault $(FAKE)

.PHONY: protos
protos:  ## generate the stubs from the .proto files
	$(call prepare,check)
	$(call generate,protos)

.PHONY: errors
errors:  ## write docs/errors.md from the reasons and their meanings
	$(call prepare,check)
	@$(IN_TREE) $(BIN)/python -m tests.house.errors_page

.PHONY: lock
lock:  ## bring requirements.lock in line with pyproject.toml (UPGRADE=--upgrade: take the newest of everything)
	$(call prepare,check)
	$(BIN)/python -m venv .make/uv
	.make/uv/bin/pip install -qq --disable-pip-version-check uv==$(UV_VERSION)
	.make/uv/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --group dev $(UPGRADE) \
		pyproject.toml --output-file requirements.lock

.PHONY: clean
clean:  ## remove everything that was made, the environment too
	rm -rf .venv .make build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
