# SPDX-License-Identifier: Apache-2.0
"""verify and restore of backup sets that were made by hand: qemu-img is the judge of what is
restored, and every file is damaged at random bits."""
import json
import os
import random
import shutil
import signal

import pytest
from cli import MiB, QemuNbd, fails
from handmade_sets import LEAF, ZERO, Set, leaves_of
from stillpoint import BINARY, Process, poll_until, qemu_img, run, stillpoint

SIZE = 9 * MiB + 512


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A full with data, zeros and holes; incrementals that overwrite, zero and grow."""
    s = Set(tmp_path_factory.mktemp("sets") / "set")
    s.add("write -P 1 0 3M", "write -P 2 5M 700k", "write -P 3 8M 1049088", "write -z 4M 128k",
          size=SIZE)
    s.add("write -P 4 100k 70k", "write -z 1M 256k", "write -P 5 6M 1M", "discard 2M 64k")
    s.add("write -P 6 7M 4k", "write -P 7 9436672 500k", size=SIZE + 3 * MiB + 1024)
    s.add()
    return s


@pytest.fixture
def backups(made, tmp_path):
    """A copy that may be damaged."""
    s = Set(tmp_path / "copy")
    shutil.rmtree(s.dir)
    shutil.copytree(made.dir, s.dir)
    s.points, s.raws = made.points, made.raws
    return s


def content(path):
    with open(path, "rb") as f:
        return f.read()


def verify(s, *args, status=0):
    done = stillpoint("verify", s.dir, "--json", *args, check=False)
    assert done.returncode == status, done
    return json.loads(done.stdout)


def flip(path, bit):
    with open(path, "r+b") as f:
        f.seek(bit // 8)
        byte = f.read(1)[0]
        f.seek(bit // 8)
        f.write(bytes([byte ^ 1 << bit % 8]))


# ---- verify -------------------------------------------------------------------------------

def test_verify_a_sound_set(made):
    found = verify(made)
    assert found["findings"] == []
    assert [(p["id"], p["good"]) for p in found["points"]] == [(p, True) for p in made.points]
    assert found["bytes"] > 8 * MiB
    done = stillpoint("verify", made.dir, "--progress", "none")
    assert done.stdout.startswith("4 of 4 points are good")


def test_verify_finds_a_flipped_bit_in_any_file(backups):
    rng = random.Random(5)
    for name in backups.files():
        path = backups.path(name)
        for _ in range(3):
            bit = rng.randrange(8 * os.path.getsize(path))
            flip(path, bit)
            done = stillpoint("verify", backups.dir, "--progress", "none", check=False)
            assert done.returncode == 3, (name, bit, done)
            assert name in done.stdout + done.stderr, (name, bit, done)
            flip(path, bit)
    verify(backups)


def test_verify_says_which_points_are_good(backups):
    # In the data of the second image: the first point does not need that.
    image = backups.image(backups.points[1])
    entry = next(e for e in json.loads(qemu_img("map", "--output=json", image).stdout)
                 if e["start"] <= 6 * MiB < e["start"] + e["length"])
    flip(image, 8 * (entry["offset"] + 6 * MiB - entry["start"] + 70000))
    found = verify(backups, status=3)
    assert [p["good"] for p in found["points"]] == [True, False, False, False]
    of_disk = [f for f in found["findings"] if f.get("extent-of") == "disk"]
    assert [(f["offset"], f["length"]) for f in of_disk] == [(6 * MiB + 65536, 65536)]
    of_file = [f for f in found["findings"] if f.get("extent-of") == "file"]
    assert len(of_file) == 1 and of_file[0]["file"] == os.path.basename(image)
    # Nor what became of another point's manifest.
    flip(backups.path(f"{backups.points[3]}.json"), 8 * 40)
    assert verify(backups, status=3)["findings"][0]["file"] == f"{backups.points[3]}.json"
    verify(backups, "--at", backups.points[0])
    verify(backups, "--at", backups.points[1], status=3)


@pytest.mark.parametrize("what", ["cut", "gone", "swapped", "no digests"])
def test_verify_files_that_are_not_what_they_were(what, backups):
    first, second = backups.points[:2]
    if what == "cut":
        os.truncate(backups.image(second), os.path.getsize(backups.image(second)) - 65536)
    elif what == "gone":
        os.remove(backups.image(second))
    elif what == "swapped":
        shutil.copy(backups.path(f"{first}-d.digests"), backups.path(f"{second}-d.digests"))
    else:
        os.remove(backups.path(f"{second}-d.digests"))
    found = verify(backups, status=3)
    assert found["points"][0]["good"] and not found["points"][1]["good"]


# ---- restore ------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["out.raw", "out.qcow2"])
def test_restore_every_point(name, made, tmp_path):
    for point, raw in zip(made.points, made.raws):
        out = tmp_path / name
        stillpoint("restore", made.dir, out, "--at", point, "--force")
        flat = tmp_path / "flat.raw"
        qemu_img("convert", "-O", "raw", out, flat)
        assert content(flat) == raw
        qemu_img("compare", out, made.image(point))
        if name.endswith("qcow2"):
            qemu_img("check", out)
        assert os.stat(out).st_blocks * 512 < 7 * MiB


def test_restore_the_last_point_and_one_before_a_time(made, tmp_path):
    stillpoint("restore", made.dir, tmp_path / "a.raw")
    assert content(tmp_path / "a.raw") == made.raws[-1]
    stillpoint("restore", made.dir, tmp_path / "b.raw", "--at", "2026-12-02T12:00:00Z",
               "--disk", "d")
    assert content(tmp_path / "b.raw") == made.raws[1]
    assert "no disk 'e'" in fails("restore", made.dir, tmp_path / "c.raw", "--disk", "e")


def test_restore_overwrites_only_when_told(made, tmp_path):
    out = tmp_path / "a.raw"
    out.write_bytes(b"mine")
    assert "--force" in fails("restore", made.dir, out)
    assert content(out) == b"mine"
    stillpoint("restore", made.dir, out, "--force")
    assert content(out) == made.raws[-1]


def test_restore_to_an_export(made, tmp_path):
    export = tmp_path / "e.raw"
    export.write_bytes(b"\xff" * len(made.raws[0]))
    with QemuNbd(tmp_path, export) as peer:
        assert "--force" in fails("restore", made.dir, peer.uri, "--at", made.points[0])
        stillpoint("restore", made.dir, peer.uri, "--at", made.points[0], "--force")
    assert content(export) == made.raws[0]


@pytest.mark.parametrize("name", ["out.raw", "out.qcow2"])
def test_restore_in_place_writes_what_differs(name, made, tmp_path):
    out = tmp_path / name
    stillpoint("restore", made.dir, out, "--at", made.points[0])
    run("qemu-io", "-f", name[4:], "-c", "write -P 9 2M 4k", "-c", "write -P 9 3500k 4k", out)
    done = stillpoint("restore", made.dir, out, "--at", made.points[0], "--in-place",
                      "--progress", "json")
    end = json.loads(done.stdout.splitlines()[-1])
    assert end["event"] == "completed" and end["verified"] and end["written"] == 2 * 65536
    qemu_img("compare", out, made.image(made.points[0]))
    stillpoint("restore", made.dir, out, "--at", made.points[1], "--in-place")
    qemu_img("compare", "-f", name[4:], out, made.image(made.points[1]))
    # It has another size.
    assert "bytes" in fails("restore", made.dir, out, "--in-place")


def test_restore_does_not_write_what_is_damaged(backups, tmp_path):
    image = backups.image(backups.points[0])
    entry = next(e for e in json.loads(qemu_img("map", "--output=json", image).stdout)
                 if e["data"] and e["start"] + e["length"] > 5 * MiB)
    flip(image, 8 * (entry["offset"] + 5 * MiB - entry["start"] + 300000))
    told = fails("restore", backups.dir, tmp_path / "a.raw", "--at", backups.points[0])
    assert f"Bytes {5 * MiB + 4 * 65536} to {5 * MiB + 5 * 65536 - 1}" in told
    assert os.path.basename(image) in told
    assert [n for n in os.listdir(tmp_path) if "a.raw" in n] == []
    # A damaged file of digests is not trusted either.
    flip(image, 8 * (entry["offset"] + 5 * MiB - entry["start"] + 300000))
    flip(backups.path(f"{backups.points[0]}-d.digests"), 8 * 100)
    assert "digests" in fails("restore", backups.dir, tmp_path / "a.raw")


def test_restore_refuses_an_overlay_in_place(made, tmp_path):
    base, top = tmp_path / "base.raw", tmp_path / "top.qcow2"
    base.write_bytes(b"\x11" * SIZE)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
    assert "stands on" in fails("restore", made.dir, top, "--at", made.points[0], "--in-place")


# ---- open and diff --------------------------------------------------------------------------

class Open(Process):
    """`stillpoint open` with its sockets in the directory."""

    def __init__(self, directory, *args):
        self.uri = f"nbd+unix:///d?socket={directory}/nbd.sock"
        super().__init__([BINARY, "open", *args, "--listen", f"unix:{directory}/nbd.sock",
                          "--control", f"{directory}/control.sock", "--scratch-dir",
                          str(directory)], f"{directory}/open.log")
        poll_until("the disk", lambda: "control socket:" in self.log() or not self.running())

    def end(self):
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, self.log()


def test_open_shows_a_point_read_only(made, tmp_path):
    with Open(tmp_path, made.dir, "--at", made.points[1]) as peer:
        run("nbdcopy", peer.uri, tmp_path / "copy.raw")
        assert content(tmp_path / "copy.raw") == made.raws[1]
        assert "is_read_only: true" in run("nbdinfo", peer.uri).stdout
        peer.end()


def test_open_writable_throws_away_what_is_written(made, tmp_path):
    before = {name: content(made.path(name)) for name in made.files()}
    with Open(tmp_path, made.dir, "--writable") as peer:
        run("qemu-io", "-f", "raw", "-c", "write -P 99 1M 1M", peer.uri)
        run("nbdcopy", peer.uri, tmp_path / "copy.raw")
        want = bytearray(made.raws[-1])
        want[MiB:2 * MiB] = b"\x63" * MiB
        assert content(tmp_path / "copy.raw") == bytes(want)
        peer.end()
    assert {name: content(made.path(name)) for name in made.files()} == before
    assert [n for n in os.listdir(tmp_path) if n.startswith("stillpoint-open")] == []


def test_diff_tells_the_leaves_that_changed(made):
    for a in range(4):
        for b in range(4):
            done = stillpoint("diff", made.dir, made.points[a], made.points[b], "--json")
            found = json.loads(done.stdout)
            old, new = leaves_of(made.raws[a]), leaves_of(made.raws[b])
            n = max(len(old), len(new))
            old += [ZERO] * (n - len(old))
            new += [ZERO] * (n - len(new))
            told = set()
            for e in found["extents"]:
                told |= set(range(e["start"] // LEAF, -(-(e["start"] + e["length"]) // LEAF)))
            assert told == {i for i in range(n) if old[i] != new[i]}
            assert found["changed"] == sum(e["length"] for e in found["extents"])
    text = stillpoint("diff", made.dir, made.points[2], made.points[3]).stdout
    assert text.splitlines()[-1].startswith("0 B of")
