# SPDX-License-Identifier: Apache-2.0
"""jobs, pause, resume, set-speed, complete, cancel: steering a backup from another terminal."""
import json

import pytest
from cli import Backup, Serve, make_image
from stillpoint import poll_until, qemu_img, stillpoint


@pytest.fixture
def disk(tmp_path, monkeypatch):
    image = make_image(tmp_path / "disk.raw", writes=["write -P 1 0 8M"])
    with Serve(tmp_path, "disk.raw") as s:
        monkeypatch.setenv("STILLPOINT_CONTROL", s.control)
        s.image = image
        yield s


def the_job():
    jobs = json.loads(stillpoint("jobs", "--json").stdout)
    assert len(jobs) == 1
    return jobs[0]


def test_a_list_for_people(disk, tmp_path):
    assert stillpoint("jobs").stdout == "no jobs\n"
    with Backup("disk", tmp_path / "b.raw", "--speed", "64k") as b:
        b.until("started")
        head, line = stillpoint("jobs").stdout.splitlines()
        assert head.split() == ["JOB", "TYPE", "STATUS", "DONE", "SPEED", "LIMIT"]
        assert line.split()[:3] == ["disk-full", "backup", "running"]
        assert line.endswith(" 64 KiB/s") and " of 8 MiB " in line
        b.signal()
        b.finish()


def test_pause_resume_and_speed(disk, tmp_path):
    with Backup("disk", tmp_path / "b.raw", "--speed", "64k") as b:
        b.until("started")
        stillpoint("pause", "disk-full")
        poll_until("the pause", lambda: the_job()["status"] == "paused")
        b.until("progress", note="paused")
        stillpoint("set-speed", "disk-full", "1.5GiB/s")
        assert the_job()["speed"] == 3 << 29
        assert the_job()["status"] == "paused"
        stillpoint("set-speed", "disk-full", "0")
        stillpoint("resume", "disk-full")
        assert b.finish()[0] == 0
    qemu_img("compare", "-U", disk.image, tmp_path / "b.raw")


def test_a_paused_job_is_cancelled_by_force(disk, tmp_path):
    with Backup("disk", tmp_path / "b.raw", "--speed", "64k") as b:
        b.until("started")
        stillpoint("pause", "disk-full")
        done = stillpoint("cancel", "disk-full", check=False)
        assert done.returncode == 1 and "pause" in done.stderr
        stillpoint("cancel", "disk-full", "--force")
        assert b.finish()[0] == 130


def test_soft_cancel_of_none_keeps_the_target(disk, tmp_path):
    target = tmp_path / "b.qcow2"
    qemu_img("convert", "-U", "-O", "raw", disk.image, tmp_path / "frozen.raw")
    with Backup("disk", target, "--sync", "none") as b:
        b.until("started")
        disk.write("disk", "write -P 7 1M 1M")
        stillpoint("cancel", "disk-none")
        status, last = b.finish()
    assert (status, last["event"]) == (130, "cancelled")
    assert "is whole only if that was done without --force" in b.stderr
    qemu_img("compare", "-U", tmp_path / "frozen.raw", target)


@pytest.mark.parametrize("command", [["cancel"], ["pause"], ["resume"], ["complete"],
                                     ["set-speed", "1M"]])
def test_a_job_that_is_not_there(command, disk):
    done = stillpoint(command[0], "nobody", *command[1:], check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "There is no job 'nobody': 'stillpoint jobs' lists those there are" in done.stderr


def test_complete_is_for_none_only(disk, tmp_path):
    with Backup("disk", tmp_path / "b.raw", "--speed", "64k") as b:
        b.until("started")
        done = stillpoint("complete", "disk-full", check=False)
        assert done.returncode == 1
        assert "cannot accept command verb 'complete'" in done.stderr or \
            "completed" in done.stderr
        b.signal()
        b.finish()


@pytest.mark.parametrize("command", [["jobs"], ["cancel", "j"], ["set-speed", "j", "1M"]])
def test_no_daemon_there(command, tmp_path):
    done = stillpoint(*command, "--control", tmp_path / "none", check=False)
    assert done.returncode == 1
    assert "is the daemon running?" in done.stderr


def test_a_command_for_a_daemon_that_only_just_answers(disk):
    """Several clients at once, none in the way of another."""
    with disk.qmp() as a, disk.qmp() as b:
        assert a("query-jobs") == b("query-jobs") == []
        assert stillpoint("jobs").stdout == "no jobs\n"
