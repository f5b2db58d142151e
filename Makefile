# Everything that there is to do here. `make` alone lists it.
.DEFAULT_GOAL := help
# Where rustup puts cargo; a fresh machine's PATH may not know yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

DOCKER := $(shell timeout 20 docker version >/dev/null 2>&1 && echo yes)
SCRIPTS := .ci/run $(shell find deploy tests -name '*.sh')
COMPOSE := $(shell docker compose version >/dev/null 2>&1 && echo docker compose || command -v docker-compose)

.PHONY: help demo test check image image-test fmt fmt-check lint lint-scripts deny compose-check setup setup-check

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 16

demo: setup ## broker, sandbox and worker at work on 300 tasks; KEEP=1 leaves them running
	@cargo build --locked --bin wolkvox-task-worker --example demo
	@cargo run --locked --quiet --example demo -- $(if $(KEEP),--keep)

test: setup ## all tests, on a real RabbitMQ (TEST_BROKER_URL, Docker, or a private node)
	cargo test --locked

check: fmt-check lint lint-scripts deny compose-check test ## what CI runs
ifdef DOCKER
	$(MAKE) image-test
else
	@echo "no Docker here: the image is not tested" >&2
endif

image: ## the container image, wolkvox-task-worker:latest
	deploy/docker/image.sh

image-test: image ## the image at work with a real broker and the sandbox
	deploy/docker/image-test.sh

fmt: setup ## format the code
	cargo fmt

fmt-check: setup-check
	cargo fmt --check

lint: setup ## clippy, warnings as errors
	cargo clippy --locked --all-targets -- -D warnings

lint-scripts: setup-check ## shellcheck
	shellcheck -x $(SCRIPTS)

deny: setup ## licences, sources, bans and advisories of the dependencies, where cargo-deny is installed
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --locked check; \
	else echo "no cargo-deny here: dependencies are not judged (cargo install cargo-deny --locked)" >&2; fi

compose-check: ## deploy/compose.yaml is one that compose takes
ifneq ($(COMPOSE),)
	$(COMPOSE) -f deploy/compose.yaml config --quiet
else
	@echo "no docker compose here: compose.yaml is not checked" >&2
endif

setup:
	@deploy/setup.sh

setup-check:
	@deploy/setup.sh check
