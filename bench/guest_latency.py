# SPDX-License-Identifier: Apache-2.0
"""What a backup costs the guest: fio over NBD, idle and while a full backup runs.

The background copy is limited to 1 MiB/s, so what is measured is the price of capturing.
Targets: a local qcow2, and a server that takes 20 ms for every write.
"""
import os
import subprocess

from common import Daemon, Nbdkit, fio, make_disk, median, table

SLOW = ["--filter=delay", "memory", "wdelay=20ms"]


def add_target(server, kind, directory, size_mib):
    """Give the daemon a target node "t"; returns what has to be ended afterwards."""
    if kind == "qcow2":
        path = os.path.join(directory, "target.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, f"{size_mib}M"],
                       check=True)
        server.qmp("blockdev-add", **{
            "driver": "qcow2", "node-name": "t", "discard": "unmap",
            "file": {"driver": "file", "filename": path}})
        return None
    kit = Nbdkit(directory, *SLOW, f"size={size_mib}M", name="slow")
    server.qmp("blockdev-add", **{
        "driver": "nbd", "node-name": "t",
        "server": {"type": "unix", "path": kit.socket}})
    return kit


def one(program, directory, image, kind, depth, seconds, size_mib):
    """Requests/s and p99 of a guest, idle (kind None) or during a backup."""
    with Daemon(program, directory, image) as server:
        kit = None
        if kind:
            kit = add_target(server, kind, directory, size_mib)
            server.qmp("blockdev-backup", **{
                "job-id": "b", "device": "d", "target": "t", "sync": "full", "speed": 1 << 20})
        try:
            return fio(server.uri, "randwrite", "4k", depth, seconds, f"{size_mib}m", directory)
        finally:
            if kit:
                kit.__exit__()


def run(ours, directory, where, rounds, seconds, size_mib=1024):
    image = os.path.join(directory, "disk.raw")
    make_disk(image, size_mib)
    programs = {"stillpoint": [ours, "daemon"], "qemu-storage-daemon": ["qemu-storage-daemon"]}
    figures = {}
    for _ in range(rounds):
        for depth in (1, 16):
            for kind in (None, "qcow2", "slow"):
                for name, program in programs.items():
                    r = one(program, directory, image, kind, depth, seconds, size_mib)
                    figures.setdefault((depth, kind, name), []).append(r)
    rows = []
    for depth in (1, 16):
        for kind in (None, "qcow2", "slow"):
            row = [f"QD{depth} " + {None: "idle", "qcow2": "(a) to a local qcow2",
                                    "slow": "(b) to 20 ms writes"}[kind]]
            rates = {}
            for name in programs:
                got = figures[depth, kind, name]
                rates[name] = median([g["iops"] for g in got])
                idle = median([g["iops"] for g in figures[depth, None, name]])
                row += [f"{rates[name]:,.0f}", f"{100 * rates[name] / idle:.0f} %",
                        f"{median([g['p99'] for g in got]):,.0f}",
                        f"{max(g['max'] for g in got) / 1e3:,.1f}"]
            row.append(f"{rates['stillpoint'] / rates['qemu-storage-daemon']:.1f}")
            rows.append(row)
    table(f"Guest 4 KiB random writes during a full backup, raw disk of {size_mib} MiB on {where}, "
          f"medians of {rounds} runs of {seconds} s",
          ["", "stillpoint /s", "of idle", "p99 us", "max ms", "qsd /s", "of idle", "p99 us",
           "max ms", "ratio"], rows)
    os.unlink(image)
    return {" ".join(map(str, k)): v for k, v in figures.items()}
