# SPDX-License-Identifier: Apache-2.0
"""blockdev-fleece as an action: several disks, their bitmaps and backups at one instant, exported
over NBD; and `stillpoint fleece` with several names. How an instant of many disks is recognized:
tests/lib/prefix.py.
"""
import json
import os

import nbd
import pytest
from prefix import (BLOCK, Clients, DISKS, KIB, MIB, SLOT, SLOTS, action, is_one_prefix,
                    three_disks, transact)
from stillpoint import Daemon, QmpError, poll_until, run, stillpoint


@pytest.fixture
def served(tmp_path):
    with three_disks(tmp_path) as d:
        yield d


@pytest.fixture
def qmp(served):
    return served.qmp


def fleece(disk, **more):
    return action("blockdev-fleece", device=disk, **more)


def bitmap(what, disk, name="b", **more):
    return action(f"block-dirty-bitmap-{what}", node=disk, name=name, **more)


def connect(uri, *contexts):
    h = nbd.NBD()
    for c in contexts:
        h.add_meta_context(c)
    h.connect_uri(uri)
    return h


def content(uri):
    h = connect(uri)
    data = bytes(h.pread(h.get_size(), 0))
    h.shutdown()
    return data


def pull(uri, name, base):
    """@base with what the export's bitmap @name calls dirty, and how much that was."""
    context = f"qemu:dirty-bitmap:{name}"
    h = connect(uri, context)
    extents, copy, pulled = [], bytearray(base), 0
    h.block_status(h.get_size(), 0, lambda c, off, e, err: extents.extend(e) if c == context else 0)
    at = 0
    for length, flags in zip(extents[::2], extents[1::2]):
        if flags & 1:
            copy[at:at + length] = h.pread(length, at)
            pulled += length
        at += length
    assert at == h.get_size()
    h.shutdown()
    return bytes(copy), pulled


def close(qmp, *names):
    for n in names or [f"{d}-fleece" for d in DISKS]:
        qmp("block-export-del", id=n, mode="hard")
        qmp.wait_event("BLOCK_EXPORT_DELETED", id=n)


def fleeced(served):
    return [served.uri(f"{d}-fleece") for d in DISKS]


def write(served, disk, data, at=0):
    h = connect(served.uri(disk))
    h.pwrite(data, at)
    h.shutdown()


# ---- the instant --------------------------------------------------------------------------


def test_fleeces_of_one_transaction_are_one_prefix(served, qmp):
    found = set()
    with Clients(served.uri):
        for i in range(12):
            order = DISKS if i % 2 else DISKS[::-1]
            transact(qmp, *[fleece(d, scratch_memory=[0, MIB][i % 2]) for d in order],
                     mode=["individual", "grouped"][i % 2])
            copies = [content(uri) for uri in fleeced(served)]
            assert is_one_prefix(copies), f"transaction {i}"
            assert copies == [content(uri) for uri in fleeced(served)]
            close(qmp)
            found.add(copies[0][:8])
    assert len(found) > 6, "nothing was written in between"


def test_fleeces_one_after_the_other_are_no_prefix(served, qmp):
    """That the test above can fail."""
    with Clients(served.uri):
        for i in range(100):
            for d in DISKS:
                qmp("blockdev-fleece", device=d)
            right = is_one_prefix([content(uri) for uri in fleeced(served)])
            close(qmp)
            if not right:
                break
    assert i < 99


def test_a_backup_of_the_same_instant_has_the_same_bytes(served, qmp, tmp_path):
    with Clients(served.uri):
        for i in range(4):
            backups = [action("drive-backup", device=d, job_id=d, sync="full", format="raw",
                              target=str(tmp_path / f"{d}.{i}")) for d in DISKS]
            actions = [*backups, *[fleece(d) for d in DISKS]]
            transact(qmp, *(actions if i % 2 else actions[::-1]), mode="grouped")
            for d in DISKS:
                assert "error" not in qmp.wait_job(d)["data"]
            copies = [content(uri) for uri in fleeced(served)]
            assert copies == [(tmp_path / f"{d}.{i}").read_bytes() for d in DISKS]
            close(qmp)


# ---- bitmaps of the same instant ------------------------------------------------------------


def next_by_another(n):
    """The next bitmap begins where the one that is shown ends."""
    return [a for d in DISKS for a in (bitmap("add", d, f"b{n}", granularity=4096),
                                       fleece(d, bitmaps=[f"b{n - 1}"]),
                                       bitmap("disable", d, f"b{n - 1}"))], f"b{n - 1}"


def next_by_the_same(n):
    """One bitmap, which begins anew where what is shown ends."""
    return [a for d in DISKS for a in (fleece(d, bitmaps=["b0"]), bitmap("clear", d, "b0"))], "b0"


def next_by_a_sum(n):
    """What is shown is a sum of others, made at the same instant."""
    return [a for d in DISKS for a in (
        bitmap("add", d, f"b{n}", granularity=512),
        bitmap("add", d, f"sum{n}", disabled=True, granularity=65536),
        action("block-dirty-bitmap-merge", node=d, target=f"sum{n}", bitmaps=[f"b{n - 1}"]),
        fleece(d, bitmaps=[f"sum{n}"]),
        bitmap("remove", d, f"sum{n}"), bitmap("remove", d, f"b{n - 1}"))], f"sum{n}"


@pytest.mark.parametrize("following", [next_by_another, next_by_the_same, next_by_a_sum])
def test_what_is_dirty_over_the_last_copy_is_the_instant(served, qmp, following):
    """Nothing is in both bitmaps or in none: the next copy is complete, and one instant."""
    some = 0
    with Clients(served.uri):
        transact(qmp, *[a for d in DISKS for a in (bitmap("add", d, "b0", granularity=4096),
                                                   fleece(d))])
        copies = [content(uri) for uri in fleeced(served)]
        assert is_one_prefix(copies)
        close(qmp)
        for n in range(1, 7):
            actions, name = following(n)
            transact(qmp, *actions)
            pulled = [pull(uri, name, base) for uri, base in zip(fleeced(served), copies)]
            copies = [data for data, _ in pulled]
            assert copies == [content(uri) for uri in fleeced(served)], f"transaction {n}"
            assert is_one_prefix(copies)
            assert all(size <= SLOTS * SLOT for _, size in pulled)
            some += sum(size > 0 for _, size in pulled)
            close(qmp)
    assert some > 9, "nothing was written in between"


def test_the_same_bitmap_is_shown_and_backed_up(served, qmp, tmp_path):
    """The job has it from the instant on; what is shown was copied before."""
    qmp("block-dirty-bitmap-add", node="d0", name="b")
    write(served, "d0", b"x" * BLOCK, 128 * KIB)
    transact(qmp, fleece("d0", bitmaps=["b"]),
             action("drive-backup", device="d0", job_id="d0", sync="incremental", bitmap="b",
                    format="raw", target=str(tmp_path / "copy")))
    assert "error" not in qmp.wait_job("d0")["data"]
    write(served, "d0", b"y" * BLOCK, MIB)
    copy, size = pull(served.uri("d0-fleece"), "b", bytes(2 * MIB))
    assert size == 64 * KIB
    assert copy == content(served.uri("d0-fleece")) == (tmp_path / "copy").read_bytes()


def test_bitmaps_that_are_not_to_be_had(served, qmp, tmp_path):
    qmp("block-dirty-bitmap-add", node="d0", name="b")
    backup = action("drive-backup", device="d0", job_id="d0", sync="incremental", bitmap="b",
                    format="raw", target=str(tmp_path / "copy"))
    for actions, words in (([fleece("d0", bitmaps=["nope"])], "Dirty bitmap 'nope' not found"),
                           ([fleece("d0", bitmaps=["b", "b"])], "already exists"),
                           ([backup, fleece("d0", bitmaps=["b"])], "in use"),
                           ([bitmap("remove", "d0"), fleece("d0", bitmaps=["b"])], "in use")):
        with pytest.raises(QmpError, match=words):
            transact(qmp, *actions)
    qmp("block-dirty-bitmap-remove", node="d0", name="b")


@pytest.fixture
def waiting(tmp_path):
    """A daemon in which a transaction has begun that shows disk d0 and waits for a write."""
    slow = {"op": "write", "offset": MIB, "length": KIB, "delay-ns": 2 * 10**9, "once": True}
    with open(tmp_path / "d0.raw", "wb") as f:
        f.truncate(2 * MIB)
    with Daemon(tmp_path) as d:
        d.qmp("blockdev-add", {"driver": "raw", "node-name": "d0", "file": {
            "driver": "fault", "rules": [slow],
            "file": {"driver": "file", "filename": str(tmp_path / "d0.raw")}}})
        d.qmp("block-dirty-bitmap-add", node="d0", name="b", persistent=True)
        d.uri = d.serve("d0")
        h = connect(d.uri("d0"))
        h.pwrite(b"x" * KIB, MIB + KIB)            # its bit is in the file
        hung = h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(KIB)), MIB)
        h.pread(KIB, 0)                            # so that one is inside
        with d.connect() as d.second:
            d.qmp.send({"execute": "transaction", "arguments": {"actions": [
                fleece("d0", bitmaps=["b"]), bitmap("add", "d0", "mark")]}})
            poll_until("the transaction", lambda: "in use" in str(d.second.ask(
                "block-dirty-bitmap-remove", {"node": "d0", "name": "mark"})))
            assert not h.aio_command_completed(hung)
            yield d
            while not h.aio_command_completed(hung):
                h.poll(-1)
        h.shutdown()


def test_a_bitmap_that_is_lost_until_the_instant(waiting, tmp_path):
    """What is shown is no better."""
    os.truncate(tmp_path / "d0.raw.bitmaps", 0)
    said = waiting.second.ask("block-dirty-bitmap-add", {"node": "d0", "name": "c",
                                                         "persistent": True})
    assert "cannot be kept any more" in said["error"]["desc"]
    assert "return" in waiting.qmp.response()
    with pytest.raises(nbd.Error, match="EIO|Input/output"):
        pull(waiting.uri("d0-fleece"), "b", bytes(2 * MIB))
    assert content(waiting.uri("d0-fleece"))[MIB + KIB:MIB + 2 * KIB] == b"x" * KIB


def test_it_is_not_there_before_the_instant(waiting):
    qmp, uri = waiting.second, waiting.uri("d0-fleece")
    assert [e["id"] for e in qmp("query-block-exports")] == ["d0"]
    assert "not found" in qmp.ask("block-export-del", {"id": "d0-fleece"})["error"]["desc"]
    with pytest.raises(nbd.Error, match="no export named"):
        connect(uri)
    # Its node has a name, though nobody would guess it.
    node = next(n["node-name"] for n in qmp("query-named-block-nodes", flat=True)
                if n["drv"] == "snapshot-access")
    qmp("block-export-add", type="nbd", id="early", node_name=node, name="early")
    with pytest.raises(nbd.Error, match="EIO|Input/output"):
        content(waiting.uri("early"))
    assert "return" in waiting.qmp.response()
    assert content(uri) == content(waiting.uri("early"))


def test_a_server_that_is_stopped_until_the_instant(waiting):
    """The command succeeds, and the export is gone as if that had come first."""
    assert "return" in waiting.second.ask("nbd-server-stop")
    assert "return" in waiting.qmp.response()
    poll_until("the export to be gone", lambda: waiting.qmp("query-block-exports") == [])


# ---- what fails leaves nothing ----------------------------------------------------------------


LAST = {
    "abort": (action("abort"), "Abort action"),
    "no such disk": (fleece("nope"), "Cannot find device='nope'"),
    "an id in use": (fleece("d2", id="d0-fleece"), "id 'd0-fleece' is already in use"),
    "a name in use": (fleece("d2", name="d1-fleece"), "export named 'd1-fleece'"),
    "a bad id": (fleece("d2", id="a b"), "Invalid block export id"),
    "no such bitmap": (fleece("d2", bitmaps=["nope"]), "'nope' not found"),
    "scratch that cannot be": (fleece("d2", scratch_dir="/nope"), "/nope"),
}


@pytest.mark.parametrize("why", LAST)
def test_what_fails_leaves_nothing(why, served, qmp):
    last, words = LAST[why]
    nodes, exports = qmp("query-named-block-nodes"), qmp("query-block-exports")
    qmp("block-dirty-bitmap-add", node="d0", name="b")
    before = qmp("query-named-block-nodes")
    for mode in ("individual", "grouped"):
        added = [] if mode == "grouped" else [bitmap("clear", "d0"), bitmap("add", "d1", "new")]
        with pytest.raises(QmpError, match=words):
            transact(qmp, *added, fleece("d0", bitmaps=["b"]), fleece("d1"), last, mode=mode)
        assert qmp("query-named-block-nodes") == before
        assert qmp("query-block-exports") == exports
        assert "BLOCK_EXPORT" not in str(qmp.events)
    # Nothing is held, and the ids are free: the same without the last one.
    qmp("block-dirty-bitmap-remove", node="d0", name="b")
    assert qmp("query-named-block-nodes") == nodes
    write(served, "d1", b"1" * BLOCK)
    transact(qmp, fleece("d0"), fleece("d1"))
    write(served, "d1", b"2" * BLOCK)
    assert content(served.uri("d1-fleece"))[:BLOCK] == b"1" * BLOCK


def test_without_a_server_there_is_none(served, qmp):
    qmp("nbd-server-stop")
    for say in (lambda: qmp("blockdev-fleece", device="d0"),
                lambda: transact(qmp, fleece("d0"))):
        with pytest.raises(QmpError, match="NBD server not running"):
            say()


# ---- for people ---------------------------------------------------------------------------------


def test_the_command_for_several_disks(served, qmp):
    control = served.control

    def run_it(*args, **kwargs):
        return stillpoint("fleece", *args, "--control", control, **kwargs)

    with Clients(served.uri):
        for _ in range(4):
            uris = run_it(*DISKS).stdout.split()
            assert uris == fleeced(served)
            assert is_one_prefix([content(uri) for uri in uris])
            run_it("--close", *[f"{d}-fleece" for d in DISKS])
        qmp("block-dirty-bitmap-add", node="d0", name="b")
        qmp("block-dirty-bitmap-add", node="d1", name="b")
        infos = json.loads(run_it("d1", "d0", "--bitmap", "b", "--discard", "--json").stdout)
        assert [i["id"] for i in infos] == ["d1-fleece", "d0-fleece"]
        for i in infos:
            run("nbdinfo", "--map=qemu:dirty-bitmap:b", i["uri"])
    # All or none; closing does what it can.
    failed = run_it("d2", "nope", check=False)
    assert failed.returncode == 1 and "'nope'" in failed.stderr and not failed.stdout
    failed = run_it("--close", "d1-fleece", "d2-fleece", "d0-fleece", check=False)
    assert failed.returncode == 1 and "d2-fleece" in failed.stderr
    assert [e["id"] for e in qmp("query-block-exports")] == DISKS
    assert run_it("--name", "n", "d0", "d1", check=False).returncode == 2
