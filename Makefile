# Everything that there is to do here. `make` alone lists it.
.DEFAULT_GOAL := help
# Where rustup puts cargo; a fresh machine's PATH may not know yet.
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

demo: setup ## broker, sandbox and worker at work on 300 tasks; KEEP=1 leaves them running
	@cargo build --locked --bin wolkvox-task-worker --example demo
	@cargo run --locked --quiet --example demo -- $(if $(KEEP),--keep)

# They wait for brokers and processes more than they compute.
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

fuzz: setup-check ## fuzzing of messages, CRM replies, headers and configuration, SECONDS each (60)
	tests/fuzz.sh $(or $(SECONDS),60)

sim: setup ## the worker simulated with everything going wrong, MESSAGES of them (1000000), from SEED on (by the clock)
	SIMULATE_MESSAGES=$(or $(MESSAGES),1000000) SIMULATE_SEED=$(or $(SEED),$(shell date +%s)) \
	  cargo test --locked --test simulation -- --nocapture nothing_is_lost_or_duplicated_and_no_limit_is_exceeded

dist: setup $(CYCLONEDX) ## a release in dist: program, completions, manual pages; image; chart; bills of materials; checksums
ifdef DOCKER
	deploy/docker/image.sh
endif
	CYCLONEDX=$(CYCLONEDX) deploy/dist/dist.sh

chaos: setup-test ## broker, cluster, network, workers and ledger broken by chance, SECONDS each (60), the same for the same SEED (by the clock)
	CHAOS_SECONDS=$(or $(SECONDS),60) CHAOS_SEED=$(or $(SEED),$(shell date +%s)) \
	  cargo test --locked --test integration -- --nocapture --test-threads=1 chaos::

throughput: setup-test ## that an optimized worker keeps the CRM's slots 98 % in use, on an otherwise idle machine
	cargo test --locked --release --test throughput -- --nocapture

bench: ## the worker measured beside what else one could use, written into docs/benchmarks.md; QUICK=1 only shows that it works
	tests/bench.sh $(if $(QUICK),--quick)

bench-micro: ## instructions of single stages, and the difference to the last time
	tests/bench.sh micro

image: ## the container image, wolkvox-task-worker:latest
	deploy/docker/image.sh

image-test: image ## the image at work under the manifests' limits, through kills and changes of version
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
	@# Left out of all targets, since it is no test for every day.
	cargo clippy --locked --test throughput -- -D warnings
	cargo clippy --locked --manifest-path tests/bench/Cargo.toml --target-dir target --all-targets -- -D warnings

lint-scripts: setup-check $(WORKFLOW_LINTERS)/installed ## shellcheck; the workflow of those who host this on GitHub
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
