# SPDX-License-Identifier: Apache-2.0
"""What a request costs a server in instructions and in system calls: what the clock is too noisy
for. Nothing here depends on what else the machine does, or nearly.

Instructions are the server's own, counted by callgrind: of two runs of different length the
difference, so that starting and stopping do not count. 32 requests are in flight, so that the
server has work whenever it looks. Valgrind stands still while a thread sleeps in io_uring_enter,
so Stillpoint runs with --engine pool there, and only there. System calls are counted by the
kernel's trace points (perf, as root), or else by strace -c."""
import os
import re
import signal
import subprocess
import time

from common import Daemon, Nbdkit, fio, make_disk, stop, table
from machine import have

SIZE_MIB = 512
SHORT, LONG = 2000, 8000         # requests of the two runs under callgrind
COUNTED = 20000                  # requests whose system calls are counted
CLUSTER = 65536
STRIDE = f"write:{CLUSTER - 4096}"     # each write in a cluster of its own
GRANULE = 1 << 20                      # of bitmaps: the short run makes nearly all dirty
NULL_TARGET = {"driver": "null-co", "node-name": "t", "size": SIZE_MIB << 20}
# Slow enough that what is counted is the guest's captures; jobs of qsd take no less.
CAPTURE = {"job-id": "b", "device": "d", "target": "t", "sync": "full", "speed": 65536}

# What is counted: fio's pattern, a bitmap, whether every write captures.
CASES = {
    "read hit": ("randread", None, False),
    "write hit": ("randwrite", None, False),
    "write, bitmap": ("randwrite", {}, False),
    "write, kept bitmap": ("randwrite", {"persistent": True}, False),
    "write that captures": (STRIDE, None, True),
}


def servers(ours):
    """How each is started, below @prefix, and which cases it has."""
    def qsd(aio):
        return lambda d, image, prefix: Daemon([*prefix, "qemu-storage-daemon"], d, image, aio=aio)

    def nbdkit(d, image, prefix):
        return Nbdkit(d, "file", image, prefix=prefix)

    def mine(d, image, prefix):
        return Daemon([*prefix, ours, "daemon", *(["--engine", "pool"] if prefix else [])], d,
                      image)

    own = list(CASES)
    out = {"stillpoint": (mine, own)}
    if have("qemu-storage-daemon"):
        its = [c for c in own if c != "write, kept bitmap"]     # a raw disk's cannot be kept
        out["qsd threads"] = (qsd("threads"), its)
        out["qsd io_uring"] = (qsd("io_uring"), its)
    if have("nbdkit"):
        out["nbdkit file"] = (nbdkit, own[:2])
    return out


def prepare(server, case):
    """Put into the graph what the case needs."""
    _, bitmap, captures = CASES[case]
    if bitmap is not None:
        server.qmp("block-dirty-bitmap-add", node="d", name="b", granularity=GRANULE, **bitmap)
    if captures:
        server.qmp("blockdev-add", **NULL_TARGET)
        server.qmp("blockdev-backup", **CAPTURE)


def load(server, case, count, depth, directory):
    fio(server.uri, CASES[case][0], "4k", depth, None, f"{SIZE_MIB}m", directory, count)


def forget(image):
    """The files of kept bitmaps, so that the next server begins alike."""
    for end in (".bitmaps", ".bitmaps.new"):
        if os.path.exists(image + end):
            os.unlink(image + end)


# ---- instructions -----------------------------------------------------------

def instructions_of_run(start, case, count, directory, image):
    out = os.path.join(directory, "callgrind.out")
    prefix = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={out}"]
    with start(directory, image, prefix) as server:
        prepare(server, case)
        load(server, case, count, 32, directory)
        stop(server.process)
    forget(image)
    with open(out, encoding="utf-8", errors="replace") as f:
        return int(re.search(r"^(?:summary|totals): (\d+)", f.read(), re.MULTILINE).group(1))


def instructions(start, case, directory, image):
    short, long = (instructions_of_run(start, case, n, directory, image) for n in (SHORT, LONG))
    return (long - short) / (LONG - SHORT)


# ---- system calls -----------------------------------------------------------

def counter(pid, out):
    """A program that counts the system calls of @pid until it gets SIGINT."""
    if have("perf") and os.geteuid() == 0:
        return ["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-o", out, "-p", str(pid)]
    return ["strace", "-f", "-c", "-U", "calls,name", "-o", out, "-p", str(pid)]


def counted(out):
    """What that program has written: all calls."""
    with open(out, encoding="utf-8") as f:
        text = f.read()
    perf = re.search(r"^(\d+),.*raw_syscalls", text, re.MULTILINE)
    return int(perf.group(1) if perf else re.findall(r"^ *(\d+) total", text, re.MULTILINE)[0])


def system_calls(start, case, depth, directory, image):
    """System calls a request."""
    out = os.path.join(directory, "calls")
    count = min(COUNTED, (SIZE_MIB << 20) // CLUSTER) if CASES[case][2] else COUNTED
    with start(directory, image, []) as server:
        prepare(server, case)
        with subprocess.Popen(counter(server.process.pid, out), stderr=subprocess.DEVNULL) as c:
            time.sleep(1)            # neither tells when it has attached
            load(server, case, count, depth, directory)
            c.send_signal(signal.SIGINT)
    forget(image)
    return counted(out) / count


# ---- the table --------------------------------------------------------------

def run(ours, directory, where):
    image = os.path.join(directory, "disk.raw")
    make_disk(image, SIZE_MIB)
    figures = {}
    for case in CASES:
        for name, (start, cases) in servers(ours).items():
            if case not in cases:
                continue
            got = figures[f"{case} | {name}"] = {}
            if have("valgrind"):
                got["instructions"] = instructions(start, case, directory, image)
            if have("perf") or have("strace"):
                for depth in (1, 32):
                    got[f"calls QD{depth}"] = system_calls(start, case, depth, directory, image)
    os.unlink(image)

    def cell(case, name, what):
        value = figures.get(f"{case} | {name}", {}).get(what)
        return "" if value is None else f"{value:,.0f}" if value > 100 else f"{value:.2f}"

    for what, title in (("instructions", "Instructions of the server a request, QD32"),
                        ("calls QD1", "System calls of the server a request, QD1"),
                        ("calls QD32", "System calls of the server a request, QD32")):
        table(f"{title}, 4 KiB, raw file on {where}", ["", *servers(ours)],
              [[case, *(cell(case, name, what) for name in servers(ours))] for case in CASES])
    return figures
