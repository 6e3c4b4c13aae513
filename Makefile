# SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
# `make` lists the targets.

CARGO ?= cargo
# Figures and plots of `make bench` go here.
RESULTS ?= target/luo-bench
# `make install` puts the command, its man pages and completions here.
PREFIX ?= /usr/local
# Which reader `make fuzz` feeds: handover, memfd_record, mainline_record, device_records or
# kernel_image.
FUZZ ?= handover
# Coverage, as cargo-fuzz asks for it, on a stable compiler.
FUZZ_FLAGS := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
FUZZ_TARGET := $(shell rustc -vV | sed -n 's/^host: //p')

# For tests, which have built most of it: not optimized.
LUO := $(CARGO) run --quiet --package luo-cli --bin luo --

# The handler of an author: what `luo new` writes, and a few files over that.
PIPE := target/pipe
NEW_PIPE = rm -rf $(PIPE) && mkdir -p target && $(LUO) new pipe --path $(PIPE) && \
	cp -R harness/luo/tests/fixtures/pipe/. $(PIPE)

.PHONY: help bench bench-aarch64 bench-container install matrix microbench test test-hosted test-lab \
	test-stick test-systemd test-versions check fuzz clean

help:
	@echo "make bench       large memfds across live updates: a table, JSON, plots"
	@echo "make test        test-hosted, and test-lab across real kexecs in a VM"
	@echo "make test-stick  boot a stick with UEFI in a VM, and read its report"
	@echo "make test-systemd services of Debian's systemd over systemctl kexec, in a VM"
	@echo "make test-versions files over kexecs between kernels of two series, in a VM"
	@echo "make bench-aarch64 the program for arm64 in qemu-user: rustup target, qemu-user-static"
	@echo "make check       formatting, lints, documentation, this repository's rules"
	@echo "make install     luo, its man pages and completions, to PREFIX=$(PREFIX)"
	@echo "make microbench  criterion: handler ABI, devicetree, extents, cycles, struct pages"
	@echo "make matrix      the kernel part with W=1 and without each option: TREE= CONFIG="
	@echo "make fuzz        feed hostile bytes to a reader, until interrupted: FUZZ="
	@echo "make clean       remove what was built"

bench:
	@mkdir -p $(RESULTS)
	$(CARGO) luo bench --json $(RESULTS)/report.json --html $(RESULTS)/report.html
	@echo "Plots: $(RESULTS)/report.html   Figures: $(RESULTS)/report.json"

# As in a container: namespaces, Docker's small /dev/shm, executable memfds forbidden.
bench-container:
	unshare --user --map-root-user --mount --pid --fork --mount-proc sh -ec ' \
		mount -t tmpfs -o size=64m none /dev/shm; \
		echo 2 > /proc/sys/vm/memfd_noexec; \
		exec $(MAKE) bench'

# The program for arm64, under qemu-user: that it works, not how fast.
bench-aarch64:
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld $(CARGO) build --release \
		--package luo-cli --bin luo --target aarch64-unknown-linux-musl
	harness/luo/tests/aarch64.sh target/aarch64-unknown-linux-musl/release/luo bench \
		--size 2M --fill dense,sparse:5%,shuffled --runs 1

install:
	$(CARGO) build --release --package luo-cli --bin luo
	install -D target/release/luo $(DESTDIR)$(PREFIX)/bin/luo
	target/release/luo manual $(DESTDIR)$(PREFIX)/share

microbench:
	$(CARGO) bench --package luo-benches

test: test-hosted test-lab

test-hosted:
	$(CARGO) test --workspace
	$(CARGO) test --package luo-handler-api --features std,inventory
	$(CARGO) build --manifest-path fuzz/Cargo.toml --target-dir target
	$(NEW_PIPE)
	$(CARGO) build --manifest-path $(PIPE)/fuzz/Cargo.toml --target-dir target

# The first time, this fetches a toolchain and builds a kernel; see `luo lab --help`.
test-lab:
	$(LUO) lab test
	$(LUO) lab soak --jumps 12
	$(NEW_PIPE)
	$(LUO) lab test --handler $(PIPE) --program $(PIPE)/tests/kexec.sh

# Services of Debian's systemd, with our handlers and the kernel's own. Not part of `make test`: it
# takes a quarter of an hour, emulated.
test-systemd:
	$(CARGO) luo lab systemd

# Between the kernel and one of an earlier series, whose source it fetches and builds the first time,
# and one that is built without HUGETLBFS.
test-versions:
	$(LUO) lab test versions built

# The first time, this builds another kernel and fetches a firmware.
test-stick:
	$(CARGO) luo lab stick --test

# The shared crates promise the kernel's compiler, 1.85: clippy's incompatible_msrv lint knows what was
# stable then, and the kernel's way of building them has neither std nor features.
check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- --deny warnings
	$(CARGO) clippy --package luo-handler-api --no-default-features -- --deny warnings
	$(CARGO) run --quiet --package luo-tidy
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --workspace --no-deps --document-private-items

# A kernel tree with the handlers in it, and a configuration with them switched on: TREE=, CONFIG=.
# OPTIONS= has the options that are left out; by default all.
matrix:
	kmod/matrix.sh "$(TREE)" "$(CONFIG)" target/matrix $(OPTIONS)

fuzz:
	RUSTFLAGS="$(FUZZ_FLAGS)" $(CARGO) run --release --manifest-path fuzz/Cargo.toml \
		--target $(FUZZ_TARGET) --bin $(FUZZ) -- $(FUZZ_ARGS)

clean:
	$(CARGO) clean
