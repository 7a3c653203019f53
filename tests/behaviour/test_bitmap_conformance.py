# SPDX-License-Identifier: Apache-2.0
"""What becomes of a dirty bitmap when the job that uses it ends: the same scripts to
qemu-storage-daemon and to us, for every sync, bitmap-mode and kind of end, alone and in groups.
Compared are the answers, how the job ends, and which granules of the bitmap are dirty afterwards.
"""
import contextlib
import json
import os

import pytest
from cli import MiB
from peers import QSD, both

from stillpoint import Process, poll_until, run

pytestmark = pytest.mark.skipif(not QSD, reason="qemu-storage-daemon is not installed")

SIZE = 4 * MiB
UNIT = 64 << 10
# What is dirty at first, and what is written while the job waits for its end. A target that
# fails does so in its last MiB.
BEFORE = ["write -P 2 0 128k", "write -P 3 1M 64k", "write -P 4 3M 64k"]
DURING = ["write -P 5 64k 4k", "write -P 6 2M 64k"]

# sync=none has no bitmap, and top is full here.
SYNCS = ("full", "incremental", "bitmap")
MODES = (None, "on-success", "never", "always")


@contextlib.contextmanager
def two(work):
    """Both daemons, each with an NBD server, and with .bad: the socket of another's, which refuses
    writes to the last MiB of its disk."""
    with both(work) as peers, contextlib.ExitStack() as stack:
        for peer in peers:
            peer.serve()
            peer.bad = peer.path("bad.sock")
            server = stack.enter_context(Process(
                ["nbdkit", "--foreground", "--exit-with-parent", "--unix", peer.bad,
                 "--filter=protect", "memory", "4M", f"protect={SIZE - MiB}-{SIZE - 1}"],
                peer.path("nbdkit.log")))
            poll_until("nbdkit", lambda: os.path.exists(peer.bad) or not server.running())
            assert server.running(), server.log()
        yield peers


class Disk:
    """A disk with a bitmap, on one of the daemons; made anew for every script."""

    def __init__(self, peer, name, bad=False):
        self.peer, self.name, self.target = peer, name, f"t-{name}"
        peer.qmp.events.clear()
        for path in self.path(name), self.path(self.target):
            with open(path, "wb") as f:
                f.truncate(SIZE)
        peer.qmp("blockdev-add", driver="raw", node_name=name,
                 file={"driver": "file", "filename": self.path(name)})
        where = {"driver": "file", "filename": self.path(self.target)}
        if bad:
            where = {"driver": "nbd", "server": {"type": "unix", "path": peer.bad}}
        peer.qmp("blockdev-add", driver="raw", node_name=self.target, file=where)
        peer.export(name, writable=True)
        peer.qmp("block-dirty-bitmap-add", node=name, name="b", granularity=UNIT)
        peer.qemu_io(name, "write -P 1 512k 64k", *BEFORE)
        peer.qmp("block-dirty-bitmap-clear", node=name, name="b")
        peer.qemu_io(name, *BEFORE)

    def path(self, name):
        return self.peer.path(f"{name}.raw")

    def backup(self, sync, mode, job="j", **more):
        return {"device": self.name, "target": self.target, "job-id": job, "sync": sync,
                "auto-finalize": False, "x-perf": {"max-workers": 1, "max-chunk": UNIT},
                **({"bitmap": "b"} if mode or sync in ("incremental", "bitmap") else {}),
                **({"bitmap-mode": mode} if mode else {}), **more}

    def state(self):
        """The bitmap as it is told, and which granules are dirty as an NBD client sees them."""
        told = [(b["name"], b) for n in self.peer.qmp("query-named-block-nodes", flat=True)
                if n["node-name"] == self.name for b in n["dirty-bitmaps"]]
        self.peer.export(self.name, "map", writable=True, bitmaps=["b"])
        extents = json.loads(run("nbdinfo", "--json", "--map=qemu:dirty-bitmap:b",
                                 self.peer.uri("map")).stdout)
        self.peer.end_export("map")
        return sorted(told), [(e["offset"] // UNIT, e["length"] // UNIT)
                              for e in extents if e["type"]]

    def copied(self):
        """What a target has that has not failed."""
        with open(self.path(self.target), "rb") as f:
            return f.read()

    def drop(self):
        self.peer.end_export(self.name)
        for node in self.name, self.target:
            self.peer.qmp("blockdev-del", node_name=node)


def how_it_ended(peer, job):
    """We say more of an error than its name."""
    end = peer.qmp.wait_job(job)
    return end["event"], "error" in end["data"]


def said(response):
    return response["error"]["desc"] if "error" in response else "yes"


def pending(peer, job):
    peer.qmp.wait_event("JOB_STATUS_CHANGE", id=job, status="pending")


# ---- one job --------------------------------------------------------------------------------


def end_well(peer, disk):
    pending(peer, "j")
    peer.qemu_io(disk.name, *DURING)
    peer.qmp("job-finalize", id="j")


def cancel_at_the_end(peer, disk):
    pending(peer, "j")
    peer.qemu_io(disk.name, *DURING)
    peer.qmp("job-cancel", id="j")


def fail(peer, disk):
    """Of itself."""


ENDS = {"success": end_well, "cancel": cancel_at_the_end, "failure": fail}


def run_alone(peer, n, sync, mode, end):
    disk = Disk(peer, f"d{n}", end == "failure")
    args = disk.backup(sync, mode)
    if n % 2:
        answer = peer.qmp.ask("transaction", {"actions": [
            {"type": "blockdev-backup", "data": args}]})
    else:
        answer = peer.qmp.ask("blockdev-backup", args)
    found = [said(answer)]
    if found == ["yes"]:
        ENDS[end](peer, disk)
        found.append(how_it_ended(peer, "j"))
        if end != "failure":
            found.append(disk.copied())
    # Also what was written after the end.
    peer.qemu_io(disk.name, "write -P 7 3584k 4k")
    found.append(disk.state())
    disk.drop()
    return found


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("sync", SYNCS)
def test_what_is_dirty_after_a_job(work, sync, end):
    different, started = [], 0
    with two(work) as peers:
        for n, mode in enumerate(MODES):
            found = [run_alone(peer, n, sync, mode, end) for peer in peers]
            started += found[0][0] == "yes"
            if found[0] != found[1]:
                different.append((mode, *[[f for f in one if not isinstance(f, bytes)]
                                          for one in found]))
    assert not different
    assert started == {"full": 3, "incremental": 2, "bitmap": 3}[sync]


# ---- several -----------------------------------------------------------------------------------


def all_end_well(peer, disks):
    for job in "j", "k":
        pending(peer, job)
    for d in disks:
        peer.qemu_io(d.name, *DURING)
    peer.qmp("job-finalize", id="k")


def one_is_cancelled(peer, disks):
    for job in "j", "k":
        pending(peer, job)
    for d in disks:
        peer.qemu_io(d.name, *DURING)
    peer.qmp("job-cancel", id="j")


def nothing_more(peer, disks):
    """One fails of itself."""


GROUP_ENDS = {"success": all_end_well, "cancel": one_is_cancelled, "failure": nothing_more}


def run_group(peer, n, modes, end):
    disks = [Disk(peer, f"a{n}"), Disk(peer, f"b{n}", end == "failure")]
    answer = peer.qmp.ask("transaction", {
        "actions": [{"type": "blockdev-backup", "data": d.backup("bitmap", m, job)}
                    for d, m, job in zip(disks, modes, ("j", "k"))],
        "properties": {"completion-mode": "grouped"}})
    GROUP_ENDS[end](peer, disks)
    found = [said(answer), how_it_ended(peer, "k"), how_it_ended(peer, "j")]
    for d in disks:
        found.append(d.state())
        d.drop()
    return found


@pytest.mark.parametrize("end", GROUP_ENDS)
def test_what_is_dirty_after_a_group(work, end):
    different = []
    pairs = [MODES[1:3], MODES[2:4], (MODES[3], MODES[1])]
    if end == "failure":
        # How far the other job came when one fails is chance, and shows with "always".
        pairs = [MODES[1:3], MODES[2:0:-1]]
    with two(work) as peers:
        for n, pair in enumerate(pairs):
            found = [run_group(peer, n, pair, end) for peer in peers]
            if found[0] != found[1]:
                different.append((pair, *found))
    assert not different


# ---- transactions that do not happen, and what they do with bitmaps ------------------------------


def bitmap(what, node, name="b", **more):
    return {"type": f"block-dirty-bitmap-{what}", "data": {"node": node, "name": name, **more}}


def merge(node, target, *sources):
    return {"type": "block-dirty-bitmap-merge", "data": {
        "node": node, "target": target, "bitmaps": list(sources)}}


ABORT = {"type": "abort", "data": {}}
# (Clearing a bitmap that then a backup has, undone, ends qemu-storage-daemon 7.2.)
BITMAP_SCRIPTS = {
    "nothing": lambda d: [ABORT],
    "clear": lambda d: [bitmap("clear", d.name)],
    "clear, undone": lambda d: [bitmap("clear", d.name), ABORT],
    "clear and disable, undone": lambda d: [bitmap("clear", d.name), bitmap("disable", d.name),
                                            ABORT],
    "remove, undone": lambda d: [bitmap("remove", d.name), ABORT],
    "merge, undone": lambda d: [bitmap("add", d.name, "c"), merge(d.name, "b", "c"), ABORT],
    "merge after clear": lambda d: [bitmap("add", d.name, "c", disabled=True),
                                    merge(d.name, "c", "b"), bitmap("clear", d.name)],
    "merge after clear, undone": lambda d: [bitmap("clear", d.name), merge(d.name, "b", "b"),
                                            ABORT],
    "a backup, undone": lambda d: [{"type": "blockdev-backup",
                                    "data": d.backup("incremental", None)}, ABORT],
    "disable": lambda d: [bitmap("disable", d.name)],
    "a backup of no bitmap": lambda d: [{"type": "blockdev-backup", "data": d.backup(
        "bitmap", "never", **{"bitmap": "nope"})}],
}


def test_what_is_dirty_after_a_transaction_of_bitmaps(work):
    different = []
    with two(work) as peers:
        for n, name in enumerate(BITMAP_SCRIPTS):
            found = []
            for peer in peers:
                d = Disk(peer, f"d{n}")
                answer = said(peer.qmp.ask("transaction", {
                    "actions": BITMAP_SCRIPTS[name](d)}))
                peer.qemu_io(d.name, *DURING)
                found.append((answer, d.state()))
                d.drop()
            if found[0] != found[1]:
                different.append((name, *found))
    assert not different
