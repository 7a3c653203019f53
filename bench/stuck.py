# SPDX-License-Identifier: Apache-2.0
"""A guest beside a full backup whose target has stopped answering: does it go on?

The target is a server that is stopped (SIGSTOP) as soon as the backup has begun. A guest that has
not ended some seconds after its time is counted as hanging, and ended with its server."""
import os
import signal
import subprocess

from common import Daemon, Nbdkit, fio, fio_result, fio_start, in_turns, make_disk, median, table

SIZE_MIB = 256
GRACE_S = 5
DEPTHS = (1, 16)
PROGRAMS = {"stillpoint": lambda ours: [ours, "daemon"],
            "qemu-storage-daemon": lambda ours: ["qemu-storage-daemon"]}


def one(program, directory, image, depth, seconds):
    """The guest idle, and beside the backup; None: it hung."""
    out = os.path.join(directory, "stuck.json")
    with Nbdkit(directory, "memory", f"size={SIZE_MIB}M", name="stuck") as kit, \
            Daemon(program, directory, image) as server:
        idle = fio(server.uri, "randwrite", "4k", depth, seconds, f"{SIZE_MIB}m", directory)
        server.qmp("blockdev-add", **{"driver": "nbd", "node-name": "t",
                                      "server": {"type": "unix", "path": kit.socket}})
        server.qmp("blockdev-backup", **{"job-id": "b", "device": "d", "target": "t",
                                         "sync": "full", "speed": 1 << 20})
        os.kill(kit.process.pid, signal.SIGSTOP)
        guest = fio_start(server.uri, "randwrite", "4k", depth, seconds, f"{SIZE_MIB}m", out)
        try:
            guest.wait(timeout=seconds + GRACE_S)
            return {"idle": idle, "stuck": fio_result(guest, out)}
        except subprocess.TimeoutExpired:
            server.process.kill()        # which lets go of the guest too
    guest.kill()
    guest.wait()
    return {"idle": idle, "stuck": None}


def row(label, runs):
    rate = median([r["idle"]["iops"] for r in runs])
    if any(r["stuck"] is None for r in runs):
        return [label, f"{rate:,.0f}", "hangs", "", ""]
    got = [r["stuck"] for r in runs]
    return [label, f"{rate:,.0f}", f"{median([g['iops'] for g in got]):,.0f}",
            f"{100 * median([r['stuck']['iops'] / r['idle']['iops'] for r in runs]):.0f} %",
            f"{median([g['p99'] for g in got]):,.0f}"]


def run(ours, directory, where, rounds, seconds):
    image = os.path.join(directory, "disk.raw")
    make_disk(image, SIZE_MIB)
    figures = {}
    for n in range(rounds):
        for depth in DEPTHS:
            for name in in_turns(PROGRAMS, n):
                figures.setdefault(f"QD{depth} | {name}", []).append(
                    one(PROGRAMS[name](ours), directory, image, depth, seconds))
    os.unlink(image)
    table(f"Guest 4 KiB random writes beside a full backup to a target that hangs, on {where}, "
          f"medians of {rounds} runs of {seconds} s",
          ["", "idle /s", "backup /s", "of idle, paired", "p99 us"],
          [row(label.replace(" |", ""), runs) for label, runs in figures.items()])
    return figures
