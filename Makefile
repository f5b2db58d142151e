# Everything that there is to do here. `make` alone lists it.
.DEFAULT_GOAL := help
# Where rustup puts cargo; a fresh machine's PATH may not know yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

DOCKER := $(shell timeout 20 docker version >/dev/null 2>&1 && echo yes)
SCRIPTS := .ci/run $(shell find deploy tests -name '*.sh')
DENY := $(or $(shell command -v cargo-deny),target/tools/bin/cargo-deny)
COMPOSE := $(shell docker compose version >/dev/null 2>&1 && echo docker compose || command -v docker-compose)

.PHONY: help demo docs fuzz sim test check image image-test fmt fmt-check lint lint-scripts deny compose-check setup setup-test setup-check

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 16

demo: setup ## broker, sandbox and worker at work on 300 tasks; KEEP=1 leaves them running
	@cargo build --locked --bin wolkvox-task-worker --example demo
	@cargo run --locked --quiet --example demo -- $(if $(KEEP),--keep)

test: setup-test ## all tests, on a real RabbitMQ (TEST_BROKER_URL, Docker, or a private node)
	cargo test --locked

check: fmt-check lint lint-scripts deny compose-check test ## what CI runs
	$(MAKE) demo
ifdef DOCKER
	$(MAKE) image-test
else
	@echo "no Docker here: the image is not tested" >&2
endif

fuzz: setup ## fuzzing of messages, CRM replies, headers and configuration, SECONDS each (60), where a nightly toolchain is
	tests/fuzz.sh $(or $(SECONDS),60)

sim: setup ## the worker simulated with everything going wrong, MESSAGES of them (1000000), from SEED on (by the clock)
	SIMULATE_MESSAGES=$(or $(MESSAGES),1000000) SIMULATE_SEED=$(or $(SEED),$(shell date +%s)) \
	  cargo test --locked --test simulation -- --nocapture nothing_is_lost_doubled_or_flooded

image: ## the container image, wolkvox-task-worker:latest
	deploy/docker/image.sh

image-test: image ## the image at work with a real broker and the sandbox
	deploy/docker/image-test.sh

docs: setup ## the README's tables, written from the code
	UPDATE_DOCS=1 cargo test --locked --test integration docs::

fmt: setup ## format the code
	cargo fmt

fmt-check: setup-check
	cargo fmt --check

lint: setup ## clippy, warnings as errors
	cargo clippy --locked --all-targets -- -D warnings

lint-scripts: setup-check ## shellcheck
	shellcheck -x $(SCRIPTS)

deny: $(DENY) ## licences, sources and bans of the dependencies; advisories where their database can be fetched
	$(DENY) --locked --log-level error check bans licenses sources
	@if timeout 120 $(DENY) --locked fetch db >/dev/null 2>&1; then $(DENY) --locked --log-level error check advisories; \
	else echo "the advisory database cannot be fetched: advisories are not checked" >&2; fi

target/tools/bin/cargo-deny: | setup
	cargo install --locked --quiet --root target/tools --version 0.20.2 cargo-deny

compose-check: ## deploy/compose.yaml is one that compose takes
ifneq ($(COMPOSE),)
	$(COMPOSE) -f deploy/compose.yaml config --quiet
else
	@echo "no docker compose here: compose.yaml is not checked" >&2
endif

setup:
	@deploy/setup.sh

setup-test:
	@deploy/setup.sh test

setup-check:
	@deploy/setup.sh check
