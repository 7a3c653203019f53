# SPDX-License-Identifier: Apache-2.0
"""The guest holds still for the cut: freeze and thaw by the guest agent, commands around it,
and that nothing leaves a guest frozen."""
import json
import os
import signal

import pytest
from agent import Agent
from cli import Backup, Serve, fails, files_in, make_image
from stillpoint import poll_until, qemu_img, run, stillpoint


@pytest.fixture
def disk(tmp_path):
    make_image(tmp_path / "disk.qcow2", writes=["write -P 1 0 2M"])
    with Serve(tmp_path, "disk.qcow2") as s:
        yield s


@pytest.fixture
def agent(tmp_path):
    with Agent(tmp_path) as a:
        yield a
        poll_until("the thaw", lambda: not a.frozen)


def backup(disk, target, *args, check=True):
    return stillpoint("backup", "disk", target, "--control", disk.control, "--progress", "json",
                      *args, check=check)


def started(done):
    """What the backup says of the quiesce."""
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return next(e for e in events if e["event"] == "started")["quiesce"]


def pattern(image, number, offset):
    done = run("qemu-io", "-r", "-f", "qcow2", "-c", f"read -P {number} {offset} 64k", str(image))
    return "Pattern verification failed" not in done.stdout


def no_jobs(disk):
    with disk.qmp() as q:
        return poll_until("the end of all jobs", lambda: q("query-jobs") == [])


# ---- the agent -----------------------------------------------------------------------------


def test_the_cut_lies_between_freeze_and_thaw(disk, agent, tmp_path):
    agent.on_freeze = lambda: disk.write("disk", "write -P 7 0 64k")
    agent.on_thaw = lambda: disk.write("disk", "write -P 8 0 64k", "write -P 8 64k 64k")
    done = backup(disk, tmp_path / "b.qcow2", "--guest-agent", agent.path)
    told = started(done)
    assert (told["held"], told["file-systems"]) == (True, 2) and "error" not in told
    assert told["frozen-ms"] >= 1
    assert agent.log == ["guest-sync-delimited", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]
    assert pattern(tmp_path / "b.qcow2", 7, 0) and pattern(tmp_path / "b.qcow2", 1, "64k")


def test_people_are_told(disk, agent, tmp_path):
    done = stillpoint("backup", "disk", tmp_path / "b.qcow2", "--control", disk.control,
                      "--guest-agent", agent.path)
    assert "2 of the guest's file systems stood still for " in done.stdout


def test_what_others_left_in_the_channel_is_not_taken_for_an_answer(disk, agent, tmp_path):
    agent.leftover = b'{"return": 0}\n{"ret\xff{"return": 5}\n'
    assert started(backup(disk, tmp_path / "b.qcow2", "--guest-agent", agent.path))["held"]


@pytest.mark.parametrize("words, prepare", [
    ("The guest agent says to guest-fsfreeze-freeze: no can do",
     lambda a: a.refuse.update({"guest-fsfreeze-freeze": "no can do"})),
    ("The guest agent does not answer", lambda a: a.mute.add("guest-sync-delimited")),
    ("The guest agent found no file system", lambda a: setattr(a, "file_systems", 0)),
    ("sends an answer without end", lambda a: setattr(a, "leftover", b"\xff" + b"x" * 100000)),
    ("is no guest agent", lambda a: setattr(a, "leftover", b"\xffHTTP/1.1 400\n")),
    ("thawed by somebody else", lambda a: setattr(a, "on_freeze",
                                                  lambda: setattr(a, "frozen", False))),
])
@pytest.mark.parametrize("require", [False, True])
def test_without_a_freeze_the_user_has_the_choice(words, prepare, require, disk, agent, tmp_path):
    prepare(agent)
    before = files_in(tmp_path)
    done = backup(disk, tmp_path / "b.qcow2", "--guest-agent", agent.path, "--quiesce-timeout", 1,
                  *(["--require-quiesce"] if require else []), check=False)
    assert words in done.stderr
    if require:
        assert done.returncode == 1 and files_in(tmp_path) == before and no_jobs(disk)
    else:
        told = started(done)
        assert done.returncode == 0 and not told["held"] and words in told["error"]
        assert "as after a power cut" in done.stderr
        qemu_img("compare", tmp_path / "b.qcow2", tmp_path / "disk.qcow2", "-U")


def test_no_agent_at_all(disk, tmp_path):
    done = backup(disk, tmp_path / "b.qcow2", "--guest-agent", tmp_path / "none",
                  "--require-quiesce", check=False)
    assert done.returncode == 1 and f"guest agent's socket '{tmp_path}/none'" in done.stderr


def test_a_freeze_without_an_answer_is_undone(disk, agent, tmp_path):
    agent.mute.add("guest-fsfreeze-freeze")
    done = backup(disk, tmp_path / "b.qcow2", "--guest-agent", agent.path, "--quiesce-timeout", 1)
    assert not started(done)["held"]
    assert not agent.frozen and agent.log[-2:] == ["guest-sync-delimited", "guest-fsfreeze-thaw"]


def test_a_command_that_is_killed_leaves_no_guest_frozen(disk, agent, tmp_path):
    with Backup("disk", tmp_path / "b.qcow2", "--guest-agent", agent.path, "--quiesce-timeout",
                "600", "--post-cut", f"touch {tmp_path}/post", control=disk.control) as b:
        agent.on_freeze = lambda: b.signal(signal.SIGKILL)
        assert b.popen.wait() == -signal.SIGKILL
        poll_until("the thaw", lambda: "guest-fsfreeze-thaw" in agent.log and not agent.frozen)
        poll_until("the post-cut command", (tmp_path / "post").exists)


@pytest.mark.parametrize("require", [False, True])
def test_a_guest_is_not_held_longer_than_the_limit(require, disk, agent, tmp_path):
    before = files_in(tmp_path)
    with Backup("disk", tmp_path / "b.qcow2", "--guest-agent", agent.path, "--quiesce-timeout",
                "1", *(["--require-quiesce"] if require else []), control=disk.control) as b:
        agent.on_freeze = lambda: b.signal(signal.SIGSTOP)
        poll_until("the thaw", lambda: "guest-fsfreeze-thaw" in agent.log and not agent.frozen)
        b.signal(signal.SIGCONT)
        status, last = b.finish()
        assert "was not taken within 1 s" in b.stderr
    assert (status, last["event"]) == ((1, "failed") if require else (0, "completed"))
    if require:
        assert files_in(tmp_path) == before and no_jobs(disk)


# ---- commands ------------------------------------------------------------------------------


def test_commands_go_around_the_freeze(disk, agent, tmp_path):
    log = tmp_path / "log"
    agent.on_freeze = lambda: log.open("a").write("freeze\n")
    agent.on_thaw = lambda: log.open("a").write("thaw\n")
    told = started(backup(disk, tmp_path / "b.qcow2", "--guest-agent", agent.path,
                          "--pre-cut", f"echo pre >>{log}", "--post-cut", f"echo post >>{log}"))
    assert told["held"]
    assert log.read_text().split() == ["pre", "freeze", "thaw", "post"]


@pytest.mark.parametrize("command, words", [
    ("exit 3", "The pre-cut command ended with status 3"),
    ("kill -TERM $$", "The pre-cut command was killed by signal 15"),
    ("sleep 600 & sleep 600", "The pre-cut command took too long, and was killed"),
])
def test_a_pre_cut_command_that_fails(command, words, disk, agent, tmp_path):
    done = backup(disk, tmp_path / "b.qcow2", "--guest-agent", agent.path, "--pre-cut", command,
                  "--post-cut", f"touch {tmp_path}/post", "--quiesce-timeout", 1)
    assert words in done.stderr and not started(done)["held"]
    assert agent.log == [] and os.path.exists(tmp_path / "post")


def test_a_post_cut_command_that_fails_is_told_and_the_cut_is_good(disk, tmp_path):
    done = backup(disk, tmp_path / "b.qcow2", "--post-cut", "false", "--require-quiesce")
    told = started(done)
    assert told["held"] and "post-cut command ended with status 1" in told["error"]


def test_it_is_for_disks_in_use(tmp_path):
    image = make_image(tmp_path / "disk.qcow2")
    for option in ("--guest-agent", "--pre-cut", "--post-cut"):
        words = fails("backup", image, tmp_path / "b.qcow2", "--control", "", option, "x", status=2)
        assert "say --control" in words
    assert "go with --guest-agent" in fails("backup", image, tmp_path / "b.qcow2", "--control", "",
                                            "--require-quiesce", status=2)
