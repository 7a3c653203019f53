# SPDX-License-Identifier: Apache-2.0
"""Fleecing as QEMU documents it, by nodes (copy-before-write, snapshot-access) or a job: the same
orders to qemu-storage-daemon and to us show the same bytes, with every option; and what is shown
is an instant under load."""
import contextlib
import os
import random
import signal
import time

import disks
import nbd
import pytest
from cli import MiB, make_image
from live import LiveDisk
from peers import QSD, both

from stillpoint import Process, poll_until, qemu_img, run

beside_qemu = pytest.mark.skipif(not QSD, reason="qemu-storage-daemon is not installed")

PATTERNS = ["write -P 0x5d 0 64k", "write -P 0xd5 1M 64k", "write -P 0xdc 32M 64k",
            "write -P 0xcd 0x3ff0000 64k"]
OVERWRITE = ["write -P 0xab 0 64k", "write -P 0xad 0xf8000 64k", "write -P 0x1d 0x2008000 64k",
             "write -P 0xea 0x3fe0000 64k", "write -z 1M 4k", "discard 32M 4k",
             "write -P 9 20000001 3"]

# Ways to fleece, and the nodes that each leaves. access: copy-before-write and snapshot-access;
# overlay: the filter's target is an overlay of the disk, and exported; job: the same by
# blockdev-backup with sync=none, as libvirt does it.
NODES = {"access": ["fl-access", "fl-cbw"], "overlay": ["fl-cbw"], "job": []}


def add_source(peer, writes=()):
    make_image(peer.path("base.qcow2"), 64 * MiB, writes=writes)
    peer.qmp("blockdev-add", {"driver": "qcow2", "node-name": "source", "discard": "unmap",
                              "file": {"driver": "file", "filename": peer.path("base.qcow2")}})


def add_temp(peer, graph):
    temp = {"node-name": "temp", "driver": "file", "filename": peer.path("temp")}
    if graph == "access":
        qemu_img("create", "-q", "-f", "raw", peer.path("temp"), "64M")
    else:
        qemu_img("create", "-q", "-f", "qcow2", peer.path("temp"), "64M")
        temp = {"node-name": "temp", "driver": "qcow2", "backing": "source",
                "file": {"driver": "file", "filename": peer.path("temp")}}
    peer.qmp("blockdev-add", temp)


def fleece(peer, graph, **options):
    """The filter's or job's, and what is exported as "shown"; clients of the disk use "guest"."""
    shown, guest = "temp", "source" if graph == "job" else "fl-cbw"
    if graph != "job":
        peer.qmp("blockdev-add", driver="copy-before-write", node_name="fl-cbw", file="source",
                 **{"target": "temp", **options})
    peer.export(guest, "guest", writable=True)
    if graph == "job":
        peer.qmp("blockdev-backup", job_id="j", device="source", target="temp", sync="none")
    if graph == "access":
        shown = "fl-access"
        peer.qmp("blockdev-add", driver="snapshot-access", node_name=shown, file="fl-cbw",
                 discard="unmap")
    peer.export(shown, "shown", writable=shown == "fl-access")


def end(peer, graph):
    for e in ("shown", "guest"):
        peer.end_export(e)
    if graph == "job":
        peer.qmp("block-job-cancel", device="j")
        peer.qmp.wait_event("BLOCK_JOB_CANCELLED", device="j")
        peer.qmp.wait_event("JOB_STATUS_CHANGE", id="j", status="null")
    for n in NODES[graph]:
        peer.qmp("blockdev-del", node_name=n)


# ---- the bytes ----------------------------------------------------------------------------


@beside_qemu
@pytest.mark.parametrize("graph", NODES)
def test_qemus_graph_shows_the_same_bytes(work, graph):
    shown = []
    with both(work) as peers:
        for peer in peers:
            add_source(peer, PATTERNS)
            add_temp(peer, graph)
            peer.serve()
            fleece(peer, graph)
            before = peer.content("shown")
            for command in OVERWRITE:
                peer.qemu_io("guest", command)
            shown.append(peer.content("shown"))
            assert before == shown[-1], peer.name
            end(peer, graph)
            for n in "temp", "source":
                peer.qmp("blockdev-del", node_name=n)
    assert shown[0] == shown[1]
    for peer in peers if graph != "access" else ():
        # By itself it has the old clusters, and nothing else.
        qemu_img("check", "-q", peer.path("temp"))
        qemu_img("rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b",
                 peer.path("base.qcow2"), peer.path("temp"))
        flat_path = disks.flatten(peer.path("temp"), "qcow2", peer.path("flat.raw"))
        with open(flat_path, "rb") as f:
            assert f.read() == shown[0]


@pytest.mark.parametrize("graph", NODES)
def test_qemus_graph_is_an_instant_under_load(work, graph):
    """With the clients on the disk itself, which they had open before: the filter need not be
    between."""
    live = LiveDisk(work, "qcow2-over-raw-longer", random.Random(f"graph {graph}"),
                    size=6 * MiB + 512)
    temp = os.path.join(work, "temp")
    with live.on_line():
        node = {"node-name": "temp", "driver": "qcow2", "backing": "disk",
                "file": {"driver": "file", "filename": temp}}
        if graph == "access":
            node = {"node-name": "temp", "driver": "file", "filename": temp}
        qemu_img("create", "-q", "-f", node["driver"].replace("file", "raw"), temp,
                 str(live.disk.size))
        live.qmp("blockdev-add", node)
        asked = time.monotonic_ns()
        if graph == "job":
            live.qmp("blockdev-backup", job_id="j", device="disk", target="temp", sync="none")
        else:
            live.qmp("blockdev-add", {"driver": "copy-before-write", "node-name": "fl-cbw",
                                      "file": "disk", "target": "temp"})
        answered = time.monotonic_ns()
        if graph == "access":
            live.qmp("blockdev-add", driver="snapshot-access", node_name="fl-access",
                     file="fl-cbw")
        live.qmp("block-export-add", type="nbd", id="shown",
                 node_name="fl-access" if graph == "access" else "temp", name="shown")
        uri = live.uri.replace("/disk?", "/shown?")
        paths = [os.path.join(work, f"copy{i}.raw") for i in range(4)]
        for path in paths:
            live.writers.wait_for_more(40)
            run("nbdcopy", uri, path)
        live.writers.stop()
        live.qmp("block-export-del", id="shown", mode="hard")
        live.qmp.wait_event("BLOCK_EXPORT_DELETED", id="shown")
        if graph == "job":
            live.qmp("block-job-cancel", device="j")
            live.qmp.wait_job("j")
        for n in NODES[graph] + ["temp"]:
            live.qmp("blockdev-del", node_name=n)
    for path in paths:
        live.judge(path, "raw", asked, answered)


# ---- bitmap ---------------------------------------------------------------------------------

UNIT = 64 << 10


def readable(peer, export="shown"):
    """The content of each 64 KiB, None where reading is refused."""
    h = nbd.NBD()
    h.connect_uri(peer.uri(export))
    found = []
    for at in range(0, h.get_size(), UNIT):
        try:
            found.append(bytes(h.pread(UNIT, at)))
        except nbd.Error:
            found.append(None)
    h.shutdown()
    return found


@beside_qemu
@pytest.mark.parametrize("granularity", [512, 65536, 1 << 20])
def test_with_a_bitmap_only_what_is_dirty_is_kept_and_shown(work, granularity):
    """QEMU keeps whole clusters of 64 KiB: compared are whole ones."""
    kept = []
    with both(work) as peers:
        for peer in peers:
            add_source(peer, PATTERNS[:2])
            add_temp(peer, "access")
            peer.serve()
            peer.export("source", writable=True)
            peer.qmp("block-dirty-bitmap-add", node="source", name="b", granularity=granularity)
            peer.qemu_io("source", "write -P 0xdc 32M 64k", "write -P 0xcd 0x3ff0000 64k",
                         "write -P 1 1M 64k")
            peer.end_export("source")
            fleece(peer, "access", bitmap={"node": "source", "name": "b"})
            # What becomes of the bitmap from here on is nothing to the filter.
            peer.qmp("block-dirty-bitmap-clear", node="source", name="b")
            before = readable(peer)
            for command in OVERWRITE:
                peer.qemu_io("guest", command)
            after = readable(peer)
            assert before == after, peer.name
            kept.append(after)
            peer.qmp("block-dirty-bitmap-remove", node="source", name="b")
            assert readable(peer) == after
            end(peer, "access")
    unit = max(granularity, UNIT)
    dirty = {at // UNIT for start in (MiB, 32 * MiB, 0x3ff0000)
             for at in range(start // unit * unit, (start // unit + 1) * unit, UNIT)}
    for found in kept:
        assert {i for i, data in enumerate(found) if data is not None} == dirty
    assert kept[0] == kept[1]


@beside_qemu
def test_bitmaps_that_a_filter_cannot_have(work):
    """The same refusals; which words, ours tell more."""
    with both(work) as peers:
        for peer in peers:
            add_source(peer)
            add_temp(peer, "access")
            peer.qmp("blockdev-add", driver="null-co", node_name="small", size=MiB)
            for node in "source", "small":
                peer.qmp("block-dirty-bitmap-add", node=node, name="b")
            cbw = {"driver": "copy-before-write", "node-name": "fl-cbw", "file": "source",
                   "target": "temp"}
            for bitmap in ({"node": "source", "name": "nope"}, {"node": "nope", "name": "b"},
                           {"node": "small", "name": "b"}, {"name": "b"}, "b"):
                assert "error" in peer.qmp.ask("blockdev-add", {**cbw, "bitmap": bitmap}), \
                    f"{peer.name}: {bitmap}"
            peer.qmp("blockdev-add", {**cbw, "bitmap": {"node": "source", "name": "b"}})
            peer.qmp("blockdev-del", node_name="fl-cbw")
            peer.qmp("block-dirty-bitmap-remove", node="source", name="b")


# ---- on-cbw-error, cbw-timeout ----------------------------------------------------------------


@contextlib.contextmanager
def target_server(work, *args):
    """nbdkit with 64 MiB of memory behind these filters: a URI's parts for both daemons."""
    sock = os.path.join(work, "target.sock")
    argv = ["nbdkit", "--foreground", "--exit-with-parent", "--unix", sock,
            *args[:1], "memory", "64M", *args[1:]]
    with Process(argv, os.path.join(work, "nbdkit.log")) as server:
        poll_until("nbdkit", lambda: os.path.exists(sock) or not server.running())
        assert server.running(), server.log()
        yield sock
        server.signal(signal.SIGTERM)
        server.wait()
    os.unlink(sock)


def add_remote_temp(peer, sock):
    peer.qmp("blockdev-add", {"driver": "nbd", "node-name": "temp", "export": "",
                              "server": {"type": "unix", "path": sock}})


def outcome(peer, export, command):
    done = peer.qemu_io(export, command, check=False)
    return "fails" if done.returncode or "fail" in done.stdout + done.stderr else "works"


TROUBLE = {
    # The first write to the target fails, later ones do not. What of a guest's first write,
    # of reading what is shown then, and of its next write.
    ("error", "break-guest-write"): ["fails", "works", "works", "works"],
    ("error", "break-snapshot"): ["works", "fails", "works", "fails"],
    # The target takes 2 seconds for a write, the limit is 1.
    ("slow", "break-guest-write"): ["fails", "works"],
    ("slow", "break-snapshot"): ["works", "fails"],
}


@beside_qemu
@pytest.mark.parametrize("what, policy", TROUBLE)
def test_a_target_in_trouble_breaks_what_it_is_to_break(work, what, policy):
    trigger = os.path.join(work, "trigger")
    slow = ("--filter=delay", "delay-write=2")
    broken = ("--filter=error", "error-pwrite-rate=100%", f"error-file={trigger}")
    found = []
    with both(work) as peers:
        for peer in peers:
            with target_server(work, *(slow if what == "slow" else broken)) as sock:
                add_source(peer, PATTERNS)
                add_remote_temp(peer, sock)
                peer.serve()
                fleece(peer, "access", on_cbw_error=policy,
                       **({"cbw_timeout": 1} if what == "slow" else {}))
                steps = [outcome(peer, "guest", "write -P 1 0 64k") if what == "slow" else None]
                if what == "error":
                    with open(trigger, "w", encoding="ascii"):
                        steps = [outcome(peer, "guest", "write -P 1 0 64k")]
                    os.unlink(trigger)
                steps.append(outcome(peer, "shown", "read -P 0xd5 1M 64k"))
                if what == "error":
                    steps.append(outcome(peer, "guest", "write -P 2 1M 64k"))
                    steps.append(outcome(peer, "shown", "read -P 0xd5 1M 64k"))
                assert outcome(peer, "guest", "read 0 64k") == "works"
                found.append(steps)
                end(peer, "access")
                peer.qmp("blockdev-del", node_name="temp")
    assert found == [TROUBLE[what, policy]] * 2
