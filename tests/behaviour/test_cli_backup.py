# SPDX-License-Identifier: Apache-2.0
"""backup of a live disk: the three kinds, the name of the target, every way to end early."""
import contextlib
import json
import os
import signal
import socket
import threading
import time

import pytest
from cli import Backup, MiB, QemuNbd, Serve, files_in, make_image
from stillpoint import DEADLINE, QmpError, poll_until, qemu_img, run, stillpoint

PATTERNS = ["write -P 1 0 2M", "write -P 2 3M 1M", "write -z 5M 512k"]
LATER = ["write -P 9 0 1M", "write -P 9 3584k 1M", "discard 5M 1M", "write -P 9 7M 64k"]
SLOW = ["--speed", "64k"]           # such a job does not end by itself during a test


@pytest.fixture
def disk(tmp_path):
    """A served qcow2 disk over a backing file; .frozen is a copy of its content."""
    base = make_image(tmp_path / "base.qcow2", writes=["write -P 5 0 8M"])
    image = make_image(tmp_path / "disk.qcow2", backing=base, writes=PATTERNS)
    qemu_img("convert", "-O", "raw", image, tmp_path / "frozen.raw")
    with Serve(tmp_path, "disk.qcow2") as s:
        s.frozen = str(tmp_path / "frozen.raw")
        yield s


def backup(disk, target, *args, check=True, **kwargs):
    return stillpoint("backup", "disk", target, "--control", disk.control, *args, check=check,
                      **kwargs)


def refused(disk, target, *args, directory=None, **kwargs):
    """The words of a backup that fails; it leaves no file behind."""
    before = files_in(directory) if directory else None
    done = backup(disk, target, *args, check=False, **kwargs)
    assert done.returncode == 1, done
    if directory:
        assert files_in(directory) == before
    return done.stderr


# ---- what is in it -----------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["b.qcow2", "b.raw", "b.img"])
def test_full_is_the_disk_and_stands_alone(target, disk, tmp_path):
    done = backup(disk, tmp_path / target)
    assert f"{target}: 'disk' as it stood at " in done.stdout
    disk.write("disk", *LATER)
    qemu_img("compare", disk.frozen, tmp_path / target)
    if target.endswith(".qcow2"):
        qemu_img("check", tmp_path / target)
        assert "backing" not in qemu_img("info", tmp_path / target).stdout
    else:
        assert os.path.getsize(tmp_path / target) == 8 * MiB


def test_top_stands_on_the_disks_backing_file(disk, tmp_path):
    target = tmp_path / "b.qcow2"
    backup(disk, target, "--sync", "top")
    disk.write("disk", *LATER)
    qemu_img("check", target)
    info = qemu_img("info", target).stdout
    assert f"backing file: {tmp_path}/base.qcow2" in info
    assert "backing file format: qcow2" in info
    qemu_img("compare", disk.frozen, target)
    assert os.stat(target).st_size < 5 * MiB


def test_none_keeps_what_is_overwritten(disk, tmp_path):
    target = tmp_path / "b.qcow2"
    with Backup("disk", target, "--sync", "none", control=disk.control) as b:
        started = b.until("started")
        assert (started["job"], started["sync"]) == ("disk-none", "none")
        assert os.path.exists(target)
        disk.write("disk", *LATER)
        stillpoint("complete", "disk-none", "--control", disk.control)
        status, last = b.finish()
        assert (status, last["event"]) == (0, "completed")
        assert last["bytes"] > MiB
    qemu_img("check", "-U", target)
    qemu_img("compare", "-U", disk.frozen, target)


def test_the_first_ctrl_c_completes_none(disk, tmp_path):
    target = tmp_path / "b.qcow2"
    with Backup("disk", target, "--sync", "none", control=disk.control) as b:
        b.until("started")
        disk.write("disk", *LATER)
        b.signal()
        assert b.finish()[0] == 0
    qemu_img("check", "-U", target)
    qemu_img("compare", "-U", disk.frozen, target)


def test_writes_go_on_and_stay_out(disk, tmp_path):
    target = tmp_path / "b.qcow2"
    with Backup("disk", target, "--speed", "4M", control=disk.control) as b:
        b.until("started")
        disk.write("disk", *LATER)
        status, last = b.finish()
        assert (status, last["event"]) == (0, "completed")
    qemu_img("compare", disk.frozen, target)


def test_the_disk_may_be_named_by_node_or_export(disk, tmp_path):
    with disk.qmp() as q:
        q("blockdev-add", driver="null-co", node_name="n0", size=MiB, read_zeroes=True)
        q("block-export-add", type="nbd", id="export-of-n0", node_name="n0")
    for name in ("n0", "export-of-n0"):
        stillpoint("backup", name, tmp_path / f"{name}.raw", "--control", disk.control)
        assert open(tmp_path / f"{name}.raw", "rb").read() == bytes(MiB)


def test_two_at_a_time(disk, tmp_path):
    with Backup("disk", tmp_path / "a.qcow2", "--speed", "8M", control=disk.control) as a:
        a.until("started")
        disk.write("disk", "write -P 8 6M 1M")
        qemu_img("convert", "-U", "-O", "raw", tmp_path / "disk.qcow2", tmp_path / "second.raw")
        with Backup("disk", tmp_path / "b.qcow2", "--job-id", "other", control=disk.control) as b:
            assert b.until("started")["job"] == "other"
            disk.write("disk", *LATER)
            assert b.finish()[0] == 0
        assert a.finish()[0] == 0
    qemu_img("compare", disk.frozen, tmp_path / "a.qcow2")
    qemu_img("compare", tmp_path / "second.raw", tmp_path / "b.qcow2")


def test_options_for_scratch_reach_the_daemon(disk, tmp_path):
    backup(disk, tmp_path / "b.qcow2", "--scratch-dir", ".", "--scratch-limit", "64M",
           "--cbw-timeout", "10", cwd=tmp_path)
    qemu_img("compare", disk.frozen, tmp_path / "b.qcow2")
    assert "nodir" in refused(disk, tmp_path / "c.qcow2", "--scratch-dir", "nodir",
                              directory=tmp_path)


# ---- where it goes -----------------------------------------------------------------------------


def test_the_name_appears_when_it_is_whole(disk, tmp_path):
    target = tmp_path / "b.qcow2"
    with Backup("disk", target, *SLOW, control=disk.control) as b:
        b.until("started")
        assert not target.exists()
        assert (tmp_path / ".b.qcow2.stillpoint-partial").exists()
        with disk.qmp() as q:
            q("block-job-set-speed", device="disk-full", speed=0)
        assert b.finish()[0] == 0
    assert target.exists()
    assert not (tmp_path / ".b.qcow2.stillpoint-partial").exists()


def test_relative_targets_are_relative_to_the_user(disk, tmp_path):
    (tmp_path / "sub").mkdir()
    backup(disk, "b.qcow2", cwd=tmp_path / "sub")
    assert (tmp_path / "sub" / "b.qcow2").exists()


def test_what_is_there_is_kept_without_force(disk, tmp_path):
    target = tmp_path / "b.qcow2"
    target.write_text("precious")
    assert "'b.qcow2' exists: choose another name, or replace it with --force" in \
        refused(disk, "b.qcow2", cwd=tmp_path, directory=tmp_path)
    assert target.read_text() == "precious"
    with Backup("disk", target, "--force", *SLOW, control=disk.control) as b:
        b.until("started")
        assert target.read_text() == "precious"
        b.signal()
        b.finish()
    assert target.read_text() == "precious"
    backup(disk, target, "--force")
    qemu_img("compare", disk.frozen, target)


def test_a_link_is_followed(disk, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "old.raw").write_text("old")
    os.symlink("store/old.raw", tmp_path / "latest.raw")
    backup(disk, tmp_path / "latest.raw", "--force")
    assert os.path.islink(tmp_path / "latest.raw")
    qemu_img("compare", disk.frozen, tmp_path / "store" / "old.raw")


def test_somebody_takes_the_name_meanwhile(disk, tmp_path):
    target = tmp_path / "b.qcow2"
    with Backup("disk", target, *SLOW, control=disk.control) as b:
        b.until("started")
        target.write_text("precious")
        with disk.qmp() as q:
            q("block-job-set-speed", device="disk-full", speed=0)
        status, last = b.finish()
    assert (status, last["event"]) == (1, "failed")
    assert "The copy is whole, but cannot be called" in b.stderr
    assert target.read_text() == "precious"
    qemu_img("compare", disk.frozen, tmp_path / ".b.qcow2.stillpoint-partial")


@pytest.mark.parametrize("target", ["disk.qcow2", "base.qcow2"])
@pytest.mark.parametrize("sync", ["full", "top", "none"])
def test_the_disk_itself_is_no_target(target, sync, disk, tmp_path):
    words = refused(disk, target, "--force", "--sync", sync, cwd=tmp_path, directory=tmp_path)
    assert f"'{target}' is open in some process" in words


def test_an_image_in_use_is_no_target(disk, tmp_path):
    make_image(tmp_path / "vm.raw", MiB)
    with Serve(tmp_path, "vm.raw", "--listen", "unix:x", "--control", "y"):
        assert "is open in some process" in refused(disk, tmp_path / "vm.raw", "--force",
                                                    directory=tmp_path)


def test_another_backup_to_the_same_name(disk, tmp_path):
    target = tmp_path / "b.qcow2"
    with Backup("disk", target, *SLOW, control=disk.control) as b:
        b.until("started")
        words = refused(disk, target, "--job-id", "j2", directory=tmp_path)
        assert "is being written already" in words
        assert (tmp_path / ".b.qcow2.stillpoint-partial").exists()
        b.signal()
        assert b.finish()[0] == 130


def test_leftovers_of_a_killed_backup_are_replaced(disk, tmp_path):
    (tmp_path / ".b.qcow2.stillpoint-partial").write_bytes(b"left" * 1000)
    backup(disk, tmp_path / "b.qcow2")
    qemu_img("compare", disk.frozen, tmp_path / "b.qcow2")
    assert not (tmp_path / ".b.qcow2.stillpoint-partial").exists()


@pytest.mark.parametrize("target, words", [
    ("nodir/b.qcow2", "There is no directory"),
    (".", "is a directory: say which file in it"),
    ("sub/", "is not the name of a file"),
    ("/dev/null", "is neither a file nor a block device"),
    ("x" * 250 + ".raw", "is too long"),
    ("b.qcow2/c.raw", "Not a directory"),
])
def test_targets_that_cannot_be(target, words, disk, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.qcow2").write_text("")
    assert words in refused(disk, target, cwd=tmp_path, directory=tmp_path)


def test_top_into_raw_is_told_what_it_needs(disk, tmp_path):
    assert "or --format qcow2" in refused(disk, tmp_path / "b.raw", "--sync", "top",
                                          directory=tmp_path)


def test_an_nbd_export_as_target(disk, tmp_path):
    image = make_image(tmp_path / "target.raw", 8 * MiB)
    with QemuNbd(tmp_path, image) as server:
        backup(disk, server.uri)
    qemu_img("compare", "-f", "raw", disk.frozen, image)


def test_a_target_that_is_longer_than_the_disk(disk, tmp_path):
    image = make_image(tmp_path / "target.raw", 9 * MiB, writes=["write -P 6 0 9M"])
    with QemuNbd(tmp_path, image) as server:
        backup(disk, server.uri)
    with open(image, "rb") as f, open(disk.frozen, "rb") as frozen:
        assert f.read(8 * MiB) == frozen.read()
        assert f.read() == b"\6" * MiB


def test_an_nbd_export_that_is_too_small(disk, tmp_path):
    with QemuNbd(tmp_path, make_image(tmp_path / "target.raw", 4 * MiB)) as server:
        assert "different sizes" in refused(disk, server.uri)


def test_an_nbd_export_that_is_not_there(disk, tmp_path):
    assert "none.sock" in refused(disk, "nbd+unix:///t?socket=/none.sock", directory=tmp_path)


@contextlib.contextmanager
def loop_device(path):
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    done = run("losetup", "--find", "--show", path, check=False)
    if done.returncode:
        pytest.skip(f"no loop devices here: {done.stderr}")
    try:
        yield done.stdout.strip()
    finally:
        run("losetup", "-d", done.stdout.strip())


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_a_block_device_as_target(fmt, disk, tmp_path):
    store = make_image(tmp_path / "store.raw", 8 * MiB if fmt == "raw" else 16 * MiB)
    with loop_device(store) as device:
        backup(disk, device, "--format", fmt)
        qemu_img("compare", "-F", fmt, disk.frozen, device)


def test_a_device_that_the_host_uses(disk, tmp_path):
    store = make_image(tmp_path / "store.raw", 8 * MiB)
    with loop_device(store) as device:
        mounted = os.open(device, os.O_RDONLY | os.O_EXCL)     # as a mount holds it
        assert f"'{device}' is in use by this host" in refused(disk, device)
        done = stillpoint("backup", device, tmp_path / "b.raw", "--control", "", check=False)
        assert done.returncode == 1
        assert f"'{device}' is in use by this host" in done.stderr
        os.close(mounted)
        stillpoint("backup", device, tmp_path / "b.raw", "--control", "")


# ---- the daemon --------------------------------------------------------------------------------


def test_no_daemon_there(tmp_path):
    args = ["backup", "disk", tmp_path / "b.raw", "--control"]
    done = stillpoint(*args, tmp_path / "none.sock", check=False)
    assert done.returncode == 1
    assert "none.sock': is the daemon running? 'stillpoint serve IMAGE" in done.stderr
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "dead.sock"))
    done = stillpoint(*args, tmp_path / "dead.sock", check=False)
    assert done.returncode == 1
    assert "dead.sock': its daemon has ended" in done.stderr
    done = stillpoint(*args, "x" * 200, check=False)
    assert done.returncode == 1
    assert "is longer than 107 bytes" in done.stderr
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("says, words", [
    (b"HTTP/1.1 400 Bad Request\n", "does not speak QMP"),
    (b'{"hello": 1}\n', "does not speak QMP"),
    (b"[" * 1000 + b"\n", "does not speak QMP"),
    (b"", "The daemon has gone"),
])
def test_somebody_else_at_the_control_socket(says, words, tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def answer():
            s, _ = listener.accept()
            s.sendall(says)
            s.close()
        t = threading.Thread(target=answer)
        t.start()
        done = stillpoint("jobs", "--control", tmp_path / "s", check=False)
        t.join()
    assert done.returncode == 1
    assert words in done.stderr


def test_a_disk_that_is_not_served(disk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = stillpoint("backup", "other", "b.raw", "--control", disk.control, check=False)
    assert done.returncode == 1
    assert f"The daemon at '{disk.control}' has no disk 'other'; it serves 'disk'\n" in done.stderr
    monkeypatch.setenv("STILLPOINT_CONTROL", disk.control)
    make_image("file.raw", MiB)
    done = stillpoint("backup", "file.raw", "b.raw", check=False)
    assert "For a file that nobody has open say --control ''" in done.stderr
    assert not os.path.exists("b.raw")
    stillpoint("backup", "file.raw", "b.raw", "--control", "")


def test_a_job_that_runs_already(disk, tmp_path):
    with Backup("disk", tmp_path / "a.qcow2", *SLOW, control=disk.control) as b:
        b.until("started")
        words = refused(disk, tmp_path / "b.qcow2", directory=tmp_path)
        assert "A job 'disk-full' runs already" in words and "--job-id" in words
        b.signal()
        b.finish()


def test_bad_job_ids(disk, tmp_path):
    assert "Invalid job ID '1 2'" in refused(disk, tmp_path / "b.raw", "--job-id", "1 2",
                                             directory=tmp_path)


def test_the_daemon_is_killed(disk, tmp_path):
    with Backup("disk", tmp_path / "b.qcow2", *SLOW, control=disk.control) as b:
        b.until("started")
        disk.kill()
        status, last = b.finish()
    assert (status, last["event"]) == (1, "failed")
    assert "The daemon has gone" in b.stderr
    assert not (tmp_path / "b.qcow2").exists()
    assert not (tmp_path / ".b.qcow2.stillpoint-partial").exists()


def test_the_daemon_is_ended(disk, tmp_path):
    with Backup("disk", tmp_path / "b.qcow2", *SLOW, control=disk.control) as b:
        b.until("started")
        disk.signal(signal.SIGTERM)
        assert disk.wait() == 0
        status, last = b.finish()
    assert (status, last["event"]) == (1, "failed")
    assert "The daemon was ended during the backup" in b.stderr
    assert not (tmp_path / ".b.qcow2.stillpoint-partial").exists()


# ---- ending early ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_leaves_nothing(number, disk, tmp_path):
    before = files_in(tmp_path)
    with Backup("disk", tmp_path / "b.qcow2", *SLOW, control=disk.control) as b:
        b.until("started")
        b.signal(number)
        status, last = b.finish()
    assert (status, last["event"]) == (130, "cancelled")
    assert b.stderr == "stillpoint backup: cancelled; nothing was left behind\n"
    assert files_in(tmp_path) == before
    assert stillpoint("jobs", "--control", disk.control).stdout == "no jobs\n"
    disk.write("disk", *LATER)


def test_ctrl_c_leaves_half_a_backup_where_it_must(disk, tmp_path):
    with QemuNbd(tmp_path, make_image(tmp_path / "target.raw", 8 * MiB)) as server:
        with Backup("disk", server.uri, *SLOW, control=disk.control) as b:
            b.until("started")
            b.signal()
            assert b.finish()[0] == 130
        assert f"'{server.uri}' holds half a backup" in b.stderr


def test_cancel_by_somebody_else(disk, tmp_path):
    before = files_in(tmp_path)
    with Backup("disk", tmp_path / "b.qcow2", *SLOW, control=disk.control) as b:
        b.until("started")
        stillpoint("cancel", "disk-full", "--control", disk.control)
        status, last = b.finish()
    assert (status, last["event"]) == (130, "cancelled")
    assert files_in(tmp_path) == before


def test_ctrl_c_twice_cancels_none(disk, tmp_path):
    """The first one drains; while that cannot end, because the target is stuck, the second
    one cancels."""
    target = tmp_path / "b.qcow2"
    with Backup("disk", target, "--sync", "none", "--speed", "1k", control=disk.control) as b:
        b.until("started")
        disk.write("disk", *LATER)
        b.signal()
        b.until("progress", note="finishing; Ctrl-C again cancels")
        b.signal()
        status, last = b.finish()
    assert (status, last["event"]) == (130, "cancelled")
    assert not target.exists()


def test_a_user_who_does_not_wait_for_the_end(disk, tmp_path):
    """The daemon is stopped, so that it never says that the job has ended."""
    with Backup("disk", tmp_path / "b.qcow2", *SLOW, control=disk.control) as b:
        b.until("started")
        disk.signal(signal.SIGSTOP)
        try:
            b.signal()
            poll_until("the signal to be taken", lambda: not pending(b.popen.pid))
            b.signal()
            status, last = b.finish()
        finally:
            disk.signal(signal.SIGCONT)
    assert (status, last["event"]) == (130, "cancelled")
    assert "did not wait for the end of job 'disk-full'" in b.stderr


def pending(pid):
    """Whether the process has a signal that it has not taken yet."""
    with open(f"/proc/{pid}/status") as f:
        return any(int(line.split()[1], 16) for line in f
                   if line.startswith(("SigPnd", "ShdPnd")))


# ---- targets that fail -------------------------------------------------------------------------


@contextlib.contextmanager
def small_file_system(directory, size):
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    directory.mkdir()
    if run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory,
           check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield
    finally:
        run("umount", directory)


def test_a_target_that_gets_full(disk, tmp_path):
    with small_file_system(tmp_path / "small", "2m"):
        words = refused(disk, tmp_path / "small" / "b.raw", directory=tmp_path / "small")
        assert "No space left on device" in words
        assert files_in(tmp_path / "small") == []
    disk.write("disk", *LATER)


def test_ctrl_c_while_the_target_hangs(disk, tmp_path):
    with QemuNbd(tmp_path, make_image(tmp_path / "target.raw", 8 * MiB)) as server:
        with Backup("disk", server.uri, "--speed", "1M", control=disk.control) as b:
            b.until("started")
            server.signal(signal.SIGSTOP)
            disk.write("disk", *LATER)
            start = time.monotonic()
            b.signal()
            status, last = b.finish()
            assert (status, last["event"]) == (130, "cancelled")
            assert time.monotonic() - start < 20
        assert stillpoint("jobs", "--control", disk.control).stdout == "no jobs\n"
        disk.write("disk", *LATER)


def test_an_nbd_target_that_goes_away(disk, tmp_path):
    with QemuNbd(tmp_path, make_image(tmp_path / "target.raw", 8 * MiB)) as server:
        with Backup("disk", server.uri, *SLOW, control=disk.control) as b:
            b.until("started")
            server.kill()
            # Unless it has noticed already.
            with disk.qmp() as q, contextlib.suppress(QmpError):
                q("block-job-set-speed", device="disk-full", speed=0)
            status, last = b.finish()
    assert (status, last["event"]) == (1, "failed")
    disk.write("disk", *LATER)


# ---- what it says ------------------------------------------------------------------------------


def test_json_events(disk, tmp_path):
    target = tmp_path / "b.raw"
    before = time.time()
    with Backup("disk", target, "--speed", "4M", control=disk.control) as b:
        started = b.event()
        assert started["event"] == "started"
        assert started["job"] == "disk-full"
        assert started["source"] == "disk"
        assert started["target"] == str(target)
        assert before - 1 <= started["time"] <= time.time()
        progress = b.until("progress")
        assert set(progress) >= {"current", "total", "rate", "eta"}
        assert 0 <= progress["current"] <= progress["total"] == 8 * MiB - 512 * 1024
        status, last = b.finish()
    assert status == 0
    assert last["event"] == "completed"
    assert (last["bytes"], last["target"]) == (8 * MiB - 512 * 1024, str(target))


def test_plain_and_silent(disk, tmp_path):
    done = backup(disk, tmp_path / "a.raw", "--progress", "plain")
    assert done.stdout.endswith("/s\n") and done.stdout.count("\n") == 1
    assert "\r" not in done.stdout and "\033" not in done.stdout
    assert backup(disk, tmp_path / "b.raw", "--progress", "none").stdout == ""
    # No terminal: lines.
    assert backup(disk, tmp_path / "c.raw").stdout.count("\n") == 1


def test_a_failure_is_an_event_too(disk, tmp_path):
    (tmp_path / "b.raw").write_text("")
    with Backup("disk", tmp_path / "b.raw", control=disk.control) as b:
        status, last = b.finish()
    assert (status, last["event"]) == (1, "failed")
    assert "exists" in last["error"] and "exists" in b.stderr


def test_nobody_reads_the_progress_any_more(disk, tmp_path):
    with Backup("disk", tmp_path / "b.raw", "--speed", "4M", control=disk.control) as b:
        b.until("started")
        b.popen.stdout.close()
        assert b.popen.wait(DEADLINE) == 0
        assert b"cannot write to standard output" in b.popen.stderr.read()
        b.popen.stderr.close()
    qemu_img("compare", disk.frozen, tmp_path / "b.raw")


def test_a_daemon_that_does_not_answer_for_a_while(disk, tmp_path):
    with Backup("disk", tmp_path / "b.raw", "--speed", "4M", control=disk.control) as b:
        b.until("started")
        disk.signal(signal.SIGSTOP)
        try:
            b.until("progress", note="the daemon does not answer")
        finally:
            disk.signal(signal.SIGCONT)
        assert b.finish()[0] == 0
    qemu_img("compare", disk.frozen, tmp_path / "b.raw")


def test_the_end_of_an_earlier_job_of_that_name_is_not_ours(tmp_path):
    """A daemon whose job of the same name ends while ours is being asked for."""
    control = tmp_path / "control.sock"

    def daemon():
        conn, _ = listener.accept()
        with conn, conn.makefile("rw") as f:
            def say(message):
                f.write(json.dumps(message) + "\r\n")
                f.flush()

            def tell(name, **data):
                say({"event": name, "data": data})

            def end(**data):
                tell("BLOCK_JOB_COMPLETED", type="backup", device="disk-full", len=1, offset=1,
                     speed=0, **data)
            say({"QMP": {"version": {}, "capabilities": []}})
            for line in f:
                command = json.loads(line)
                if command["execute"] == "drive-backup":
                    (tmp_path / command["arguments"]["target"]).write_text("the beginning")
                    end()
                    tell("JOB_STATUS_CHANGE", id="disk-full", status="null")
                    tell("JOB_STATUS_CHANGE", id="disk-full", status="created")
                say({"return": {}, "id": command["id"]})
                if command["execute"] == "drive-backup":
                    end(error="No space left on device")

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(control))
        listener.listen()
        thread = threading.Thread(target=daemon)
        thread.start()
        done = stillpoint("backup", "disk", tmp_path / "b.raw", "--control", control, check=False)
        thread.join()
    assert (done.returncode, done.stderr) == (1, "stillpoint backup: No space left on device\n")
    assert files_in(tmp_path) == []
