# Each target does its own set-up: on Debian or Ubuntu with Rust, a fresh clone is enough.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test faults hostile bench languages memcheck fuzz sbom dist lint page guests \
	setup-bench setup-build setup-dist setup-languages setup-lint setup-tools setup-test

KAFKA_LIB := $(or $(WEIR_KAFKA_LIB),target/kafka/lib)
WASM := wasm32-unknown-unknown
# Examples and misbehaving guests: each folder is a package.
GUESTS := $(filter-out cookbook,$(patsubst examples/%/Cargo.toml,%,$(wildcard examples/*/Cargo.toml))) conformance_rust \
	$(addprefix guest_,$(notdir $(wildcard tests/guests/*)))

help: ## This
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: setup-build ## See it work: a log, a filter, a broker, all in one process
	@cargo build --quiet --profile guest --target $(WASM) --package drop_debug --package redact
	@cargo run --quiet --package weir -- demo --modules $(or $(CARGO_TARGET_DIR),target)/$(WASM)/guest

test: setup-test guests ## Everything: unit, doc and wasm tests; a real Kafka and a real etcd
	cargo test --workspace

# Each row waits more than it works, so JOBS of them run at once.
JOBS := 4
FAULTS := $(CURDIR)/target/faults
faults: setup-test guests ## Every fault at full length, seeded: make faults [SEED=1] [ROUNDS=100] [ONLY=restarts::kill] [JOBS=4]
	@rm -rf $(FAULTS) && mkdir -p $(FAULTS)
	@echo '| fault | | seed | rounds | lines | lost | repeated | reordered | measured besides |' >$(FAULTS)/table.md
	@echo '|---|---|---|---|---|---|---|---|---|' >>$(FAULTS)/table.md
	@WEIR_FAULTS_LONG=1 WEIR_FAULTS_SEED=$(SEED) WEIR_FAULTS_ROUNDS=$(ROUNDS) WEIR_FAULTS_DIR=$(FAULTS) \
		cargo test --package weir --lib --test it --no-fail-fast -- --nocapture --test-threads=$(JOBS) \
			faults::$(ONLY) source::tests::model::$(ONLY); \
		code=$$?; cat $(FAULTS)/table.md; echo "also as $(FAULTS)/verdicts.json"; exit $$code

hostile: setup-test guests ## What hostile modules cost their neighbour: a table; some ten minutes: make hostile [ONLY=loop]
	WEIR_HOSTILE=1 WEIR_HOSTILE_ONLY="$(ONLY)" cargo test --package weir --test it -- --nocapture hostile::

# ONLY=agents,codecs,lengths,filters,scan,entries,pack,latency,idle AGENTS=weir,kcat ROUNDS=3 LINES=1000000 choose a part.
# VECTOR=, FLUENT_BIT= and FILEBEAT= name binaries to measure beside it; bench/configs has their settings.
bench: setup-bench guests target/bench/otelcol ## weir beside a bare loop, kcat and other agents: make bench [ONLY=latency]
	cargo build --release --package weir --package weir-bench
	$(or $(CARGO_TARGET_DIR),target)/release/weir-bench

# Built with Go where that is there; from then on it is among the agents that are measured.
target/bench/otelcol: bench/otel/main.go bench/otel/go.mod
	@mkdir -p $(@D)
	@if ! command -v go >/dev/null; then echo "Go is not here: the OpenTelemetry Collector is left out"; \
	else echo "building the OpenTelemetry Collector, a few minutes"; \
	(cd bench/otel && go build -o $(CURDIR)/$@ .) || echo "it does not build here: the OpenTelemetry Collector is left out"; fi

languages: setup-languages ## The reference filter in every language that this machine has tools for: make languages [ONLY="c go"]
	cargo build --quiet --package weir
	WEIR=$(or $(CARGO_TARGET_DIR),target)/debug/weir ONLY="$(ONLY)" languages/run

memcheck: ## The sink's tests under valgrind: no buffer is freed while librdkafka reads it
	@tests/setup.sh memcheck
	cargo --config 'target."cfg(unix)".runner = ["valgrind", "--quiet", "--fair-sched=try", "--error-exitcode=9"]' \
		test --package weir --lib sink:: -- --test-threads=2

# Only weir is instrumented. What is found new is kept below target/fuzz, what fails in fuzz/artifacts.
FUZZ := target/fuzz
BUILT := $(or $(CARGO_TARGET_DIR),target)
fuzz: setup-build ## libFuzzer on input from strangers: make fuzz [TARGET=list|lines|output|state|ini|toml] [SECONDS=60]
	@cp Cargo.lock fuzz/Cargo.lock
	RUSTC_WRAPPER=$(CURDIR)/fuzz/instrument cargo build --manifest-path fuzz/Cargo.toml --target-dir $(BUILT)
	@for target in $(or $(TARGET),list lines output state ini toml); do \
		mkdir -p $(FUZZ)/corpus/$$target fuzz/artifacts/$$target && echo "fuzzing $$target" && \
		$(BUILT)/debug/$$target $(FUZZ)/corpus/$$target fuzz/corpus/$$target -artifact_prefix=fuzz/artifacts/$$target/ \
		-max_total_time=$(or $(SECONDS),60) -timeout=60 -print_final_stats=1 || exit 1; done

page: guests ## The page in a real browser, with screenshots of it in target/page
	@tests/setup.sh page
	WEIR_PAGE_DIR=$(CURDIR)/target/page cargo test --package weir --test it -- --nocapture page::

sbom: setup-dist ## What weir is made of, as CycloneDX: target/sbom.json
	@mkdir -p target && cargo metadata --format-version=1 --locked --filter-platform $$(uname -m)-unknown-linux-gnu \
		| jq --from-file tests/sbom.jq >target/sbom.json && echo target/sbom.json

DIST := target/dist
dist: setup-dist sbom ## A Debian package and an archive of the release build, what is in it, and sums: target/dist
	cargo build --release --package weir
	@rm -rf $(DIST) && mkdir -p $(DIST)
	@packaging/deb.sh $(or $(CARGO_TARGET_DIR),target)/release/weir $(DIST)
	@packaging/archive.sh $(DIST)/weir_*.deb
	@cp target/sbom.json $(DIST)/weir.cdx.json
	@cd $(DIST) && sha256sum * >SHA256SUMS && cat SHA256SUMS

lint: setup-lint ## Format, clippy and documentation, warnings denied
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --workspace --no-deps --document-private-items --quiet

guests: setup-build
	cargo build --quiet --profile guest --target $(WASM) $(addprefix --package=,$(GUESTS))
	cargo build --quiet --profile guest --target $(WASM) --package cookbook --examples

setup-build:
	@tests/setup.sh build

setup-languages:
	@tests/setup.sh languages

setup-dist:
	@tests/setup.sh dist

setup-lint:
	@tests/setup.sh lint

setup-tools:
	@tests/setup.sh test

setup-test: setup-tools $(KAFKA_LIB)

setup-bench: setup-test
	@tests/setup.sh bench

# The jars of Kafka and of all it needs; 43 MB.
target/kafka/lib: tests/kafka/pom.xml | setup-tools
	@echo "fetching Kafka"
	@rm -rf $@ $@.part
	@mvn --batch-mode --quiet --file $< org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
		-DincludeScope=runtime -DoutputDirectory=$(CURDIR)/$@.part
	@mv $@.part $@ && touch $@
