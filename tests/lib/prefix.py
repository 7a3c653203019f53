# SPDX-License-Identifier: Apache-2.0
"""Three disks, and clients that write them in a strict order: for tests of instants of many disks.

A client writes generation g to disk 0, then to disk 1, then to disk 2, and waits for each
answer. Copies of the three that are of one instant hold g0 >= g1 >= g2 >= g0 - 1 and nothing
else. Several clients do so at a time, each in a place of its own, and the disks live on
different threads of the daemon.
"""
import contextlib
import threading
import time

import nbd

from stillpoint import Daemon, qemu_img

MIB = 2**20
KIB = 2**10
DISKS = ["d0", "d1", "d2"]
SLOTS = 4                    # clients at a time
SLOT = 64 * KIB              # between their places
BLOCK = 512


def action(kind, **data):
    return {"type": kind, "data": {k.replace("_", "-"): v for k, v in data.items()}}


def transact(qmp, *actions, mode="individual"):
    qmp("transaction", {"actions": list(actions), "properties": {"completion-mode": mode}})


def generation(data):
    """Of one block, which was written by one request."""
    assert data == data[:8] * (BLOCK // 8), data
    return int.from_bytes(data[:8], "big")


class Clients:
    """Write the disks in strict order until they are stopped."""

    def __init__(self, uri):
        self.over = threading.Event()
        self.errors = []
        self.rounds = [0] * SLOTS
        self.slowest = 0.0
        self.threads = [threading.Thread(target=self.run, args=(uri, i)) for i in range(SLOTS)]

    def run(self, uri, slot):
        try:
            disks = [nbd.NBD() for _ in DISKS]
            for disk, name in zip(disks, DISKS):
                disk.connect_uri(uri(name))
            while not self.over.is_set():
                self.rounds[slot] += 1
                data = self.rounds[slot].to_bytes(8, "big") * (BLOCK // 8)
                for disk in disks:
                    begin = time.monotonic()
                    disk.pwrite(data, slot * SLOT)
                    self.slowest = max(self.slowest, time.monotonic() - begin)
            for disk in disks:
                disk.shutdown()
        except BaseException as e:       # pylint: disable=broad-except
            self.errors.append(e)

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for t in self.threads:
            t.join()
        assert not self.errors, self.errors
        assert min(self.rounds) > 1, "the clients have stood still"


def is_one_prefix(copies):
    right = True
    for slot in range(SLOTS):
        g = [generation(c[slot * SLOT:slot * SLOT + BLOCK]) for c in copies]
        right &= g[0] >= g[1] >= g[2] >= g[0] - 1
    return right


@contextlib.contextmanager
def three_disks(tmp_path):
    """Three disks on two threads: a raw one, a qcow2 one, a raw one behind faults."""
    for name in ("d0", "d2", "other"):
        with open(tmp_path / f"{name}.raw", "wb") as f:
            f.truncate(2 * MIB)
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "d1.qcow2", "2M")
    with Daemon(tmp_path, "--threads", "2") as d:
        d.add_file("d0", tmp_path / "d0.raw")
        d.add_file("d1", tmp_path / "d1.qcow2", "qcow2")
        slow = {"op": "write", "offset": MIB, "length": KIB, "delay-ns": 6 * 10**9, "once": True}
        d.qmp("blockdev-add", {"driver": "raw", "node-name": "d2", "file": {
            "driver": "fault", "rules": [slow],
            "file": {"driver": "file", "filename": str(tmp_path / "d2.raw")}}})
        d.uri = d.serve(*DISKS)
        yield d
