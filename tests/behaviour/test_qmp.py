# SPDX-License-Identifier: Apache-2.0
"""QMP as a whole: many monitors at a time, what nobody may hold up, disks on many threads.
Answers to single commands are compared with QEMU's in test_qmp_conformance.py."""
import json
import os
import random
import signal
import socket
import struct
import threading
import time

import pytest

import stillpoint
from stillpoint import Daemon, Process, Qmp, QmpError, poll_until, qemu_img, run

# However loaded the machine is, an answer that waits for nothing comes within this.
AT_ONCE = 10


@pytest.fixture
def hung_server(tmp_path):
    """An NBD server that accepts connections and then says nothing."""
    path = tmp_path / "hung.sock"
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))
        s.listen(16)
        yield path


def null_node(name, size=1 << 20):
    return {"driver": "null-co", "node-name": name, "size": size}


def test_lines_end_as_qemu_ends_them(tmp_path, daemon):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(daemon.control)
        assert s.recv(1 << 16).endswith(b'"capabilities": []}}\r\n')


def test_the_version_is_one_that_clients_of_qemu_take(qmp):
    assert qmp.greeting["QMP"]["version"]["qemu"] == {"major": 10, "minor": 0, "micro": 0}
    assert qmp("query-version") == qmp.greeting["QMP"]["version"]
    assert qmp("query-version")["package"].startswith("Stillpoint ")


def test_the_schema_tells_what_tools_look_for(qmp):
    """As libvirt does: from a command to its arguments' members by name."""
    infos = {i["name"]: i for i in qmp("query-qmp-schema")}

    def members(name):
        info = infos[name]
        branches = [m for v in info.get("variants", []) for m in infos[v["type"]]["members"]]
        return {m["name"]: m for m in info["members"] + branches}

    backup = members(infos["drive-backup"]["arg-type"])
    assert {"device", "sync", "target", "format", "mode", "speed", "job-id", "on-source-error",
            "x-perf", "auto-finalize", "scratch-limit"} <= set(backup)
    assert "default" not in backup["target"] and backup["speed"]["default"] is None
    assert [m["name"] for m in infos[backup["sync"]["type"]]["members"]] == \
        ["top", "full", "none", "incremental", "bitmap"]
    add = infos[infos["blockdev-add"]["arg-type"]]
    assert add["tag"] == "driver"
    assert {"file", "raw", "qcow2", "nbd", "null-co"} <= {v["case"] for v in add["variants"]}
    assert infos["JOB_STATUS_CHANGE"]["meta-type"] == "event"


def test_events_come_to_every_monitor_with_a_time(daemon):
    with daemon.connect() as a, daemon.connect() as b, daemon.connect(negotiate=False) as silent:
        before = time.time()
        daemon.qmp("blockdev-add", null_node("n0"))
        daemon.serve("n0")
        daemon.qmp("block-export-del", id="n0")
        for client in (daemon.qmp, a, b):
            stamp = client.wait_event("BLOCK_EXPORT_DELETED", id="n0")["timestamp"]
            assert before - 1 <= stamp["seconds"] + stamp["microseconds"] / 1e6 <= time.time() + 1
        silent.send({"execute": "query-jobs"})
        assert silent.receive()["error"]["class"] == "CommandNotFound"


def test_an_image_found_corrupt_is_told_of(daemon, tmp_path):
    """Its L2 entry says that the guest's data is where the refcount table is."""
    path = tmp_path / "bad.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "64M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 128k", path)
    with open(path, "r+b") as f:
        header = f.read(104)
        l1, table = (struct.unpack(">Q", header[at:at + 8])[0] for at in (40, 48))
        f.seek(l1)
        l2 = struct.unpack(">Q", f.read(8))[0] & (1 << 56) - 1
        f.seek(l2)
        f.write(struct.pack(">Q", 1 << 63 | table))
    before = path.read_bytes()[table:table + 65536]
    daemon.qmp("blockdev-add", {"driver": "qcow2", "node-name": "n0",
                                "file": {"driver": "file", "filename": str(path)}})
    uri = daemon.serve("n0")("n0")
    assert run("qemu-io", "-f", "raw", "-c", "write -P 2 0 4k", uri, check=False).returncode
    event = daemon.qmp.wait_event("BLOCK_IMAGE_CORRUPTED")["data"]
    assert event["node-name"] == "n0" and event["device"] == "" and event["fatal"] is True
    assert event["offset"] == table and "metadata" in event["msg"]
    # It is told once, the rest can still be read, and nothing is written any more.
    assert run("qemu-io", "-f", "raw", "-c", "write -P 2 64k 4k", uri, check=False).returncode
    run("qemu-io", "-f", "raw", "-c", "read -P 1 64k 64k", uri)
    assert [e["event"] for e in daemon.qmp.events].count("BLOCK_IMAGE_CORRUPTED") == 0
    assert path.read_bytes()[table:table + 65536] == before
    assert path.read_bytes()[79] & 2, "the corrupt bit"


def test_a_monitor_that_hangs_up_in_the_middle_harms_nobody(daemon):
    for text in (b"", b"{", b'{"execute":"query-', b"\xff\xfe\x00{}", b"GET / HTTP/1.1\r\n\r\n"):
        with daemon.connect() as client:
            client.send(text)
    with daemon.connect() as client:
        for _ in range(1000):
            client.send({"execute": "query-qmp-schema"})
            if not client.buffer:
                break
    assert daemon.qmp("query-jobs") == []


def test_an_open_that_hangs_holds_nobody_up(daemon, hung_server):
    """The server of the node to be added accepts a connection and then says nothing."""
    with daemon.connect() as stuck:
        stuck.send({"execute": "blockdev-add",
                    "arguments": {"driver": "nbd", "node-name": "far",
                                  "server": {"type": "unix", "path": str(hung_server)}}})
        start = time.monotonic()
        daemon.qmp("blockdev-add", null_node("n0"))
        assert [n["node-name"] for n in daemon.qmp("query-named-block-nodes")] == ["n0"]
        with pytest.raises(QmpError, match="(?i)far"):
            daemon.qmp("blockdev-del", node_name="far")
        daemon.qmp("blockdev-del", node_name="n0")
        assert time.monotonic() - start < AT_ONCE
        daemon.qmp.send({"execute": "quit"})
        assert daemon.wait() == 0
        assert time.monotonic() - start < 3 * AT_ONCE


def nbdkit(tmp_path, *args):
    path = tmp_path / "nbdkit.sock"
    server = Process(["nbdkit", "-f", "-U", path, *args], tmp_path / "nbdkit.log")
    poll_until("nbdkit", path.exists)
    return server, path


def test_a_target_that_hangs_holds_up_neither_questions_nor_cancel_nor_quit(tmp_path):
    server, path = nbdkit(tmp_path, "memory", "64M")
    with server, Daemon(tmp_path, "--threads", "1") as d:
        d.add_file("r0", make_raw(tmp_path / "a.raw", 64 << 20, data=True))
        uri = d.serve("r0")
        d.qmp("drive-backup", job_id="j", device="r0", sync="full", mode="existing", format="raw",
              speed=1 << 20, target=f"nbd+unix:///?socket={path}")
        poll_until("progress", lambda: d.qmp("query-block-jobs")[0]["offset"] > 0)
        server.signal(signal.SIGSTOP)
        d.qmp("block-job-set-speed", device="j", speed=0)
        start = time.monotonic()
        for _ in range(20):
            assert d.qmp("query-jobs")[0]["id"] == "j"
            d.qmp("query-named-block-nodes")
        assert time.monotonic() - start < AT_ONCE
        # The guest neither.
        run("qemu-io", "-f", "raw", "-c", "write -P 1 0 1M", uri("r0"))
        d.qmp("block-job-cancel", device="j", force=True)
        d.wait_event("BLOCK_JOB_CANCELLED", device="j")
        d.wait_event("JOB_STATUS_CHANGE", id="j", status="null")
        assert time.monotonic() - start < 2 * AT_ONCE
        d.qmp("drive-backup", job_id="k", device="r0", sync="full", mode="existing", format="raw",
              target=str(make_raw(tmp_path / "b.raw", 64 << 20)))
        d.qmp.wait_job("k")
        start = time.monotonic()
        d.quit()
        assert time.monotonic() - start < 2 * AT_ONCE
        server.signal(signal.SIGCONT)


def make_raw(path, size, data=False):
    with open(path, "wb") as f:
        if data:
            f.write(os.urandom(1 << 20) * (size >> 20))
        f.truncate(size)
    return path


def test_quit_does_not_wait_for_a_job_whose_target_hangs(tmp_path):
    server, path = nbdkit(tmp_path, "memory", "16M")
    with server, Daemon(tmp_path) as d:
        d.add_file("r0", make_raw(tmp_path / "a.raw", 16 << 20, data=True))
        d.qmp("blockdev-add", driver="nbd", node_name="t0",
              server={"type": "unix", "path": str(path)})
        d.qmp("blockdev-backup", job_id="j", device="r0", target="t0", sync="full", speed=1 << 20)
        poll_until("progress", lambda: d.qmp("query-block-jobs")[0]["offset"] > 0)
        server.signal(signal.SIGSTOP)
        d.qmp("block-job-set-speed", device="j", speed=0)
        status, seconds = stillpoint.terminate(d)
        assert status == 0, d.log()
        assert seconds < 2 * AT_ONCE
        server.signal(signal.SIGCONT)


# ---- many threads ------------------------------------------------------------------------


def threads_of(pid):
    names = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/comm") as f:
            names.append(f.read().strip())
    return names


def test_disks_are_spread_over_threads(tmp_path):
    with Daemon(tmp_path, "--threads", "3") as d:
        def loops():
            return sum(n.startswith("disks-") for n in threads_of(d.pid))
        assert loops() == 0
        for i in range(5):
            d.qmp("blockdev-add", null_node(f"n{i}"))
            assert loops() == min(i + 1, 3)


def test_a_backup_brings_disks_of_two_threads_together(tmp_path):
    with Daemon(tmp_path, "--threads", "4") as d:
        d.add_file("r0", make_raw(tmp_path / "a.raw", 4 << 20, data=True))
        uri = d.serve("r0")
        for i in range(4):
            d.add_file(f"t{i}", make_raw(tmp_path / f"t{i}.raw", 4 << 20))
        for i in range(4):
            d.qmp("blockdev-backup", job_id=f"j{i}", device="r0", target=f"t{i}", sync="full")
        for i in range(4):
            assert "error" not in d.qmp.wait_job(f"j{i}")["data"]
        assert run("nbdinfo", "--size", uri("r0")).stdout.strip() == str(4 << 20)
    for i in range(4):
        assert (tmp_path / f"t{i}.raw").read_bytes() == (tmp_path / "a.raw").read_bytes()


def test_a_target_that_is_exported_elsewhere_cannot_move(tmp_path):
    with Daemon(tmp_path, "--threads", "2") as d:
        d.add_file("r0", make_raw(tmp_path / "a.raw", 1 << 20))
        d.add_file("t0", make_raw(tmp_path / "t.raw", 1 << 20))
        d.serve("r0", "t0", writable=False)
        with pytest.raises(QmpError, match="'t0'"):
            d.qmp("blockdev-backup", job_id="j", device="r0", target="t0", sync="full")
        assert d.qmp("query-jobs") == []


def worker(d, index, failures):
    """Open, export, back up and close disks, over and over, all names its own."""
    rng = random.Random(index)
    try:
        with d.connect() as qmp:
            for round_ in range(6):
                name = f"w{index}"
                qmp("blockdev-add", null_node(name, 1 << 20))
                qmp("blockdev-add", {"driver": "raw", "node-name": f"{name}r", "file": name})
                qmp("blockdev-add", null_node(f"{name}t", 1 << 20))
                if rng.random() < 0.5:
                    qmp("block-export-add", type="nbd", id=name, node_name=f"{name}r")
                qmp("blockdev-backup", job_id=f"{name}j", device=f"{name}r", target=f"{name}t",
                    sync=rng.choice(["full", "none"]), auto_dismiss=False)
                qmp("query-named-block-nodes", flat=True)
                qmp("query-block-jobs")
                qmp.ask("job-cancel", {"id": f"{name}j"})
                qmp.wait_event("JOB_STATUS_CHANGE", id=f"{name}j", status="concluded")
                qmp("job-dismiss", id=f"{name}j")
                qmp("query-block-exports")
                qmp.ask("block-export-del", {"id": name})
                for node in (f"{name}r", f"{name}t", name):
                    qmp("blockdev-del", node_name=node)
                qmp.events.clear()
    except Exception as e:      # noqa: BLE001: the main thread tells of it
        failures.append((index, repr(e)))


def test_many_monitors_work_at_the_same_time(tmp_path):
    failures = []
    with Daemon(tmp_path, "--threads", "4") as d:
        d.serve()
        crew = [threading.Thread(target=worker, args=(d, i, failures)) for i in range(6)]
        for t in crew:
            t.start()
        for t in crew:
            t.join()
        assert not failures
        assert d.qmp("query-named-block-nodes") == []
        assert d.qmp("query-block-exports") == []
