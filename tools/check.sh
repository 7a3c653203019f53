#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check.sh: the whole test suite. Everything runs against a build with AddressSanitizer and
# UndefinedBehaviorSanitizer; the tests that cross threads run again under ThreadSanitizer.
# Ends with one line "N passed, N failed" and a status that says the same.
set -u
cd "$(dirname "$0")/.."

setup() {   # DIR MESON-OPTIONS...
    dir=$1; shift
    [ -f "$dir/build.ninja" ] || meson setup "$dir" "$@" || exit 1
    ninja -C "$dir" || exit 1
}

passed=0 failed=0
count() {   # DIR: add up what the last `meson test` there did
    set -- $(python3 - "$1/meson-logs/testlog.json" <<'PY'
import json, sys
good = {"OK", "EXPECTEDFAIL"}
results = [json.loads(line)["result"] for line in open(sys.argv[1])]
print(sum(r in good for r in results), sum(r not in good and r != "SKIP" for r in results))
PY
)
    passed=$((passed + ${1:-0})) failed=$((failed + ${2:-1}))
}

run() {     # DIR MESON-TEST-OPTIONS...
    dir=$1; shift
    meson test -C "$dir" --no-rebuild --print-errorlogs "$@"
    count "$dir"
}

if tools/tidy.py; then passed=$((passed + 1)); else failed=$((failed + 1)); fi

setup build-asan -Db_sanitize=address,undefined -Db_lundef=false
setup build-tsan -Db_sanitize=thread -Db_lundef=false
run build-asan
run build-tsan --suite threads

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
