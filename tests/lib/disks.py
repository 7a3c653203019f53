# SPDX-License-Identifier: Apache-2.0
"""Disks for tests: images with something of everything in them, made by qemu-img and
qemu-io, so that what the program reads was not written by itself.

    disk = make_disk("qcow2-over-raw-longer", directory, random.Random(seed))
    daemon.qmp("blockdev-add", disk.blockdev("disk"))
"""
import os
import shutil

from stillpoint import qemu_img, run

MIB = 2**20
SECTOR = 512

# Base images are shorter or longer than what lies over them.
KINDS = ["raw", "qcow2", "qcow2-over-raw-shorter", "qcow2-over-raw-longer",
         "qcow2-over-qcow2-shorter", "qcow2-over-qcow2-longer"]


class Disk:
    def __init__(self, path, fmt, backing=None):
        self.path = str(path)
        self.format = fmt
        self.backing = backing           # a Disk, or None
        self.size = image_size(self.path, fmt)
        self.options = {}                # further ones for blockdev-add

    def blockdev(self, node):
        """The arguments of blockdev-add; backing files are opened by the names in the image."""
        return {"driver": self.format, "node-name": node, **self.options,
                "file": {"driver": "file", "filename": self.path}}

    def flatten(self, path):
        """Its content as a raw file of exactly its size."""
        return flatten(self.path, self.format, path)

    def check(self, may_leak=False):
        """qemu-img's check of it and of what lies below; nobody may have it open. After a
        crash clusters may be leaked (qemu-img's status 3), but nothing else; an image with
        lazy refcounts says that its are stale, and a repair must make it sound."""
        if self.format == "qcow2" and may_leak and is_dirty(self.path):
            repaired = f"{self.path}.repaired"
            shutil.copyfile(self.path, repaired)
            qemu_img("check", "-r", "all", repaired)
            qemu_img("check", repaired)
            qemu_img("compare", self.path, repaired)
            os.unlink(repaired)
        elif self.format == "qcow2":
            done = qemu_img("check", self.path, check=False)
            assert done.returncode in ((0, 3) if may_leak else (0,)), done.stdout + done.stderr
        if self.backing:
            self.backing.check()


def is_dirty(path):
    with open(path, "rb") as f:
        f.seek(72)                       # qcow2.rst: incompatible features; in version 3
        features = f.read(8)
        f.seek(4)
        return f.read(4) == b"\0\0\0\3" and bool(features[7] & 1)


def image_size(path, fmt):
    """As its clients see it, which qemu-img rounds for a raw file."""
    if fmt == "raw":
        return os.path.getsize(path)
    with open(path, "rb") as f:
        f.seek(24)                       # qcow2.rst: size, big endian
        return int.from_bytes(f.read(8), "big")


def flatten(path, fmt, out):
    if fmt == "raw":
        shutil.copyfile(path, out)
    else:
        qemu_img("convert", "-f", fmt, "-O", "raw", path, out)
    return str(out)


def write_raw(path, size, rng, filled=0.5):
    """A sparse file with random bytes in about that share of it, in runs of many lengths."""
    with open(path, "wb") as f:
        f.truncate(size)
        done = 0
        while done < size * filled:
            off = rng.randrange(size)
            length = min(rng.choice([512, 4096, 65536, MIB]), size - off)
            f.seek(off)
            f.write(rng.randbytes(length))
            done += length


def qemu_io(path, fmt, commands):
    args = [a for c in commands for a in ("-c", c)]
    return run("qemu-io", "-f", fmt, *args, path)


def scribble(path, size, rng, times):
    """Writes, zeros and discards through QEMU's own qcow2 driver."""
    commands = []
    for _ in range(times):
        length = min(rng.choice([512, 4096, 65536, 512 * 1024]), size) // SECTOR * SECTOR
        off = rng.randrange(0, size - length + 1, SECTOR)
        kind = rng.choice([f"write -P {rng.randrange(1, 256)}", "write -z", "write -z -u",
                           "discard"])
        commands.append(f"{kind} {off} {length}")
    qemu_io(path, "qcow2", commands)


def qcow2_options(rng):
    """Of the format's variety, what matters to reading and writing."""
    options = [f"cluster_size={rng.choice([512, 4096, 65536, 65536, MIB * 2, MIB * 2])}"]
    if rng.random() < 0.2:
        options.append("compat=0.10")
    else:
        options.append(f"refcount_bits={rng.choice([1, 8, 16, 16, 64])}")
        options.append(f"lazy_refcounts={rng.choice(['on', 'off', 'off'])}")
    return ",".join(options)


def make_qcow2(path, size, rng, backing=None):
    """Without a backing file it starts as a conversion of a raw one, compressed at times."""
    if backing:
        qemu_img("create", "-q", "-f", "qcow2", "-o", qcow2_options(rng), "-b", backing.path,
                 "-F", backing.format, path, size)
    else:
        raw = f"{path}.from"
        write_raw(raw, size, rng)
        compress = ["-c"] if rng.random() < 0.3 else []
        qemu_img("convert", *compress, "-f", "raw", "-O", "qcow2", "-o", qcow2_options(rng), raw,
                 path)
        os.unlink(raw)
    scribble(path, size, rng, 24)
    return Disk(path, "qcow2", backing)


def pick_size(rng, least, most, unit=SECTOR):
    """At times a round number, else not a multiple of clusters, pages or granules."""
    size = rng.randrange(least, most, MIB)
    return size if rng.random() < 0.3 else size + rng.randrange(1, MIB // unit) * unit


def make_disk(kind, directory, rng, size=None):
    """One of KINDS, about 12 MiB large unless its size is given."""
    path = os.path.join(directory, "disk." + kind.split("-")[0])
    if kind == "raw" and not size and rng.random() < 0.3:
        size = pick_size(rng, 8 * MIB, 16 * MIB, unit=1)
    size = size or pick_size(rng, 8 * MIB, 16 * MIB)
    if kind == "raw":
        write_raw(path, size, rng)
        return Disk(path, "raw")
    if kind == "qcow2":
        return make_qcow2(path, size, rng)

    _, _, base_format, length = kind.split("-")
    base_path = os.path.join(directory, f"base.{base_format}")
    base_size = size // 2 + pick_size(rng, 0, MIB) if length == "shorter" else size + 2 * MIB
    if base_format == "raw":
        write_raw(base_path, base_size, rng)
        base = Disk(base_path, "raw")
    else:
        base = make_qcow2(base_path, base_size, rng)
    return make_qcow2(path, size, rng, base)
