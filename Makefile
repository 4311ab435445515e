# `make` prints what there is to do.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules --no-print-directory

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# What is shipped is built like this; the Dockerfile does the same.
BUILD = CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

# Inputs that each fuzz target tries. A count, not a duration: up to Go 1.26, a fuzz run that ends by the clock
# fails now and then with a bare "context deadline exceeded" (go.dev/issue/75804).
FUZZTIME ?= 5000x

# The same for those that ask the Azure provider, which takes a hundred times as long.
PROVIDER_FUZZTIME ?= 300x

# Runs of each benchmark.
COUNT ?= 6

# Tools live outside the tree, one file per version of the tool and of Go: a fresh clone finds them built.
TOOLS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/akv-injector/tools
pinned = $(shell awk '$$1 == "$(1)" {print $$2}' tools/go.mod)-$(shell go env GOVERSION)
GOLANGCI_LINT := $(TOOLS)/golangci-lint-$(call pinned,github.com/golangci/golangci-lint/v2)
BENCHSTAT := $(TOOLS)/benchstat-$(call pinned,golang.org/x/perf)

# $(call step,TITLE,COMMAND) says what runs, and how long it took.
step = @echo '==> $(1)'; SECONDS=0; $(2) && echo "    $(1): $${SECONDS} s"

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## bin/akv-injector, static, as it is shipped
	$(BUILD) -o bin/akv-injector .

.PHONY: demo
demo: ## An annotated Deployment becomes an injected pod on a real API server; KEEP=1 leaves it running
	@[ -e bin/demo ] || echo 'building the demo, which is slow the first time ...'
	@cd test && CGO_ENABLED=0 go build -trimpath -o ../bin/demo ./cmd/demo && exec ../bin/demo $(if $(KEEP),--keep)

.PHONY: test
test: test-unit fuzz test-provider test-apiserver ## All tests: the four below

.PHONY: test-unit
test-unit: ## Unit tests and the corpus, under the race detector
	@cc=$$(go env CC); command -v "$${cc%% *}" >/dev/null || \
		{ echo "make: the race detector needs cgo and a C compiler, and $$cc is not here: install gcc or set CC" >&2; exit 1; }
	$(call step,unit tests,CGO_ENABLED=1 go test -race -shuffle=on ./...)

.PHONY: fuzz
fuzz: ## Each fuzz target for a short while; FUZZTIME=1000000x for longer
	@go list -f '{{.Dir}}' ./... | while read -r dir; do \
		for target in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$$dir"/*_test.go 2>/dev/null | cut -c 6-); do \
			echo "==> $$target"; \
			go test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) -fuzzminimizetime=1x "$$dir" </dev/null; \
		done; \
	done

.PHONY: test-provider
test-provider: ## The Azure provider and the driver as judges of managed classes, before a fake Key Vault
	$(call step,tests with the Azure provider,cd test/provider && CGO_ENABLED=1 go test -race -shuffle=on -timeout=10m ./...)
	@for target in FuzzItems FuzzManagedClass; do \
		echo "==> $$target"; \
		(cd test/provider && go test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(PROVIDER_FUZZTIME) -fuzzminimizetime=1x . </dev/null); \
	done

.PHONY: test-apiserver
test-apiserver: ## The suite against a real API server; the first run builds a control plane, which takes minutes
	$(call step,control plane,cd test && go run ./cmd/controlplane build)
	$(call step,tests with a real API server,cd test && CGO_ENABLED=1 go test -race -shuffle=on -timeout=20m ./...)

.PHONY: verify
verify: verify-generate lint test ## What continuous integration runs: generated files, lint, tests

.PHONY: verify-generate
verify-generate: ## Are the generated files what the generators write? Asked in a copy of the tree
	@echo '==> generated files'; copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; \
	tar -cf - --exclude=./.git --exclude=./bin . | tar -xf - -C "$$copy"; \
	$(MAKE) -C "$$copy" generate; \
	diff -ru --exclude=.git --exclude=bin . "$$copy" || \
		{ echo "make: generated files are out of date; run 'make generate' and commit what changes" >&2; exit 1; }

.PHONY: lint
lint: $(GOLANGCI_LINT) ## golangci-lint over the modules with code of ours
	$(call step,lint,$(GOLANGCI_LINT) run ./...)
	$(call step,lint test,cd test && $(GOLANGCI_LINT) run ./...)
	$(call step,lint test/provider,cd test/provider && $(GOLANGCI_LINT) run ./...)

.PHONY: fmt
fmt: $(GOLANGCI_LINT) ## Format the code, imports included
	$(GOLANGCI_LINT) fmt ./...
	cd test && $(GOLANGCI_LINT) fmt ./...
	cd test/provider && $(GOLANGCI_LINT) fmt ./...

.PHONY: generate
generate: ## Write the generated files again
	go generate ./...

.PHONY: bench
bench: $(BENCHSTAT) ## Benchmarks, ours beside each baseline; OLD=FILE compares with an earlier bin/bench.txt
	@mkdir -p bin
	go test -run='^$$' -bench=. -cpu=1 -count=$(COUNT) ./webhook ./webhook/api ./webhook/inject | tee bin/bench.txt
	@for baseline in echo decode customary unlogged; do \
		echo "==> $$baseline and ours"; \
		$(BENCHSTAT) -filter "/handler:($$baseline OR ours) -.unit:B/s" -row /review -col "/handler@($$baseline ours)" bin/bench.txt; \
	done
	@echo '==> the parts'
	@$(BENCHSTAT) -filter '-.name:Handler' -ignore pkg bin/bench.txt
	@$(if $(OLD),echo '==> before and after'; $(BENCHSTAT) $(OLD) bin/bench.txt)

.PHONY: load
load: ## Load over TLS, and what a review adds to a pod's creation at a real API server
	@cd test && go run ./cmd/load

.PHONY: scale
scale: ## The controller with 2,000 namespaces and 20,000 pods at a real API server; takes some minutes
	@cd test && go run ./cmd/scale

.PHONY: mutants
mutants: ## Weaken policy, condition by condition: the tests must notice
	@cd test && go run ./mutants

.PHONY: cover
cover: ## Coverage of the unit tests in bin/cover.html
	@mkdir -p bin
	go test -coverpkg=./... -coverprofile=bin/cover.out ./...
	go tool cover -html=bin/cover.out -o bin/cover.html
	go tool cover -func=bin/cover.out | tail -n 1

.PHONY: clean
clean: ## Remove bin/; tools and control plane stay in the user's cache folder
	rm -rf bin

.PHONY: tools
tools: $(GOLANGCI_LINT) $(BENCHSTAT) ## Build the tools that tools/go.mod pins

$(GOLANGCI_LINT): package := github.com/golangci/golangci-lint/v2/cmd/golangci-lint
$(BENCHSTAT): package := golang.org/x/perf/cmd/benchstat
$(GOLANGCI_LINT) $(BENCHSTAT):
	@mkdir -p $(TOOLS)
	@echo "building $(@F), once (for golangci-lint that takes minutes) ..."
	@cd tools && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $@.$$$$ $(package) && mv $@.$$$$ $@
