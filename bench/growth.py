# SPDX-License-Identifier: Apache-2.0
"""What one more of something costs: disks of a daemon, connections to a disk, views of a disk,
size, extents, layers of a chain. A cost per unit that is not flat is looked into, or its
reason is written down in docs/performance.md.

The disks are sparse files and all that is written fits into memory: what is measured is the
program, not the place."""
import json
import os
import subprocess
import time

from common import Daemon, Qmp, cpu_seconds, fio, make_disk, peak_mib, stop, table, wait_socket
from qcow2_speed import create, over, qemu_io, resident_mib

DISKS = [1, 10, 50, 100, 200]
CONNECTIONS = [1, 2, 4, 8, 16, 32, 64]
VIEWS = [0, 1, 2, 4, 8]
SIZES = {"1 GiB": 1 << 30, "1 TiB": 1 << 40, "16 TiB": 16 << 40}
EXTENTS = [100, 10000, 100000]
LAYERS = [1, 10, 50]
IDLE_S = 3
NODE_MIB = 64


def switches(pid):
    """How often its threads have gone to sleep or were put off their CPU."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/status", encoding="utf-8") as f:
            total += sum(int(line.split()[1]) for line in f if "ctxt_switches" in line)
    return total


def idle(pid):
    """CPU ms and wake-ups a second of a program that nobody asks anything."""
    time.sleep(1)                    # what has just been done may have an echo
    before = cpu_seconds(pid), switches(pid)
    time.sleep(IDLE_S)
    return {"idle CPU ms/s": 1e3 * (cpu_seconds(pid) - before[0]) / IDLE_S,
            "idle wake-ups/s": (switches(pid) - before[1]) / IDLE_S}


class Many:
    """A daemon with @count raw disks "d0", "d1", … of @size_mib, each in a file of its own."""

    def __init__(self, program, directory, count, size_mib):
        self.socket, control = (os.path.join(directory, n) for n in ("many.sock", "many.qmp"))
        options = []
        for i in range(count):
            path = os.path.join(directory, f"many{i}.raw")
            with open(path, "wb") as f:
                f.truncate(size_mib << 20)
            options += ["--blockdev", f"driver=file,node-name=f{i},filename={path}",
                        "--blockdev", f"driver=raw,node-name=d{i},file=f{i}",
                        "--export", f"type=nbd,id=e{i},node-name=d{i},name=d{i},writable=on"]
        for path in (self.socket, control):
            if os.path.exists(path):
                os.unlink(path)
        start = time.monotonic()
        self.process = subprocess.Popen(
            [*program, "--nbd-server", f"addr.type=unix,addr.path={self.socket}", *options,
             "--chardev", f"socket,id=c,path={control},server=on,wait=off",
             "--monitor", "chardev=c"])
        wait_socket(control, self.process)
        self.qmp = Qmp(control)
        self.qmp("query-block-jobs")
        self.started = time.monotonic() - start

    def uri(self, i):
        return f"nbd+unix:///d{i}?socket={self.socket}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def shared_load(uris, directory, seconds):
    """4 KiB random reads, eight in flight at each of @uris at once, all from one fio: requests
    a second."""
    out = os.path.join(directory, "fio.json")
    jobs = [w for n, uri in enumerate(uris)
            for w in (f"--name=j{n}", f"--uri={uri}", f"--size={NODE_MIB}m")]
    subprocess.run(["fio", "--name=global", "--ioengine=nbd", "--rw=randread", "--bs=4k",
                    "--iodepth=8", "--time_based", f"--runtime={seconds}", "--norandommap",
                    "--group_reporting", "--output-format=json", f"--output={out}", *jobs],
                   check=True, stdout=subprocess.DEVNULL)
    with open(out, encoding="utf-8") as f:
        read = json.load(f)["jobs"][0]["read"]
    return read["iops"], read["total_ios"]


def loaded(pid, uris, directory, seconds):
    before = cpu_seconds(pid)
    iops, total = shared_load(uris, directory, seconds)
    return {"reads/s": iops, "CPU us a read": 1e6 * (cpu_seconds(pid) - before) / total}


# ---- disks, connections, views ----------------------------------------------

def disks(program, directory, seconds):
    for count in DISKS:
        with Many(program, directory, count, NODE_MIB) as server:
            pid = server.process.pid
            got = {"start ms": 1e3 * server.started, "MiB": resident_mib(pid), **idle(pid),
                   **loaded(pid, [server.uri(i) for i in range(min(count, 50))], directory,
                            seconds)}
            start = time.monotonic()
            stop(server.process)
            got["stop ms"] = 1e3 * (time.monotonic() - start)
        yield count, got


def connections(program, directory, seconds):
    for count in CONNECTIONS:
        with Many(program, directory, 1, NODE_MIB) as server:
            pid = server.process.pid
            yield count, {**loaded(pid, [server.uri(0)] * count, directory, seconds),
                          "MiB": resident_mib(pid)}


def views(program, directory, seconds):
    """Writes while so many fleeces are open: every first write to a granule captures for all."""
    image = os.path.join(directory, "viewed.raw")
    make_disk(image, 256)
    for count in VIEWS:
        with Daemon(program, directory, image) as server:
            pid = server.process.pid
            for i in range(count):
                server.qmp("blockdev-fleece", **{"device": "d", "id": f"v{i}"})
            before = cpu_seconds(pid)
            got = fio(server.uri, "write", "4k", 8, None, "256m", directory)
            cpu = cpu_seconds(pid) - before
            warm = fio(server.uri, "randwrite", "4k", 8, seconds, "256m", directory)
            yield count, {"capturing writes/s": got["iops"], "CPU us a write": 1e6 * cpu / 65536,
                          "captured writes/s": warm["iops"], "MiB": resident_mib(pid)}
    os.unlink(image)


# ---- size, extents, layers --------------------------------------------------

def backup_of(server, size):
    """Seconds that a full backup to nowhere takes."""
    server.qmp("blockdev-add", **{"driver": "null-co", "node-name": "t", "size": size})
    start = time.monotonic()
    server.qmp("blockdev-backup", **{"job-id": "b", "device": "d", "target": "t",
                                     "sync": "full"})
    event = server.qmp.wait_event("BLOCK_JOB_COMPLETED")
    if "error" in event["data"]:
        raise RuntimeError(event["data"]["error"])
    return time.monotonic() - start


def held(program, directory, path, size, fmt="raw"):
    start = time.monotonic()
    with Daemon(program, directory, path, fmt) as server:
        got = {"open ms": 1e3 * (time.monotonic() - start)}
        pid = server.process.pid
        got["MiB"] = resident_mib(pid)
        got["full backup ms"] = 1e3 * backup_of(server, size)
        got["peak MiB"] = peak_mib(pid)
        got["MiB after it"] = resident_mib(pid)
        reads = fio(server.uri, "randread", "4k", 16, None, str(size), directory, 20000)
        return {**got, "reads/s": reads["iops"]}


def sizes(program, directory, seconds):
    """Sparse raw disks that have nothing but 16 MiB at their end."""
    path = os.path.join(directory, "sparse.raw")
    for name, size in SIZES.items():
        with open(path, "wb") as f:
            f.truncate(size)
            f.seek(size - (16 << 20))
            f.write(os.urandom(16 << 20))
        yield name, held(program, directory, path, size)
        os.unlink(path)


def extents(program, directory, seconds):
    """Every second 8 KiB of a raw file is data."""
    path = os.path.join(directory, "extents.raw")
    for count in EXTENTS:
        with open(path, "wb") as f:
            f.truncate(count * 16384)
            for i in range(count):
                os.pwrite(f.fileno(), b"x" * 8192, i * 16384)
        got = held(program, directory, path, count * 16384)
        yield count, {**got, "us of backup an extent": 1e3 * got["full backup ms"] / count}
        os.unlink(path)


def chains(program, directory, seconds):
    """qcow2 layers of 1 GiB, each with every so many-th 64 KiB of its own."""
    size = 1 << 30
    for count in LAYERS:
        paths = [os.path.join(directory, f"layer{i}.qcow2") for i in range(count)]
        for i, path in enumerate(paths):
            create(path, size, *(over(paths[i - 1]) if i else []))
            qemu_io(path, [f"write -q -P {i + 1} {n * 65536} 64k"
                           for n in range(i, size // 65536, 8 * count)])
        yield count, held(program, directory, paths[-1], size, "qcow2")
        for path in paths:
            os.unlink(path)


TABLES = [
    ("disks in one daemon (load on at most 50 of them)", disks),
    ("connections to one disk", connections),
    ("open views of one disk", views),
    ("size of a sparse raw disk", sizes),
    ("extents of a raw disk", extents),
    ("layers of a qcow2 chain", chains),
]


def number(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def run(ours, directory, where, seconds):
    figures = {}
    for title, measure in TABLES:
        rows = dict(measure([ours, "daemon"], directory, seconds))
        header = list(next(iter(rows.values())))
        table(f"Growth, {title}, on {where}", ["", *header],
              [[k, *(number(v[h]) for h in header)] for k, v in rows.items()])
        figures[title] = rows
    return figures
