#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# torture.sh BUILD: the long runs. For STILLPOINT_TORTURE_MINUTES (30) it goes round these:
#   model     seeded runs in one process against a shadow disk, single backups and chains of
#             incremental ones, both engines
#   qcow2     lives of random images beside QEMU, power cuts, images of rubbish; power cuts and
#             kill -9 of images, raw too, together with their files of dirty bitmaps
#   oracle    every kind of backup under real clients, one new seed a round
#   kill      kill -9 at a random moment of writes and a backup, and what is found then
#   sidecar   dirty bitmaps: power cuts, and kill -9 at many moments
#   faults    targets, sources and scratch that fail
#   fuzz      libFuzzer on every parser, where clang is installed (in build-fuzz)
# Seeds begin at STILLPOINT_TORTURE_SEED, or at the time; each round has new ones. Something
# that fails does not end the run: its output is kept, and the last lines and the status
# tell. That output names the seed, and the variable above set to it runs the same again.
# No step takes more than its share of the time, so that each has its turn: then it is cut off,
# and what it had done by then counts. Tests beside real peers come in another order each
# round.
set -u
cd "$(dirname "$0")/.." || exit
build=${1:?usage: torture.sh BUILD}
minutes=${STILLPOINT_TORTURE_MINUTES:-30}
seed=${STILLPOINT_TORTURE_SEED:-$(date +%s)}
start=$(date +%s)
end=$((start + minutes * 60))
logs=$build/torture
tests=$PWD/tests/behaviour
STILLPOINT=$(realpath "$build")/stillpoint
export STILLPOINT PYTHONDONTWRITEBYTECODE=1
# As `meson test` has it: what a sanitizer says is a failure.
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
steps=48                # a round, about
share=$((minutes * 60 / steps))
[ $share -ge 20 ] || share=20

left() { echo $((end - $(date +%s))); }

# LOG: what was done, one line of "COUNT THING" each, from what the programs print.
tally() {
    <"$1" tr -d '\r' | awk '
        function add(n, what) {
            if (n > 0 && !(what in sum))
                order[++kinds] = what
            sum[what] += n
        }
        /^tally [0-9]+ / { n = $2; sub(/^tally [0-9]+ /, ""); add(n, $0) }
        /^seeds [0-9]+\.\.[0-9]+: / { add($3 + 0, "backups in one process") }
        /^stat::number_of_executed_units: / { add($2, "inputs of fuzzers") }
        /^[0-9]+ passed/ { add($1, "tests beside real peers") }
        END { for (i = 1; i <= kinds; i++) print sum[order[i]], order[i] }'
}

in_one_line() { tally "$1" | paste -s -d, | sed 's/,/, /g'; }

rounds=0 failures=0 cut_off=0
# NAME COMMAND...: run it, cut off after its time; its output is kept if it fails.
step() {
    what=$1; shift
    limit=$(left)
    [ "$limit" -gt 0 ] || return 0
    [ "$limit" -le $share ] || limit=$share
    log=$logs/$what-$seed.log
    timeout -s INT -k 60 "$limit" "$@" >"$log" 2>&1
    status=$?
    tally "$log" | sed 's/^/tally /' >>"$logs/tally"
    done=$(in_one_line "$log")
    case $status in
    0)  echo "$what, seed $seed: ${done:-$(tail -n 1 "$log")}"
        rm "$log" ;;
    77) echo "$what: skipped"
        rm "$log" ;;
    124)
        echo "$what, seed $seed: cut off after ${done:-nothing that counts}"
        cut_off=$((cut_off + 1))
        rm "$log" ;;
    *)  failures=$((failures + 1))
        echo "$what, seed $seed: FAILED ($status), see $log"
        grep -E '^(E  |FAILED|ERROR|.*seed)' "$log" | tail -n 5 ;;
    esac
}

behaviour() {       # NAME SEEDS PYTEST-OPTIONS...
    kind=$1
    export STILLPOINT_SEEDS="$2"; shift 2
    pytest="/usr/bin/python3 -m pytest -q -p no:cacheprovider --rootdir=$PWD"
    names=$($pytest --collect-only "$@" | grep :: | shuf)
    if [ "$names" ]; then
        words=$IFS
        IFS='
'
        set -f
        # shellcheck disable=SC2086
        set -- $names
        set +f
        IFS=$words
    fi
    step "$kind" $pytest -s "$@"
}

hunters=
build_fuzzers() {
    [ -f build-fuzz/build.ninja ] || CC=clang meson setup build-fuzz -Db_lundef=false \
        -Db_sanitize=address,undefined -Dc_args=-fsanitize=fuzzer-no-link || return
    ninja -C build-fuzz hunters
}

prepare_fuzzers() {
    if ! command -v clang >/dev/null; then
        echo "fuzz: clang is not installed; left out"
    elif build_fuzzers >"$logs/fuzz-build.log"; then
        hunters=$(ls tests/fuzz/corpus)
    else
        echo "fuzz: the build FAILED, see $logs/fuzz-build.log"
        failures=1
    fi
}

fuzz() {            # NAME: new inputs are kept in build-fuzz, crashes too
    mkdir -p "build-fuzz/corpus/$1" build-fuzz/found
    step "fuzz-$1" env ASAN_OPTIONS=quarantine_size_mb=32 \
        "build-fuzz/tests/fuzz/hunt-$(echo "$1" | tr _ -)" -seed="$seed" \
        -max_total_time=20 -print_final_stats=1 -timeout=30 -rss_limit_mb=512 \
        -error_exitcode=76 \
        -artifact_prefix="build-fuzz/found/$1-" \
        "build-fuzz/corpus/$1" "tests/fuzz/corpus/$1"
}

mkdir -p "$logs"
: >"$logs/tally"
qcow2="random powercut cut_bitmaps kill_bitmaps crash cut_datafile cut_snapshot mutated model pack"
qcow2="$qcow2 snapshot bitmaps check resize"
ninja -C "$build" stillpoint tests/model/model_backup tests/unit/sidecar/test-sidecar-cuts \
    $(printf 'tests/unit/qcow2/test-qcow2-%s ' $qcow2) >"$logs/build.log" || exit 1
prepare_fuzzers
while [ "$(left)" -gt 0 ]; do
    for engine in uring pool; do
        step "model-$engine" "$build/tests/model/model_backup" --engine $engine --for 30 \
            --seeds "$seed..$((seed + 1000000))"
        step "model-chains-$engine" "$build/tests/model/model_backup" --chains --engine $engine \
            --for 30 --seeds "$seed..$((seed + 1000000))"
    done
    for name in $qcow2; do
        case $name in
        random) n=100 ;; powercut) n=20 ;; cut_bitmaps) n=10 ;;
        kill_bitmaps) n=300 ;; mutated) n=300 ;; cut_*) n=5 ;; *) n=2 ;;
        esac
        for engine in uring pool; do
            step "qcow2-$name-$engine" env STILLPOINT_SEED="$seed" STILLPOINT_ROUNDS=$n \
                "$build/tests/unit/qcow2/test-qcow2-$name" $engine
        done
    done
    behaviour oracle "$seed..$seed" "$tests/test_oracle.py"
    behaviour kill "$seed..$((seed + 4))" "$tests/test_faults.py" -k kill
    step sidecar-cuts env STILLPOINT_SEED="$seed" STILLPOINT_ROUNDS=40 \
        "$build/tests/unit/sidecar/test-sidecar-cuts"
    STILLPOINT_KILLS=20 behaviour sidecar "$seed..$((seed + 1))" "$tests/test_sidecar.py" -k moment
    behaviour faults "$seed..$seed" "$tests/test_faults.py" -k "not kill"
    behaviour chains "$seed..$((seed + 4))" "$tests/test_cli_rebase.py" \
        "$tests/test_cli_commit.py" -k "random or killed"
    for name in $hunters; do
        fuzz "$name"
    done
    [ "$(left)" -gt 0 ] && rounds=$((rounds + 1))
    seed=$((seed + 1000000))
done
all=$(in_one_line "$logs/tally")
took=$((($(date +%s) - start) / 60))
echo "torture: ${all:-nothing was done}; $rounds whole rounds in $took minutes," \
    "$cut_off steps cut off, $failures failed"
[ "$failures" -eq 0 ] && [ "$all" ]
