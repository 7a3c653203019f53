#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# deb.sh: the Debian package of what is committed, as build-deb/stillpoint_*.deb.
set -eu

cd "$(dirname "$0")/.."
rm -rf build-deb
mkdir -p build-deb/stillpoint
git archive HEAD | tar -x -C build-deb/stillpoint
(cd build-deb/stillpoint && dpkg-buildpackage --build=binary --unsigned-source \
    --unsigned-changes >../build.log 2>&1) || { tail -30 build-deb/build.log >&2; exit 1; }
rm -rf build-deb/stillpoint
ls build-deb/*.deb
