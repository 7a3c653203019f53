# SPDX-License-Identifier: Apache-2.0
"""backup --bitmap and --incremental: chains that qemu-img reads, and what to do is said when a
link cannot be made."""
import os
import signal
import shutil

import pytest
from cli import Backup, MiB, Serve, fails, files_in, info_of, make_image
from stillpoint import DEADLINE, qemu_img, run, stillpoint

STEPS = [["write -P 9 64k 4k", "write -P 8 7M 300k"], ["write -z 0 1M", "discard 3M 2M"],
         ["write -P 7 8191k 1k"], []]


@pytest.fixture
def disk(tmp_path):
    make_image(tmp_path / "disk.qcow2", writes=["write -P 1 0 2M", "write -P 2 3M 1M"])
    with Serve(tmp_path, "disk.qcow2") as s:
        yield s


def backup(disk, target, *args):
    return stillpoint("backup", "disk", target, "--control", disk.control, "--bitmap", "b", *args)


def incremental(disk, target, backing, *args):
    return backup(disk, target, "--incremental", "--backing", backing, *args)


def refused(disk, target, *args, bitmap="b"):
    return fails("backup", "disk", target, "--control", disk.control, "--bitmap", bitmap, *args)


def images(directory):
    """What bitmaps are kept in stays."""
    return [f for f in files_in(directory) if not f.endswith(".bitmaps")]


def frozen(disk, path):
    """What the disk holds now, when nobody writes."""
    qemu_img("convert", "-f", "raw", "-O", "raw", disk.uri("disk"), path)
    return path


@pytest.mark.parametrize("first", ["0.qcow2", "0.raw"])
def test_every_link_is_the_disk_at_its_instant(first, disk, tmp_path):
    last = tmp_path / first
    backup(disk, last)
    points = [(last, frozen(disk, tmp_path / "frozen-0"))]
    for i, writes in enumerate(STEPS, 1):
        disk.write("disk", *writes, "length")
        last = tmp_path / f"{i}.qcow2"
        incremental(disk, last, points[-1][0])
        points.append((last, frozen(disk, tmp_path / f"frozen-{i}")))
    for target, want in points:
        qemu_img("compare", target, want)
    for target, _ in points[1:]:
        qemu_img("check", target)
    assert os.stat(tmp_path / "3.qcow2").st_size < MiB
    # The folder can be moved: its links name each other without the way to it.
    assert info_of(tmp_path / "2.qcow2")["backing-filename"] == "1.qcow2"
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for target, want in points:
        shutil.move(target, moved)
    qemu_img("compare", moved / "4.qcow2", points[-1][1])


def test_a_link_elsewhere_names_its_backing_file_in_full(disk, tmp_path):
    (tmp_path / "dir").mkdir()
    backup(disk, tmp_path / "0.raw")
    incremental(disk, tmp_path / "dir" / "1.qcow2", tmp_path / "0.raw")
    info = info_of(tmp_path / "dir" / "1.qcow2")
    assert info["backing-filename"] == str(tmp_path / "0.raw")
    assert info["backing-filename-format"] == "raw"


def test_two_chains_do_not_disturb_each_other(disk, tmp_path):
    daily, weekly = ("--bitmap", "daily"), ("--bitmap", "weekly")
    backup(disk, tmp_path / "w0.qcow2", *weekly)
    disk.write("disk", "write -P 3 0 64k")
    backup(disk, tmp_path / "d0.qcow2", *daily)
    for i in (1, 2, 3):
        disk.write("disk", f"write -P {i + 10} {i}M 64k")
        incremental(disk, tmp_path / f"d{i}.qcow2", tmp_path / f"d{i - 1}.qcow2", *daily)
    incremental(disk, tmp_path / "w1.qcow2", tmp_path / "w0.qcow2", *weekly)
    now = frozen(disk, tmp_path / "now")
    qemu_img("compare", tmp_path / "d3.qcow2", now)
    qemu_img("compare", tmp_path / "w1.qcow2", now)


def test_a_full_backup_begins_the_bitmap_anew_and_never_leaves_it(disk, tmp_path):
    backup(disk, tmp_path / "0.qcow2")
    disk.write("disk", "write -P 3 0 64k", "write -P 3 5M 64k")
    # Differences to the same base, as often as one likes.
    for name in ("a.qcow2", "b.qcow2"):
        incremental(disk, tmp_path / name, tmp_path / "0.qcow2", "--bitmap-mode", "never")
        qemu_img("compare", tmp_path / name, frozen(disk, tmp_path / "now"))
    backup(disk, tmp_path / "1.qcow2")
    done = incremental(disk, tmp_path / "2.qcow2", tmp_path / "1.qcow2")
    assert "; 0 B in " in done.stdout
    qemu_img("compare", tmp_path / "2.qcow2", frozen(disk, tmp_path / "now"))


@pytest.mark.parametrize("first", [True, False])
def test_cancelled_or_killed_nothing_is_forgotten(first, disk, tmp_path):
    if not first:
        backup(disk, tmp_path / "0.qcow2")
        disk.write("disk", "write -P 3 0 2M")
    args = () if first else ("--incremental", "--backing", tmp_path / "0.qcow2")
    before = images(tmp_path)
    for number in (signal.SIGINT, signal.SIGKILL):
        with Backup("disk", tmp_path / "x.qcow2", "--bitmap", "b", *args, "--speed", "1k",
                    control=disk.control) as b:
            b.until("started")
            b.signal(number)
            b.popen.wait(DEADLINE)
        if number == signal.SIGINT:
            assert images(tmp_path) == before
    with disk.qmp() as qmp:
        job = qmp("query-jobs")[0]["id"]
        qmp("job-cancel", id=job)
        qmp.wait_job(job)
    if first:
        assert "has no bitmap 'b'" in refused(disk, tmp_path / "x.qcow2", "--incremental",
                                              "--backing", tmp_path / "disk.qcow2")
    backup(disk, tmp_path / "x.qcow2", *args)
    qemu_img("compare", tmp_path / "x.qcow2", frozen(disk, tmp_path / "now"))


def test_killed_when_all_is_copied_the_next_one_has_it_again(disk, tmp_path):
    """The bitmap forgets when the backup has its name, not before."""
    backup(disk, tmp_path / "0.qcow2")
    disk.write("disk", "write -P 3 0 2M")
    with disk.qmp() as qmp, Backup("disk", tmp_path / "1.qcow2", "--bitmap", "b", "--incremental",
                                   "--backing", tmp_path / "0.qcow2", "--speed", "1k",
                                   control=disk.control) as b:
        b.until("started")
        b.signal(signal.SIGKILL)
        b.popen.wait(DEADLINE)
        qmp("block-job-set-speed", device="disk-incremental", speed=0)
        qmp.wait_event("BLOCK_JOB_PENDING")
        assert "is in use" in refused(disk, tmp_path / "1.qcow2", "--incremental", "--job-id", "x",
                                      "--backing", tmp_path / "0.qcow2")
        qmp("job-cancel", id="disk-incremental")
        qmp.wait_job("disk-incremental")
    incremental(disk, tmp_path / "1.qcow2", tmp_path / "0.qcow2")
    qemu_img("compare", tmp_path / "1.qcow2", frozen(disk, tmp_path / "now"))


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_an_image_that_is_served_only_at_times(fmt, tmp_path):
    """The bitmap outlives the daemons, and each command alone."""
    image = make_image(tmp_path / f"disk.{fmt}", writes=["write -P 1 0 2M"])

    def link(i):
        base = ["--incremental", "--backing", tmp_path / f"{i - 1}.qcow2"] if i else []
        return "backup", image, tmp_path / f"{i}.qcow2", "--control", "", "--bitmap", "b", *base

    stillpoint(*link(0))
    for i in (1, 2):
        with Serve(tmp_path, os.path.basename(image)) as s:
            s.write("disk", f"write -P {i + 1} {i}M 64k")
        assert "; 64 KiB in " in stillpoint(*link(i)).stdout
        qemu_img("compare", "-f", fmt, "-F", "qcow2", image, tmp_path / f"{i}.qcow2")
    assert "; 0 B in " in stillpoint(*link(3)).stdout
    if fmt == "raw":
        run("qemu-io", "-f", fmt, "-c", "write -P 9 3M 64k", image)
        words = fails(*link(4))
        assert "cannot tell any more what has changed (" in words and "begin a new chain" in words


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_that_ends_during_a_backup_forgets_nothing(end, tmp_path):
    make_image(tmp_path / "disk.raw", writes=["write -P 1 0 2M"])
    link = ["--incremental", "--backing", tmp_path / "0.qcow2"]
    with Serve(tmp_path, "disk.raw") as s:
        backup(s, tmp_path / "0.qcow2")
        s.write("disk", "write -P 3 0 4M")
        with Backup("disk", tmp_path / "1.qcow2", "--bitmap", "b", *link, "--speed", "1k",
                    control=s.control) as b:
            b.until("started")
            s.write("disk", "write -P 4 5M 64k")
            s.signal(end)
            s.wait()
            assert b.finish()[0] == 1
        if end == signal.SIGKILL:
            s.kill()
    with Serve(tmp_path, "disk.raw") as s:
        incremental(s, tmp_path / "1.qcow2", tmp_path / "0.qcow2")
        qemu_img("compare", tmp_path / "1.qcow2", frozen(s, tmp_path / "now"))


def test_what_to_do_is_said(disk, tmp_path):
    target = tmp_path / "t.qcow2"
    assert ("'stillpoint backup disk TARGET --bitmap b'" in
            refused(disk, target, "--incremental", "--backing", tmp_path / "disk.qcow2"))
    backup(disk, tmp_path / "0.qcow2")
    before = images(tmp_path)
    assert "Say --backing FILE" in refused(disk, target, "--incremental")
    assert "No such file" in refused(disk, target, "--incremental", "--backing", "nope")
    assert "cannot: give it a name that ends in .qcow2" in refused(
        disk, tmp_path / "t.raw", "--incremental", "--backing", tmp_path / "0.qcow2")
    assert "stand on itself" in refused(disk, tmp_path / "0.qcow2", "--force", "--incremental",
                                        "--backing", tmp_path / "0.qcow2")
    assert images(tmp_path) == before


@pytest.mark.parametrize("args,words", [
    (["--incremental"], "needs --bitmap"),
    (["--backing", "x"], "is for --incremental"),
    (["--bitmap-mode", "never"], "is for --bitmap"),
    (["--bitmap", "b", "--sync", "top", "--incremental"], "takes the place of --sync"),
    (["--bitmap", "b", "--sync", "none"], "does not go with"),
    (["--bitmap", "b", "--backing", "x"], "stands alone"),
    (["--bitmap", "b", "--bitmap-mode", "never"], "changes nothing"),
])
def test_misuse(args, words, tmp_path):
    assert words in fails("backup", "disk", tmp_path / "t.qcow2", "--control", "x", *args, status=2)
