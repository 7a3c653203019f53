# SPDX-License-Identifier: Apache-2.0
"""How fast a point of a backup set is verified and restored, beside plain copies of the same
image. What Stillpoint writes was hashed and compared on the way; the others look at nothing."""
import os
import shutil
import subprocess
import sys

from common import median, table, timed

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "lib"))
from handmade_sets import Set  # noqa: E402


def change(path, size_mib):
    """One percent of the disk, in leaves all over it."""
    with open(path, "r+b") as f:
        for at in range(0, size_mib << 20, 100 * 65536):
            f.seek(at)
            f.write(os.urandom(65536))


def run(ours, directory, where, rounds, size_mib=1024):
    source = os.path.join(directory, "source.raw")
    with open(source, "wb") as f:
        for _ in range(size_mib):
            f.write(os.urandom(1 << 20))
    made = Set(os.path.join(directory, "set"))
    image = made.image("20261201T030000Z")
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", source, image], check=True)
    made.finish("20261201T030000Z", None)
    made.raws.clear()
    target, changed = os.path.join(directory, "out.raw"), os.path.join(directory, "changed.raw")
    ways = {
        "verify": lambda: timed(ours, "verify", made.dir, "--progress", "none"),
        "sha256sum": lambda: timed("sha256sum", image),
        "restore": lambda: timed(ours, "restore", made.dir, target, "--progress", "none"),
        "qemu-img": lambda: timed("qemu-img", "convert", "-O", "raw", image, target),
        "qemu-img -W": lambda: timed("qemu-img", "convert", "-W", "-O", "raw", image, target),
        "cp": lambda: timed("cp", "--sparse=never", "--reflink=never", image, target),
        "--in-place 1 %": lambda: timed(ours, "restore", made.dir, changed, "--in-place",
                                        "--progress", "none"),
    }
    figures = {}
    shutil.copyfile(source, changed)
    for _ in range(rounds):
        for name, way in ways.items():
            if os.path.exists(target):
                os.unlink(target)
            if "in-place" in name:
                change(changed, size_mib)
            subprocess.run(["sync", "-f", directory], check=True)
            seconds = way()
            if os.path.exists(target):
                seconds += timed("sync", target)
            figures.setdefault(name, []).append(size_mib / seconds)
    mine = median(figures["restore"])
    table(f"Restore of {size_mib} MiB, qcow2 to raw, on {where}: MiB/s, medians of {rounds} runs",
          ["", *figures],
          [["MiB/s", *(f"{median(v):,.0f}" for v in figures.values())],
           ["restore / it", *(f"{mine / median(v):.2f}" for v in figures.values())]])
    shutil.rmtree(made.dir)
    for path in (source, changed, target):
        if os.path.exists(path):
            os.unlink(path)
    return figures
