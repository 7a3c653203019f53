# SPDX-License-Identifier: Apache-2.0
"""How fast a full backup of an idle disk is, beside other ways to copy it.

The clock stops when the copy is on the disk: Stillpoint's job flushes its target before it
says that it is done, and most others do not."""
import os
import subprocess
import time

from common import compiled, Daemon, median, table, timed


def daemon_backup(program, directory, source, target, fmt, size_mib):
    with Daemon(program, directory, source) as server:
        if fmt == "raw":
            with open(target, "wb") as f:
                f.truncate(size_mib << 20)
        else:
            subprocess.run(["qemu-img", "create", "-q", "-f", fmt, target, f"{size_mib}M"],
                           check=True)
        server.qmp("blockdev-add", **{
            "driver": fmt, "node-name": "t", "discard": "unmap",
            "file": {"driver": "file", "filename": target}})
        start = time.monotonic()
        server.qmp("blockdev-backup", **{
            "job-id": "b", "device": "d", "target": "t", "sync": "full"})
        event = server.qmp.wait_event("BLOCK_JOB_COMPLETED")
        if "error" in event["data"]:
            raise RuntimeError(event["data"]["error"])
        return time.monotonic() - start


def floor(source, target):
    """Two threads that pread and pwrite and do nothing else."""
    return timed(compiled("floor_copy", os.path.dirname(target)), source, target)


def ways(ours, directory, source, target, fmt, size_mib):
    out = {
        "stillpoint job": lambda: daemon_backup([ours, "daemon"], directory, source, target, fmt,
                                                size_mib),
        "stillpoint backup": lambda: timed(ours, "backup", source, target, "--progress", "none"),
        "qsd job": lambda: daemon_backup(["qemu-storage-daemon"], directory, source, target, fmt,
                                         size_mib),
        "qemu-img -W": lambda: timed("qemu-img", "convert", "-W", "-f", "raw", "-O", fmt, source,
                                     target),
    }
    if fmt == "raw":
        out["nbdcopy"] = lambda: timed("nbdcopy", source, target)
        out["cp"] = lambda: timed("cp", "--sparse=never", "--reflink=never", source, target)
        out["floor"] = lambda: floor(source, target)
    return out


def run(ours, directory, where, rounds, size_mib=4096):
    source = os.path.join(directory, "source.raw")
    with open(source, "wb") as f:
        for _ in range(size_mib):
            f.write(os.urandom(1 << 20))
    result = {}
    for fmt in ("raw", "qcow2"):
        target = os.path.join(directory, f"target.{fmt}")
        figures = {}
        for _ in range(rounds):
            for name, copy in ways(ours, directory, source, target, fmt, size_mib).items():
                if os.path.exists(target):
                    os.unlink(target)
                seconds = copy() + timed("sync", target)
                figures.setdefault(name, []).append(size_mib / seconds)
                subprocess.run(["sync", "-f", directory], check=True)
        os.unlink(target)
        mine = median(figures["stillpoint job"])
        table(f"Full backup of {size_mib} MiB, raw to {fmt}, on {where}: MiB/s, medians of "
              f"{rounds} runs",
              list(figures), [[f"{median(v):,.0f}" for v in figures.values()],
                              [f"{mine / median(v):.2f}" for v in figures.values()]])
        result[fmt] = figures
    os.unlink(source)
    return result
