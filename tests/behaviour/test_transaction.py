# SPDX-License-Identifier: Apache-2.0
"""transaction: many disks at one instant, or nothing at all.

How an instant of many disks is recognized: tests/lib/prefix.py. What goes wrong in a transaction
has to leave nothing.
"""
import os
import threading

import nbd
import pytest
from prefix import BLOCK, Clients, DISKS, KIB, MIB, action, is_one_prefix, three_disks, transact
from stillpoint import Daemon, QmpError, poll_until, qemu_img


def backup(disk, target, **more):
    return action("drive-backup", **{"device": disk, "job_id": disk, "sync": "full",
                                     "target": str(target), "format": "raw", **more})


def backups(directory, **more):
    return [backup(d, directory / f"{d}.copy", **more) for d in DISKS]


@pytest.fixture
def served(tmp_path):
    with three_disks(tmp_path) as d:
        yield d


def copy_of(path, fmt):
    if fmt == "raw":
        return path.read_bytes()
    qemu_img("convert", "-f", fmt, "-O", "raw", path, f"{path}.flat")
    with open(f"{path}.flat", "rb") as f:
        return f.read()


@pytest.mark.parametrize("mode", ["individual", "grouped"])
def test_copies_are_one_prefix_of_what_was_written(mode, served, tmp_path):
    qmp = served.qmp
    found = set()
    with Clients(served.uri):
        for i in range(12):
            fmt = ["raw", "qcow2"][i % 2]
            targets = [tmp_path / f"{d}.{i}.copy" for d in DISKS]
            actions = [backup(d, t, format=fmt) for d, t in zip(DISKS, targets)]
            transact(qmp, *(actions if i % 3 else reversed(actions)), mode=mode)
            for d in DISKS:
                event = qmp.wait_job(d)
                assert event["event"] == "BLOCK_JOB_COMPLETED" and "error" not in event["data"]
            copies = [copy_of(t, fmt) for t in targets]
            assert is_one_prefix(copies), f"transaction {i}"
            found.add(copies[0][:8])
    assert len(found) > 6, "nothing was written in between"


def test_backups_one_after_the_other_are_no_prefix(served, tmp_path):
    """That the test above can fail."""
    with Clients(served.uri):
        for i in range(100):
            targets = [tmp_path / f"{d}.copy" for d in DISKS]
            for d, t in zip(DISKS, targets):
                served.qmp("drive-backup", backup(d, t)["data"])
            for d in DISKS:
                served.qmp.wait_job(d)
            if not is_one_prefix([t.read_bytes() for t in targets]):
                break
    assert i < 99


def test_two_transactions_over_the_same_disks(served, tmp_path):
    """In opposite order, from two monitors, again and again: none waits for the other."""
    failed = []

    def again_and_again(name, order):
        try:
            with served.connect() as qmp:
                for i in range(8):
                    targets = {d: tmp_path / f"{name}.{d}.{i}" for d in order}
                    transact(qmp, *[backup(d, targets[d], job_id=f"{name}-{d}") for d in order])
                    for d in order:
                        qmp.wait_job(f"{name}-{d}")
                    assert is_one_prefix([targets[d].read_bytes() for d in DISKS])
        except BaseException as e:       # pylint: disable=broad-except
            failed.append(e)

    with Clients(served.uri) as clients:
        both = [threading.Thread(target=again_and_again, args=a)
                for a in (("up", DISKS), ("down", DISKS[::-1]))]
        for t in both:
            t.start()
        for t in both:
            t.join()
    assert not failed, failed
    assert clients.slowest < 3           # the deadline of an instant is 4 seconds


# ---- what fails leaves nothing ---------------------------------------------------------------


def bitmap(what, **more):
    return action(f"block-dirty-bitmap-{what}", **{"node": "d0", "name": "b", **more})


LAST = {
    "abort": (action("abort"), "Transaction aborted using Abort action"),
    "no such disk": (backup("nope", "DIR/x"), "Cannot find device='nope'"),
    "a job id in use": (backup("d2", "DIR/x", job_id="d0"), "Job ID 'd0' already in use"),
    "no such folder": (backup("d2", "DIR/no/x"), "Could not create"),
    "the same file": (backup("d2", "DIR/d0.copy"), "d0.copy"),
    "a target in use": (backup("d2", "DIR/d0.raw", mode="existing"), "lock"),
    "scratch that cannot be": (backup("d2", "DIR/x", scratch_dir="/nope"), "/nope"),
    "a target of another size": (action("blockdev-backup", device="d2", target="small",
                                        sync="full", job_id="d2"), "different sizes"),
    "a target that is a source": (action("blockdev-backup", device="d2", target="d0",
                                         sync="full", job_id="d2"), "d0"),
    "no such bitmap": (bitmap("clear", name="nope"), "Dirty bitmap 'nope' not found"),
    "a bitmap that is there": (bitmap("add"), "Bitmap already exists: b"),
    "a bitmap that a backup uses": (bitmap("clear", name="old"), "currently in use"),
}


@pytest.mark.parametrize("why, mode", [
    *[(why, "individual") for why in LAST],
    *[(why, "grouped") for why in ("abort", "a job id in use", "a target in use")],
])
def test_what_fails_leaves_nothing(why, mode, served, tmp_path):
    qmp = served.qmp
    last, words = LAST[why]
    last = {**last, "data": {k: v.replace("DIR", str(tmp_path)) if isinstance(v, str) else v
                             for k, v in last["data"].items()}}
    first = [backup("d0", tmp_path / "d0.copy"), backup("d1", tmp_path / "d1.copy")]
    qmp("blockdev-add", {"driver": "null-co", "node-name": "small", "size": MIB})
    qmp("block-dirty-bitmap-add", node="d0", name="old")
    write_all(served)
    if mode == "individual":
        first = [bitmap("add"), bitmap("clear", name="old"),
                 backup("d0", tmp_path / "d0.copy", sync="incremental", bitmap="old"),
                 first[1]]
    files = sorted(os.listdir(tmp_path))
    with pytest.raises(QmpError) as refusal:
        transact(qmp, *first, last, mode=mode)
    assert words in refusal.value.desc
    assert sorted(os.listdir(tmp_path)) == files
    assert qmp("query-jobs") == [] and "JOB" not in str(qmp.events)
    # No bitmap, no cleared bits, no shut doors, nothing in use.
    assert "not found" in qmp.ask("block-dirty-bitmap-remove", {"node": "d0", "name": "b"}
                                  )["error"]["desc"]
    qmp("drive-backup", backup("d0", tmp_path / "again", sync="bitmap", bitmap="old",
                               bitmap_mode="never")["data"])
    assert qmp.wait_job("d0")["data"]["len"] > 0
    write_all(served)
    transact(qmp, *backups(tmp_path), mode=mode)
    for d in DISKS:
        assert "error" not in qmp.wait_job(d)["data"]


def write_all(served):
    for d in DISKS:
        h = nbd.NBD()
        h.connect_uri(served.uri(d))
        h.pwrite(b"x" * BLOCK, 0)
        h.shutdown()


def test_a_write_that_hangs_ends_the_command_and_nothing_else(served, tmp_path):
    """It is let go after 6 seconds; the instant waits for 4. Then all disks go on."""
    qmp = served.qmp
    files = sorted(os.listdir(tmp_path))
    hung = nbd.NBD()
    hung.connect_uri(served.uri("d2"))
    cookie = hung.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"h" * BLOCK)), MIB)
    hung.poll(0)
    write_all(served)                    # the one that hangs has come in before these
    with Clients(served.uri) as clients:
        with pytest.raises(QmpError) as refusal:
            transact(qmp, bitmap("add"), *backups(tmp_path))
        rounds = list(clients.rounds)
        assert refusal.value.desc.startswith(
            "Requests in flight on node 'd2' did not finish within 4 seconds")
        assert sorted(os.listdir(tmp_path)) == files
        assert qmp("query-jobs") == [] and "JOB" not in str(qmp.events)
        while not hung.aio_command_completed(cookie):
            hung.poll(-1)
        poll_until("all clients to go on", lambda: all(
            now > then + 1 for now, then in zip(clients.rounds, rounds)))
        transact(qmp, bitmap("add"), *backups(tmp_path))
        for d in DISKS:
            assert "error" not in qmp.wait_job(d)["data"]
    hung.shutdown()


def test_a_transaction_has_a_bound(served):
    for n, words in ((1024, "Dirty bitmap 'nope' not found"), (1025, "at most 1024 actions")):
        actions = {"actions": [bitmap("enable", name="nope")] * n}
        assert words in served.qmp.ask("transaction", actions)["error"]["desc"]


# ---- bitmaps ------------------------------------------------------------------------------------


def test_full_backups_and_bitmaps_begin_at_one_instant(served, tmp_path):
    """Of each disk a full backup and an incremental one after it give its content later."""
    qmp = served.qmp
    with Clients(served.uri):
        adds = [bitmap("add", node=d) for d in DISKS]
        transact(qmp, *adds, *backups(tmp_path))
        for d in DISKS:
            qmp.wait_job(d)
        for _ in range(3):
            transact(qmp, *[backup(d, tmp_path / f"{d}.copy", sync="incremental", bitmap="b",
                                   mode="existing") for d in DISKS], mode="grouped")
            for d in DISKS:
                assert "error" not in qmp.wait_job(d)["data"]
            assert is_one_prefix([(tmp_path / f"{d}.copy").read_bytes() for d in DISKS])


def test_a_bitmap_that_is_added_and_removed_is_gone_if_that_fails(served):
    with pytest.raises(QmpError, match="Abort action"):
        transact(served.qmp, bitmap("add"), bitmap("remove"), action("abort"))
    assert "not found" in served.qmp.ask("block-dirty-bitmap-remove", {"node": "d0", "name": "b"}
                                         )["error"]["desc"]


def test_bitmaps_of_disks_on_other_threads_are_merged(served, tmp_path):
    qmp = served.qmp
    for d in DISKS:
        qmp("block-dirty-bitmap-add", node=d, name="b")
    for i, d in enumerate(DISKS):
        h = nbd.NBD()
        h.connect_uri(served.uri(d))
        h.pwrite(b"x" * BLOCK, i * 256 * KIB)
        h.shutdown()
    transact(qmp, bitmap("add", name="all", disabled=True),
             action("block-dirty-bitmap-merge", node="d0", target="all",
                    bitmaps=[{"node": d, "name": "b"} for d in DISKS]))
    qmp("drive-backup", backup("d0", tmp_path / "copy", sync="bitmap", bitmap="all",
                               bitmap_mode="never")["data"])
    assert qmp.wait_job("d0")["data"]["len"] == 3 * 64 * KIB


def test_a_source_that_is_lost_while_a_merge_waits(tmp_path):
    """What was merged of it is not all: its target is no better."""
    with open(tmp_path / "d0.raw", "wb") as f:
        f.truncate(2 * MIB)
    slow = {"op": "write", "offset": MIB, "length": KIB, "delay-ns": 3 * 10**9, "once": True}
    with Daemon(tmp_path) as d:
        d.qmp("blockdev-add", {"driver": "raw", "node-name": "d0", "file": {
            "driver": "fault", "rules": [slow],
            "file": {"driver": "file", "filename": str(tmp_path / "d0.raw")}}})
        d.qmp("block-dirty-bitmap-add", node="d0", name="src", persistent=True)
        d.qmp("block-dirty-bitmap-add", node="d0", name="all", disabled=True)
        h = nbd.NBD()
        h.connect_uri(d.serve("d0")("d0"))
        h.pwrite(b"x" * KIB, MIB + KIB)            # its bit is in the file
        slow = h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(KIB)), MIB)
        h.pread(KIB, 0)                            # so that one is inside
        os.truncate(tmp_path / "d0.raw.bitmaps", 0)
        merge = action("block-dirty-bitmap-merge", node="d0", target="all", bitmaps=["src"])
        with d.connect() as second:
            def refused(command, name, **more):
                args = {"node": "d0", "name": name, **more}
                return second.ask(f"block-dirty-bitmap-{command}", args)["error"]["desc"]

            d.qmp.send({"execute": "transaction",
                        "arguments": {"actions": [merge, bitmap("add", name="mark")]}})
            poll_until("the merge", lambda: "in use" in refused("remove", "mark"))
            assert "cannot be kept any more" in refused("add", "new", persistent=True)
            assert not h.aio_command_completed(slow)
            assert "return" in d.qmp.response()
            for name in "src", "all":
                assert "is inconsistent" in refused("disable", name)
        h.shutdown()
