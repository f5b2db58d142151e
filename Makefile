# The tasks of this repository. `make` without a target lists them.
.DEFAULT_GOAL := help
# rustup installs cargo here. The PATH of a fresh machine may not contain it yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

DOCKER := $(shell timeout 20 docker version >/dev/null 2>&1 && echo yes)
SCRIPTS := .ci/run $(shell find deploy tests -name '*.sh')
CYCLONEDX := $(or $(shell command -v cargo-cyclonedx),$(CURDIR)/target/tools/bin/cargo-cyclonedx)
DENY := $(or $(shell command -v cargo-deny),target/tools/bin/cargo-deny)
WORKFLOW_LINTERS := target/tools/workflow-linters
COMPOSE := $(shell docker compose version >/dev/null 2>&1 && echo docker compose || command -v docker-compose)

.PHONY: help chart bench bench-micro chaos demo docs fuzz sim test throughput check dist image image-test fmt fmt-check lint lint-scripts deny compose-check setup setup-test setup-check

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 16

demo: setup ## run broker, sandbox and worker on 300 tasks; KEEP=1 keeps them running
	@cargo build --locked --bin wolkvox-task-worker --example demo
	@cargo run --locked --quiet --example demo -- $(if $(KEEP),--keep)

# More threads than processors: the tests mostly wait for brokers and processes.
test: export RUST_TEST_THREADS ?= $(shell expr 2 '*' "$$(nproc)")
test: setup-test ## all tests, on a real RabbitMQ (TEST_BROKER_URL, Docker, or a private node); BROKER=3.10, 4.0 or 4.3 in Docker
	$(if $(BROKER),TEST_BROKER=docker BROKER=$(BROKER)) cargo test --locked
ifndef DOCKER
	@echo "no Docker here: a cluster of brokers is not tested" >&2
endif

check: fmt-check lint lint-scripts deny compose-check test ## what CI runs
	tests/fuzz.sh 5
	$(MAKE) demo
ifdef DOCKER
	$(MAKE) image-test
else
	@echo "no Docker here: the image is not tested" >&2
endif

fuzz: setup-check ## fuzz messages, rules, CRM replies, CRM answers on a socket, headers and configuration, each for SECONDS (60)
	tests/fuzz.sh $(or $(SECONDS),60)

sim: setup ## simulate the worker with faults of all kinds, for MESSAGES messages (1000000); the first seed is SEED (from the clock)
	SIMULATE_MESSAGES=$(or $(MESSAGES),1000000) SIMULATE_SEED=$(or $(SEED),$(shell date +%s)) \
	  cargo test --locked --test simulation -- --nocapture nothing_is_lost_or_duplicated_and_no_limit_is_exceeded

dist: setup $(CYCLONEDX) ## a release in dist: program, completions, manual pages; image; chart; bills of materials; checksums
ifdef DOCKER
	deploy/docker/image.sh
endif
	CYCLONEDX=$(CYCLONEDX) deploy/dist/dist.sh

chaos: setup-test ## break broker, cluster, network, workers and ledger at random, SECONDS each (60); the same SEED (from the clock) gives the same faults
	CHAOS_SECONDS=$(or $(SECONDS),60) CHAOS_SEED=$(or $(SEED),$(shell date +%s)) \
	  cargo test --locked --test integration -- --nocapture --test-threads=1 chaos::

throughput: setup-test ## test that a release build keeps the CRM's slots 98 % in use; needs an idle machine
	cargo test --locked --release --test throughput -- --nocapture

bench: ## measure the worker and its alternatives, and write docs/benchmarks.md; QUICK=1 only tries the program
	tests/bench.sh $(if $(QUICK),--quick)

bench-micro: ## count the instructions of single stages, and compare them with the last run
	tests/bench.sh micro

image: ## the container image, wolkvox-task-worker:latest
	deploy/docker/image.sh

image-test: image ## test the image under the manifests' limits, with kills and version changes
	deploy/docker/image-test.sh

chart: setup-test ## the Helm chart, packaged into dist
	@mkdir -p dist
	$$(deploy/helm.sh) package deploy/helm/wolkvox-task-worker --destination dist

docs: setup ## the generated parts of pages and manifests
	UPDATE_DOCS=1 cargo test --locked --test integration -- docs:: kubernetes_yaml_is table_of_values charts_alerts queue_resources_match

fmt: setup ## format the code
	cargo fmt
	cargo fmt --manifest-path tests/bench/Cargo.toml

fmt-check: setup-check
	cargo fmt --check
	cargo fmt --check --manifest-path tests/bench/Cargo.toml

lint: setup ## clippy, warnings as errors
	cargo clippy --locked --all-targets -- -D warnings
	@# `--all-targets` does not include this test, because it does not run every day.
	cargo clippy --locked --test throughput -- -D warnings
	cargo clippy --locked --manifest-path tests/bench/Cargo.toml --target-dir target --all-targets -- -D warnings

lint-scripts: setup-check $(WORKFLOW_LINTERS)/installed ## check the scripts with shellcheck, and the GitHub workflow
	shellcheck -x $(SCRIPTS)
	$(WORKFLOW_LINTERS)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yaml
	$(WORKFLOW_LINTERS)/bin/zizmor --offline --quiet --pedantic .github/workflows

$(WORKFLOW_LINTERS)/installed: | setup-check
	python3 -m venv $(WORKFLOW_LINTERS)
	$(WORKFLOW_LINTERS)/bin/python -m pip install --quiet --disable-pip-version-check zizmor==1.32.0 check-jsonschema==0.39.0
	touch $@

deny: $(DENY) ## licences, sources and bans of the dependencies; advisories where their database can be fetched
	$(DENY) --locked --log-level error check bans licenses sources
	@if timeout 120 $(DENY) --locked fetch db >/dev/null 2>&1; then $(DENY) --locked --log-level error check advisories; \
	else echo "the advisory database cannot be fetched: advisories are not checked" >&2; fi

target/tools/bin/cargo-deny: | setup
	cargo install --locked --quiet --root target/tools --version 0.20.2 cargo-deny

$(CURDIR)/target/tools/bin/cargo-cyclonedx: | setup
	cargo install --locked --quiet --root target/tools --version 0.5.9 cargo-cyclonedx

compose-check: ## check that compose accepts deploy/compose.yaml
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
