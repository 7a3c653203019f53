#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# deps.sh build|check|deb: install the Debian packages that building, checking or packaging
# needs, if any is missing. Asks for root (sudo) only then.
set -eu

build="gcc make meson ninja-build pkg-config git ca-certificates
 liburing-dev libjansson-dev libnbd-dev zlib1g-dev libzstd-dev
 libdeflate-dev nettle-dev scdoc qemu-utils e2fsprogs python3 python3-libnbd"
check="clang libclang-rt-14-dev libcmocka-dev python3-jsonschema python3-pytest libnbd-bin nbdkit
 fio qemu-system-common qemu-system-x86 linux-image-amd64 busybox-static cpio kmod xfsprogs
 btrfs-progs"

case ${1:-} in
build) want=$build ;;
check) want="$build $check" ;;
deb) want="$build libcmocka-dev debhelper dpkg-dev" ;;
*) echo "usage: deps.sh build|check|deb" >&2; exit 2 ;;
esac

missing=
for p in $want; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' ||
        missing="$missing $p"
done
[ -n "$missing" ] || exit 0

root=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
        echo "deps.sh: as root, run: apt-get install$missing" >&2
        exit 1
    }
    root=sudo
fi
echo "installing:$missing"
$root apt-get update -qq
# shellcheck disable=SC2086
$root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
