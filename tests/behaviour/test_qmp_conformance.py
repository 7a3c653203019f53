# SPDX-License-Identifier: Apache-2.0
"""The same conversation with qemu-storage-daemon and with us gives the same answers.

Each case is a list of messages, sent one after the other to both programs in a folder of
its own with the same files in it; the responses are compared whole, error texts included,
after what cannot be the same (times, sizes on disk) was made so. Where we mean to answer
differently the case says so next to the message, with the reason:

    differs("why", message)     only success or failure, and the error class, are compared
"""
import json
import os
import shutil
import socket
import subprocess

import pytest

import live
import stillpoint

QSD = shutil.which("qemu-storage-daemon")
pytestmark = pytest.mark.skipif(not QSD, reason="qemu-storage-daemon is not installed")


class differs:
    def __init__(self, why, message):
        self.why = why
        self.message = message


def cmd(command, **arguments):
    message = {"execute": command}
    if arguments:
        message["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
    return message


def add(driver, **options):
    return cmd("blockdev-add", driver=driver, **options)


def file(name):
    return {"driver": "file", "filename": name}


RAW = add("raw", node_name="r0", file=file("a.raw"))
R1 = add("raw", node_name="r1", file=file("t0.raw"))
SERVER = cmd("nbd-server-start", addr={"type": "unix", "data": {"path": "nbd.sock"}})
OURS_SAYS_BY_WHOM = "we say by whom it is in use"
MESSAGES_OF_ANOTHER_PARSER = "the words after 'JSON parse error, ' are our parser's"


def backup(**kwargs):
    return cmd("drive-backup", **{"device": "r0", "target": "t.raw", "sync": "full", "job_id": "j",
                                  "format": "raw", **kwargs})


def action(kind, **kwargs):
    return {"type": kind, "data": {k.replace("_", "-"): v for k, v in kwargs.items()}}


def backup_action(device, job, **kwargs):
    return action("drive-backup", **{"device": device, "target": f"{job}.out", "sync": "full",
                                     "job_id": job, "format": "raw", **kwargs})


def endless_action(device, job):
    """Of a job that goes on until it is cancelled."""
    return backup_action(device, job, sync="none", format="qcow2")


def transaction(*actions, **properties):
    more = {"properties": {k.replace("_", "-"): v for k, v in properties.items()}}
    return cmd("transaction", actions=list(actions), **(more if properties else {}))


BITMAP_VERBS = ("clear", "enable", "disable", "remove")


def bitmap(what, node="r0", **kwargs):
    return cmd(f"block-dirty-bitmap-{what}", **{"node": node, "name": "b", **kwargs})


def bitmap_action(what, **kwargs):
    return action(f"block-dirty-bitmap-{what}", **{"node": "r0", "name": "b", **kwargs})


def merge(target, *bitmaps):
    return cmd("block-dirty-bitmap-merge", node="r0", target=target, bitmaps=list(bitmaps))


HELD_JOB = backup(auto_finalize=False, auto_dismiss=False)

CASES = {
    "messages that are not commands": [
        [], 5, "abc", None, True,
        {}, {"arguments": {}}, {"execute": 5}, {"execute": None},
        {"execute": "query-version", "arguments": []},
        {"execute": "query-version", "foo": 1},
        {"exec": "query-version"},
        {"execute": "nope"}, {"execute": "nope", "id": 1}, {"execute": ""},
        {"execute": "query-version", "arguments": {"a": 1}, "id": {"x": [1, None]}},
        {"execute": "query-jobs", "id": None}, {"execute": "query-jobs", "id": "x"},
        cmd("qmp_capabilities"),
        {"exec-oob": "query-jobs"},
    ],
    "rubbish": [
        differs(MESSAGES_OF_ANOTHER_PARSER, raw) for raw in
        (b"foo\n", b"}\n", b"]\n", b",\n", b'{"a":}\n', b'{"a" "b"}\n', b'{"a":1,"a":2}\n',
         b'{"execute":tru}\n', b'{"execute":"abc\n')
    ] + [
        b'{"execute":"query-jobs"}', b"{'execute':'query-jobs'}",
        b'{"execute":\n"query-jobs"\n}\n', b'{"execute":"query-jobs","id":"\\u00e4"}',
        b'{"execute":"query-jobs","id":"it\\\'s"}', b"{'execute':'query-jobs','id':'\"'}",
    ],
    "blockdev-add": [
        add("nope"), cmd("blockdev-add"), cmd("blockdev-add", driver=5),
        add("file"), add("file", filename="a.raw"),
        add("file", filename=5, node_name="n"),
        add("file", filename="a.raw", node_name="n", foo=1),
        add("file", filename="a.raw", node_name="n", cache={"direct": "on"}),
        add("file", filename="a.raw", node_name="n", cache={"foo": True}),
        add("file", filename="a.raw", node_name="n", cache=True),
        add("file", filename="a.raw", node_name="n", discard="on"),
        add("file", filename="a.raw", node_name="n", read_only="on"),
        add("file", filename="nope.raw", node_name="n"),
        add("file", filename="no/dir", node_name="n"),
        differs("we say what a name may be", add("file", filename="a.raw", node_name="n 0")),
        differs("we say what a name may be", add("file", filename="a.raw", node_name="0n")),
        differs("we say which and how long it may be",
                add("file", filename="a.raw", node_name="n" * 40)),
        add("raw", node_name="n"), add("raw", node_name="n", file=None),
        add("raw", node_name="n", file=file("nope.raw")),
        add("raw", node_name="n", file={"driver": "file"}),
        add("raw", node_name="n", file={"driver": "file", "filename": "a.raw", "x": 1}),
        differs("we say whose child it was to be", add("raw", node_name="n", file="nope")),
        add("raw", node_name="n", file=file("a.raw"), size="1k"),
        RAW, RAW,
        add("raw", node_name="r1", file="r0"),
        differs("we say which file", add("qcow2", node_name="q0", file=file("notqcow2.raw"))),
        add("qcow2", node_name="q0", file=file("b.qcow2")),
    ],
    "blockdev-del": [
        add("file", filename="a.raw", node_name="n0"), add("raw", node_name="r0", file="n0"),
        cmd("blockdev-del"), cmd("blockdev-del", node="n0"), cmd("blockdev-del", node_name=1),
        cmd("blockdev-del", node_name="nope"),
        differs(OURS_SAYS_BY_WHOM, cmd("blockdev-del", node_name="n0")),
        cmd("blockdev-del", node_name="r0"), cmd("blockdev-del", node_name="r0"),
        cmd("blockdev-del", node_name="n0"), cmd("query-named-block-nodes"),
    ],
    "query-named-block-nodes": [
        RAW, add("qcow2", node_name="q0", file=file("b.qcow2")),
        add("qcow2", node_name="q1", read_only=True, file=file("over.qcow2")),
        cmd("query-named-block-nodes"), cmd("query-named-block-nodes", flat=True),
        cmd("query-named-block-nodes", flat=1), cmd("query-named-block-nodes", x=1),
    ],
    "nbd-server-start": [
        cmd("nbd-server-start"), cmd("nbd-server-start", addr="x"),
        cmd("nbd-server-start", addr={}),
        differs("we give the whole path of an enum's value",
                cmd("nbd-server-start", addr={"type": "x"})),
        cmd("nbd-server-start", addr={"type": "unix"}),
        cmd("nbd-server-start", addr={"type": "unix", "data": {}}),
        cmd("nbd-server-start", addr={"type": "unix", "data": {"path": "s", "x": 1}}),
        cmd("nbd-server-start", addr={"type": "inet", "data": {"host": "127.0.0.1"}}),
        cmd("nbd-server-start", addr={"type": "unix", "data": {"path": "no/dir/s"}}),
        cmd("nbd-server-start", addr={"type": "unix", "data": {"path": "s"}}, max_connections=-1),
        differs("this is what QEMU says of other integers",
                cmd("nbd-server-start", addr={"type": "unix", "data": {"path": "s"}},
                    max_connections="1")),
        cmd("nbd-server-start", addr={"type": "unix", "data": {"path": "s"}}, tls_creds="x"),
        cmd("nbd-server-stop"),
        SERVER, SERVER, cmd("nbd-server-stop"), cmd("nbd-server-stop"), SERVER,
    ],
    "exports": [
        RAW,
        cmd("block-export-add", type="nbd", id="e", node_name="r0"),
        SERVER,
        cmd("block-export-add"), cmd("block-export-add", type="nope", id="e", node_name="r0"),
        cmd("block-export-add", type="nbd", id="e"), cmd("block-export-add", type="nbd"),
        cmd("block-export-add", type="nbd", id="e 0", node_name="r0"),
        cmd("block-export-add", type="nbd", id="e", node_name="nope"),
        cmd("block-export-add", type="nbd", id="e", node_name="r0", writable="on"),
        cmd("block-export-add", type="nbd", id="e", node_name="r0", iothread="x"),
        differs("we do not repeat a name of any length",
                cmd("block-export-add", type="nbd", id="e", node_name="r0", name="x" * 5000)),
        cmd("block-export-add", type="nbd", id="e", node_name="r0", foo=1),
        cmd("block-export-add", type="nbd", id="e", node_name="r0", bitmaps=[]),
        *[cmd("block-export-add", type="nbd", id="f", node_name="r0", bitmaps=b)
          for b in ("b", ["b"], [{}], [{"node": "r0"}], [{"node": "nope", "name": "b"}],
                    [{"node": "r0", "name": "b"}], [{"node": "r0", "name": "b", "x": 1}])],
        differs("we say where in the list",
                cmd("block-export-add", type="nbd", id="f", node_name="r0", bitmaps=[1])),
        cmd("block-export-add", type="nbd", id="f", node_name="r0", allocation_depth=1),
        cmd("block-export-add", type="nbd", id="e", node_name="r0", name="other"),
        cmd("block-export-add", type="nbd", id="f", node_name="r0"),
        cmd("query-block-exports"),
        differs(OURS_SAYS_BY_WHOM, cmd("blockdev-del", node_name="r0")),
        cmd("block-export-del"), cmd("block-export-del", id="nope"),
        cmd("block-export-del", id="f", mode="nope"),
        cmd("block-export-del", id="f", mode="hard"), cmd("block-export-del", id="e"),
        cmd("query-block-exports"), cmd("blockdev-del", node_name="r0"),
    ],
    "exports, older names": [
        RAW, add("raw", node_name="ro", read_only=True, file=file("t0.raw")), bitmap("add"),
        cmd("nbd-server-add"), cmd("nbd-server-add", device="r0"),
        cmd("nbd-server-remove", name="r0"),
        SERVER,
        cmd("nbd-server-add", device="nope"), cmd("nbd-server-add", device="r0", name="a b"),
        cmd("nbd-server-add", device="r0", bitmap="nope"),
        cmd("nbd-server-add", device="r0", bitmap="b"),
        cmd("nbd-server-add", device="r0", bitmap=["b"]),
        cmd("nbd-server-add", device="r0", writable=True, bitmap="b"),
        cmd("nbd-server-add", device="r0"), cmd("nbd-server-add", device="r0", name="r0"),
        cmd("nbd-server-add", device="r0", name="e", description="d"),
        cmd("nbd-server-add", device="ro", writable=True),
        cmd("block-export-add", type="nbd", id="e", node_name="r0"),
        cmd("query-block-exports"), bitmap("clear"),
        cmd("nbd-server-remove"), cmd("nbd-server-remove", name="nope"),
        cmd("nbd-server-remove", name="e", mode="nope"),
        cmd("nbd-server-remove", name="e", mode="hard"), cmd("block-export-del", id="r0"),
        cmd("nbd-server-remove", name="ro"), cmd("query-block-exports"), bitmap("clear"),
    ],
    "a read-only node": [
        add("raw", node_name="r0", read_only=True, file=file("a.raw")), SERVER,
        cmd("block-export-add", type="nbd", id="e", node_name="r0", writable=True),
        cmd("block-export-add", type="nbd", id="e", node_name="r0"),
    ],
    "exports end with the server": [
        RAW, SERVER, cmd("block-export-add", type="nbd", id="e", node_name="r0"),
        cmd("nbd-server-stop"), cmd("query-block-exports"), cmd("blockdev-del", node_name="r0"),
    ],
    "no such job": [
        cmd(c, device="j") for c in
        ("block-job-cancel", "block-job-pause", "block-job-resume", "block-job-complete")
    ] + [
        cmd(c, id="j") for c in
        ("block-job-finalize", "block-job-dismiss", "job-cancel", "job-pause", "job-resume",
         "job-complete", "job-finalize", "job-dismiss")
    ] + [
        cmd("block-job-set-speed", device="j", speed=1),
        cmd("block-job-set-speed", device="j"), cmd("block-job-set-speed", device="j", speed="x"),
        cmd("block-job-cancel"), cmd("block-job-cancel", id="j"), cmd("job-cancel", device="j"),
        cmd("job-cancel", id="j", force=True), cmd("block-job-cancel", device="j", force=1),
        cmd("query-jobs"), cmd("query-block-jobs"),
    ],
    "drive-backup that cannot be": [
        RAW,
        cmd("drive-backup"), backup(sync=None), backup(sync="nope"), backup(target=None),
        backup(device="nope"), backup(mode="nope"), backup(on_source_error="nope"),
        backup(job_id="j j"), backup(job_id=""), backup(speed=-1), backup(speed="1M"),
        backup(format="nope"), backup(target="no/dir"), backup(target="nope", mode="existing"),
        backup(sync="bitmap"), backup(sync="incremental"), backup(bitmap_mode="never"),
        backup(sync="bitmap", bitmap="b"), backup(sync="incremental", bitmap="b"),
        backup(bitmap="b"), backup(sync="incremental", bitmap="b", bitmap_mode="always"),
        backup(sync="none", format="qcow2", bitmap="b", bitmap_mode="always"),
        backup(bitmap_mode="nope"),
        backup(x_perf={"max-workers": 0}), backup(x_perf={"max-chunk": -1}),
        backup(x_perf={"foo": 1}), backup(foo=1),
        differs("the reason that we give is not the lock", backup(target="a.raw")),
        differs("the reason that we give is not the lock",
                backup(target="a.raw", mode="existing")),
        cmd("query-jobs"),
    ],
    "transactions that cannot be": [
        RAW, R1,
        cmd("transaction"), transaction(), transaction(5), transaction({"type": "abort"}),
        transaction({"data": {}}), transaction(action("abort", x=1)),
        differs("we give the whole path of an enum's value", transaction(action("nope"))),
        differs("what we do not have is refused by name",
                transaction(action("blockdev-snapshot-sync", device="r0"))),
        differs("we give the whole path of an enum's value",
                transaction(completion_mode="nope")),
        cmd("transaction", actions=[], properties={"x": 1}),
        transaction(action("drive-backup", device="r0")),
        transaction(action("abort")), transaction(action("abort"), completion_mode="grouped"),
        transaction(backup_action("r0", "j"), action("abort")),
        transaction(backup_action("r0", "j"), backup_action("nope", "k")),
        differs("we give the whole path of an enum's value",
                transaction(backup_action("r0", "j"), backup_action("r1", "k", sync="nope"))),
        transaction(backup_action("r0", "j"), backup_action("r1", "k", target="no/dir")),
        differs("we look at ids before targets",
                transaction(backup_action("r0", "j"), backup_action("r1", "j"))),
        differs("we say which file it is",
                transaction(backup_action("r0", "j"), backup_action("r1", "k", target="j.out"))),
        cmd("query-jobs"),
    ],
    "dirty bitmaps": [
        RAW, R1, add("raw", node_name="small", file=file("small.raw")),
        bitmap("add"), bitmap("add", "nope"), bitmap("add", name=""),
        bitmap("add", granularity=100), bitmap("add", granularity=1000),
        bitmap("add", granularity=0),
        differs("this is what QEMU says of other integers", bitmap("add", granularity="64k")),
        bitmap("add", persistent="on"),
        differs("we say how long it is and may be", bitmap("add", name="n" * 2000)),
        *[bitmap(what, name="nope") for what in BITMAP_VERBS],
        *[bitmap(what, "nope") for what in BITMAP_VERBS],
        cmd("block-dirty-bitmap-remove"),
        bitmap("add"), bitmap("add"), bitmap("add", name="c", disabled=True, granularity=512),
        bitmap("disable"), bitmap("enable"), bitmap("clear"), bitmap("disable", name="c"),
        merge("b", "c"), merge("b", "b"), merge("nope", "c"), merge("b", "nope"),
        bitmap("add", "r1"), merge("c", {"node": "r1", "name": "b"}),
        merge("c", {"node": "r1"}),
        differs("we say which of them", merge("c", 5)), merge("c", {"node": "nope", "name": "b"}),
        bitmap("add", "small"), merge("c", {"node": "small", "name": "b"}),
        bitmap("remove"), bitmap("remove"), bitmap("remove", name="c"),
    ],
    "dirty bitmaps that are kept": [
        RAW, add("qcow2", node_name="q0", file=file("b.qcow2")),
        bitmap("add", "q0", persistent=True), bitmap("add", "q0", persistent=True),
        bitmap("add", "q0", name="c", persistent=True, disabled=True, granularity=1 << 31),
        bitmap("add", "q0", name="d"), cmd("query-named-block-nodes", flat=True),
        bitmap("enable", "q0", name="c"), bitmap("disable", "q0"), bitmap("clear", "q0"),
        cmd("block-dirty-bitmap-merge", node="q0", target="b", bitmaps=["c", "d"]),
        cmd("query-named-block-nodes", flat=True),
        bitmap("remove", "q0", name="c"), cmd("query-named-block-nodes", flat=True),
        cmd("blockdev-del", node_name="q0"),
        add("qcow2", node_name="q0", file=file("b.qcow2")),
        bitmap("add", "q0"), cmd("blockdev-del", node_name="q0"),
        add("qcow2", node_name="q0", read_only=True, file=file("b.qcow2")),
        bitmap("clear", "q0"), bitmap("remove", "q0"), cmd("query-named-block-nodes", flat=True),
    ],
    "backups by dirty bitmaps": [
        RAW, bitmap("add"), bitmap("add", name="c", disabled=True),
        backup(sync="bitmap", bitmap="b"), backup(bitmap="b"), backup(sync="top", bitmap="b"),
        backup(bitmap="b", bitmap_mode="never"),
        differs("we say what was asked for, which without a backing file is full",
                backup(sync="top", bitmap="b", bitmap_mode="never")),
        backup(sync="none", format="qcow2", bitmap="b", bitmap_mode="always"),
        backup(sync="incremental", bitmap="b", bitmap_mode="always"),
        backup(sync="incremental", bitmap="b", bitmap_mode="never"),
        backup(sync="bitmap", bitmap="b", bitmap_mode="always", target="t.raw",
               auto_finalize=False, auto_dismiss=False),
        "wait pending",
        backup(job_id="k", target="u.raw", sync="incremental", bitmap="b"),
        backup(job_id="k", target="u.raw", bitmap="b", bitmap_mode="on-success"),
        *[bitmap(what) for what in BITMAP_VERBS], merge("b", "c"),
        cmd("job-cancel", id="j"), "wait concluded", cmd("job-dismiss", id="j"),
        bitmap("clear"), bitmap("enable", name="c"),
        backup(sync="incremental", bitmap="c", target="t.raw", auto_finalize=False,
               auto_dismiss=False),
        "wait pending", cmd("query-jobs"), cmd("job-finalize", id="j"), "wait concluded",
        cmd("job-dismiss", id="j"), bitmap("remove"), bitmap("remove", name="c"),
    ],
    "dirty bitmaps in transactions": [
        RAW, R1,
        transaction(bitmap_action("add"), action("abort")), bitmap("clear"),
        transaction(bitmap_action("add"), bitmap_action("add")), bitmap("clear"),
        transaction(bitmap_action("add"), bitmap_action("disable"), bitmap_action("enable"),
                    bitmap_action("clear"), bitmap_action("add", name="c", disabled=True),
                    action("block-dirty-bitmap-merge", node="r0", target="c", bitmaps=["b"])),
        transaction(bitmap_action("remove"), bitmap_action("clear", name="c"), action("abort")),
        transaction(bitmap_action("remove"), bitmap_action("clear")),
        transaction(bitmap_action("remove"), bitmap_action("add")),
        transaction(bitmap_action("remove"),
                    backup_action("r0", "j", sync="incremental", bitmap="b")),
        transaction(bitmap_action("clear"), backup_action("r0", "j", sync="bitmap", bitmap="b",
                                                          bitmap_mode="never",
                                                          auto_finalize=False)),
        "wait pending",
        *[bitmap(what) for what in BITMAP_VERBS],
        transaction(bitmap_action("clear")), merge("c", "b"), merge("b", "c"),
        cmd("job-finalize", id="j"), "wait null",
        transaction(backup_action("r0", "j", sync="incremental", bitmap="b"),
                    bitmap_action("clear")),
        transaction(bitmap_action("remove"), bitmap_action("remove", name="c")),
        bitmap("clear"), cmd("query-jobs"),
        *[differs("QEMU 10 writes it with a small letter",
                  transaction(bitmap_action(what), completion_mode="grouped"))
          for what in ("add", "clear")],        # QEMU 7.2 crashes at others
    ],
    "a transaction whose jobs end together": [
        RAW, R1,
        transaction(backup_action("r0", "j", auto_finalize=False), backup_action("r1", "k"),
                    completion_mode="grouped"),
        "wait pending", cmd("query-jobs"), cmd("query-block-jobs"),
        cmd("job-dismiss", id="k"), cmd("job-finalize", id="k"), "wait null", cmd("query-jobs"),
        transaction(backup_action("r0", "j", auto_finalize=False), backup_action("r1", "k"),
                    completion_mode="grouped"),
        "wait pending", cmd("job-cancel", id="k"), "wait null", cmd("query-jobs"),
    ],
    "blockdev-backup that cannot be": [
        RAW, add("raw", node_name="t0", file=file("t0.raw")),
        add("raw", node_name="small", file=file("small.raw")),
        cmd("blockdev-backup", device="r0", sync="full", job_id="j"),
        cmd("blockdev-backup", device="r0", sync="full", job_id="j", target="nope"),
        cmd("blockdev-backup", device="nope", sync="full", job_id="j", target="t0"),
        cmd("blockdev-backup", device="r0", sync="full", job_id="j", target="t0", format="raw"),
        differs("we say what and how large", cmd("blockdev-backup", device="r0", sync="full",
                                                 job_id="j", target="small")),
        cmd("blockdev-backup", device="r0", sync="full", job_id="j", target="r0"),
        cmd("query-jobs"),
    ],
    "a job that waits": [
        RAW, backup(target="t.raw", auto_finalize=False, auto_dismiss=False),
        "wait pending",
        cmd("query-jobs"), cmd("query-block-jobs"),
        backup(target="u.raw"),
        cmd("job-dismiss", id="j"), cmd("job-pause", id="j"), cmd("job-resume", id="j"),
        cmd("block-job-complete", device="j"), cmd("block-job-set-speed", device="j", speed=1),
        differs("we look at arguments before states",
                cmd("block-job-set-speed", device="j", speed=-1)),
        cmd("job-finalize", id="j"), "wait concluded",
        cmd("query-jobs"), cmd("query-block-jobs"),
        cmd("job-finalize", id="j"), cmd("job-pause", id="j"), cmd("job-cancel", id="j"),
        cmd("block-job-cancel", device="j"),
        cmd("job-dismiss", id="j"), cmd("query-jobs"), cmd("job-dismiss", id="j"),
    ],
    "a job that is steered": [
        RAW, backup(sync="none", format="qcow2", target="t.qcow2"),
        cmd("job-finalize", id="j"), cmd("job-dismiss", id="j"),
        cmd("job-resume", id="j"),
        cmd("block-job-set-speed", device="j", speed=100),
        cmd("job-pause", id="j"), "wait paused", cmd("job-pause", id="j"),
        cmd("block-job-pause", device="j"), cmd("block-job-cancel", device="j"),
        cmd("block-job-resume", device="j"), "wait running", cmd("block-job-resume", device="j"),
        cmd("block-job-cancel", device="j"), "wait null", cmd("query-jobs"),
    ],
}


class Peer:
    """One of the two programs in a folder, with a QMP client. Both run with that folder as
    their working directory, so that names are the same in both."""

    def __init__(self, argv, directory):
        self.directory = directory
        directory.mkdir()
        for name, size in (("a.raw", 1 << 20), ("t0.raw", 1 << 20), ("small.raw", 1 << 19)):
            with open(directory / name, "wb") as f:
                f.truncate(size)
        for name in ("a.raw", "t0.raw"):
            with open(directory / name, "r+b") as f:
                f.write(b"data" * (1 << 18))
        (directory / "notqcow2.raw").write_bytes(b"not an image" * 1000)
        stillpoint.qemu_img("create", "-q", "-f", "qcow2", "b.qcow2", "1M", cwd=directory)
        stillpoint.qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "-u",
                            "over.qcow2", "2M", cwd=directory)
        stillpoint.qemu_img("create", "-q", "-f", "qcow2", "base.qcow2", "1M", cwd=directory)
        self.process = stillpoint.Process(
            [*argv, "--chardev", "socket,id=c,path=qmp.sock,server=on,wait=off",
             "--monitor", "chardev=c"], directory / "log", cwd=directory)
        # The path from here may be longer than a socket's address takes.
        cwd = os.open(".", os.O_RDONLY)
        os.chdir(directory)
        try:
            self.qmp = stillpoint.Qmp.connect("qmp.sock", deadline=20)
        finally:
            os.fchdir(cwd)
            os.close(cwd)

    def say(self, message):
        if isinstance(message, bytes):
            self.qmp.send(message)
        else:
            self.qmp.send(json.dumps(message) + "\n")
        try:
            return self.qmp.response()
        except TimeoutError:
            raise AssertionError(f"no answer in {self.directory.name} to {message!r}") from None

    def quit(self):
        self.say(cmd("quit"))
        assert self.process.wait() == 0, self.process.log()
        assert "Sanitizer" not in self.process.log(), self.process.log()

    def close(self):
        self.qmp.close()
        self.process.kill()


@pytest.fixture
def peers(tmp_path):
    both = []
    try:
        both.append(Peer([QSD], tmp_path / "qemu"))
        both.append(Peer([stillpoint.BINARY, "daemon"], tmp_path / "ours"))
        yield both
        for peer in both:
            peer.quit()
    finally:
        for peer in both:
            peer.close()


# Facts of a node, a job or an image that depend on how the program works inside.
HOW_IT_WORKS = {
    "actual-size",          # QEMU creates images with more in them
    "len", "offset",        # we count what is to be copied, not the whole disk
    "current-progress", "total-progress",
    "busy",
    "guest-latency",        # QEMU does not tell
    "active",               # since QEMU 10
}

# Of an export, QEMU does not tell.
OF_EXPORTS = {"uri", "name", "size", "writable", "clients", "stats"}


def comparable(value, peer):
    """Without what cannot be the same in both."""
    if isinstance(value, dict):
        left_out = HOW_IT_WORKS | (OF_EXPORTS if "shutting-down" in value else set())
        return {k: comparable(v, peer) for k, v in value.items() if k not in left_out}
    if isinstance(value, list):
        # QEMU lists the newest first, and names nodes without a name by chance.
        items = [comparable(v, peer) for v in value
                 if not (isinstance(v, dict) and v.get("node-name", "").startswith("#"))]
        return sorted(items, key=lambda i: json.dumps(i, sort_keys=True))
    if isinstance(value, str):
        # We resolve the names of backing files.
        return value.replace(f"{peer.directory}/", "")
    return value


def outline(response):
    """Success or the class of the error."""
    return response["error"]["class"] if "error" in response else "success"


@pytest.mark.parametrize("name", CASES)
def test_answers_are_those_of_qemu(peers, name):
    different = []
    for message in CASES[name]:
        if isinstance(message, str) and message.startswith("wait "):
            for peer in peers:
                peer.qmp.wait_event("JOB_STATUS_CHANGE", id="j", status=message.split()[1])
            continue
        marked = isinstance(message, differs)
        answers = [peer.say(message.message if marked else message) for peer in peers]
        theirs, ours = (comparable(a, peer) for a, peer in zip(answers, peers))
        if marked:
            if outline(theirs) != outline(ours):
                different.append((message.message, theirs, ours))
            # A mark that is no longer needed would hide the next real difference.
            elif theirs == ours:
                different.append((message.message, "marked, but the same", ours))
        elif theirs != ours:
            different.append((message, theirs, ours))
    assert not different, "\n".join(f"\n> {m}\nQEMU: {t}\nwe:   {o}" for m, t, o in different)


# What jobs of a transaction tell. Waiting for a message is "wait STATUS JOB".
EVENT_CASES = {
    "all end well": [
        transaction(backup_action("r0", "j"), backup_action("r1", "k"), completion_mode="grouped"),
        "wait null j", "wait null k",
    ],
    "one is to be finalized": [
        transaction(backup_action("r0", "j", auto_finalize=False), backup_action("r1", "k"),
                    completion_mode="grouped"),
        "wait pending j", cmd("job-finalize", id="k"), "wait null j", "wait null k",
    ],
    "all are to be finalized and dismissed": [
        transaction(*[backup_action(d, j, auto_finalize=False, auto_dismiss=False)
                      for d, j in (("r0", "j"), ("r1", "k"))], completion_mode="grouped"),
        "wait pending j", "wait pending k", cmd("job-finalize", id="j"), "wait concluded j",
        cmd("job-dismiss", id="j"), "wait null j", cmd("job-dismiss", id="k"), "wait null k",
    ],
    "one is cancelled that is pending": [
        transaction(backup_action("r0", "j", auto_finalize=False), backup_action("r1", "k"),
                    completion_mode="grouped"),
        "wait pending j", cmd("block-job-cancel", device="k"), "wait null j", "wait null k",
    ],
    "one is cancelled that runs": [
        transaction(endless_action("r0", "j"), endless_action("r1", "k"),
                    completion_mode="grouped"),
        "wait running k", cmd("block-job-cancel", device="k"), "wait null j", "wait null k",
    ],
    "one fails": [
        transaction(endless_action("r0", "j"),
                    action("blockdev-backup", device="r1", target="bad", sync="full", job_id="k"),
                    completion_mode="grouped"),
        "wait null j", "wait null k",
    ],
    "each ends for itself": [
        transaction(backup_action("r0", "j", auto_finalize=False),
                    action("blockdev-backup", device="r1", target="bad", sync="full",
                           job_id="k")),
        "wait null k", "wait pending j", cmd("job-finalize", id="j"), "wait null j",
    ],
}


def told(peer, messages):
    """The events of each job, and the order in which the jobs end. QEMU's also pause for a
    moment when they start."""
    events = []

    def is_told(status, job):
        return any(e["event"] == "JOB_STATUS_CHANGE" and e["data"] == {"id": job, "status": status}
                   for e in events + peer.qmp.events)

    for message in messages:
        if isinstance(message, str):
            while not is_told(*message.split()[1:]):
                peer.qmp.events.append(peer.qmp.receive())
        else:
            assert "return" in peer.say(message)
        events += peer.qmp.events
        peer.qmp.events = []
    jobs, ends = {}, []
    for event in (e for e in events if "JOB" in e["event"]):
        data = event["data"]
        what = (event["event"], data.get("status"), "error" in data)
        job = jobs.setdefault(data.get("id", data.get("device")), [])
        if data.get("status") != "paused" and what not in job and "ERROR" not in event["event"]:
            job.append(what)
        if data.get("status") == "concluded":
            ends.append(data["id"])
    return jobs, ends


@pytest.mark.parametrize("name", EVENT_CASES)
def test_events_of_a_transaction_are_those_of_qemu(peers, tmp_path, name):
    with stillpoint.Process(["nbdkit", "-f", "-U", tmp_path / "bad", "--filter=error", "memory",
                             "1M", "error-pwrite-rate=100%", "error-zero-rate=100%"],
                            tmp_path / "nbdkit.log"):
        stillpoint.poll_until("nbdkit", lambda: live.listens(str(tmp_path / "bad")))
        answers = []
        for peer in peers:
            for message in (RAW, R1, add("raw", node_name="bad", file={
                    "driver": "nbd",
                    "server": {"type": "unix", "path": str(tmp_path / "bad")}})):
                assert "return" in peer.say(message)
            answers.append(told(peer, EVENT_CASES[name]))
            peer.say(cmd("blockdev-del", node_name="bad"))
        assert answers[1] == answers[0]
        assert sorted(answers[1][0]) == ["j", "k"]
