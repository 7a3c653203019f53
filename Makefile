# SPDX-License-Identifier: Apache-2.0
#
# A thin front on Meson: each target is one command a person would otherwise type.
#   make          build             make check    build, and pass every test
#   make demo     see it work       make torture  the long runs
#   make bench    compare speed     make bench-full  all of it, an hour or more
#   make install  PREFIX=/usr/local
#   make deb      the Debian package
# make deps installs what is missing (Debian); demo and check call it themselves.

PREFIX ?= /usr/local
BUILD  ?= build

.PHONY: all deps demo check torture bench bench-full install deb clean
all: $(BUILD)/build.ninja
	ninja -C $(BUILD)

deps:
	tools/deps.sh check

$(BUILD)/build.ninja:
	tools/deps.sh build
	meson setup $(BUILD)

demo: all
	tools/demo.py $(BUILD)/stillpoint $(DISK)

check:
	tools/deps.sh check
	tools/check.sh

torture: deps all
	tools/torture.sh $(BUILD)

bench: deps all
	bench/run.py --stillpoint $(BUILD)/stillpoint --json $(BUILD)/bench.json

bench-full: deps all
	bench/run.py --full --stillpoint $(BUILD)/stillpoint --json $(BUILD)/bench-full.json

install: all
	meson configure $(BUILD) --prefix=$(abspath $(PREFIX))
	meson install -C $(BUILD)

deb:
	tools/deps.sh deb
	tools/deb.sh

clean:
	rm -rf build build-*
