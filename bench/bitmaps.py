# SPDX-License-Identifier: Apache-2.0
"""What dirty bitmaps cost a guest: 4 KiB random writes over NBD without one, with one in
memory, and with one that survives kill -9 and power cuts, beside qemu-storage-daemon.

Warm: every granule is dirty, as it is soon after a backup wherever a guest writes often.
Cold: the first writes after a backup, each of which sets a bit and may have to wait for
its region's place in the log. All servers take turns in every round."""
import os

from common import Daemon, fio, make_disk, median, spread, table

SIZE_MIB = 1024
COLD_WRITES = 8000
GRANULE = 65536
BITMAPS = {"none": None, "volatile": {}, "kept": {"persistent": True}}
SERVERS = ["none", "volatile", "kept", "qsd none", "qsd volatile"]
JOBS = [("warm QD1", 1, True), ("warm QD32", 32, True), ("cold QD1", 1, False),
        ("cold QD32", 32, False)]


def measure(program, directory, image, bitmap, depth, warm, seconds):
    with Daemon(program, directory, image) as server:
        if bitmap is not None:
            server.qmp("block-dirty-bitmap-add", node="d", name="b", granularity=GRANULE, **bitmap)
        if warm:
            fio(server.uri, "write", "1m", 4, None, f"{SIZE_MIB}m", directory)
        figure = fio(server.uri, "randwrite", "4k", depth, seconds if warm else None,
                     f"{SIZE_MIB}m", directory, None if warm else COLD_WRITES)["iops"]
        if bitmap is not None:
            server.qmp("block-dirty-bitmap-remove", node="d", name="b")
    for left in (image + ".bitmaps", image + ".bitmaps.new"):
        if os.path.exists(left):
            os.unlink(left)
    return figure


def run(ours, directory, where, rounds, seconds):
    image = os.path.join(directory, "disk.raw")
    programs = {"qsd": ["qemu-storage-daemon"], "ours": [ours, "daemon"]}
    figures, rows = {}, []
    make_disk(image, SIZE_MIB)
    for name, depth, warm in JOBS:
        for n in range(rounds):
            for who in SERVERS if n % 2 == 0 else reversed(SERVERS):
                program = programs["qsd" if who.startswith("qsd") else "ours"]
                figures.setdefault(f"{name} {who}", []).append(
                    measure(program, directory, image, BITMAPS[who.split()[-1]], depth, warm,
                            seconds))
        got = {who: median(figures[f"{name} {who}"]) for who in SERVERS}
        rows.append([name, *(f"{v:,.0f}" for v in got.values()),
                     f"{got['volatile'] / got['none']:.2f}", f"{got['kept'] / got['none']:.2f}",
                     f"{got['qsd volatile'] / got['qsd none']:.2f}",
                     f"{spread(figures[f'{name} none']):.0f} %"])
    os.unlink(image)
    table(f"dirty bitmaps, 4 KiB random writes on {where}: requests/s, medians of {rounds} runs",
          ["job", *SERVERS, "volatile/none", "kept/none", "qsd volatile/none", "our spread"], rows)
    return figures
