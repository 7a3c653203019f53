# SPDX-License-Identifier: Apache-2.0
"""NBD requests a second on a raw file, beside qemu-storage-daemon, qemu-nbd and nbdkit."""
import os

from common import (Daemon, Floor, Nbdkit, QemuNbd, fio, in_turns, make_disk, median, paired,
                    spread, table)
from machine import have

SHAPES = [("randread", "4k", 1), ("randwrite", "4k", 1), ("randread", "4k", 32),
          ("randwrite", "4k", 32), ("read", "1m", 8), ("write", "1m", 8)]


def peers(ours, directory, image):
    """All servers that are installed, by name: call one to start it."""
    out = {"stillpoint": lambda: Daemon([ours, "daemon"], directory, image)}
    if have("qemu-storage-daemon"):
        qsd = ["qemu-storage-daemon"]
        out["qsd threads"] = lambda: Daemon(qsd, directory, image)
        out["qsd io_uring"] = lambda: Daemon(qsd, directory, image, aio="io_uring")
    if have("qemu-nbd"):
        out["qemu-nbd"] = lambda: QemuNbd(directory, image)
    if have("nbdkit"):
        out["nbdkit file"] = lambda: Nbdkit(directory, "file", image)
    out["floor"] = lambda: Floor(directory, image)
    return out


def run(ours, directory, where, rounds, seconds, size_mib=1024):
    image = os.path.join(directory, "disk.raw")
    make_disk(image, size_mib)
    servers = peers(ours, directory, image)
    figures = {}
    for n in range(rounds):
        for shape in SHAPES:
            rw, bs, depth = shape
            for name in in_turns(servers, n):
                with servers[name]() as server:
                    r = fio(server.uri, rw, bs, depth, seconds, f"{size_mib}m", directory)
                figures.setdefault((f"{rw} {bs} QD{depth}", name), []).append(r["iops"])
    os.unlink(image)
    rows = []
    for rw, bs, depth in SHAPES:
        label = f"{rw} {bs} QD{depth}"
        mine = figures[label, "stillpoint"]
        rows.append([label, *(f"{median(figures[label, s]):,.0f}" for s in servers),
                     *(f"{paired(mine, figures[label, s]):.2f}" for s in list(servers)[1:]),
                     f"{spread(mine):.0f} %"])
    table(f"NBD, raw file of {size_mib} MiB on {where}: requests/s, medians of {rounds} runs of "
          f"{seconds} s; ratios are paired",
          ["fio", *servers, *(f"/ {s}" for s in list(servers)[1:]), "our spread"], rows)
    return {" | ".join(k): v for k, v in figures.items()}
