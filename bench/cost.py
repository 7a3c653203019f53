# SPDX-License-Identifier: Apache-2.0
"""What serving and copying cost: CPU seconds of a program for a million requests and for a GiB
copied, and the memory that it had at most.

CPU time is the program's own, in user mode and in the kernel; the client's is not in it. The
kernel counts it in steps of 10 ms for a process that lives. Memory is the peak of what was
resident, mapped files and scratch in memory included."""
import os

from common import cpu_seconds, fio, in_turns, make_disk, median, paired, peak_mib, table
from copy_speed import make_source, ways
from nbd_speed import peers

SHAPES = [("randread", "4k", 1), ("randwrite", "4k", 1), ("randread", "4k", 32),
          ("randwrite", "4k", 32)]
SIZE_MIB = 1024


def serve(start, shape, seconds, directory):
    """CPU seconds for a million requests, and peak memory."""
    rw, bs, depth = shape
    with start() as server:
        before = cpu_seconds(server.process.pid)
        done = fio(server.uri, rw, bs, depth, seconds, f"{SIZE_MIB}m", directory)["total"]
        cpu = cpu_seconds(server.process.pid) - before
        return {"cpu": 1e6 * cpu / done, "MiB": peak_mib(server.process.pid)}


def serving(ours, directory, rounds, seconds):
    image = os.path.join(directory, "disk.raw")
    make_disk(image, SIZE_MIB)
    servers = {k: v for k, v in peers(ours, directory, image).items() if k != "floor"}
    figures = {}
    for n in range(rounds):
        for shape in SHAPES:
            label = f"{shape[0]} {shape[1]} QD{shape[2]}"
            for name in in_turns(servers, n):
                figures.setdefault(f"{label} | {name}", []).append(
                    serve(servers[name], shape, seconds, directory))
    os.unlink(image)
    return figures


def copying(ours, directory, rounds, size_mib):
    source = make_source(directory, size_mib)
    target = os.path.join(directory, "target.raw")
    copies = ways(ours, directory, source, target, "raw", size_mib)
    figures = {}
    for n in range(rounds):
        for name in in_turns(copies, n):
            if os.path.exists(target):
                os.unlink(target)
            got = copies[name]()
            got["cpu"] *= 1024 / size_mib
            figures.setdefault(f"copy raw to raw | {name}", []).append(got)
    os.unlink(source)
    os.unlink(target)
    return figures


def show(title, figures):
    rows, ours = [], None
    for key, runs in figures.items():
        label, _, name = key.partition(" | ")
        cpu = [r["cpu"] for r in runs]
        if name.startswith("stillpoint") and name != "stillpoint backup":
            ours = cpu
        rows.append([label, name, f"{median(cpu):.2f}", f"{paired(cpu, ours):.2f}",
                     f"{median([r['MiB'] for r in runs]):,.0f}"])
    table(title, ["", "", "CPU s", "of ours, paired", "peak MiB"], rows)


def run(ours, directory, where, rounds, seconds, copy_mib):
    # Long enough for clock ticks of 10 ms not to matter.
    served = serving(ours, directory, rounds, max(seconds, 2))
    show(f"CPU seconds of the server for a million requests, raw file on {where}, "
         f"medians of {rounds} runs", served)
    copied = copying(ours, directory, rounds, copy_mib)
    show(f"CPU seconds for a GiB copied, {copy_mib} MiB raw to raw on {where}, medians of {rounds} "
         "runs", copied)
    return {**served, **copied}
