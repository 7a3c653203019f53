# SPDX-License-Identifier: Apache-2.0
"""Pull backups on the wire as libvirt makes them (backup-begin in pull mode, with checkpoints) and
virtnbdbackup reads them: the same orders to qemu-storage-daemon and to us, for a full backup and
incremental ones; then the same to us under load.

A backup is a job blockdev-backup with sync=none to a scratch overlay whose backing node is the
disk, and an export of the overlay. What has changed since a checkpoint is told by a bitmap that the
same transaction makes of the checkpoint's, and the overlay's export shows.
"""
import json
import os
import random
import shutil
import time

import nbd
import pytest
from cli import MiB, make_image
from live import LiveDisk, seeds
from peers import QSD, both

from stillpoint import qemu_img, run

SIZE = 5 << 30               # more than one question about extents can be about
JOB = "backup-vda-libvirt-1-format"
TEMP = "backup-vda"          # libvirt's name of the bitmap that it shows


def action(kind, **data):
    return {"type": kind, "data": {k.replace("_", "-"): v for k, v in data.items()}}


class PullBackup:
    """From backup-begin to domjobabort. @export: what a client reads. (libvirt starts and stops the
    NBD server for it; here it runs, because the guest uses it as well.)"""

    def __init__(self, qmp, scratch, node, export, size):
        self.qmp, self.scratch, self.node, self.export = qmp, scratch, node, export
        qemu_img("create", "-q", "-f", "qcow2", scratch, str(size))

    def begin(self, checkpoint, since=None):
        qmp = self.qmp
        qmp("blockdev-add", driver="file", node_name="libvirt-3-storage", filename=self.scratch,
            auto_read_only=True, discard="unmap")
        qmp("blockdev-add", driver="qcow2", node_name="libvirt-3-format", read_only=False,
            file="libvirt-3-storage", backing=self.node)
        actions = []
        if since:
            actions += [action("block-dirty-bitmap-add", node=self.node, name=TEMP,
                               persistent=False, disabled=True),
                        action("block-dirty-bitmap-merge", node=self.node, target=TEMP,
                               bitmaps=[{"node": self.node, "name": since}])]
        actions += [action("block-dirty-bitmap-add", node=self.node, name=checkpoint,
                           persistent=True, disabled=False),
                    action("blockdev-backup", device=self.node, job_id=JOB,
                           target="libvirt-3-format", sync="none", auto_finalize=True,
                           auto_dismiss=False)]
        qmp("transaction", {"actions": actions})
        self.shown = TEMP if since else None
        qmp("block-export-add", type="nbd", id=f"libvirt-nbd-{self.export}",
            node_name="libvirt-3-format", writable=False, name=self.export,
            **({"bitmaps": [TEMP]} if since else {}))

    def end(self):
        qmp = self.qmp
        qmp("block-export-del", id=f"libvirt-nbd-{self.export}", mode="hard")
        qmp.wait_event("BLOCK_EXPORT_DELETED", id=f"libvirt-nbd-{self.export}")
        qmp("job-cancel", id=JOB)
        qmp.wait_event("JOB_STATUS_CHANGE", id=JOB, status="concluded")
        qmp("job-dismiss", id=JOB)
        for name in "libvirt-3-format", "libvirt-3-storage":
            qmp("blockdev-del", node_name=name)
        os.unlink(self.scratch)
        if self.shown:
            qmp("block-dirty-bitmap-remove", node=self.node, name=TEMP)


def extents(h, context):
    """[(offset, length, value)], neighbours of one value as one: asked for as virtnbdbackup does,
    as much at a time as the protocol can say."""
    found, at = [], 0
    while at < h.get_size():
        got = []
        h.block_status(min(h.get_size() - at, (1 << 32) - 512), at,
                       lambda c, off, e, err: got.extend(e) if c == context else 0)
        for length, value in zip(got[::2], got[1::2]):
            if found and found[-1][2] == value:
                found[-1] = (found[-1][0], found[-1][1] + length, value)
            else:
                found.append((at, length, value))
            at += length
    return found


def pull(uri, bitmap, path):
    """Write what is dirty (or without a bitmap, allocated) over the file; which it was."""
    context = f"qemu:dirty-bitmap:{bitmap}" if bitmap else "base:allocation"
    h = nbd.NBD()
    h.add_meta_context(context)
    h.connect_uri(uri)
    found = [(at, n) for at, n, value in extents(h, context)
             if (value == 1 if bitmap else not value & 2)]
    with open(path, "r+b") as f:
        for start, length in found:
            for at in range(start, start + length, 32 * MiB):
                f.seek(at)
                f.write(h.pread(min(32 * MiB, start + length - at), at))
    h.shutdown()
    return found


def maps(uri, sock):
    """What is dirty, as nbdinfo tells it and as qemu-img does."""
    context = f"qemu:dirty-bitmap:{TEMP}"
    by_nbdinfo = json.loads(run("nbdinfo", f"--map={context}", "--json", uri).stdout)
    by_qemu = json.loads(run("qemu-img", "map", "--output=json", "--image-opts",
                             "driver=nbd,export=vda,server.type=unix,"
                             f"server.path={sock},x-dirty-bitmap={context}").stdout)
    return [[(e["offset"], e["length"]) for e in by_nbdinfo if e["type"] == 1],
            [(e["start"], e["length"]) for e in by_qemu if not e["data"]]]


def same(a, b):
    run("qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", a, b)


# ---- beside QEMU ------------------------------------------------------------------------------

FIRST = ["write -P 1 0 1M", "write -P 2 4294901760 192k", "write -P 3 5368643584 64k"]
# What the guest writes while backup i is on, and then between it and the next.
DURING = [["write -P 10 64k 4k", "write -zu 512k 64k"], ["write -P 20 4294967296 64k"],
          ["write -P 30 1M 64k", "write -z 0 4k"]]
BETWEEN = [["write -P 11 128M 1M", "write -z 4294901760 64k"], ["write -P 21 100 100"], []]


@pytest.mark.skipif(not QSD, reason="qemu-storage-daemon is not installed")
def test_pulling_from_both_gives_the_same(work):
    told = []
    with both(work) as peers:
        for peer in peers:
            told.append([])
            make_image(peer.path("disk.qcow2"), SIZE, writes=FIRST)
            peer.qmp("blockdev-add", driver="file", node_name="libvirt-1-storage",
                     filename=peer.path("disk.qcow2"), discard="unmap")
            peer.qmp("blockdev-add", driver="qcow2", node_name="libvirt-1-format",
                     file="libvirt-1-storage", discard="unmap")
            peer.serve()
            peer.export("libvirt-1-format", "guest", writable=True)
            copy, reference = peer.path("copy.raw"), peer.path("reference.raw")
            with open(copy, "wb") as f:
                f.truncate(SIZE)
            for i, (during, between) in enumerate(zip(DURING, BETWEEN)):
                backup = PullBackup(peer.qmp, peer.path("scratch"), "libvirt-1-format", "vda", SIZE)
                backup.begin(f"cp{i}", f"cp{i - 1}" if i else None)
                run("nbdcopy", "--destination-is-zero", peer.uri("guest"), reference)
                peer.qemu_io("guest", *during)
                if i:
                    told[-1] += maps(peer.uri("vda"), peer.path("nbd"))
                told[-1].append(pull(peer.uri("vda"), backup.shown, copy))
                if i:
                    assert told[-1][-1] == told[-1][-2] == told[-1][-3]
                same(copy, reference)
                # The whole export is the instant as well.
                same(peer.uri("vda"), reference)
                os.unlink(reference)
                backup.end()
                peer.qemu_io("guest", *between, "flush")
            os.unlink(copy)
            bitmaps = {b["name"]: b["count"] for n in peer.qmp("query-named-block-nodes", flat=True)
                       for b in n.get("dirty-bitmaps", [])}
            told[-1].append(bitmaps)
        assert told[0] == told[1]
    for peer in peers:
        qemu_img("check", "-q", peer.path("disk.qcow2"))


# ---- under load --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds())
def test_pulling_under_load_gives_instants(work, seed):
    rng = random.Random(f"pull as libvirt {seed}")
    live = LiveDisk(work, "qcow2-over-raw-longer", rng, size=6 * MiB + 512)
    live.n_writers = 2
    live.pattern["blocks"] = live.disk.size // live.block // 2    # so that not all is dirty
    taken, copy = [], os.path.join(work, "copy.raw")
    with open(copy, "wb") as f:
        f.truncate(live.disk.size)
    with live.on_line(operations=1):
        for i in range(3):
            live.writers.wait_for_more(40)
            backup = PullBackup(live.qmp, os.path.join(work, "scratch"), "disk", "vda",
                                live.disk.size)
            asked = time.monotonic_ns()
            backup.begin(f"cp{i}", f"cp{i - 1}" if i else None)
            answered = time.monotonic_ns()
            live.writers.wait_for_more(20)
            if i == 0:
                run("nbdcopy", live.uri.replace("/disk?", "/vda?"), copy)
            else:
                pulled = pull(live.uri.replace("/disk?", "/vda?"), TEMP, copy)
                assert 0 < sum(n for _, n in pulled) < live.disk.size
            backup.end()
            taken.append((shutil.copyfile(copy, os.path.join(work, f"pulled{i}.raw")), asked,
                          answered))
        live.writers.stop()
    for path, asked, answered in taken:
        live.judge(path, "raw", asked, answered)
