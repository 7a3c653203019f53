# SPDX-License-Identifier: Apache-2.0
"""stillpoint status: what a daemon has on line, for people, programs and Prometheus."""
import json
import os
import pty
import re
import signal
import subprocess

import pytest
from cli import Serve, fails, make_image
from stillpoint import BINARY, DEADLINE, poll_until, qemu_img, stillpoint


@pytest.fixture
def served(tmp_path):
    make_image(tmp_path / "web.qcow2")
    make_image(tmp_path / "db.raw", 3 << 20)
    with Serve(tmp_path, "web.qcow2", 'odd=db.raw') as s:
        s.write("web", "write -P 1 0 1M", "write -z 1M 64k", "discard 2M 128k", "flush",
                "read 0 256k")
        yield s


def status(served, *args):
    return stillpoint("status", "--control", served.control, *args).stdout


def test_people_see_disks_and_what_was_done_to_them(served, tmp_path):
    text = status(served)
    web, odd = (next(line for line in text.splitlines() if line.startswith(name)).split()
                for name in ("web", "odd"))
    assert web[1:4] == ["8", "MiB", "0"] and web[4:6] == ["256", "KiB"]
    assert web[6:8] == ["1.06", "MiB"] and web[8] == f"nbd+unix:///web?socket={served.socket}"
    assert odd[1:4] == ["3", "MiB", "0"] and odd[4:8] == ["0", "B", "0", "B"]


def test_bitmaps_and_jobs_are_among_it(served, tmp_path):
    stillpoint("backup", "web", tmp_path / "b.qcow2", "--control", served.control,
               "--bitmap", "daily")
    served.write("web", "write -P 2 4M 64k")
    assert "  bitmap daily: 64 KiB changed, in pieces of 64 KiB" in status(served)
    with served.qmp() as q:
        q("drive-backup", device="web", target=str(tmp_path / "slow.qcow2"), format="qcow2",
          sync="full", speed=65536, **{"job-id": "slow"})
        text = status(served)
        assert re.search(r"^job slow: backup, running; .* of 1.06 MiB", text, re.M)
        assert [j["device"] for j in json.loads(status(served, "--json"))["jobs"]] == ["slow"]
        assert 'stillpoint_job_total_bytes{job="slow"} 1114112' in status(served, "--metrics")


def test_programs_get_all_of_it(served):
    disks = {d["name"]: d for d in json.loads(status(served, "--json"))["disks"]}
    assert set(disks) == {"web", "odd"}
    assert disks["web"]["stats"] == {
        "reads": 1, "read-bytes": 262144, "writes": 2, "written-bytes": (1 << 20) + 65536,
        "discards": 1, "discarded-bytes": 131072, "errors": 0,
        "flushes": disks["web"]["stats"]["flushes"]}
    assert disks["web"]["stats"]["flushes"] >= 1
    assert disks["web"]["writable"] and disks["web"]["dirty-bitmaps"] == []


def test_clients_are_counted_while_they_are_there(served):
    with subprocess.Popen(["qemu-io", "-f", "raw", served.uri("web")], stdin=subprocess.PIPE,
                          stdout=subprocess.DEVNULL) as p:
        poll_until("the client", lambda: json.loads(status(served, "--json"))
                   ["disks"][0]["clients"] == 1)
        p.communicate(b"quit\n", timeout=DEADLINE)
    poll_until("its end", lambda: json.loads(status(served, "--json"))["disks"][0]["clients"] == 0)


def test_failed_requests_are_told(tmp_path):
    image = make_image(tmp_path / "bad.qcow2", writes=["write -P 1 0 1M"])
    with open(image, "r+b") as f:
        f.seek(0x30000)                      # the L2 table's first entry: past all reason
        f.seek(int.from_bytes(os.pread(f.fileno(), 8, 0x30000), "big") & 0xfffffffffe00)
        f.write(b"\xff" * 8)
    with Serve(tmp_path, "bad.qcow2") as s:
        subprocess.run(["qemu-io", "-f", "raw", "-c", "read 0 64k", s.uri("bad")],
                       capture_output=True, timeout=DEADLINE)
        assert json.loads(status(s, "--json"))["disks"][0]["stats"]["errors"] >= 1
        assert "requests of clients failed" in status(s)


def test_metrics_are_prometheus_text(served):
    with served.qmp() as q:
        q("block-dirty-bitmap-add", node=json.loads(status(served, "--json"))
          ["disks"][0]["node-name"], name='a"b\\c')
    text = status(served, "--metrics")
    seen = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            name = line.split()[2]
            assert name not in seen
            seen.add(name)
        elif not line.startswith("#"):
            label = r'\w+="(\\.|[^"\\])*"'
            assert re.fullmatch(rf"\w+\{{{label}(,{label})?\}} -?\d+", line), line
            assert line.split("{")[0] in seen
    assert 'stillpoint_disk_written_bytes_total{disk="web"} 1114112' in text
    assert 'stillpoint_disk_size_bytes{disk="odd"} 3145728' in text
    assert 'stillpoint_bitmap_dirty_bytes{disk="web",bitmap="a\\"b\\\\c"} 0' in text


def test_watching_goes_on_until_ctrl_c(served):
    master, slave = pty.openpty()
    with subprocess.Popen([BINARY, "status", "--control", served.control, "--watch"],
                          stdout=slave, stderr=subprocess.PIPE) as p:
        os.close(slave)
        seen = b""
        while seen.count(b"\x1b[H\x1b[2J") < 2:
            seen += os.read(master, 65536)
        p.send_signal(signal.SIGINT)
        assert p.wait(DEADLINE) == 0 and p.stderr.read() == b""
    os.close(master)
    first, second = seen.split(b"\x1b[H\x1b[2J")[1:3]
    assert b"B/s" not in first and b"WRITTEN" in first


def test_nothing_on_line_and_misuse(daemon, tmp_path):
    assert stillpoint("status", "--control", daemon.control).stdout == "no disk is on line\n"
    assert "exclude each other" in fails("status", "--control", daemon.control, "--json", "--watch",
                                         status=2)
    assert "control.sock" in fails("status", "--control", tmp_path / "control.sock")
