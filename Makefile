# Commands for working on loopgate. CI uses them too. The build needs Make and a C compiler anyway.
.DEFAULT_GOAL := help
.PHONY: help build check test lint fmt docs-tables full real docker chart deny

help: ## list these commands
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

build: ## build the debug binary (target/debug/loopgate)
	cargo build --locked

check: ## compile everything, without running it
	cargo check --locked --all-targets

test: ## unit and integration tests: no Docker; one test of `it` needs root, and says NOT RUN without it
	tests/run unit it attacks

lint: ## formatting, clippy with and without features, rustdoc
	tests/run lint

fmt: ## format the code
	cargo fmt --all

docs-tables: ## update the generated tables of docs/reference.md
	TEST_BLESS=1 cargo test --locked --test operator reference

deny: ## licences, advisories and sources of the dependencies (needs cargo-deny)
	cargo deny check

real: ## the real OpenClaw gateway, browsers and network namespaces (needs root and a network)
	tests/run real

docker: ## a real Docker Engine (needs root, or an engine that runs)
	tests/run docker

chart: ## the Helm chart
	tests/run chart

full: ## everything that needs no long preparation; see CONTRIBUTING.md for the rest
	tests/run
