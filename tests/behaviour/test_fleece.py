# SPDX-License-Identifier: Apache-2.0
"""Fleecing: a disk as it stood at one instant, exported over NBD while it goes on being
written, by our one command. By the nodes that QEMU documents: test_fleece_qemu.py."""
import json
import os
import random
import shutil
import time

import disks
import nbd
import pytest
from cli import MiB, Serve, fails, make_image
from live import LiveDisk, engines, seeds

from stillpoint import QmpError, run, stillpoint

GRANULE = 4096


def fleece(qmp, device="disk", **options):
    return qmp("blockdev-fleece", {"device": device,
                                   **{k.replace("_", "-"): v for k, v in options.items()}})


def kept(qmp, info):
    """What the view of a fleece has captured, and where it keeps it."""
    for node in qmp("query-named-block-nodes", flat=True):
        if node["node-name"] == info["node-name"]:
            return node["image"]["format-specific"]["data"]
    raise AssertionError(f"no node {info['node-name']}")


def scratch(qmp, info):
    data = kept(qmp, info)
    return data["scratch-memory"] + data["scratch-file"]


def connect(uri, *contexts):
    h = nbd.NBD()
    for c in contexts:
        h.add_meta_context(c)
    h.set_strict_mode(0)         # what the server says to it is what is asked here
    h.connect_uri(uri)
    return h


def context_map(uri, context="base:allocation"):
    """[(offset, length, value)]"""
    return [(e["offset"], e["length"], e["type"]) for e in
            json.loads(run("nbdinfo", f"--map={context}", "--json", uri).stdout)]


def end_export(qmp, name):
    qmp("block-export-del", id=name, mode="hard")
    qmp.wait_event("BLOCK_EXPORT_DELETED", id=name)


# ---- the instant --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("engine", engines())
def test_fleeces_are_instants_under_load(work, engine, seed):
    """Several at different moments, of a disk of some kind."""
    rng = random.Random(f"{engine} {seed}")
    live = LiveDisk(work, rng.choice(disks.KINDS), rng, engine, size=6 * MiB + 512)
    live.source["discard"] = rng.choice(["unmap", "ignore"])
    taken = []
    with live.on_line():
        for i in range(3):
            asked = time.monotonic_ns()
            info = fleece(live.qmp, id=f"f{i}", discard=i == 1,
                          scratch_memory=rng.choice([0, 64 << 10, 128 * MiB]))
            taken.append((info, asked, time.monotonic_ns()))
            live.writers.wait_for_more(30)
        for n, (info, asked, answered) in enumerate(taken):
            path = os.path.join(work, f"f{n}.raw")
            run("nbdcopy", *(["--connections=1"] if n else []), info["uri"], path)
            # Nothing that was written meanwhile changes it.
            again = os.path.join(work, "again.raw")
            run("nbdcopy", info["uri"], again)
            assert run("cmp", path, again).returncode == 0
        live.writers.stop()
        for info, _, _ in taken:
            end_export(live.qmp, info["id"])
    for n, (info, asked, answered) in enumerate(taken):
        live.judge(os.path.join(work, f"f{n}.raw"), "raw", asked, answered)


# ---- what is kept ---------------------------------------------------------------------------


@pytest.fixture
def disk(daemon, tmp_path):
    """16 MiB with data in the first half; its URI."""
    path = make_image(tmp_path / "disk.raw", 16 * MiB, writes=["write -P 1 0 8M"])
    daemon.add_file("disk", path, discard="unmap")
    return daemon.serve("disk")("disk")


def test_trim_frees_scratch(daemon, qmp, disk):
    info = fleece(qmp, discard=True)
    guest, client = connect(disk), connect(info["uri"])
    guest.pwrite(b"\2" * 4 * MiB, 0)
    assert scratch(qmp, info) == 4 * MiB
    assert client.pread(4 * MiB, 0) == b"\1" * 4 * MiB
    client.trim(MiB, 0)
    assert scratch(qmp, info) == 3 * MiB
    # Whole granules only, and nothing in what is not kept any more.
    client.trim(2 * GRANULE, MiB + 1)
    assert scratch(qmp, info) == 3 * MiB - GRANULE
    with pytest.raises(nbd.Error, match="EPERM|not permitted"):
        client.pread(GRANULE, 0)
    with pytest.raises(nbd.Error, match="EPERM|not permitted"):
        client.pread(3 * GRANULE, MiB)
    assert client.pread(GRANULE, MiB) == b"\1" * GRANULE
    # A guest's writes there cost nothing now.
    client.trim(8 * MiB, 8 * MiB)
    guest.pwrite(b"\3" * MiB, 12 * MiB)
    assert scratch(qmp, info) == 3 * MiB - GRANULE
    assert client.pread(MiB, 2 * MiB) == b"\1" * MiB


def test_what_kind_of_export_it_is(daemon, qmp, disk):
    """TRIM is a write to the protocol, so an export that takes it is not read-only."""
    for discard in (False, True):
        info = fleece(qmp, id=f"f{discard}", discard=discard)
        h = connect(info["uri"])
        assert h.is_read_only() != discard
        assert bool(h.can_trim()) == discard
        assert not h.can_zero() and h.can_multi_conn()
        for write in (lambda: h.pwrite(bytes(512), 0), lambda: h.zero(512, 0)):
            with pytest.raises(nbd.Error, match="EPERM|not permitted"):
                write()
        if not discard:
            with pytest.raises(nbd.Error, match="EPERM|not permitted"):
                h.trim(GRANULE, 0)
        assert h.pread(512, 0) == b"\1" * 512


def test_the_end_of_an_export_frees_what_it_kept(daemon, qmp, disk):
    info = fleece(qmp)
    guest, client = connect(disk), connect(info["uri"])
    guest.pwrite(b"\2" * MiB, 0)
    with pytest.raises(QmpError, match="still in use"):
        qmp("block-export-del", id=info["id"])
    client.shutdown()
    end_export(qmp, info["id"])
    assert {n["node-name"] for n in qmp("query-named-block-nodes")} == \
        {n["node-name"] for n in qmp("query-named-block-nodes") if n["drv"] in ("raw", "file")}
    # The name is free; the next one is a moment of its own.
    info = fleece(qmp)
    assert connect(info["uri"]).pread(512, 0) == b"\2" * 512
    assert kept(qmp, info)["captured"] == 0


def test_a_fleece_that_breaks_says_so(daemon, qmp, disk):
    """Scratch is full: the guest goes on, the export's reads fail, the log has the reason."""
    info = fleece(qmp, scratch_limit=MiB, cbw_timeout=1)
    other = fleece(qmp, id="other")
    guest, client = connect(disk), connect(info["uri"])
    guest.pwrite(b"\2" * 4 * MiB, 0)
    with pytest.raises(nbd.Error, match="EIO|Input/output"):
        client.pread(512, 15 * MiB)
    assert guest.pread(4 * MiB, 0) == b"\2" * 4 * MiB
    why = "scratch stayed full for cbw-timeout"
    assert why in kept(qmp, info)["broken"] and why in daemon.log()
    assert connect(other["uri"]).pread(4 * MiB, 0) == b"\1" * 4 * MiB


def test_with_break_guest_write_it_is_the_guest_that_fails(daemon, qmp, disk):
    info = fleece(qmp, scratch_limit=MiB, cbw_timeout=1, on_cbw_error="break-guest-write")
    guest = connect(disk)
    with pytest.raises(nbd.Error):
        guest.pwrite(b"\2" * 4 * MiB, 0)
    assert connect(info["uri"]).pread(8 * MiB, 0) == b"\1" * 8 * MiB


def test_what_is_shown_keeps_its_size(daemon, qmp, tmp_path):
    """Nobody resizes a disk while a fleece of it is open, and none opens of a file that an image
    makes larger as its guest writes. Afterwards it can be."""
    image = make_image(tmp_path / "grown.qcow2", 8 * MiB)
    daemon.serve()
    qmp("blockdev-add", driver="file", node_name="file", filename=str(image))
    image_node = {"driver": "qcow2", "node-name": "image", "file": "file"}
    qmp("blockdev-add", image_node)
    with pytest.raises(QmpError, match="'image' as its file, which may resize it"):
        fleece(qmp, "file")
    info = fleece(qmp, "image")
    assert "open in another process" in fails("resize", image, "16M")
    assert connect(info["uri"]).get_size() == 8 * MiB
    end_export(qmp, info["id"])
    qmp("blockdev-del", node_name="image")
    info = fleece(qmp, "file")
    with pytest.raises(QmpError, match="does not let others resize it"):
        qmp("blockdev-add", image_node)
    qmp("blockdev-add", {**image_node, "read-only": True})
    qmp("blockdev-del", node_name="image")
    end_export(qmp, info["id"])
    qmp("blockdev-add", image_node)
    qmp("blockdev-del", node_name="image")
    qmp("blockdev-del", node_name="file")
    stillpoint("resize", image, "16M")


def test_refusals(daemon, qmp, disk):
    for options, words in (({"device": "nope"}, "Cannot find device='nope'"),
                           ({"id": "a b"}, "Invalid block export id"),
                           ({"bitmaps": ["b"]}, "Dirty bitmap 'b' not found"),
                           ({"id": "disk"}, "already in use")):
        with pytest.raises(QmpError, match=words):
            fleece(qmp, **{"device": "disk", **options})
    nodes = {n["drv"] for n in qmp("query-named-block-nodes")}
    assert nodes == {"raw", "file"}
    # What stands on nothing that keeps an instant shows none.
    with pytest.raises(QmpError, match="keeps no snapshot"):
        qmp("blockdev-add", driver="snapshot-access", node_name="a", file="disk")


# ---- metadata contexts ------------------------------------------------------------------------


def test_maps_are_those_of_the_instant(daemon, qmp, chain):
    """The same as the disk's own at the instant; later what was captured counts as the topmost
    image's, and nothing that had data is called a hole."""
    daemon.qmp("blockdev-add", {"driver": "qcow2", "node-name": "disk", "discard": "unmap",
                                "file": {"driver": "file", "filename": str(chain)}})
    disk = daemon.serve()("disk")
    qmp("block-export-add", {"type": "nbd", "id": "disk", "node-name": "disk", "writable": True,
                             "allocation-depth": True})
    contexts = ("base:allocation", "qemu:allocation-depth")
    before = {c: context_map(disk, c) for c in contexts}
    info = fleece(qmp)
    assert {c: context_map(info["uri"], c) for c in contexts} == before
    guest = connect(disk)
    guest.pwrite(b"\7" * 64, 1000)               # over data of the base
    guest.zero(128 << 10, 512 << 10)             # over data of the middle
    guest.trim(64 << 10, 64 << 10)               # of the topmost
    guest.pwrite(b"\7" * MiB, 4 * MiB)           # where nobody has anything
    for c in contexts:
        was, now = flat(before[c]), flat(context_map(info["uri"], c))
        if c == "base:allocation":
            assert now == was
        else:
            assert all(b in (a, 1) for a, b in zip(was, now))
            assert now[0] == 1 and now[64] == was[64] > 1


def flat(extents, unit=GRANULE):
    """The value of each granule."""
    return [value for _, length, value in extents for _ in range(length // unit)]


def dirty_extents(uri, name):
    return [(at, n) for at, n, value in context_map(uri, f"qemu:dirty-bitmap:{name}") if value & 1]


def test_bitmaps_are_frozen(daemon, qmp, disk):
    qmp("block-dirty-bitmap-add", node="disk", name="b", granularity=64 << 10)
    guest = connect(disk)
    guest.pwrite(b"\2" * 100, MiB)
    info = fleece(qmp, bitmaps=["b"], discard=True)
    guest.pwrite(b"\3" * MiB, 4 * MiB)
    assert json.loads(run("nbdinfo", "--json", info["uri"]).stdout)["exports"][0]["contexts"] == \
        ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b"]
    assert dirty_extents(info["uri"], "b") == [(MiB, 64 << 10)]
    # The disk's own is not held by it, and goes on.
    later = fleece(qmp, id="later", bitmaps=["b"])
    assert dirty_extents(later["uri"], "b") == [(MiB, 64 << 10), (4 * MiB, MiB)]
    qmp("block-dirty-bitmap-remove", node="disk", name="b")
    assert dirty_extents(info["uri"], "b") == [(MiB, 64 << 10)]


@pytest.mark.parametrize("seed", seeds())
def test_pulling_what_is_dirty_gives_the_instant(work, seed):
    """As virtnbdbackup does it: the map of the dirty context, and reads of its extents, put over
    the last copy. Under load, twice, each time from another bitmap's beginning."""
    rng = random.Random(f"pull {seed}")
    live = LiveDisk(work, rng.choice(disks.KINDS), rng, size=6 * MiB + 512)
    live.n_writers = 2
    live.pattern["blocks"] = live.disk.size // live.block // 2    # so that not all is dirty
    base = live.initial
    taken = []
    with live.on_line(operations=1):
        # What was written before the first bitmap was there comes by a copy of everything.
        live.qmp("block-dirty-bitmap-add", node="disk", name="b0",
                 granularity=rng.choice([512, 4096, 65536]))
        info = fleece(live.qmp, id="full")
        base = os.path.join(work, "full.raw")
        run("nbdcopy", info["uri"], base)
        end_export(live.qmp, "full")
        for i in range(2):
            live.writers.wait_for_more(40)
            live.qmp("block-dirty-bitmap-add", node="disk", name=f"b{i + 1}")
            asked = time.monotonic_ns()
            info = fleece(live.qmp, id=f"f{i}", bitmaps=[f"b{i}"])
            answered = time.monotonic_ns()
            live.writers.wait_for_more(20)
            path = os.path.join(work, f"pulled{i}.raw")
            shutil.copyfile(base, path)
            h = connect(info["uri"])
            pulled = dirty_extents(info["uri"], f"b{i}")
            with open(path, "r+b") as f:
                for at, n in pulled:
                    f.seek(at)
                    f.write(h.pread(n, at))
            assert 0 < sum(n for _, n in pulled) < live.disk.size
            h.shutdown()
            end_export(live.qmp, f"f{i}")
            taken.append((path, asked, answered))
            base = path
        live.writers.stop()
    for path, asked, answered in taken:
        live.judge(path, "raw", asked, answered)


# ---- for people ---------------------------------------------------------------------------


def test_the_command(tmp_path):
    image = make_image(tmp_path / "disk.qcow2", 8 * MiB, writes=["write -P 1 0 1M"])
    with Serve(tmp_path, image) as server:
        def run_it(*args, **kwargs):
            return stillpoint("fleece", *args, "--control", server.control, **kwargs)

        uri = run_it("disk").stdout.strip()
        other = json.loads(run_it("disk", "--name", "other", "--discard", "--json").stdout)
        server.write("disk", "write -P 2 0 1M")
        for u in (uri, other["uri"]):
            assert connect(u).pread(MiB, 0) == b"\1" * MiB
        assert "already in use" in run_it("disk", check=False).stderr
        run_it("--close", "disk-fleece")
        run_it("--close", "other")
        done = run_it("--close", "other", check=False)
        assert done.returncode == 1 and "not found" in done.stderr
        assert "disk-fleece" in stillpoint("fleece", "--help").stdout
        assert connect(run_it("disk").stdout.strip()).pread(MiB, 0) == b"\2" * MiB
