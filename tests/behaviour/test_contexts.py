# SPDX-License-Identifier: Apache-2.0
"""Metadata contexts of exports, as nbdinfo and libnbd see them, beside qemu-storage-daemon's of
the same images."""
import json
import os
import shutil

import nbd
import pytest

from cli import MiB
from live import listens
from stillpoint import Daemon, Process, poll_until, run

QSD = shutil.which("qemu-storage-daemon")
DEPTH = "qemu:allocation-depth"
ALLOCATION = "base:allocation"


def context_map(uri, context):
    """[(offset, length, value)] of the whole disk; neighbours that say the same are one."""
    out = []
    for e in json.loads(run("nbdinfo", f"--map={context}", "--json", uri).stdout):
        if out and out[-1][2] == e["type"] and sum(out[-1][:2]) == e["offset"]:
            out[-1] = (out[-1][0], out[-1][1] + e["length"], e["type"])
        else:
            out.append((e["offset"], e["length"], e["type"]))
    return out


def chain_blockdev(top):
    return {"driver": "qcow2", "node-name": "disk",
            "file": {"driver": "file", "filename": str(top)}}


def qsd_maps(directory, blockdev, contexts):
    """What qemu-storage-daemon says of each context."""
    sock = os.path.join(directory, "qsd.sock")
    argv = [QSD, "--blockdev", json.dumps(blockdev),
            "--nbd-server", f"addr.type=unix,addr.path={sock}",
            "--export", "type=nbd,id=e,node-name=disk,allocation-depth=on"]
    with Process(argv, os.path.join(directory, "qsd.log")):
        poll_until("qemu-storage-daemon to listen", lambda: listens(sock))
        return {c: context_map(f"nbd+unix:///disk?socket={sock}", c) for c in contexts}


@pytest.mark.skipif(not QSD, reason="qemu-storage-daemon is not installed")
def test_depth_is_qemus(chain, tmp_path):
    """Three images, each with data, holes and zeros of its own."""
    want = qsd_maps(tmp_path, chain_blockdev(chain), [ALLOCATION, DEPTH])
    with Daemon(tmp_path) as d:
        d.qmp("blockdev-add", chain_blockdev(chain))
        uri = d.serve()("disk")
        d.qmp("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk",
                                   "allocation-depth": True})
        assert context_map(uri, DEPTH) == want[DEPTH]
        assert context_map(uri, ALLOCATION) == want[ALLOCATION]
    assert {value for _, _, value in want[DEPTH]} >= {1, 2, 3}


def test_contexts_are_offered_when_asked_for(daemon, tmp_path):
    with open(tmp_path / "a.raw", "wb") as f:
        f.truncate(MiB)
    daemon.add_file("n", tmp_path / "a.raw")
    uri = daemon.serve("n")
    daemon.qmp("block-export-add", {"type": "nbd", "id": "deep", "node-name": "n", "name": "deep",
                                    "allocation-depth": True})

    def offered(name):
        return json.loads(run("nbdinfo", "--json", uri(name)).stdout)["exports"][0]["contexts"]

    assert offered("n") == [ALLOCATION]
    assert offered("deep") == [ALLOCATION, DEPTH]


def test_one_connection_uses_several_contexts(daemon, chain):
    daemon.qmp("blockdev-add", chain_blockdev(chain))
    uri = daemon.serve()("disk")
    daemon.qmp("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk",
                                    "allocation-depth": True})
    h = nbd.NBD()
    for context in (ALLOCATION, DEPTH, "qemu:dirty-bitmap:none"):
        h.add_meta_context(context)
    h.connect_uri(uri)
    assert h.can_meta_context(DEPTH) and not h.can_meta_context("qemu:dirty-bitmap:none")
    seen = {}
    h.block_status(MiB, 0, lambda context, at, entries, error: seen.setdefault(context, entries))
    assert set(seen) == {ALLOCATION, DEPTH}
    assert all(sum(entries[::2]) == MiB for entries in seen.values())
    # 0..64k is the base's, the next 64k the topmost image's, the rest up to 512k the base's.
    assert seen[DEPTH][:6] == [64 << 10, 3, 64 << 10, 1, 384 << 10, 3]
