# SPDX-License-Identifier: Apache-2.0
"""qcow2 beside qemu-storage-daemon and qemu-img: requests a second through the format, a
compressed conversion, and what it costs to open and to hold a long chain.

Every server gets an image of its own that was made afresh by qemu-img, so that none
finds work done by another."""
import os
import random
import shutil
import subprocess
import time

from common import Daemon, fio, make_disk, median, spread, table, timed

MIB = 1 << 20
DEPTH = 4                # of the chain that is read
LAYERS = 100             # of the chain that is opened
READS = 20000            # of it, so that all fill their caches alike
SEQUENTIAL_MIB = 2048


def create(path, size, *options):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, str(size)],
                   check=True)


def over(path):
    """Options of qemu-img create for an image over @path, which is not looked at."""
    return ["-u", "-b", path, "-F", "qcow2"]


def qemu_io(path, commands):
    """Run these in one go."""
    subprocess.run(["qemu-io", "-f", "qcow2", path], input="\n".join(commands) + "\nquit\n",
                   text=True, check=True, stdout=subprocess.DEVNULL)


# ---- requests a second ------------------------------------------------------

def make_unallocated(path, raw):
    create(path, 64 << 30)


def make_allocated(path, raw):
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)


def make_subclusters(path, raw):
    """Over @raw: what a write does not touch of a cluster need not be copied."""
    create(path, os.path.getsize(raw), "-o", "extended_l2=on", "-b", os.path.basename(raw),
           "-F", "raw")


def layer(path, i):
    """The file of layer @i of the chain, the lowest first; the highest is @path."""
    return path if i == DEPTH - 1 else f"{path}.{i}"


def make_chain(path, raw):
    """All data below; of each layer above a random quarter of the clusters is its own."""
    size = os.path.getsize(raw)
    rng = random.Random(1)
    make_allocated(layer(path, 0), raw)
    for i in range(1, DEPTH):
        create(layer(path, i), size, *over(layer(path, i - 1)))
        mine = [n for n in range(size // 65536) if rng.random() < 0.25]
        qemu_io(layer(path, i), [f"write -q -P {i} {n * 65536} 64k" for n in mine])


def backing_options(path, aio):
    """The layers below the highest, each with its way to do I/O."""
    text, prefix = "", ""
    for i in reversed(range(DEPTH - 1)):
        prefix += "backing."
        text += (f",{prefix}driver=qcow2,{prefix}file.driver=file,{prefix}file.aio={aio},"
                 f"{prefix}file.filename={layer(path, i)}")
    return text


# What is measured: fio's pattern, block size and depth, how the image is made, whether it
# is one to write to (made anew for every run), and how much of it is worked on.
JOBS = [
    ("random write, unallocated", "randwrite", "4k", 32, make_unallocated, True, "64g"),
    ("random write, subclusters over a disk", "randwrite", "4k", 32, make_subclusters, True, "1g"),
    ("random write, allocated", "randwrite", "4k", 32, make_allocated, True, "1g"),
    (f"random read, chain of {DEPTH}", "randread", "4k", 32, make_chain, False, "1g"),
    ("sequential write, empty", "write", "1m", 8, make_unallocated, True, f"{SEQUENTIAL_MIB}m"),
]


def servers(ours):
    return {"stillpoint": ([ours, "daemon"], "threads"),
            "qsd threads": (["qemu-storage-daemon"], "threads"),
            "qsd io_uring": (["qemu-storage-daemon"], "io_uring")}


def measure(program, aio, directory, path, job, seconds):
    _, rw, bs, depth, make, _, size = job
    options = backing_options(path, aio) if make is make_chain else ""
    with Daemon(program, directory, path, "qcow2", aio, options) as server:
        return fio(server.uri, rw, bs, depth, seconds if rw.startswith("rand") else None, size,
                   directory)["iops"]


def remove(path):
    for name in [path, *(layer(path, i) for i in range(DEPTH - 1))]:
        if os.path.exists(name):
            os.unlink(name)


def requests(ours, directory, where, rounds, seconds):
    raw, path = os.path.join(directory, "data.raw"), os.path.join(directory, "disk.qcow2")
    figures, rows = {}, []
    make_disk(raw, 1024)
    for job in JOBS:
        name, _, bs, depth, make, changes, _ = job
        for n in range(rounds):
            for who, (program, aio) in servers(ours).items():
                if changes or not os.path.exists(path):
                    remove(path)
                    make(path, raw)
                    subprocess.run(["sync", "-f", directory], check=True)
                figures.setdefault(f"{name} {who}", []).append(
                    measure(program, aio, directory, path, job, seconds))
        remove(path)
        got = {who: median(figures[f"{name} {who}"]) for who in servers(ours)}
        rows.append([f"{name}, {bs} QD{depth}", *(f"{v:,.0f}" for v in got.values()),
                     f"{got['stillpoint'] / max(got['qsd threads'], got['qsd io_uring']):.2f}",
                     f"{spread(figures[f'{name} stillpoint']):.0f} %"])
    os.unlink(raw)
    table(f"qcow2 over NBD on {where}: requests/s, medians of {rounds} runs",
          ["job", *servers(ours), "/ best qsd", "our spread"], rows)
    return figures


# ---- a compressed conversion ------------------------------------------------

def make_text(path, mib):
    """Data that compresses to about a third, as disks of programs and logs do."""
    rng = random.Random(2)
    words = [bytes(rng.choices(b"etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(4000)]
    with open(path, "wb") as f:
        for _ in range(mib):
            text = b" ".join(rng.choices(words, k=180000))
            f.write((text + os.urandom(MIB // 8))[-MIB:].ljust(MIB, b"."))


def conversion(ours, directory, where, rounds, mib=512):
    if subprocess.run([ours, "convert", "--help"], check=False, stdout=subprocess.DEVNULL,
                      stderr=subprocess.DEVNULL).returncode != 0:
        print("convert: this stillpoint has no such command; left out")
        return {}
    raw, path = os.path.join(directory, "text.raw"), os.path.join(directory, "text.qcow2")
    make_text(raw, mib)
    figures = {}
    ways = {
        "stillpoint": [ours, "convert", "-c", "-f", "raw", "-O", "qcow2"],
        "qemu-img": ["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2"],
        "qemu-img -W -m 16": ["qemu-img", "convert", "-c", "-W", "-m", "16", "-f", "raw", "-O",
                              "qcow2"],
    }
    for _ in range(rounds):
        for kind in ("zlib", "zstd"):
            for who, command in ways.items():
                remove(path)
                seconds = timed(*command, "-o", f"compression_type={kind}", raw, path)
                figures.setdefault(f"{kind} {who}", []).append(
                    mib / (seconds + timed("sync", path)))
    for name in (raw, path):
        os.unlink(name)
    got = {name: median(v) for name, v in figures.items()}
    table(f"convert -c of {mib} MiB, raw to qcow2, on {where}: MiB/s, medians of {rounds} runs",
          ["compression", *ways, "/ best qemu-img"],
          [[kind, *(f"{got[f'{kind} {who}']:,.0f}" for who in ways),
            f"{got[f'{kind} stillpoint'] / max(got[f'{kind} {w}'] for w in list(ways)[1:]):.2f}"]
           for kind in ("zlib", "zstd")])
    return figures


# ---- a large image at the end of a long chain -------------------------------

def make_long_chain(folder):
    """16 TiB, 100 layers, each with a cluster of its own in every 160th of the disk."""
    os.mkdir(folder)
    for i in range(LAYERS):
        path = os.path.join(folder, f"{i}.qcow2")
        create(path, "16T", *(over(f"{i - 1}.qcow2") if i else []))
        qemu_io(path, [f"write -q -P {i} {(n * LAYERS + i) * 1024}M 64k" for n in range(160)])
    return path


def resident_mib(pid):
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("Pss:")) / 1024


def hold(program, aio, directory, path):
    start = time.monotonic()
    with Daemon(program, directory, path, "qcow2", aio) as server:
        opened = time.monotonic() - start
        at_once = resident_mib(server.process.pid)
        iops = fio(server.uri, "randread", "4k", 32, None, "16t", directory, READS)["iops"]
        return {"s": opened, "MiB": at_once, "reads/s": iops,
                "MiB read": resident_mib(server.process.pid)}


def long_chain(ours, directory, where, rounds):
    folder = os.path.join(directory, "chain")
    path = make_long_chain(folder)
    figures = {}
    for _ in range(rounds):
        for who, (program, aio) in servers(ours).items():
            for what, value in hold(program, aio, directory, path).items():
                figures.setdefault(f"{who} {what}", []).append(value)
    shutil.rmtree(folder)
    table(f"A chain of {LAYERS} images of 16 TiB on {where}, medians of {rounds} runs",
          ["", "open s", "memory MiB", f"{READS} random reads, /s", "MiB after them"],
          [[who, *(f"{median(figures[f'{who} {what}']):,.{digits}f}"
                   for what, digits in (("s", 2), ("MiB", 1), ("reads/s", 0), ("MiB read", 1)))]
           for who in servers(ours)])
    return figures


def run(ours, directory, where, rounds, seconds):
    return {**requests(ours, directory, where, rounds, seconds),
            **conversion(ours, directory, where, rounds),
            **long_chain(ours, directory, where, rounds)}
