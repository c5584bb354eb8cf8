# Fastnet. `make` lists what there is.

# The folder for all that is built; nothing outside it is written, but for `make gen`.
DIST := dist
# staticcheck and controller-gen run in these versions, from the Go module proxy.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
CONTROLLER_GEN := sigs.k8s.io/controller-tools/cmd/controller-gen@v0.23.0

# Packages whose tests run whole programs against real API servers: slow enough without the race detector, which does not see
# into those programs anyway.
SLOW := (internal/ctl/(fastnet|service)|cmd/fastnet-agent|test/bench/(propagation|scale))$$

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
COMMANDS := fastnet-agent fastnet-gateway fastnet-routeagent kubectl-service kubectl-fastnet fastnet-lab

export CGO_ENABLED := 0
# A pipe fails with any of its commands: a test run that dies must not pass for one that was counted.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
# go build decides what is stale, make only what to ask for.
.NOTPARALLEL:
.PHONY: help build test test-kernel lint gen images lab demo demo-down e2e soak soak-failover soak-kills soak-dns bench bench-dns bench-propagation bench-scale bench-tunnel bench-failover prepare kubernetes

help: ## List the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build all binaries into dist/bin
	@mkdir -p $(DIST)/bin
	test/progress go build -v -ldflags '$(LDFLAGS)' -o $(DIST)/bin/ $(addprefix ./cmd/,$(COMMANDS)) ./test/whereami
	test/progress go build -v -ldflags '$(LDFLAGS)' -o $(DIST)/bin/coredns ./coredns-build
	@install -m 755 cmd/kubectl-fastnet/kubectl_complete-fastnet cmd/kubectl-service/kubectl_complete-service $(DIST)/bin

images: build ## Write the container images, as OCI archives, to dist/images
	@test/prepare images
	go run ./deploy/images -dist $(DIST)

kubernetes: # Kubernetes and etcd for the lab, one binary
	@test -e $(DIST)/lab/kube || echo "building Kubernetes for the lab: 8 to 12 minutes the first time, seconds later"
	test/progress test/lab/kube/build $(DIST)/lab
	go build -ldflags '-s -w' -o $(DIST)/lab/pause ./test/lab/pause

lab: prepare kubernetes images ## Start two clusters with Fastnet on them (dist/bin/fastnet-lab has more)
	$(DIST)/bin/fastnet-lab up --install

demo: prepare kubernetes images ## Start two clusters, install Fastnet, show what it does, and leave them running
	go run ./test/demo

demo-down: build ## Take away everything that demo and lab made
	$(DIST)/bin/fastnet-lab down

test: ## Run every test that needs no cluster, with the race detector (as root: also those in network namespaces)
	@test/prepare test
	@mkdir -p $(DIST)
	go build -o /dev/null ./coredns-build ./cmd/fastnet-agent # compiled here, outside of the time limit of the tests that build them
	{ CGO_ENABLED=1 go test -json -race -timeout 25m $$(go list ./... | grep -v -E '$(SLOW)'); first=$$?; \
	  go test -json -timeout 25m $$(go list ./... | grep -E '$(SLOW)') && exit $$first; } | go run ./test/tally -append $(DIST)/tally

# KERNEL_TESTS are the packages with tests that need a full kernel; VM is flags, which choose these tests. Nothing is emulated without need.
KERNEL_TESTS := ./gateway/ipsec ./test/netns
VM := -run ^TestKernel

test-kernel: ## Run the tests of the data path on a full kernel in an emulated machine (as root): WireGuard, ESP, delay, loss
	@test/prepare vm
	go run ./test/vm -json -dist $(DIST) $(VM) $(KERNEL_TESTS) | go run ./test/tally -append $(DIST)/tally

e2e: prepare kubernetes images ## Run the end-to-end tests in the lab
	go test -json -tags e2e -count 1 -p 1 -timeout 25m ./test/e2e/... ./test/lab ./test/soak | go run ./test/tally -append $(DIST)/tally

soak: soak-kills soak-dns soak-failover ## All that takes hours, eight of them: what tests do once, a hundred times (make -k soak goes on after a failure)

soak-failover: prepare kubernetes images ## Break gateways, drain them, cut clusters off and lose packets, with each driver
	go test -tags e2e -count 1 -timeout 24h -v ./test/e2e/failover -trials 100 -marginal 10m

soak-kills: ## Kill all daemons of the data path at random moments and clean up, 300 times (as root)
	@test/prepare test
	go test -count 1 -timeout 4h -v ./test/netns -run TestKilledAnywhere -kills 100

soak-dns: kubernetes build ## Overload CoreDNS, stop its API server, reload it, for 15 minutes in all
	go test -tags e2e -count 1 -timeout 40m ./test/soak -v -overload 60s -outage 10m -reloads 100 -rows $(abspath $(DIST))/bench/soak-dns.json

bench: bench-dns bench-propagation bench-scale bench-tunnel bench-failover ## Run all benchmarks; the figures are in dist/bench
	go test -run '^$$' -bench . -benchmem ./plugin/... ./internal/...

# BENCH_DNS passes flags on, such as '-only inprocess,wire -rounds 3'.
bench-dns: kubernetes ## Measure the DNS plugin against its peers
	@test/prepare bench
	@test/prepare peers || echo "going on without these peers"
	go run ./test/bench/dns $(BENCH_DNS)

# BENCH_PROPAGATION passes flags on, such as '-rates 100 -rounds 1'.
bench-propagation: kubernetes ## Measure how long changes take from one cluster to the DNS of another
	go run ./test/bench/propagation $(BENCH_PROPAGATION)

# BENCH_SCALE passes flags on, such as '-services 500'.
bench-scale: kubernetes ## Measure a broker with 20 members and 50,000 backends, and an agent that joins
	go run ./test/bench/scale $(BENCH_SCALE)

# BENCH_FAILOVER passes flags on, such as '-only power-off,hang -trials 10'.
bench-failover: prepare kubernetes images ## Measure for how long traffic stops when a gateway fails
	go run ./test/bench/failover $(BENCH_FAILOVER)

# BENCH_TUNNEL passes flags on, such as '-only throughput -rounds 4'.
bench-tunnel: prepare kubernetes images ## Measure throughput and delay between clusters against bare links and tunnels
	go run ./test/bench/tunnel $(BENCH_TUNNEL)

lint: ## Check formatting, go vet and staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "gofmt these: $$unformatted"; exit 1; }
	go vet ./...
	go vet -tags e2e ./test/...
	cd test/lab/kube && go vet -trimpath ./... # the flags of its build: the compiled packages are shared
	go run $(STATICCHECK) -tags e2e ./...

gen: ## Generate deepcopy functions, CRDs and Dockerfiles
	go run $(CONTROLLER_GEN) object crd paths=./api/... output:crd:artifacts:config=deploy/crds
	./deploy/crds/sync.sh
	go run ./deploy/images -dockerfiles deploy/images

prepare:
	@test/prepare lab
