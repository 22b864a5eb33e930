# pgsteer: the commands. `make help` lists them.

# The clang that builds the BPF objects is named in one place, the go:generate
# line. This major version is what .ci/packages installs and lint formats with.
CLANG_MAJOR := $(shell sed -n 's,^//go:generate.* -cc clang-\([0-9]*\) .*,\1,p' pkg/xdp/gen.go | sort -u)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# Where `make install` puts things. PREFIX=/usr is what a package uses.
PREFIX  ?= /usr/local
DESTDIR ?=

# A root login often lacks Go's directory in its PATH.
GO := $(or $(shell command -v go 2>/dev/null),$(wildcard /usr/local/go/bin/go),go)
export PATH := $(if $(findstring /,$(GO)),$(dir $(GO)):)$(PATH)
export CLANG_MAJOR

# Version numbers come from git. Go refuses to build where git refuses to
# answer (no commit yet, a tree that belongs to somebody else): go without then.
GIT_ANSWERS := $(shell git rev-parse --verify --quiet HEAD >/dev/null 2>&1 && echo yes)
ifneq ($(GIT_ANSWERS),yes)
export GOFLAGS += -buildvcs=false
endif

BIN := build/bin
PROGRAMS := pgsteerd pgsteer-pooler pgsteer

.DEFAULT_GOAL := help
# What is needed comes before what needs it, with make -j too.
.NOTPARALLEL:

.PHONY: help
help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: check-go deps
check-go:
	@GO='$(GO)' .ci/check-go

deps: ## install every Debian package that a command below needs (root)
	@.ci/deps run test generate lint

deps-%:
	@.ci/deps $(subst +, ,$*)

# Said before minutes are spent on building.
need-root-%:
	@test "$$(id -u)" -eq 0 || { echo "make $*: only root can make network namespaces and attach XDP programs" >&2; exit 1; }

# Static binaries: they run on the VMs of vagrant/ whatever libc those have.
.PHONY: build
build: check-go ## build the programs into build/bin
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/ ./cmd/...

.PHONY: demo
demo: need-root-demo deps-run build ## as root: raise the lab, run real traffic through it, break it, show the figures
	@$(BIN)/pgsteer-lab demo

# Two runs: the lab measures how fast the real programs react, so nothing else
# is tested next to it. Nothing is taken from the test cache, because what the
# lab starts is not among the inputs that Go keeps account of.
.PHONY: test
test: need-root-test deps-run+test build ## as root: all tests, with the race detector
	packages=$$($(GO) list ./... | grep -v /pkg/lab) && CGO_ENABLED=1 $(GO) test -race -count=1 -p 2 -timeout 20m $$packages
	CGO_ENABLED=1 $(GO) test -race -count=1 -p 1 -timeout 20m ./pkg/lab/...

.PHONY: test-fast
test-fast: check-go ## unit tests: no root, seconds
	$(GO) test -short ./...

.PHONY: generate
generate: deps-generate check-go ## rebuild the BPF objects and their Go bindings
	$(GO) generate ./...

.PHONY: lint
lint: deps-lint check-go ## formatting, vet, staticcheck, layering, BPF style, scripts, units, Vagrantfile
	@.ci/lint

.PHONY: fmt
fmt: deps-lint check-go ## format Go and BPF sources in place
	gofmt -w cmd deploy internal pkg
	clang-format-$(CLANG_MAJOR) -i bpf/*.[ch] bpf/bench/*.c

# Packaging uses this with DESTDIR; by hand, run systemctl daemon-reload,
# systemd-sysusers, systemd-tmpfiles --create and sysctl --system afterwards.
# Nothing is enabled or started, and no configuration is written.
.PHONY: install
install: ## install programs, units and examples (PREFIX, DESTDIR); needs a build before
	@for p in $(PROGRAMS); do test -x $(BIN)/$$p || { echo "install: $(BIN)/$$p is missing: run make build first" >&2; exit 1; }; done
	install -d -m 755 $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(addprefix $(BIN)/,$(PROGRAMS)) $(DESTDIR)$(PREFIX)/bin/
	install -d -m 755 $(DESTDIR)$(PREFIX)/lib/systemd/system
	for u in deploy/systemd/*.service; do \
		sed 's|=/usr/bin/|=$(PREFIX)/bin/|' $$u | \
		install -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/lib/systemd/system/$${u##*/}; \
	done
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/sysctl.d deploy/sysctl.d/60-pgsteer.conf
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/sysusers.d deploy/sysusers.d/pgsteer.conf
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/tmpfiles.d deploy/tmpfiles.d/pgsteer.conf
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/pgsteer README.md CHANGELOG.md LICENSE
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/pgsteer/examples deploy/examples/*.yaml deploy/examples/*.ini deploy/examples/*.txt

# What the VMs of vagrant/ get, as a tree to be copied onto /.
.PHONY: stage
stage: build
	rm -rf build/stage
	@$(MAKE) --no-print-directory install DESTDIR=build/stage PREFIX=/usr >/dev/null

# One kernel: make vmtest KERNELS=6.1
.PHONY: vmtest
vmtest: deps-vmtest check-go ## packet tests and a failover on Debian's 6.1 and 6.12 kernels, in VMs
	@.ci/vmtest $(KERNELS)

# One name or the beginning of several: make bench BENCH=datapath.forward
# Standard output has the results alone, a JSON object a line.
.PHONY: bench
bench: need-root-bench ## as root: measure against the classic stack (BENCH=name)
	@$(MAKE) --no-print-directory deps-run+bench build >&2
	@$(BIN)/pgsteer-bench $(BENCH)

.PHONY: chaos deb
chaos: ## (not there yet) long fault tests
	@echo "make chaos: there are no long fault tests yet; make test has the short ones" >&2; exit 1
deb: ## (not there yet) Debian packages
	@echo "make deb: there are no packages yet; make install puts the same files in place" >&2; exit 1

.PHONY: clean
clean: ## remove what was built
	rm -rf build
