# SPDX-License-Identifier: Apache-2.0
"""How fast an incremental backup of a large disk is of which a hundredth is dirty, all over it.

The disk is a sparse file. Into every dirty granule of 64 KiB a guest has written 4 KiB. The
target forgets what it is given, so that what is measured is finding and reading. The bitmap
stays as it is (bitmap-mode never), and each program backs up the same state several times."""
import os
import time

from common import Daemon, fio, median, peak_mib, table

GRANULE = 64 << 10
SHARE = 100                  # one granule in so many


def backup(server, size, **arguments):
    """Seconds, and bytes that there were to copy."""
    server.qmp("blockdev-add", **{"driver": "null-co", "node-name": "t", "size": size})
    start = time.monotonic()
    server.qmp("blockdev-backup", **{"job-id": "b", "device": "d", "target": "t",
                                     **arguments})
    event = server.qmp.wait_event("BLOCK_JOB_COMPLETED")
    seconds = time.monotonic() - start
    if "error" in event["data"]:
        raise RuntimeError(event["data"]["error"])
    server.qmp("blockdev-del", **{"node-name": "t"})
    return seconds, event["data"]["len"]


def run(ours, directory, where, rounds, size_gib=1024):
    size = size_gib << 30
    step = GRANULE * SHARE
    image = os.path.join(directory, "sparse.raw")
    programs = {"stillpoint": [ours, "daemon"], "qsd": ["qemu-storage-daemon"]}
    seconds, memory, dirty = {}, {}, {}
    for _ in range(rounds):
        for name, program in programs.items():
            with open(image, "wb") as f:
                f.truncate(size)
            with Daemon(program, directory, image) as server:
                server.qmp("block-dirty-bitmap-add", node="d", name="b", granularity=GRANULE)
                fio(server.uri, f"write:{step - 4096}", "4k", 32, None, size, directory,
                    count=size // step)
                for _ in range(3):
                    took, dirty[name] = backup(server, size, **{
                        "sync": "bitmap", "bitmap": "b", "bitmap-mode": "never"})
                    seconds.setdefault(name, []).append(took)
                memory.setdefault(name, []).append(peak_mib(server.process.pid))
            os.unlink(image)
    if len(set(dirty.values())) != 1:
        raise RuntimeError(f"not the same is dirty: {dirty}")
    mine = median(seconds["stillpoint"])
    table(f"Incremental backup of a disk of {size_gib} GiB, {dirty['qsd'] / (1 << 30):.1f} GiB of "
          f"it dirty in pieces of 64 KiB, on {where}: medians of {3 * rounds} runs",
          ["", *programs],
          [["seconds", *[f"{median(v):.2f}" for v in seconds.values()]],
           ["against stillpoint", *[f"{median(v) / mine:.2f}" for v in seconds.values()]],
           ["peak memory, MiB", *[f"{median(v):.0f}" for v in memory.values()]]])
    return {"seconds": seconds, "memory": memory}
