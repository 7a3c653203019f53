# SPDX-License-Identifier: Apache-2.0
"""backup of an image that nobody serves: no daemon, the same result."""
import os
import signal
import subprocess

import pytest
from cli import Backup, MiB, QemuNbd, Serve, files_in, make_image
from stillpoint import BINARY, poll_until, qemu_img, run, stillpoint


@pytest.fixture(autouse=True)
def no_daemon(monkeypatch):
    monkeypatch.delenv("STILLPOINT_CONTROL", raising=False)


@pytest.fixture
def image(tmp_path):
    base = make_image(tmp_path / "base.raw", writes=["write -P 5 0 8M"])
    return make_image(tmp_path / "disk.qcow2", backing=base,
                      writes=["write -P 1 1M 1M", "write -z 4M 1M", "discard 6M 64k"])


def refused(*args, status=1, **kwargs):
    done = stillpoint("backup", *args, check=False, **kwargs)
    assert done.returncode == status, done
    return done.stderr


@pytest.mark.parametrize("target", ["b.qcow2", "b.raw"])
def test_full(target, image, tmp_path):
    done = stillpoint("backup", image, tmp_path / target)
    assert f"'{image}' as it stood at" in done.stdout
    qemu_img("compare", image, tmp_path / target)
    if target.endswith("qcow2"):
        qemu_img("check", tmp_path / target)


def test_compressed(image, tmp_path):
    stillpoint("backup", image, tmp_path / "b.qcow2", "--compress")
    qemu_img("check", tmp_path / "b.qcow2")
    qemu_img("compare", image, tmp_path / "b.qcow2")
    assert "100.00% compressed" in qemu_img("check", tmp_path / "b.qcow2").stdout.replace(
        "100.00% of", "")
    assert os.path.getsize(tmp_path / "b.qcow2") < 2 * MiB
    words = refused(image, tmp_path / "b.raw", "--compress", status=2)
    assert "--compress needs a TARGET that can hold compressed data" in words


def test_top(image, tmp_path):
    stillpoint("backup", image, tmp_path / "b.qcow2", "--sync", "top")
    qemu_img("check", tmp_path / "b.qcow2")
    assert f"backing file: {tmp_path}/base.raw" in qemu_img("info", tmp_path / "b.qcow2").stdout
    qemu_img("compare", image, tmp_path / "b.qcow2")


def test_a_sparse_disk_gives_a_sparse_copy(tmp_path):
    image = make_image(tmp_path / "big.raw", 1 << 40, writes=["write -P 1 512G 1M"])
    stillpoint("backup", image, tmp_path / "b.raw")
    st = os.stat(tmp_path / "b.raw")
    assert st.st_size == 1 << 40
    assert st.st_blocks * 512 < 16 * MiB
    run("qemu-io", "-f", "raw", "-c", "read -P 1 512G 1M", tmp_path / "b.raw")


def test_the_source_is_not_touched(image, tmp_path):
    before = {n: open(tmp_path / n, "rb").read() for n in ("disk.qcow2", "base.raw")}
    os.chmod(image, 0o444)
    stillpoint("backup", image, tmp_path / "b.raw")
    assert before == {n: open(tmp_path / n, "rb").read() for n in before}


def test_it_cannot_be_written_meanwhile(image, tmp_path):
    with Backup(image, tmp_path / "b.raw", "--speed", "64k") as b:
        b.until("started")
        done = run("qemu-io", "-c", "write 0 64k", image, check=False)
        assert 'Failed to get "write" lock' in done.stderr
        b.signal()
        assert b.finish()[0] == 130


def test_ctrl_c_leaves_nothing_and_nobody(image, tmp_path):
    before = files_in(tmp_path)
    with Backup(image, tmp_path / "b.raw", "--speed", "64k") as b:
        started = b.until("started")
        assert started["job"] == "disk-full"
        children = run("pgrep", "-P", b.popen.pid).stdout.split()
        assert len(children) == 1
        b.signal()
        status, last = b.finish()
    assert (status, last["event"]) == (130, "cancelled")
    assert files_in(tmp_path) == before
    assert not os.path.exists(f"/proc/{children[0]}")


def test_ctrl_c_from_a_terminal_reaches_the_whole_group(image, tmp_path):
    """The daemon that works for the backup must not take it for itself."""
    before = files_in(tmp_path)
    with Backup(image, tmp_path / "b.raw", "--speed", "64k", start_new_session=True) as b:
        b.until("started")
        os.killpg(b.popen.pid, signal.SIGINT)
        status, last = b.finish()
    assert (status, last["event"]) == (130, "cancelled")
    assert files_in(tmp_path) == before


def test_its_daemon_does_not_outlive_a_killed_backup(image, tmp_path):
    with Backup(image, tmp_path / "b.raw", "--speed", "64k") as b:
        b.until("started")
        child = run("pgrep", "-P", b.popen.pid).stdout.strip()
        b.signal(signal.SIGKILL)
        poll_until("the daemon's end", lambda: gone(child))
        b.finish()
    assert not (tmp_path / "b.raw").exists()
    # What was left is no hindrance.
    stillpoint("backup", image, tmp_path / "b.raw")
    assert ".b.raw.stillpoint-partial" not in files_in(tmp_path)


def gone(pid):
    """Whether a process has ended, reaped or not."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_its_daemon_is_killed(image, tmp_path):
    before = files_in(tmp_path)
    with Backup(image, tmp_path / "b.raw", "--speed", "64k") as b:
        b.until("started")
        os.kill(int(run("pgrep", "-P", b.popen.pid).stdout), signal.SIGKILL)
        status, last = b.finish()
    assert (status, last["event"]) == (1, "failed")
    assert files_in(tmp_path) == before


# ---- what cannot be ----------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path):
    assert "none.qcow2': No such file or directory" in refused(tmp_path / "none.qcow2",
                                                               tmp_path / "b.raw")
    assert files_in(tmp_path) == []


def test_an_image_that_is_served_wants_the_daemon(image, tmp_path):
    with Serve(tmp_path, "disk.qcow2") as s:
        words = refused(image, tmp_path / "b.raw")
        assert "back up the live disk with --control PATH" in words
        assert stillpoint("backup", "disk", tmp_path / "b.raw", "--control", s.control)
    with QemuNbd(tmp_path, image, "qcow2"):
        assert "is open in another process" in refused(image, tmp_path / "c.raw")
    assert not (tmp_path / "c.raw").exists()


@pytest.mark.parametrize("args, words", [
    (["a.img", "b.raw"], "'a.img' looks like a qcow2 image"),
    (["a.img", "b.raw", "--source-format", "vmdk"], "Unknown format 'vmdk'"),
    (["junk.qcow2", "b.raw"], "not in qcow2 format"),
    (["disk.qcow2", "disk.qcow2", "--force"], "is open in some process, perhaps as the disk"),
    (["disk.qcow2", "base.raw", "--force"], "is open in some process, perhaps as the disk"),
    (["disk.qcow2", "b.vmdk", "--format", "vmdk"], "vmdk"),
    (["disk.qcow2", "b.raw", "--sync", "top"], "or --format qcow2"),
])
def test_sources_and_targets_that_cannot_be(args, words, image, tmp_path):
    make_image(tmp_path / "a.img", fmt="qcow2")
    (tmp_path / "junk.qcow2").write_bytes(b"junk" * 200)
    before = files_in(tmp_path)
    assert words in refused(*args, cwd=tmp_path)
    assert files_in(tmp_path) == before
    qemu_img("check", image)


def test_a_format_that_the_name_does_not_say(tmp_path):
    image = make_image(tmp_path / "a.img", fmt="qcow2", writes=["write -P 3 0 1M"])
    stillpoint("backup", image, tmp_path / "b.img", "--source-format", "qcow2", "--format",
               "qcow2")
    qemu_img("compare", "-f", "qcow2", "-F", "qcow2", image, tmp_path / "b.img")


def test_a_name_that_is_no_name_for_a_job(tmp_path):
    image = make_image(tmp_path / "2024 disk.raw", MiB)
    with Backup(image, tmp_path / "b.raw") as b:
        assert b.until("started")["job"] == "backup-full"
        assert b.finish()[0] == 0


def test_a_remote_disk(tmp_path):
    image = make_image(tmp_path / "a.raw", writes=["write -P 3 0 1M"])
    with QemuNbd(tmp_path, image) as server:
        stillpoint("backup", server.uri, tmp_path / "b.qcow2")
    qemu_img("compare", image, tmp_path / "b.qcow2")


def test_file_names_that_are_not_utf_8(tmp_path):
    image = make_image(tmp_path / "a.raw", MiB)
    done = subprocess.run([BINARY.encode(), b"backup", image.encode(),
                           os.fsencode(tmp_path) + b"/\xff.raw"], capture_output=True, timeout=60)
    assert done.returncode == 1
    assert b"are not UTF-8" in done.stderr
    assert files_in(tmp_path) == ["a.raw"]
