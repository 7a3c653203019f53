# SPDX-License-Identifier: Apache-2.0
"""The picture that explains the product: how long each write of a guest takes, before, during
and after a full backup to a target that needs 20 ms for every write; ours and QEMU's.

The guest writes 4 KiB at random, one at a time, as fast as it is answered. Both backups have the
same speed limit, so that both last as long. fio notes the latency of every single write."""
import os
import time

from common import Daemon, Nbdkit, fio_start, in_turns, make_disk, median, table

SIZE_MIB = 256
DELAY_MS = 20
WINDOW_S = 0.25          # of which the picture shows the median and the 99th percentile
PROGRAMS = {"stillpoint": lambda ours: [ours, "daemon"],
            "qemu-storage-daemon": lambda ours: ["qemu-storage-daemon"]}


def windows(log, origin, length):
    """[second, median us, 99th percentile us, writes] of every window, of fio's log."""
    found = {}
    with open(log, encoding="ascii") as f:
        for line in f:
            ms, ns = line.split(",")[:2]
            second = int(ms) / 1e3 - origin
            if 0 <= second < length:
                found.setdefault(int(second / WINDOW_S), []).append(int(ns) / 1e3)
    return [[round(n * WINDOW_S, 3), round(median(v), 1), round(sorted(v)[len(v) * 99 // 100], 1),
             len(v)] for n, v in sorted(found.items())]


def one(program, directory, image, seconds):
    """Idle for @seconds, a backup of three times that, and idle again."""
    log = os.path.join(directory, "latency")
    with Nbdkit(directory, "--filter=delay", "memory", f"wdelay={DELAY_MS}ms", f"size={SIZE_MIB}M",
                name="slow") as kit, Daemon(program, directory, image) as server:
        server.qmp("blockdev-add", **{"driver": "nbd", "node-name": "t",
                                      "server": {"type": "unix", "path": kit.socket}})
        guest = fio_start(server.uri, "randwrite", "4k", 1, 6 * seconds, f"{SIZE_MIB}m",
                          os.path.join(directory, "fio.json"), extra=[
                              f"--write_lat_log={log}", "--log_unix_epoch=1"])
        time.sleep(seconds + 1)          # and one in which fio starts
        start = time.time()
        server.qmp("blockdev-backup", **{
            "job-id": "b", "device": "d", "target": "t", "sync": "full",
            "speed": (SIZE_MIB << 20) // (3 * seconds)})
        event = server.qmp.wait_event("BLOCK_JOB_COMPLETED")
        end = time.time()
        if "error" in event["data"]:
            raise RuntimeError(event["data"]["error"])
        if guest.wait() != 0:
            raise RuntimeError("fio failed")
    origin = start - seconds
    return {"start": seconds, "end": end - origin,
            "windows": windows(f"{log}_clat.1.log", origin, end - origin + seconds)}


def summary(got):
    """Of the windows before the backup and of those in it: medians, and writes a second."""
    before = [w for w in got["windows"] if w[0] < got["start"] - WINDOW_S]
    inside = [w for w in got["windows"] if got["start"] <= w[0] < got["end"] - WINDOW_S]
    return [f"{median([w[i] for w in part]) / unit:,.0f}" for part in (before, inside)
            for i, unit in ((1, 1), (2, 1), (3, WINDOW_S))]


def run(ours, directory, where, rounds, seconds):
    image = os.path.join(directory, "disk.raw")
    make_disk(image, SIZE_MIB)
    figures = {name: [] for name in PROGRAMS}
    for n in range(rounds):
        for name in in_turns(PROGRAMS, n):
            figures[name].append(one(PROGRAMS[name](ours), directory, image, seconds))
    os.unlink(image)
    table(f"A guest's writes, one at a time, through a full backup of {SIZE_MIB} MiB on {where} to "
          f"a target with {DELAY_MS} ms writes",
          ["", "idle: median us", "p99 us", "writes/s", "backup: median us", "p99 us", "writes/s"],
          [[name, *summary(got)] for name, runs in figures.items() for got in runs])
    return figures
