# `make` alone says what there is. Nothing here needs root, except where it says so.
GO       ?= go
GOFLAGS  ?=
BIN      := bin
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# STRIP="-s -w" leaves out what debuggers read.
STRIP    ?=
LDFLAGS  := $(STRIP) -X github.com/storaged/storaged/internal/version.Version=$(VERSION)
# Every binary that is given to somebody is made so, deploy/Dockerfile's and the lab's too: static, and the same wherever it is built.
BUILD    := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)'
TAGS     := interop,e2e,netns,chaos,devices,lab,docker,kube,upgrade
# Block devices of this host are tested where it is root's, and has FUSE, loop devices and the tools of file systems.
DEVICES  := $(shell [ "$$(id -u)" = 0 ] && [ -w /dev/fuse ] && [ -w /dev/loop-control ] && \
              PATH=$$PATH:/usr/sbin:/sbin && for p in mkfs.ext4 mkfs.xfs e2fsck xfs_repair blkdiscard; do \
              command -v $$p >/dev/null || exit 0; done && echo devices)
# Docker is tested where its engine is; it needs the block devices too.
DOCKER   := $(if $(DEVICES),$(shell command -v dockerd >/dev/null && command -v docker >/dev/null && command -v docker-compose >/dev/null && command -v busybox >/dev/null && echo docker))
FUZZTIME ?= 1m
CHAOS_FOR ?= 10m
CHAOS_ARGS ?=
SOAK_FOR ?= 30m
SIM_SECONDS ?= 600
BENCH    ?=
RACE     ?= -short
DEMO     ?=
DEPLOY   ?=
LAB      ?=
KUBE     ?=
POWERCUT ?=
# The commit of the release before this one.
BEFORE   ?= f484692

.PHONY: help build demo test unit race interop e2e chaos-short chaos soak upgrade-test powercut lab lab-short lab-run lab-systemd lab-systemd-run kube fuzz bench bench-quick bench-space bench-scale bench-start bench-memory bench-placement bench-repair bench-stages deploy-check fmt fmt-check tidy-check vet lint \
        generate generate-check deps deps-install ci clean

help: ## say what there is
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build storaged and storagectl into bin/, static
	$(BUILD) -o $(BIN)/ ./cmd/...
	@$(GO) run ./test/static $(BIN)/storaged $(BIN)/storagectl

demo: ## three nodes on loopback, a file tree streamed in, the leader killed meanwhile (DEMO=--keep keeps them)
	@$(GO) run ./test/demo $(DEMO)

test: unit ## everything that is tested: unit tests, then interop, end-to-end and a short chaos run with the tools at hand
	@test/deps.sh --run $(MAKE) interop -- nbdinfo nbdcopy nbdsh qemu-img qemu-io nbd-client fio
	@$(MAKE) --no-print-directory e2e
	@$(MAKE) --no-print-directory chaos-short

unit: ## go vet and go test, without root and without tools; power cuts and simulation in their short forms
	$(GO) vet -tags $(TAGS) ./...
	$(GO) test -timeout 15m ./...

race: ## the unit tests in their short form under the race detector (RACE= for the long one)
	$(GO) test -race $(RACE) -timeout 20m ./...

interop: build ## Debian's NBD clients against the server in memory, one real node and three
	$(GO) test -tags interop -timeout 10m -count 1 ./test/interop -storaged $(abspath $(BIN))/storaged

e2e: build ## three real processes: growth, failover, restart
	@test/deps.sh --root ip nft || echo "left out: partitions"
	@[ -n "$(DEVICES)" ] || echo "left out: block devices; they need root, /dev/fuse, loop devices, e2fsprogs and xfsprogs"
	@[ -n "$(DOCKER)" ] || echo "left out: Docker; it needs the above, docker.io, docker-compose and busybox-static"
	$(if $(DEVICES),$(GO) test -tags devices -timeout 5m -count 1 ./nbd/attach ./api/hostfs)
	$(GO) test -tags e2e$(shell test/deps.sh --root ip nft 2>/dev/null && echo ,netns)$(DEVICES:%=,%)$(DOCKER:%=,%) -timeout 30m -count 1 ./test/e2e \
	  -storaged $(abspath $(BIN))/storaged
	$(if $(DEVICES),$(GO) test -tags e2e -timeout 5m -count 1 ./test/csi -storaged $(abspath $(BIN))/storaged)

chaos-short: build ## half a minute of kill -9, pauses and partitions; histories checked for linearizability
	$(GO) test -tags chaos -timeout 5m -count 1 -run '^TestChaos$$' ./test/chaos -storaged $(abspath $(BIN))/storaged -for 30s $(CHAOS_ARGS)

chaos: build ## the same, long (CHAOS_FOR=10m), its tools, how long writers wait after an outage, nodes that are drained, lost and given new disks, and the simulation from new seeds (SIM_SECONDS=600)
	if [ "$$(id -u)" = 0 ]; then $(GO) test -tags chaos -count 1 -run '^TestNetwork' ./internal/testcluster; fi
	$(GO) test -tags chaos -timeout 0 -count 1 -v -run '^TestChaos$$' ./test/chaos -storaged $(abspath $(BIN))/storaged -for $(CHAOS_FOR) $(CHAOS_ARGS)
	$(GO) test -tags chaos -timeout 0 -count 1 -v -run '^TestOutage$$' ./test/chaos -storaged $(abspath $(BIN))/storaged -outages 10
	$(GO) test -tags chaos -timeout 0 -count 1 -v -run '^TestCare$$' ./test/chaos -storaged $(abspath $(BIN))/storaged -care 6
	$(if $(DEVICES),$(GO) test -tags chaos,devices -timeout 0 -count 1 -v -run '^TestRolling$$' ./test/chaos -storaged $(abspath $(BIN))/storaged)
	$(GO) test -timeout 0 -count 1 -run '^TestSchedules$$' ./test/sim -sim.from=$$(date +%s)000 -sim.seconds=$(SIM_SECONDS)

soak: build ## everything at once: file systems, clients, volumes that come and go; nodes and gateways killed, drained, lost, given new disks (root; SOAK_FOR=30m)
	@[ -n "$(DEVICES)" ] || echo "left out: the soak; it needs root, /dev/fuse, loop devices, e2fsprogs and xfsprogs"
	$(if $(DEVICES),$(GO) test -tags chaos,devices -timeout 0 -count 1 -v -run '^TestSoak$$' ./test/chaos -storaged $(abspath $(BIN))/storaged -soak $(SOAK_FOR) $(CHAOS_ARGS))

upgrade-test: build ## three nodes and a host go from the release before to this one, back, and forward again (BEFORE=COMMIT)
	@[ -n "$(DEVICES)" ] || echo "left out: a host's gateway; it needs root, /dev/fuse, loop devices, e2fsprogs and xfsprogs"
	@set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; mkdir "$$dir/tree"; \
	  git archive -o "$$dir/tree.tar" $(BEFORE); tar -xf "$$dir/tree.tar" -C "$$dir/tree"; \
	  $(MAKE) --no-print-directory -C "$$dir/tree" build BIN="$$dir/bin" VERSION=$(BEFORE); \
	  $(GO) test -tags upgrade -timeout 15m -count 1 -v -run '^TestUpgrade$$' ./test/upgrade -before "$$dir/bin" -present $(abspath $(BIN)) $(if $(DEVICES),-host)

powercut: build ## nodes on disks that lose what was not flushed, on ext4 and xfs (root; POWERCUT="-cuts 100"; test/powercut/README.md)
	@[ -n "$(DEVICES)" ] || echo "left out: power cuts; they need root, /dev/fuse, loop devices, e2fsprogs and xfsprogs"
	$(if $(DEVICES),$(GO) test -tags e2e$(DEVICES:%=,%) -timeout 30m -count 1 -v -run '^TestPowerCut$$' ./test/powercut -storaged $(abspath $(BIN))/storaged $(POWERCUT))

lab: ## hosts in QEMU with Debian's kernel and containers: takeovers, faults (LAB="flags"; test/lab/README.md)
	@test/deps.sh --run $(MAKE) lab-run -- qemu-system-x86_64 busybox crun mkfs.ext4 mkfs.xfs modprobe cpio readelf lz4 xz nbd-client

lab-short: ## the part of it that CI runs: containers on two hosts, a take-over, dying nodes and gateway
	@$(MAKE) --no-print-directory lab LAB="-run 'TestLab/^[01246]:' $(LAB)"

lab-systemd: ## a host with systemd and udev in QEMU: the units, the udev rules and /etc/fstab as docs/attach.md says (root, mmdebstrap; LAB="flags"; by hand)
	@test/deps.sh --run $(MAKE) lab-systemd-run -- qemu-system-x86_64 qemu-img busybox mmdebstrap modprobe cpio readelf lz4 xz

lab-systemd-run:
	test/lab/image.sh $(BIN)/lab
	test/lab/debian.sh $(BIN)/lab
	$(BUILD) -o $(BIN)/lab/root/bin/ ./cmd/... ./test/lab/journal
	$(GO) test -tags lab -timeout 60m -count 1 -v -run '^TestSystemd$$' ./test/lab -storaged $(abspath $(BIN))/lab/root/bin/storaged \
	  -image $(abspath $(BIN))/lab -root $(abspath $(BIN))/lab/root -repo $(CURDIR) $(LAB)

lab-run:
	test/lab/image.sh $(BIN)/lab
	$(BUILD) -o $(BIN)/lab/root/bin/ ./cmd/... ./test/lab/journal
	mkdir -p $(BIN)/lab/root/containers/root/bin && cp $(BIN)/lab/root/bin/journal $(BIN)/lab/root/containers/root/bin/
	$(GO) test -tags lab -timeout 40m -count 1 -v -run '^TestLab$$' ./test/lab -storaged $(abspath $(BIN))/lab/root/bin/storaged \
	  -image $(abspath $(BIN))/lab -root $(abspath $(BIN))/lab/root $(LAB)

# Without a bound, each new input is made smaller for a minute; targets with goroutines then do nothing else.
kube: ## a real Kubernetes in namespaces of this machine, the chart with its defaults on it (root; KUBE="flags"; test/kube/README.md)
	test/kube/build.sh $(BIN)/kube
	$(BIN)/kube/bin/kube.test -test.v -test.timeout 2h -bin $(abspath $(BIN))/kube -repo $(CURDIR) $(KUBE)

fuzz: ## every fuzz target for FUZZTIME (1m) each
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$pkg; done; done

bench: build ## storaged against nbdkit on this disk, the same fio jobs; writes bench/out.json (BENCH="flags", see -help)
	@test/deps.sh fio nbdkit
	@$(GO) run ./bench -storaged $(BIN)/storaged $(BENCH)

bench-quick: build ## the same in about two minutes: fewer seconds, a smaller volume; not for docs/performance.md
	@test/deps.sh fio nbdkit
	@$(GO) run ./bench -quick -storaged $(BIN)/storaged $(BENCH)

bench-space: build ## random overwrites of ten times a store's size at 50 to 90 % live, one node and three: what compaction writes (BENCH="flags"; an hour or two)
	$(GO) run ./bench space $(BENCH)

bench-scale: build ## how cost grows with depth, volumes, idle volumes, clients, groups, block size, reads, fill (BENCH="-only NAME -plots DIR"; half an hour or so)
	@test/deps.sh fio nbdkit
	$(GO) run ./bench scale -storaged $(BIN)/storaged $(BENCH)

bench-start: build ## start after kill -9 with 5, 10 and 20 GiB of live data: does it take longer with the data, or with the log? (BENCH="-live 100GiB -nodes 3")
	@test/deps.sh fio
	$(GO) run ./bench start -storaged $(BIN)/storaged $(BENCH)

bench-memory: build ## resident size of a node with 2 TiB mapped in 1,000 volumes, under random requests over all of it (BENCH="-mapped 200GiB"; a quarter of an hour or more)
	$(GO) run ./bench memory -storaged $(BIN)/storaged $(BENCH)

bench-placement: ## where replicas go in clusters of 3 to 1,000 nodes, simulated with the functions that decide it: evenness, bytes moved, triple failures (BENCH="-plots DIR"; a minute or two)
	$(GO) run ./bench placement $(BENCH)

bench-repair: build ## one of four nodes lost for good with 20 GiB on it: how fast it is whole again, and what clients notice (BENCH="-live 5GiB"; half an hour)
	@test/deps.sh fio
	$(GO) run ./bench repair -storaged $(BIN)/storaged $(BENCH)

bench-stages: build ## where the time of a 4 KiB write at depth 1 goes, stage by stage, and what the floor takes beside it (BENCH="-rounds 9"; two minutes)
	@test/deps.sh fio nbdkit
	$(GO) run ./bench stages -storaged $(BIN)/storaged $(BENCH)

deploy-check: build ## the Helm chart: lint, rendering, Kubernetes' schemas, deploy/kubernetes (DEPLOY=-update writes it); systemd's units; alerts. Builds Helm's library first
	$(GO) test -C tools/deploy -count 1 . $(DEPLOY)
	@test/deps.sh --run tools/deploy/units.sh $(BIN)/storaged -- systemd-analyze
	@test/deps.sh --run promtool test rules deploy/prometheus/alerts_test.yml -- promtool

fmt: ## gofmt everything
	gofmt -w $$(git ls-files '*.go')

fmt-check:
	@bad=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$bad" ]; then echo "gofmt wants these (make fmt):"; echo "$$bad"; exit 1; fi

tidy-check: ## go.mod and go.sum name what is imported, no more and no less
	$(GO) mod tidy -diff

vet: ## go vet, with every build tag
	$(GO) vet -tags $(TAGS) ./...

lint: $(BIN)/golangci-lint ## golangci-lint in the pinned version, built from source
	$(BIN)/golangci-lint run --build-tags $(TAGS) ./...

$(BIN)/golangci-lint: tools/lint/go.mod tools/lint/go.sum
	@echo "building golangci-lint; the first time takes some minutes"
	$(GO) build -C tools/lint -o ../../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

generate: ## regenerate what is generated (proto/)
	tools/generate.sh

generate-check: ## generated code is up to date: regenerating changes nothing
	@before=$$(git status --porcelain); $(MAKE) --no-print-directory generate && after=$$(git status --porcelain) && \
	  if [ "$$before" != "$$after" ]; then echo "generated code is not up to date (make generate):"; git status --short; git diff --stat; exit 1; fi

deps: ## say which Debian packages the tests, the demo and the bench would like
	@test/deps.sh

deps-install: ## install them (root)
	@test/deps.sh --install

ci: ## what the forge runs
	bash .ci/run

clean: ## remove what was built
	rm -rf $(BIN) bench/out.json bench/space.json bench/scale.json bench/start.json bench/memory.json bench/placement.json bench/stages.json
