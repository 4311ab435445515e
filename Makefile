# `make` prints what there is to do.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules --no-print-directory

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# What is shipped is built like this; the Dockerfile does the same, and test/suites/image compares the results.
BUILD = CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'

# Where `make binaries` and `make sbom` put what a release consists of.
RELEASE ?= bin/release

# What `make image` calls the image, and what it does with it: --push, --load, --output=...
IMAGE ?= akv-injector:$(VERSION)
OUTPUT ?= --push

# What runs beside the injector in tests is built like this. The tests would build it too, but not say so.
BESIDE = CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags='-s -w'

# The modules with code of ours.
MODULES = . test test/parts/argocd test/parts/azurewi test/parts/mlog test/parts/certmanager test/parts/flux test/suites/image test/suites/observability \
	test/suites/provider test/harness/keyvault tools/release

# Inputs that each fuzz target tries. A count, not a duration: up to Go 1.26, a fuzz run that ends by the clock
# fails now and then with a bare "context deadline exceeded" (go.dev/issue/75804). Fuzzing compiles everything anew, so it is
# for the night.
FUZZTIME ?= 5000x

# The same for those that ask the Azure provider, which takes a hundred times as long.
PROVIDER_FUZZTIME ?= 300x

# Runs of each benchmark.
COUNT ?= 6

# Tools live outside the tree, one file per version of the tool and of Go: a fresh clone finds them built.
TOOLS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/akv-injector/tools
pinned = $(TOOLS)/$(1)-$(shell awk '$$1 == "$(3)" && $$2 {print $$2}' $(2)/go.mod)-$(shell go env GOVERSION)
GOLANGCI_LINT := $(call pinned,golangci-lint,tools,github.com/golangci/golangci-lint/v2)
BENCHSTAT := $(call pinned,benchstat,tools,golang.org/x/perf)
HELM := $(call pinned,helm,tools/helm,helm.sh/helm/v4)
HELM3 := $(call pinned,helm,tools/helm,helm.sh/helm/v3)
HELM_DOCS := $(call pinned,helm-docs,tools/helm,github.com/norwoodj/helm-docs)
HELM_SCHEMA := $(call pinned,helm-schema,tools/helm,github.com/losisin/helm-values-schema-json)
PROMTOOL := $(call pinned,promtool,tools/promtool,github.com/prometheus/prometheus)
CYCLONEDX := $(call pinned,cyclonedx-gomod,tools/release,github.com/CycloneDX/cyclonedx-gomod)

# Compiled with the flags of programs, which share what they have in common then.
lint test-observability image-check: export CGO_ENABLED = 0
lint test-observability image-check: export GOFLAGS = -trimpath

# $(call step,TITLE,COMMAND) says what runs, and how long it took.
step = @echo '==> $(1)'; SECONDS=0; $(2) && echo "    $(1): $${SECONDS} s"

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## bin/akv-injector, static, as it is shipped
	$(BUILD) -o bin/akv-injector .

.PHONY: binaries
binaries: ## What the image runs, for amd64 and arm64, in bin/release
	@for arch in amd64 arm64; do \
		GOOS=linux GOARCH=$$arch $(BUILD) -o $(RELEASE)/akv-injector-linux-$$arch .; \
	done

.PHONY: sbom
sbom: binaries $(CYCLONEDX) ## Binaries, each with its bill of materials as CycloneDX has it
	@for arch in amd64 arm64; do \
		$(CYCLONEDX) bin -json -std -noserial -notimestamp -version '$(VERSION)' \
			-output $(RELEASE)/akv-injector-linux-$$arch.cdx.json $(RELEASE)/akv-injector-linux-$$arch; \
	done

.PHONY: image
image: ## The image for amd64 and arm64; DISTROLESS=REGISTRY/distroless has its base, IMAGE=REGISTRY/akv-injector:TAG is its name
	@[ -n '$(DISTROLESS)' ] || { echo "make: say where the base comes from: DISTROLESS=REGISTRY/distroless" >&2; exit 1; }
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) docker buildx build --platform linux/amd64,linux/arm64 \
		--build-arg DISTROLESS='$(DISTROLESS)' --build-arg VERSION='$(VERSION)' --build-arg REVISION="$$(git rev-parse HEAD)" \
		--tag '$(IMAGE)' $(OUTPUT) .

.PHONY: image-check
image-check: ## Dockerfile, binaries, SBOMs and notices, without an engine; the first run compiles for both architectures
	$(call step,tests of the notices,cd tools/release && go test -shuffle=on ./...)
	$(call step,tests of the image,cd test/suites/image && go test -count=1 -shuffle=on ./...)

.PHONY: demo
demo: ## An annotated Deployment becomes an injected pod on a real API server; KEEP=1 leaves it running
	@[ -e bin/demo ] || echo 'building the demo, which is slow the first time ...'
	@cd test && $(BESIDE) -o ../bin/demo ./demos/demo && exec ../bin/demo $(if $(KEEP),--keep)

.PHONY: node
node: ## The whole road: annotated Deployments on a real node read a fake Key Vault. Linux, root; KEEP=1 leaves it running
	@[ -e bin/node ] || echo 'building the demonstration, which is slow the first time ...'
	@cd test && $(BESIDE) -o ../bin/node ./demos/node && exec ../bin/node $(if $(KEEP),--keep)

.PHONY: demo-page
demo-page: ## docs/demo.md again, from what `make node` prints
	@cd test && $(BESIDE) -o ../bin/node ./demos/node && ../bin/node build && \
		{ sed '/^```text$$/q' ../docs/demo.md && COLUMNS=110 ../bin/node && echo '```'; } >../bin/demo.md && mv ../bin/demo.md ../docs/demo.md

# How often node-latency measures each way.
RUNS ?= 50

.PHONY: node-latency
node-latency: $(BENCHSTAT) ## From kubectl apply to the secret, by hand and by annotations, on a real node: half an hour; RUNS=10 for less
	@mkdir -p bin
	@cd test && $(BESIDE) -o ../bin/node ./demos/node && ../bin/node -runs=$(RUNS) latency | tee ../bin/latency.txt
	@$(BENCHSTAT) -filter '.unit:sec/op' -row '/reads /class' -col '/by@(hand annotations)' bin/latency.txt

.PHONY: test
test: test-unit test-provider test-observability test-apiserver image-check test-node ## All tests, those of the image included; fuzz has what comes on top

.PHONY: test-unit
test-unit: ## Unit tests and the corpus, under the race detector
	@cc=$$(go env CC); command -v "$${cc%% *}" >/dev/null || \
		{ echo "make: the race detector needs cgo and a C compiler, and $$cc is not here: install gcc or set CC" >&2; exit 1; }
	$(call step,unit tests,CGO_ENABLED=1 go test -race -shuffle=on ./...)

.PHONY: test-provider
test-provider: ## The Azure provider and the driver as judges of managed classes, before a fake Key Vault
	$(call step,tests of the fake Azure,cd test/harness/keyvault && CGO_ENABLED=1 go test -race -shuffle=on ./...)
	$(call step,tests with the Azure provider,cd test/suites/provider && CGO_ENABLED=1 go test -race -shuffle=on -timeout=10m ./...)

.PHONY: test-observability
test-observability: $(PROMTOOL) ## Alerts, dashboard and traces against what the injector exposes; the first run builds promtool
	$(call step,tests of alerts and dashboard,cd test/suites/observability && go test -count=1 -shuffle=on ./...)

.PHONY: test-apiserver
test-apiserver: $(HELM) $(HELM3) ## The suite against a real API server; the first run builds a control plane, which takes minutes
	$(call step,control plane,cd test && go run ./demos/controlplane build)
	$(call step,cert-manager,cd test/parts/certmanager && $(BESIDE) -o ../../../bin/test/cert-manager .)
	$(call step,Azure workload identity,cd test/parts/azurewi && $(BESIDE) -o ../../../bin/test/azurewi .)
	$(call step,the engine of Argo CD,cd test/parts/argocd && $(BESIDE) -o ../../../bin/test/argocd .)
	$(call step,the engine of Flux,cd test/parts/flux && $(BESIDE) -o ../../../bin/test/flux .)
	$(call step,tests with a real API server,cd test && CGO_ENABLED=1 go test -race -shuffle=on -timeout=20m $$(go list ./... | grep -v /test/harness/node$$))

.PHONY: test-node
test-node: ## A whole node: its own tests, then what `make node` shows; a loud word where the machine can't run one
	@cd test && $(BESIDE) -o ../bin/node ./demos/node && \
		if ../bin/node possible; then $(MAKE) -C .. node-tests; else echo '*** NO NODE IS TESTED HERE, AND NO STORY IS SHOWN: see above' >&2; fi

.PHONY: node-tests
node-tests: $(HELM)
	$(call step,what a node is made of,cd test && ../bin/node build)
	$(call step,tests of the node,cd test && CGO_ENABLED=1 go test -race -shuffle=on -timeout=10m ./harness/node)
	$(call step,stories on a node,cd test && ../bin/node)

.PHONY: verify
verify: verify-generate lint test ## What continuous integration runs on each change: generated files, lint, tests

.PHONY: verify-generate
verify-generate: ## Are the generated files what the generators write? Asked in a copy of the tree
	@echo '==> generated files'; copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; \
	tar -cf - --exclude=./.git --exclude=./bin . | tar -xf - -C "$$copy"; \
	$(MAKE) -C "$$copy" generate; \
	diff -ru --exclude=.git --exclude=bin . "$$copy" || \
		{ echo "make: generated files are out of date; run 'make generate' and commit what changes" >&2; exit 1; }

.PHONY: lint
lint: $(GOLANGCI_LINT) ## golangci-lint over the modules with code of ours
	@for module in $(MODULES); do \
		echo "==> lint $$module"; SECONDS=0; \
		(cd $$module && $(GOLANGCI_LINT) run ./...); echo "    lint $$module: $${SECONDS} s"; \
	done

.PHONY: fmt
fmt: $(GOLANGCI_LINT) ## Format the code, imports included
	@for module in $(MODULES); do (cd $$module && $(GOLANGCI_LINT) fmt ./...); done

.PHONY: generate
generate: $(HELM) $(HELM_DOCS) $(HELM_SCHEMA) ## Write the generated files again
	go generate ./...
	cd tools/release && go run .
	$(HELM_SCHEMA) -input deploy/chart/values.yaml -output deploy/chart/values.schema.json \
		-draft 7 -indent 2 -noAdditionalProperties true -schemaRoot.additionalProperties false
	$(HELM_DOCS) --chart-search-root deploy/chart --sort-values-order file --log-level warning
	HELM=$(HELM) deploy/kustomize/render

.PHONY: bench
bench: $(BENCHSTAT) ## Benchmarks, ours beside each baseline; OLD=FILE compares with an earlier bin/bench.txt
	@mkdir -p bin
	go test -run='^$$' -bench=. -cpu=1 -count=$(COUNT) ./webhook ./core/api ./core/inject | tee bin/bench.txt
	@for baseline in echo decode customary unlogged; do \
		echo "==> $$baseline and ours"; \
		$(BENCHSTAT) -filter "/handler:($$baseline OR ours) -.unit:B/s" -row /review -col "/handler@($$baseline ours)" bin/bench.txt; \
	done
	@echo '==> the parts'
	@$(BENCHSTAT) -filter '-.name:Handler' -ignore pkg bin/bench.txt
	@$(if $(OLD),echo '==> before and after'; $(BENCHSTAT) $(OLD) bin/bench.txt)

.PHONY: load
load: ## Load over TLS, and what a review adds to a pod's creation at a real API server
	@cd test && go run ./benchmarks/load

.PHONY: scale
scale: ## The controller with 2,000 namespaces and 20,000 pods at a real API server; takes some minutes
	@cd test && go run ./benchmarks/scale

.PHONY: fuzz
fuzz: ## Each fuzz target for a short while; FUZZTIME=1000000x for longer. Their seeds are unit tests, too
	@go list -f '{{.Dir}}' ./... | while read -r dir; do \
		for target in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$$dir"/*_test.go 2>/dev/null | cut -c 6-); do \
			echo "==> $$target"; \
			go test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) -fuzzminimizetime=1x "$$dir" </dev/null; \
		done; \
	done
	@for target in FuzzItems FuzzManagedClass; do \
		echo "==> $$target"; \
		(cd test/suites/provider && go test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(PROVIDER_FUZZTIME) -fuzzminimizetime=1x . </dev/null); \
	done

.PHONY: ha
ha: ## Faults under load: replicas replaced, killed, frozen, API server and etcd restarted, an outage; some 10 minutes
	@cd test && go run ./benchmarks/ha/cmd faults

# How long each attack lasts; there are some 25 of them.
ATTACK ?= 1m

.PHONY: attacks
attacks: ## What tenants and pods could send to take replicas down, whose memory is limited. Linux, root; half an hour, ATTACK=5s for less
	@cd test && go run ./benchmarks/ha/cmd -attack=$(ATTACK) attacks

# How long a soak is.
DURATION ?= 10m

.PHONY: soak
soak: ## Neither goroutines nor memory grow under a steady load; DURATION=1h for longer
	@cd test && go run ./benchmarks/ha/cmd -duration=$(DURATION) soak

.PHONY: nightly
nightly: verify node fuzz mutants ha attacks soak ## What continuous integration runs once a night, in an hour and more

.PHONY: mutants
mutants: ## Weaken policy, condition by condition: the tests must notice
	@cd test && go run ./suites/mutants

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
tools: $(GOLANGCI_LINT) $(BENCHSTAT) $(HELM) $(HELM3) $(HELM_DOCS) $(HELM_SCHEMA) $(PROMTOOL) $(CYCLONEDX) ## Build the tools that tools/ pins

$(GOLANGCI_LINT): package := github.com/golangci/golangci-lint/v2/cmd/golangci-lint
$(BENCHSTAT): package := golang.org/x/perf/cmd/benchstat
$(HELM): package := helm.sh/helm/v4/cmd/helm
$(HELM3): package := helm.sh/helm/v3/cmd/helm
$(HELM_DOCS): package := github.com/norwoodj/helm-docs/cmd/helm-docs
$(HELM_SCHEMA): package := github.com/losisin/helm-values-schema-json
$(PROMTOOL): package := github.com/prometheus/prometheus/cmd/promtool
$(CYCLONEDX): package := github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod
$(HELM) $(HELM3) $(HELM_DOCS) $(HELM_SCHEMA): module := /helm
$(PROMTOOL): module := /promtool
$(PROMTOOL): tags := remove_all_sd
$(CYCLONEDX): module := /release
$(GOLANGCI_LINT) $(BENCHSTAT) $(HELM) $(HELM3) $(HELM_DOCS) $(HELM_SCHEMA) $(PROMTOOL) $(CYCLONEDX):
	@mkdir -p $(TOOLS)
	@echo "building $(@F), once (for golangci-lint and helm that takes minutes) ..."
	@cd tools$(module) && CGO_ENABLED=0 go build -trimpath -tags '$(tags)' -ldflags '-s -w' -o $@.$$$$ $(package) && mv $@.$$$$ $@
