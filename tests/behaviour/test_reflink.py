# SPDX-License-Identifier: Apache-2.0
"""Full copies of raw files where the file system can share storage (reflink): exact under
load, and shared indeed."""
import os
import random

import pytest

from backups import Backup
from live import LiveDisk, engines, seeds
from disks import MIB
from stillpoint import run, stillpoint


@pytest.fixture(params=["xfs", "btrfs"])
def cloning(request, work):
    """A folder on a file system of its own that can clone."""
    image, folder = os.path.join(work, "fs.img"), os.path.join(work, "fs")
    options = ["-q", "-m", "reflink=1"] if request.param == "xfs" else ["-q"]
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    os.mkdir(folder)
    with open(image, "wb") as f:
        f.truncate(512 * MIB)
    try:
        run(f"mkfs.{request.param}", *options, image)
    except FileNotFoundError:
        pytest.skip(f"there is no mkfs.{request.param}")
    mounted = run("mount", "-o", "loop", image, folder, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount {request.param} here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        run("umount", folder)


def shared(path):
    """How many extents of the file are shared with another."""
    return sum("shared" in line for line in run("filefrag", "-v", path).stdout.splitlines())


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("engine", engines())
def test_a_clone_is_one_instant(cloning, engine, seed):
    live = LiveDisk(cloning, "raw", random.Random(f"reflink {seed}"), engine, size=12 * MIB)
    made = [Backup(live, f"backup-{i}", "full", "raw") for i in range(4)]
    sharing = []
    with live.on_line():
        for backup in made:
            backup.start(**{"scratch-memory": 64 * 1024, "scratch-dir": cloning})
            backup.finish()
            sharing.append(shared(backup.path))
            live.writers.wait_for_more(10)
    for backup in made:
        backup.judge()
    # Writers may have overwritten all of one before it was looked at.
    assert any(sharing)


def test_commands_share_unless_told_not_to(cloning):
    source, copies = os.path.join(cloning, "disk.raw"), {}
    with open(source, "wb") as f:
        f.write(os.urandom(8 * MIB + 512))
    for name, command in {"backup": ("backup", source), "convert": ("convert", "-O", "raw", source),
                          "not": ("backup", "--no-reflink", source)}.items():
        copies[name] = os.path.join(cloning, f"{name}.raw")
        stillpoint(*command, copies[name])
        run("cmp", source, copies[name])
    assert shared(copies["backup"]) and shared(copies["convert"])
    assert not shared(copies["not"])
