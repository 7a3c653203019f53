# SPDX-License-Identifier: Apache-2.0
"""Metadata contexts of exports, as nbdinfo and libnbd see them, beside qemu-storage-daemon's of
the same images."""
import json
import os
import shutil

import nbd
import pytest

from cli import MiB, make_image
from live import listens
from stillpoint import BINARY, Daemon, Process, QmpError, poll_until, qemu_img, run

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


BITMAP = "qemu:dirty-bitmap:b"


def qemus_map(uri_options):
    """What qemu-img's client makes of a bitmap: dirty is what has no data."""
    out = run("qemu-img", "map", "--output=json", "--image-opts", uri_options).stdout
    return [(e["start"], e["length"], e["data"]) for e in json.loads(out)]


def our_map(options):
    out = run(BINARY, "map", "--json", "json:" + json.dumps(options)).stdout
    return [(e["start"], e["length"], e["data"]) for e in json.loads(out)]


def both_maps(sock, bitmap=BITMAP):
    return (qemus_map(f"driver=nbd,export=disk,server.type=unix,server.path={sock},"
                      f"x-dirty-bitmap={bitmap}"),
            our_map({"driver": "nbd", "export": "disk", "server": {"type": "unix", "path": sock},
                     "x-dirty-bitmap": bitmap}))


@pytest.mark.skipif(not QSD, reason="qemu-storage-daemon is not installed")
def test_bitmaps_of_each_others_servers(daemon, tmp_path):
    """A bitmap that an image stores, shown by qemu-storage-daemon and read by our client; one of
    ours read by QEMU's. All four say the same."""
    image = make_image(tmp_path / "disk.qcow2", 4 * MiB, writes=["write -P 1 0 4M"])
    qemu_img("bitmap", "--add", image, "b")
    writes = ["write -P 2 1M 100k", "write -P 3 3M 64k"]
    run("qemu-io", "-f", "qcow2", *[a for w in writes for a in ("-c", w)], image)
    sock = str(tmp_path / "qsd.sock")
    argv = [QSD, "--blockdev", json.dumps({**chain_blockdev(image), "read-only": True}),
            "--nbd-server", f"addr.type=unix,addr.path={sock}",
            "--export", "type=nbd,id=e,node-name=disk,bitmaps.0=b"]
    with Process(argv, tmp_path / "qsd.log"):
        poll_until("qemu-storage-daemon to listen", lambda: listens(sock))
        theirs, ours = both_maps(sock)
        done = run(BINARY, "map", "json:" + json.dumps(
            {"driver": "nbd", "export": "disk", "server": {"type": "unix", "path": sock},
             "x-dirty-bitmap": "qemu:dirty-bitmap:none"}), check=False)
        assert "requested x-dirty-bitmap qemu:dirty-bitmap:none not found" in done.stderr
        # Whatever the status says, a copy has all of the data.
        copy = tmp_path / "copy.raw"
        run(BINARY, "convert", "-O", "raw", "json:" + json.dumps(
            {"driver": "nbd", "export": "disk", "server": {"type": "unix", "path": sock},
             "x-dirty-bitmap": BITMAP}), copy)
    qemu_img("compare", copy, image)
    assert ours == theirs and [m for m in ours if not m[2]] == [(MiB, 128 << 10, False),
                                                                (3 * MiB, 64 << 10, False)]

    blank = make_image(tmp_path / "blank.raw", 4 * MiB)
    daemon.add_file("disk", blank)
    daemon.qmp("block-dirty-bitmap-add", node="disk", name="b")
    uri = daemon.serve()("disk")
    daemon.qmp("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk",
                                    "writable": True, "bitmaps": [{"node": "disk", "name": "b"}]})
    run("qemu-io", "-f", "raw", *[a for w in writes for a in ("-c", w)], uri)
    assert both_maps(os.path.join(daemon.directory, "nbd.sock")) == (theirs, theirs)
    assert [(at, n) for at, n, value in context_map(uri, BITMAP) if value] == \
        [(MiB, 128 << 10), (3 * MiB, 64 << 10)]
    # It is held by the export.
    with pytest.raises(QmpError, match="in use"):
        daemon.qmp("block-dirty-bitmap-remove", node="disk", name="b")


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
