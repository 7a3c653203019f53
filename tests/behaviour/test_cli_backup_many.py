# SPDX-License-Identifier: Apache-2.0
"""backup --to: several disks at one instant, all of them or none."""
import json

import nbd
import pytest
from cli import Backup, MiB, files_in, make_image
from stillpoint import qemu_img, stillpoint
from test_transaction import DISKS, Clients, copy_of, is_one_prefix, served  # noqa: F401

SLOW = ["--speed", "64k"]           # such jobs do not end by themselves during a test
PARTIAL = [f".{d}.qcow2.stillpoint-partial" for d in DISKS]
WHOLE = [f"{d}.qcow2" for d in DISKS]


@pytest.fixture
def to(tmp_path):
    (tmp_path / "to").mkdir()
    return tmp_path / "to"


class Many(Backup):
    """Of the three disks, to a directory."""

    def __init__(self, daemon, to, *args):
        super().__init__(DISKS[0], DISKS[1], DISKS[2], "--to", to, *args,
                         control=daemon.control)


def fill(daemon):
    for d in DISKS:
        h = nbd.NBD()
        h.connect_uri(daemon.uri(d))
        h.pwrite(b"x" * MiB, 0)
        h.pwrite(b"x" * (MiB - 4096), MiB + 4096)     # d2 is slow in between
        h.shutdown()


def refused(*args, status=1):
    done = stillpoint("backup", *args, check=False)
    assert done.returncode == status, done
    return done.stderr


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_they_are_one_prefix_of_what_was_written(fmt, served, to):  # noqa: F811
    with Clients(served.uri):
        for i in range(4):
            done = stillpoint("backup", *DISKS, "--to", to, "--format", fmt, "--force", "--control",
                              served.control)
            assert is_one_prefix([copy_of(to / f"{d}.{fmt}", fmt) for d in DISKS]), i
            assert done.stdout.count("as it stood at ") == 3
            assert done.stdout.count("at the same instant:\n") == 2
            for d in DISKS:
                (to / f"{d}.{fmt}.flat").unlink(missing_ok=True)
    assert files_in(to) == [f"{d}.{fmt}" for d in DISKS]


def test_no_name_appears_before_all_are_whole(served, to):  # noqa: F811
    fill(served)
    with Many(served, to, *SLOW) as b:
        started = b.until("started")
        assert [d["job"] for d in started["disks"]] == [f"{d}-full" for d in DISKS]
        assert [d["target"] for d in started["disks"]] == [str(to / n) for n in WHOLE]
        for d in DISKS[:2]:
            served.qmp("block-job-set-speed", device=f"{d}-full", speed=0)
            served.wait_event("JOB_STATUS_CHANGE", id=f"{d}-full", status="waiting")
        progress = b.until("progress", note="2 of 3 copied")
        assert sum(j["total"] for j in progress["jobs"]) == progress["total"]
        assert files_in(to) == PARTIAL
        served.qmp("block-job-set-speed", device="d2-full", speed=0)
        status, last = b.finish()
    assert (status, last["event"]) == (0, "completed")
    assert last["bytes"] == sum(d["bytes"] for d in last["disks"]) > 0
    assert files_in(to) == WHOLE


def test_ctrl_c_leaves_nothing(served, to):  # noqa: F811
    fill(served)
    with Many(served, to, *SLOW) as b:
        b.until("started")
        b.signal()
        status, last = b.finish()
    assert (status, last) == (130, {"event": "cancelled"})
    assert "nothing was left behind" in b.stderr
    assert files_in(to) == [] and served.qmp("query-jobs") == []


def test_one_that_fails_takes_all_with_it(served, to):  # noqa: F811
    fill(served)
    served.qmp("blockdev-add", {"driver": "raw", "node-name": "bad", "file": {
        "driver": "fault", "rules": [{"op": "read", "errno": "EIO"}],
        "file": {"driver": "null-co", "size": MiB, "read-zeroes": False}}})
    with Backup("d0", "d1", "bad", "--to", to, control=served.control) as b:
        status, last = b.finish()
    assert (status, last["event"]) == (1, "failed")
    assert "Job 'bad-full': Cannot read the source 'bad'" in last["error"]
    assert files_in(to) == [] and served.qmp("query-jobs") == []


def test_a_name_that_is_taken_meanwhile_keeps_the_others_from_nothing(served, to):  # noqa: F811
    fill(served)
    with Many(served, to, *SLOW) as b:
        b.until("started")
        (to / "d1.qcow2").write_text("precious")
        for d in DISKS:
            served.qmp("block-job-set-speed", device=f"{d}-full", speed=0)
        assert b.finish()[0] == 1
    assert "The copy is whole, but cannot be called" in b.stderr
    assert (to / "d1.qcow2").read_text() == "precious"
    assert files_in(to) == [PARTIAL[1], *WHOLE]


def test_what_cannot_be_is_refused_before_anything_is_touched(served, to, tmp_path):  # noqa: F811
    fill(served)
    live = ["--control", served.control]
    assert "it takes SOURCE TARGET, or SOURCE... --to DIR" in refused(*DISKS, *live, status=2)
    assert "something is missing" in refused("d0", *live, status=2)
    for args in (["--sync", "none"], ["--job-id", "j"], ["--bitmap", "b"]):
        assert f"{args[0]}" in refused(*DISKS, "--to", to, *args, *live, status=2)
    assert "'d0' is named twice" in refused("d0", "d1", "d0", "--to", to, *live)
    words = refused("d0", "nope", "--to", to, *live)
    assert "has no disk 'nope'; it serves 'd0'" in words
    assert "is not the name of a disk" in refused("d0", "../x", "--to", to, *live)
    assert "There is no directory" in refused("d0", "--to", tmp_path / "none", *live)
    assert "Not a directory" in refused("d0", "--to", tmp_path / "d0.raw", *live)
    (to / "d1.qcow2").write_text("precious")
    assert "d1.qcow2' exists" in refused(*DISKS, "--to", to, *live)
    assert (to / "d1.qcow2").read_text() == "precious"
    assert files_in(to) == ["d1.qcow2"] and served.qmp("query-jobs") == []
    with Many(served, to, "--force", *SLOW) as b:
        b.until("started")
        (tmp_path / "other").mkdir()
        words = refused("d1", "d2", "--to", tmp_path / "other", *live)
        assert "A job 'd1-full' runs already: 'stillpoint cancel d1-full' ends it" in words
        assert files_in(tmp_path / "other") == []
        b.signal()
        b.finish()


def test_files_that_nobody_has_open(to, tmp_path):
    (tmp_path / "sub").mkdir()
    base = make_image(tmp_path / "base.raw", writes=["write -P 5 0 8M"])
    images = [make_image(tmp_path / "a.qcow2", backing=base, writes=["write -P 1 1M 1M"]),
              make_image(tmp_path / "b.raw", writes=["write -P 2 0 3M"]),
              make_image(tmp_path / "sub" / "a.raw", writes=["write -P 3 0 64k"])]
    words = refused(*images, "--to", to, "--control", "")
    assert f"would both be '{to}/a.qcow2'" in words
    assert files_in(to) == []
    stillpoint("backup", *images[:2], "--to", to, "--control", "", "--compress")
    qemu_img("compare", images[0], to / "a.qcow2")
    qemu_img("compare", "-f", "raw", images[1], to / "b.qcow2")
    stillpoint("backup", *images[:2], "--to", to, "--control", "", "--sync", "top", "--force")
    info = json.loads(qemu_img("info", "--output=json", to / "a.qcow2").stdout)
    assert info["full-backing-filename"] == str(base)
    qemu_img("compare", images[0], to / "a.qcow2")
    assert files_in(to) == ["a.qcow2", "b.qcow2"]
