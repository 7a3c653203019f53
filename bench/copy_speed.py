# SPDX-License-Identifier: Apache-2.0
"""How fast a full backup of an idle disk is, beside other ways to copy it.

The clock stops when the copy is on the disk: Stillpoint's job flushes its target before it
says that it is done, and most others do not."""
import os
import subprocess
import time

from common import (Daemon, compiled, cpu_seconds, in_turns, measured, median, paired, peak_mib,
                    spread, table, timed)
from machine import have


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
        cpu = cpu_seconds(server.process.pid)
        start = time.monotonic()
        server.qmp("blockdev-backup", **{
            "job-id": "b", "device": "d", "target": "t", "sync": "full"})
        event = server.qmp.wait_event("BLOCK_JOB_COMPLETED")
        if "error" in event["data"]:
            raise RuntimeError(event["data"]["error"])
        return {"s": time.monotonic() - start, "cpu": cpu_seconds(server.process.pid) - cpu,
                "MiB": peak_mib(server.process.pid)}


def floor(source, target):
    """Two threads that pread and pwrite and do nothing else."""
    return measured(compiled("floor_copy", os.path.dirname(target)), source, target)


def ways(ours, directory, source, target, fmt, size_mib):
    """All ways to copy whose programs are installed, by name; each gives what measured() does."""
    def job(program):
        return lambda: daemon_backup(program, directory, source, target, fmt, size_mib)

    def command(*words):
        return lambda: measured(*words)

    out = {"stillpoint job": job([ours, "daemon"]),
           "stillpoint backup": command(ours, "backup", source, target, "--progress", "none")}
    if have("qemu-storage-daemon"):
        out["qsd job"] = job(["qemu-storage-daemon"])
    if have("qemu-img"):
        out["qemu-img -W"] = command("qemu-img", "convert", "-W", "-f", "raw", "-O", fmt, source,
                                     target)
    if fmt == "raw":
        if have("nbdcopy"):
            out["nbdcopy"] = command("nbdcopy", source, target)
        out["cp"] = command("cp", "--sparse=never", "--reflink=never", source, target)
        out["floor"] = lambda: floor(source, target)
    return out


def make_source(directory, size_mib):
    source = os.path.join(directory, "source.raw")
    with open(source, "wb") as f:
        for _ in range(size_mib):
            f.write(os.urandom(1 << 20))
    return source


def run(ours, directory, where, rounds, size_mib=4096):
    source = make_source(directory, size_mib)
    result = {}
    for fmt in ("raw", "qcow2") if have("qemu-img") else ("raw",):
        target = os.path.join(directory, f"target.{fmt}")
        copies = ways(ours, directory, source, target, fmt, size_mib)
        figures = {name: [] for name in copies}
        for n in range(rounds):
            for name in in_turns(copies, n):
                if os.path.exists(target):
                    os.unlink(target)
                seconds = copies[name]()["s"] + timed("sync", target)
                figures[name].append(size_mib / seconds)
                subprocess.run(["sync", "-f", directory], check=True)
        os.unlink(target)
        mine = figures["stillpoint job"]
        table(f"Full backup of {size_mib} MiB, raw to {fmt}, on {where}: MiB/s, medians of "
              f"{rounds} runs; the second line is our job against each, paired",
              ["", *figures],
              [["MiB/s", *(f"{median(v):,.0f}" for v in figures.values())],
               ["stillpoint job / it", *(f"{paired(mine, v):.2f}" for v in figures.values())],
               ["spread", *(f"{spread(v):.0f} %" for v in figures.values())]])
        result.update({f"{fmt} | {name}": v for name, v in figures.items()})
    os.unlink(source)
    return result
