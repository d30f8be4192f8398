# Filled in below as parts arrive; `make` alone lists the commands.
.DEFAULT_GOAL := help
PY := .venv/bin/python

.PHONY: help
help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

.make/venv: requirements.lock pyproject.toml
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@mkdir -p .make && touch $@

.PHONY: protos
protos: .make/venv  ## generate the stubs from the .proto files
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) -m grpc_tools.protoc -I protos --python_out=protos --grpc_python_out=protos --mypy_out=protos --mypy_grpc_out=protos protos/broker_api/v1/*.proto
