# `make` lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules --no-print-directory

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# The build of a release. The Dockerfile has the same command; test/suites/image compares the results.
BUILD = CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'

# The folder into which `make binaries` and `make sbom` write the files of a release.
RELEASE ?= bin/release

# The name of the image of `make image`, and what to do with the image: --push, --load or --output=...
IMAGE ?= akv-injector:$(VERSION)
OUTPUT ?= --push

# The build of programs that tests run next to the injector. Without it the tests build them silently.
BUILD_PART = CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags='-s -w'

# `make lint` runs vet. Without -vet=off, `go test` would run it again, on all dependencies of the tests.
TEST = go test -vet=off -shuffle=on

# The modules with code of this project.
MODULES = . test test/parts/argocd test/parts/azurewi test/parts/mlog test/parts/certmanager test/parts/flux \
	test/suites/image test/suites/observability test/suites/provider test/harness/keyvault tools/release

# The number of inputs for each fuzz target. It is not a duration: up to Go 1.26, a fuzz run with a time limit sometimes
# fails with "context deadline exceeded" (go.dev/issue/75804). Fuzzing recompiles everything, so it runs nightly only.
FUZZTIME ?= 5000x

# The same for fuzz targets that run the Azure provider, which take a hundred times as long.
PROVIDER_FUZZTIME ?= 300x

# The number of runs of each benchmark.
COUNT ?= 6

# Tools are in the user's cache folder, one file per version of the tool and of Go, so that all clones share them.
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

# The same flags as for programs, so that the build cache is shared.
lint test-observability image-check: export CGO_ENABLED = 0
lint test-observability image-check: export GOFLAGS = -trimpath

# $(call step,TITLE,COMMAND) prints the title, runs the command, and prints how long it took.
step = @echo '==> $(1)'; SECONDS=0; $(2) && echo "    $(1): $${SECONDS} s"

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/akv-injector, statically linked, as in a release
	$(BUILD) -o bin/akv-injector .

.PHONY: binaries
binaries: ## Build the binaries of the image for amd64 and arm64 in bin/release
	@for arch in amd64 arm64; do \
		GOOS=linux GOARCH=$$arch $(BUILD) -o $(RELEASE)/akv-injector-linux-$$arch .; \
		GOOS=linux GOARCH=$$arch $(BUILD) -o $(RELEASE)/akv-env-linux-$$arch ./akv-env; \
	done

.PHONY: sbom
sbom: binaries $(CYCLONEDX) ## Build the binaries, each with a CycloneDX bill of materials
	@for arch in amd64 arm64; do \
		$(CYCLONEDX) bin -json -std -noserial -notimestamp -version '$(VERSION)' \
			-output $(RELEASE)/akv-injector-linux-$$arch.cdx.json $(RELEASE)/akv-injector-linux-$$arch; \
	done

.PHONY: image
image: ## Build the image; DISTROLESS=REGISTRY/distroless is its base, IMAGE=REGISTRY/akv-injector:TAG its name
	@[ -n '$(DISTROLESS)' ] || { echo "make: set the base image: DISTROLESS=REGISTRY/distroless" >&2; exit 1; }
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) docker buildx build --platform linux/amd64,linux/arm64 \
		--build-arg DISTROLESS='$(DISTROLESS)' --build-arg VERSION='$(VERSION)' --build-arg REVISION="$$(git rev-parse HEAD)" \
		--tag '$(IMAGE)' $(OUTPUT) .

.PHONY: image-check
image-check: ## Test Dockerfile, binaries, SBOMs and notices without a container engine; the first run is slow
	$(call step,tests of the notices,cd tools/release && $(TEST) ./...)
	$(call step,tests of the image,cd test/suites/image && $(TEST) -count=1 ./...)

.PHONY: demo
demo: ## Show injection on a real API server; KEEP=1 keeps it running
	@[ -e bin/demo ] || echo 'building the demo; the first build is slow ...'
	@cd test && $(BUILD_PART) -o ../bin/demo ./demos/demo && exec ../bin/demo $(if $(KEEP),--keep)

.PHONY: node
node: ## Show pods on a real node that read a fake Key Vault; Linux, root; KEEP=1 keeps it running
	@[ -e bin/node ] || echo 'building the demonstration; the first build is slow ...'
	@cd test && $(BUILD_PART) -o ../bin/node ./demos/node && exec ../bin/node $(if $(KEEP),--keep)

.PHONY: demo-page
demo-page: ## Rewrite docs/demo.md with the output of `make node`
	@cd test && $(BUILD_PART) -o ../bin/node ./demos/node && ../bin/node build && \
		{ sed '/^```text$$/q' ../docs/demo.md && COLUMNS=110 ../bin/node && echo '```'; } >../bin/demo.md && mv ../bin/demo.md ../docs/demo.md

# The number of measurements of node-latency for each row.
RUNS ?= 50

.PHONY: node-latency
node-latency: $(BENCHSTAT) ## Time from kubectl apply to the secret on a real node: half an hour; RUNS=10 for less
	@mkdir -p bin
	@cd test && $(BUILD_PART) -o ../bin/node ./demos/node && ../bin/node -runs=$(RUNS) latency | tee ../bin/latency.txt
	@$(BENCHSTAT) -filter '.unit:sec/op' -row '/reads /class' -col '/by@(hand annotations)' bin/latency.txt

.PHONY: test
test: test-unit test-provider test-observability test-apiserver image-check test-node ## Run all tests; nightly runs more

.PHONY: test-unit
test-unit: ## Run the unit tests and the corpus with the race detector
	@cc=$$(go env CC); command -v "$${cc%% *}" >/dev/null || \
		{ echo "make: the race detector needs cgo and a C compiler, and $$cc is not here: install gcc or set CC" >&2; exit 1; }
	$(call step,unit tests,CGO_ENABLED=1 $(TEST) -race ./...)

.PHONY: test-provider
test-provider: ## Test managed classes with the code of the Azure provider and the driver, and a fake Key Vault
	$(call step,tests of the fake Azure,cd test/harness/keyvault && CGO_ENABLED=1 $(TEST) -race ./...)
	$(call step,tests with the Azure provider,cd test/suites/provider && CGO_ENABLED=1 $(TEST) -race -timeout=10m ./...)

.PHONY: test-observability
test-observability: $(PROMTOOL) ## Test alerts, dashboard and traces; the first run builds promtool
	$(call step,tests of alerts and dashboard,cd test/suites/observability && $(TEST) -count=1 ./...)

# The longest suite is first, so that it runs next to the others.
.PHONY: test-apiserver
test-apiserver: $(HELM) $(HELM3) ## Test with a real API server; the first run builds a control plane, for minutes
	$(call step,control plane,cd test && go run ./demos/controlplane build)
	$(call step,cert-manager,cd test/parts/certmanager && $(BUILD_PART) -o ../../../bin/test/cert-manager .)
	$(call step,Azure workload identity,cd test/parts/azurewi && $(BUILD_PART) -o ../../../bin/test/azurewi .)
	$(call step,the engine of Argo CD,cd test/parts/argocd && $(BUILD_PART) -o ../../../bin/test/argocd .)
	$(call step,the engine of Flux,cd test/parts/flux && $(BUILD_PART) -o ../../../bin/test/flux .)
	$(call step,tests with a real API server,cd test && \
		CGO_ENABLED=1 $(TEST) -race -timeout=20m $$(go list ./suites/e2e ./... | grep -v /test/harness/node$$))

.PHONY: test-node
test-node: ## Test a real node, then run `make node`; prints a warning if the machine cannot run a node
	@cd test && $(BUILD_PART) -o ../bin/node ./demos/node && \
		if ../bin/node possible; then $(MAKE) -C .. node-tests; else echo '*** NO TESTS WITH A NODE RUN HERE: see above' >&2; fi

.PHONY: node-tests
node-tests: $(HELM)
	$(call step,parts of a node,cd test && ../bin/node build)
	$(call step,tests of the node,cd test && CGO_ENABLED=1 $(TEST) -race -timeout=10m ./harness/node)
	$(call step,stories on a node,cd test && ../bin/node)

.PHONY: verify
verify: verify-generate lint test ## Check generated files, lint and test; CI runs it on each change

.PHONY: verify-generate
verify-generate: ## Check that the generated files are up to date, in a copy of the tree
	@echo '==> generated files'; copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; \
	tar -cf - --exclude=./.git --exclude=./bin . | tar -xf - -C "$$copy"; \
	$(MAKE) -C "$$copy" generate; \
	diff -ru --exclude=.git --exclude=bin . "$$copy" || \
		{ echo "make: generated files are out of date; run 'make generate' and commit what changes" >&2; exit 1; }

.PHONY: lint
lint: $(GOLANGCI_LINT) ## Run golangci-lint in the modules of this project, and check the links in the documentation
	@echo "==> links"; go test -run=TestLinks ./docs
	@for module in $(MODULES); do \
		echo "==> lint $$module"; SECONDS=0; \
		(cd $$module && $(GOLANGCI_LINT) run ./...); echo "    lint $$module: $${SECONDS} s"; \
	done

.PHONY: fmt
fmt: $(GOLANGCI_LINT) ## Format the code and the imports
	@for module in $(MODULES); do (cd $$module && $(GOLANGCI_LINT) fmt ./...); done

.PHONY: generate
generate: $(HELM) $(HELM_DOCS) $(HELM_SCHEMA) ## Write the generated files
	go generate ./...
	go test -run=TestReference . -update
	cd tools/release && go run .
	$(HELM_SCHEMA) -input deploy/chart/values.yaml -output deploy/chart/values.schema.json \
		-draft 7 -indent 2 -noAdditionalProperties true -schemaRoot.additionalProperties false
	$(HELM_DOCS) --chart-search-root deploy/chart --sort-values-order file --log-level warning
	HELM=$(HELM) deploy/kustomize/render

.PHONY: bench
bench: $(BENCHSTAT) ## Run the benchmarks and their baselines; OLD=FILE compares with an earlier bin/bench.txt
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
load: ## Measure load over TLS, and what a review adds to the creation of a pod at a real API server
	@cd test && go run ./benchmarks/load

.PHONY: scale
scale: ## Measure the controller with 2,000 namespaces and 20,000 pods; takes some minutes
	@cd test && go run ./benchmarks/scale

.PHONY: fuzz
fuzz: ## Run each fuzz target for a short time; FUZZTIME=1000000x for longer. Unit tests run their seeds
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
ha: ## Cause faults under load: replicas killed, API server and etcd restarted, an outage; about 10 minutes
	@cd test && go run ./benchmarks/ha/cmd faults

# The duration of each of about 25 attacks.
ATTACK ?= 1m

.PHONY: attacks
attacks: ## Attack replicas as tenants and pods could; Linux, root; half an hour, ATTACK=5s for less
	@cd test && go run ./benchmarks/ha/cmd -attack=$(ATTACK) attacks

# The duration of a soak.
DURATION ?= 10m

.PHONY: soak
soak: ## Check that a steady load does not grow memory or goroutines; DURATION=1h for longer
	@cd test && go run ./benchmarks/ha/cmd -duration=$(DURATION) soak

.PHONY: nightly
nightly: verify node fuzz mutants ha attacks soak ## Run all checks that CI runs nightly, in more than an hour

.PHONY: mutants
mutants: ## Weaken each condition of policy in turn; a unit test must fail each time
	@cd test && go run ./suites/mutants

.PHONY: cover
cover: ## Write the coverage of the unit tests to bin/cover.html
	@mkdir -p bin
	go test -coverpkg=./... -coverprofile=bin/cover.out ./...
	go tool cover -html=bin/cover.out -o bin/cover.html
	go tool cover -func=bin/cover.out | tail -n 1

.PHONY: clean
clean: ## Remove bin/; tools and the control plane stay in the user's cache folder
	rm -rf bin

.PHONY: tools
tools: ## Build the tools that tools/ pins
tools: $(GOLANGCI_LINT) $(BENCHSTAT) $(HELM) $(HELM3) $(HELM_DOCS) $(HELM_SCHEMA) $(PROMTOOL) $(CYCLONEDX)

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
	@echo "building $(@F), once (golangci-lint and helm take minutes) ..."
	@cd tools$(module) && CGO_ENABLED=0 go build -trimpath -tags '$(tags)' -ldflags '-s -w' -o $@.$$$$ $(package) && mv $@.$$$$ $@
