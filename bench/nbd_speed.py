# SPDX-License-Identifier: Apache-2.0
"""NBD requests a second on a raw file, beside qemu-storage-daemon and nbdkit."""
import os

from common import Daemon, Floor, Nbdkit, fio, make_disk, median, spread, table

SHAPES = [("randread", "4k", 1), ("randwrite", "4k", 1), ("randread", "4k", 32),
          ("randwrite", "4k", 32), ("read", "1m", 8), ("write", "1m", 8)]


def peers(ours, directory, image):
    return {
        "stillpoint": lambda: Daemon([ours, "daemon"], directory, image),
        "qsd threads": lambda: Daemon(["qemu-storage-daemon"], directory, image),
        "qsd io_uring": lambda: Daemon(["qemu-storage-daemon"], directory, image, aio="io_uring"),
        "nbdkit file": lambda: Nbdkit(directory, "file", image),
        "floor": lambda: Floor(directory, image),
    }


def run(ours, directory, where, rounds, seconds, size_mib=1024):
    image = os.path.join(directory, "disk.raw")
    make_disk(image, size_mib)
    figures = {}
    for _ in range(rounds):
        for rw, bs, depth in SHAPES:
            for name, start in peers(ours, directory, image).items():
                with start() as server:
                    r = fio(server.uri, rw, bs, depth, seconds, f"{size_mib}m", directory)
                figures.setdefault((rw, bs, depth, name), []).append(r["iops"])
    os.unlink(image)
    rows = []
    for rw, bs, depth in SHAPES:
        got = {n: median(figures[rw, bs, depth, n]) for n in peers(ours, directory, image)}
        mine = got["stillpoint"]
        rows.append([f"{rw} {bs} QD{depth}"] + [f"{v:,.0f}" for v in got.values()]
                    + [f"{mine / max(got['qsd threads'], got['qsd io_uring']):.2f}",
                       f"{mine / got['nbdkit file']:.2f}", f"{mine / got['floor']:.2f}",
                       f"{spread(figures[rw, bs, depth, 'stillpoint']):.0f} %"])
    table(f"NBD, raw file of {size_mib} MiB on {where}: requests/s, medians of {rounds} runs of "
          f"{seconds} s",
          ["fio", *peers(ours, directory, image), "/ best qsd", "/ nbdkit", "/ floor",
           "our spread"], rows)
    return {" ".join(map(str, k)): v for k, v in figures.items()}
