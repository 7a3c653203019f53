# SPDX-License-Identifier: Apache-2.0
"""Backup sets (docs/backup-sets.md): nights of full and incremental backups, why which; and runs
that are killed at any moment.

The judge is qemu-img: each point that is listed reads as the disk did at its instant.
STILLPOINT_KILLS is how often a run is killed for each kind of disk, STILLPOINT_SEED repeats it.
"""
import contextlib
import json
import os
import random
import signal
import subprocess

import pytest
import sets
from cli import MiB, Serve, fails, files_in, make_image
from stillpoint import BINARY, poll_until, run, stillpoint

nbd = pytest.importorskip("nbd")

SIZE = 4 * MiB
GRAIN = 64 * 1024
KILLS = int(os.environ.get("STILLPOINT_KILLS", "4"))
SEED = int(os.environ.get("STILLPOINT_SEED", "0")) or random.SystemRandom().randrange(1 << 31)


class Disk:
    """An image that is served now and then, and what it should hold."""

    def __init__(self, directory, fmt, name="disk"):
        self.directory, self.fmt, self.name = str(directory), fmt, name
        self.path = make_image(os.path.join(self.directory, f"{name}.{fmt}"), size=SIZE)
        self.data = bytearray(SIZE)
        self.served = None

    def write(self, off, data):
        """Through NBD, as a guest; served for that long if it is not."""
        with contextlib.ExitStack() as stack:
            # The daemon of a run that was killed has the image a moment longer.
            served = self.served or stack.enter_context(
                poll_until("the image's locks to go", self.try_to_serve))
            h = nbd.NBD()
            h.connect_uri(served.uri(self.name))
            h.pwrite(data, off)
            h.flush()
            h.shutdown()
        self.data[off:off + len(data)] = data

    def try_to_serve(self):
        try:
            return Serve(self.directory, self.path)
        except AssertionError:
            return None

    def scribble(self, rng, times=3):
        for _ in range(times):
            n = rng.randrange(1, 3 * GRAIN)
            off = rng.randrange(SIZE - n)
            self.write(off, rng.randbytes(n))

    def serve(self):
        for name in "nbd.sock", "control.sock":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.directory, name))
        self.served = Serve(self.directory, self.path)
        return self.served

    def end(self):
        if self.served:
            self.served.__exit__(None, None, None)
        self.served = None

    def source(self):
        return self.name if self.served else self.path

    def control(self):
        return self.served.control if self.served else ""


@pytest.fixture(params=["raw", "qcow2"])
def disk(request, tmp_path):
    d = Disk(tmp_path, request.param)
    yield d
    d.end()


def backup(disk, to, *args, **kwargs):
    return sets.backup(disk.source(), "--to", to, *args, control=disk.control(), **kwargs)


def reads_as(disk, to, point):
    return sets.content(to, point, "disk", disk.directory) == disk.data


# ---- nights ---------------------------------------------------------------------------------


def test_nights_on_line_and_off_line_are_one_chain(disk, tmp_path):
    rng, to, nights = random.Random(1), tmp_path / "set", []
    for night in range(4):
        if night in (0, 2):
            disk.serve()
        disk.scribble(rng)
        point = backup(disk, to)
        nights.append((point, bytes(disk.data)))
        if night == 0:
            assert sets.how(point, "disk") == ("full", "first backup of this disk")
        else:
            assert sets.how(point, "disk") == ("incremental", nights[night - 1][0]["id"])
            assert point["disks"][0]["bytes"] < SIZE
        if night in (0, 2):
            disk.end()
    for point, data in nights:
        assert sets.content(to, point, "disk", tmp_path) == data
    assert [p["id"] for p in sets.points(to)] == [p["id"] for p, _ in nights]
    # One bitmap, that of the last point; and nothing but what the manifests name.
    with disk.serve() as s:
        nodes = s.qmp()("query-named-block-nodes")
        names = [b["name"] for n in nodes for b in n.get("dirty-bitmaps", [])]
    disk.served = None
    assert names == [nights[-1][0]["disks"][0]["bitmap"]]
    assert set(files_in(to)) == sets.files_of(sets.listing(to))


def test_why_a_full_backup(disk, tmp_path):
    rng, to = random.Random(2), tmp_path / "set"
    disk.scribble(rng)

    def full(words, *args):
        point = backup(disk, to, *args)
        kind, reason = sets.how(point, "disk")
        assert kind == "full" and words in reason, reason
        assert reads_as(disk, to, point)
        return point

    first = full("first backup of this disk")
    assert sets.how(backup(disk, to), "disk") == ("incremental", first["id"])
    full("--full was asked for", "--full")
    # Somebody else writes: QEMU keeps a qcow2 image's bitmap, a raw one's is none of its business.
    run("qemu-io", "-f", disk.fmt, "-c", "write -P 7 1M 64k", disk.path)
    disk.data[MiB:MiB + GRAIN] = b"\7" * GRAIN
    if disk.fmt == "raw":
        last = full("bitmap inconsistent: ")
    else:
        last = backup(disk, to)
        assert sets.how(last, "disk")[0] == "incremental" and reads_as(disk, to, last)
    os.rename(sets.image_of(to, last, "disk"), tmp_path / "away")
    full(f"the point before, {last['id']}, is broken: ")
    os.rename(tmp_path / "away", sets.image_of(to, last, "disk"))
    stillpoint("resize", disk.path, "5M")
    disk.data += bytes(MiB)
    full("the disk was resized from 4 MiB to 5 MiB")
    assert not any(p["broken"] for p in sets.points(to))


def test_a_bitmap_that_is_gone(tmp_path):
    disk, to = Disk(tmp_path, "qcow2"), tmp_path / "set"
    first = backup(disk, to)
    stillpoint("bitmap", "--remove", disk.path, first["disks"][0]["bitmap"])
    point = backup(disk, to)
    assert sets.how(point, "disk") == ("full", f"no bitmap since {first['id']}: it was removed, or "
                                               "this is another disk")


def test_dry_run_tells_and_leaves_nothing(disk, tmp_path):
    to = tmp_path / "set"
    disk.write(0, b"x" * MiB)
    before = files_in(tmp_path)
    done = stillpoint("backup", disk.path, "--to", to, "--control", "", "--dry-run")
    assert done.stdout.startswith("disk: full (first backup of this disk), about ")
    assert not to.exists() and files_in(tmp_path) == before
    first = backup(disk, to)
    disk.write(MiB, b"y" * GRAIN)
    before = files_in(to)
    plan = backup(disk, to, "--dry-run")
    assert plan["disks"][0]["kind"] == "incremental" and plan["disks"][0]["parent"] == first["id"]
    assert plan["disks"][0]["to-copy"] == GRAIN
    assert files_in(to) == before
    disk.serve()
    text = stillpoint("backup", "disk", "--to", to, "-n", "--control", disk.control()).stdout
    assert "disk: incremental (changes since " in text and "64 KiB at most" in text


def test_disks_of_a_set_go_ways_of_their_own(tmp_path):
    a, b = Disk(tmp_path, "raw", "a"), Disk(tmp_path, "qcow2", "b")
    to = tmp_path / "set"
    first = sets.backup(a.path, "--to", to)
    a.write(0, b"1" * GRAIN)
    b.write(0, b"2" * GRAIN)
    both = sets.backup(a.path, b.path, "--to", to)
    assert sets.how(both, "a") == ("incremental", first["id"])
    assert sets.how(both, "b") == ("full", "first backup of this disk")
    b.write(GRAIN, b"3" * GRAIN)
    only = sets.backup(b.path, "--to", to)
    assert sets.how(only, "b") == ("incremental", both["id"])
    last = sets.backup(a.path, b.path, "--to", to)
    assert sets.how(last, "a") == ("incremental", both["id"])
    assert sets.how(last, "b") == ("incremental", only["id"])
    assert sets.content(to, last, "a", tmp_path) == a.data
    assert sets.content(to, last, "b", tmp_path) == b.data
    text = stillpoint("list", to).stdout
    assert "mixed" in text and "b: full: first backup of this disk" in text


def test_a_stranger_in_the_set_is_told_and_not_touched(tmp_path):
    disk, to = Disk(tmp_path, "raw"), tmp_path / "set"
    point = backup(disk, to)
    (to / "notes").write_text("mine")
    (to / "x.json").write_text("{")
    backup(disk, to)
    found = sets.listing(to)
    assert found["unknown"] == ["notes"] and found["unreadable"][0]["file"] == "x.json"
    assert (to / "notes").read_text() == "mine" and (to / "x.json").read_text() == "{"
    os.unlink(to / f"{point['id']}.json")
    assert "whose manifest is missing" in stillpoint("list", to).stdout
    assert "is not a backup set" in fails("list", tmp_path)
    assert "There is no backup set" in fails("list", tmp_path / "none")


# ---- kills ----------------------------------------------------------------------------------


class Killed:
    """A run of `backup` that is killed at a random moment, or is done before."""

    def __init__(self, disk, to, rng):
        command = [BINARY, "backup", disk.source(), "--to", str(to), "--control", disk.control(),
                   "--json"]
        self.popen = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(rng.uniform(0, 0.5))

    def kill(self, disk, victim):
        """"both": of an offline backup the daemon is in the same group."""
        if victim in ("daemon", "both") and disk.served:
            disk.served.kill()
        with contextlib.suppress(ProcessLookupError):
            if victim == "both" and not disk.served:
                os.killpg(self.popen.pid, signal.SIGKILL)
            elif victim in ("command", "both") or not disk.served:
                self.popen.send_signal(signal.SIGKILL)
        self.popen.wait(60)


def check_listed(disk, to, known):
    """Each point that is listed reads as the disk did."""
    for p in sets.points(to) if (to / "set.json").exists() else []:
        known.setdefault(p["id"], bytes(disk.data))
        assert not p["broken"], p
        assert sets.content(to, p, "disk", disk.directory) == known[p["id"]], (SEED, p["id"])


@pytest.mark.parametrize("way", ["live", "file"])
def test_a_run_that_is_killed_leaves_a_valid_set(way, disk, tmp_path):
    rng, to, known = random.Random(SEED), tmp_path / "set", {}
    print("seed", SEED)
    for _ in range(KILLS):
        if way == "live" and not disk.served:
            poll_until("the killed daemon's locks to go", lambda: serve_again(disk))
        disk.scribble(rng, 1)
        victim = rng.choice(["command", "daemon", "both"])
        Killed(disk, to, rng).kill(disk, victim)
        if disk.served and not disk.served.running():
            disk.served = None
        check_listed(disk, to, known)
    if way == "live" and not disk.served:
        poll_until("the killed daemon's locks to go", lambda: serve_again(disk))
    disk.scribble(rng, 1)
    last = poll_until("a run that is not killed", lambda: backup(disk, to, check=False))
    assert reads_as(disk, to, last)
    # A daemon may have begun a job of a command that was killed after this one has tidied up.
    backup(disk, to)
    check_listed(disk, to, known)
    found = sets.listing(to)
    assert found["unknown"] == found["unfinished"] == found["unreadable"] == []
    assert set(files_in(to)) == sets.files_of(found)


def serve_again(disk):
    try:
        disk.serve()
        return True
    except AssertionError:
        return False


def test_the_manifest_is_what_its_schema_says(tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    docs = os.path.join(os.path.dirname(__file__), "..", "..", "docs")
    with open(os.path.join(docs, "backup-set-manifest.schema.json"), encoding="utf-8") as f:
        schema = json.load(f)
    disk, to = Disk(tmp_path, "qcow2"), tmp_path / "set"
    backup(disk, to)
    for p in [backup(disk, to)]:
        with open(to / f"{p['id']}.json", encoding="utf-8") as f:
            jsonschema.validate(json.load(f), schema)
