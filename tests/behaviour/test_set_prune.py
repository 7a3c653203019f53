# SPDX-License-Identifier: Apache-2.0
"""Points go out of a backup set: forget, prune, killed at any moment; and thirty nights.

Whatever goes, each point that is left reads as the disk did, by plain qemu-img.
STILLPOINT_KILLS is how often a run is killed, STILLPOINT_SEED repeats it.
"""
import contextlib
import json
import os
import random
import signal
import subprocess

import pytest
import sets
from cli import MiB, fails, files_in
from stillpoint import BINARY, poll_until, qemu_img, run, stillpoint
from test_backup_set import KILLS, SEED, SIZE, Disk, backup, serve_again

GRAIN = 64 * 1024


def make_nights(disk, to, n, rng, known):
    """@n points over a disk that is written on line in between."""
    disk.serve()
    for _ in range(n):
        disk.scribble(rng, 2)
        known[backup(disk, to)["id"]] = bytes(disk.data)
    disk.end()


def check(disk, to, known, left=None):
    """Each point that is listed reads as it should, and all files are somebody's."""
    found = sets.listing(to)
    ids = [p["id"] for p in found["points"]]
    assert left is None or ids == left
    for p in found["points"]:
        assert not p["broken"], p
        assert sets.content(to, p, "disk", disk.directory) == known[p["id"]], (SEED, p["id"])
    return found


def is_tidy(to, found):
    assert found["unknown"] == found["unfinished"] == found["unreadable"] == []
    assert set(files_in(to)) == sets.files_of(found)
    for p in found["points"]:
        for d in p["disks"]:
            below = d.get("backing")
            assert (d["kind"] == "incremental") == (below is not None)
            assert below is None or below.startswith(d["parent"])
            assert d["digest"]["root"]


@pytest.mark.parametrize("compress", [[], ["--compress"]], ids=["plain", "compressed"])
def test_any_points_can_go(compress, tmp_path):
    rng, known = random.Random(3), {}
    disk, to = Disk(tmp_path, "raw"), tmp_path / "set"
    disk.scribble(rng, 5)
    known[backup(disk, to, *compress)["id"]] = bytes(disk.data)
    make_nights(disk, to, 6, rng, known)
    roots = {p["id"]: p["disks"][0]["digest"]["root"] for p in sets.points(to)}
    ids = list(known)
    for gone in ([ids[2], ids[3]], [ids[0]], [ids[5]]):
        stillpoint("forget", to, *gone)
        ids = [i for i in ids if i not in gone]
        is_tidy(to, check(disk, to, known, ids))
    assert all(p["disks"][0]["digest"]["root"] == roots[p["id"]] for p in sets.points(to))
    for p in sets.points(to):
        qemu_img("check", sets.image_of(to, p, "disk"))
    # The last one goes, and with it what the next one could stand on.
    done = stillpoint("forget", to, ids[-1])
    assert "disk: its last point goes: the next backup of it is a full one" in done.stdout
    point = backup(disk, to)
    assert sets.how(point, "disk")[0] == "full"
    known[point["id"]] = bytes(disk.data)
    is_tidy(to, check(disk, to, known, [*ids[:-1], point["id"]]))
    stillpoint("forget", to, *ids[:-1], point["id"])
    assert files_in(to) == [".lock", "set.json"]


def test_what_is_not_there_is_refused(tmp_path):
    disk, to = Disk(tmp_path, "raw"), tmp_path / "set"
    point = backup(disk, to)
    assert "has no point 'nope'" in fails("forget", to, point["id"], "nope")
    assert "is not a backup set" in fails("prune", tmp_path, "--keep-last", "1")
    assert len(sets.points(to)) == 1


def test_an_image_that_is_open_keeps_its_point(tmp_path):
    rng, known = random.Random(5), {}
    disk, to = Disk(tmp_path, "raw"), tmp_path / "set"
    make_nights(disk, to, 3, rng, known)
    ids = list(known)
    image = sets.image_of(to, sets.points(to)[1], "disk")
    with subprocess.Popen(["qemu-io", "-r", "-f", "qcow2", image], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        reader.stdin.write("length\n")
        reader.stdin.flush()
        while "iB" not in reader.stdout.readline():
            pass
        done = stillpoint("forget", to, ids[0], check=False)
        assert done.returncode == 1 and "is open in another process" in done.stderr
        found = check(disk, to, known, ids[1:])
        assert found["unfinished"] == [ids[0]]
        known[backup(disk, to)["id"]] = bytes(disk.data)      # that does not mind
        reader.stdin.close()
        reader.wait(60)
        reader.stdout.close()
    stillpoint("prune", to)
    is_tidy(to, check(disk, to, known, list(known)[1:]))


def test_a_removal_that_is_killed_is_taken_up(tmp_path):
    rng, known = random.Random(SEED), {}
    disk, to = Disk(tmp_path, "qcow2"), tmp_path / "set"
    print("seed", SEED)
    make_nights(disk, to, 4, rng, known)
    for _ in range(KILLS):
        disk.serve()
        disk.scribble(rng, 1)
        known[backup(disk, to)["id"]] = bytes(disk.data)
        disk.end()
        left = [p["id"] for p in sets.points(to)]
        gone = rng.sample(left[:-1], min(2, len(left) - 1))
        with subprocess.Popen([BINARY, "forget", str(to), *gone], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) as p:
            with contextlib.suppress(subprocess.TimeoutExpired):
                p.wait(rng.uniform(0, 0.6))
            p.send_signal(signal.SIGKILL)
        found = check(disk, to, known)
        assert [i for i in left if i not in gone] == [
            p["id"] for p in found["points"] if p["id"] not in gone]
    poll_until("the killed one's locks to go",
               lambda: stillpoint("prune", to, check=False).returncode == 0)
    is_tidy(to, check(disk, to, known))


# ---- thirty nights -----------------------------------------------------------------------


class Clock:
    """The days of the points: instants are moved in the manifests, as no test waits a month."""

    def __init__(self, to):
        self.to = to

    def set(self, point, day):
        path = self.to / f"{point['id']}.json"
        with open(path, encoding="utf-8") as f:
            manifest = json.load(f)
        manifest.pop("checksum", None)       # which would say that somebody was here
        month, day = divmod(day, 28)
        manifest["instant"] = f"2026-{month + 1:02}-{day + 1:02}T12:00:00.000Z"
        path.write_text(json.dumps(manifest))


@pytest.fixture
def raw_disk(tmp_path):
    disk = Disk(tmp_path, "raw")
    yield disk
    disk.end()


def test_thirty_nights(raw_disk, tmp_path):
    rng, known, disk, to = random.Random(SEED), {}, raw_disk, tmp_path / "set"
    clock = Clock(to)
    print("seed", SEED)
    for night in range(30):
        if not disk.served:
            poll_until("the locks to go", lambda: serve_again(disk))
        disk.scribble(rng, 1)
        expected = "incremental" if night else "full"
        if night == 9:                       # the daemon crashes
            disk.served.kill()
            disk.served = None
            poll_until("the locks to go", lambda: serve_again(disk))
        if night == 14:                      # the disk grows
            disk.end()
            stillpoint("resize", disk.path, f"{SIZE // MiB + 1}M")
            disk.data += bytes(MiB)
            expected = "full"
        if night == 21:                      # somebody else writes
            disk.end()
            run("qemu-io", "-f", "raw", "-c", "write -P 7 1M 64k", disk.path)
            disk.data[MiB:MiB + GRAIN] = b"\7" * GRAIN
            expected = "full"
        point = backup(disk, to)
        assert sets.how(point, "disk")[0] == expected, night
        known[point["id"]] = bytes(disk.data)
        clock.set(point, night)
        if night in (12, 25):
            stillpoint("prune", to, "--keep-daily", "5", "--keep-weekly", "3")
            is_tidy(to, check(disk, to, known))
    text = stillpoint("prune", to, "--keep-daily", "7", "--keep-weekly", "4", "-n").stdout
    assert text.count("keep (daily") == 7
    stillpoint("prune", to, "--keep-daily", "7", "--keep-weekly", "4")
    found = check(disk, to, known)
    is_tidy(to, found)
    assert [p["instant"][:10] for p in found["points"]][-7:] == [
        "2026-01-24", "2026-01-25", "2026-01-26", "2026-01-27", "2026-01-28", "2026-02-01",
        "2026-02-02"]
    assert os.path.exists(to / "set.json")
