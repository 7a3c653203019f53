# SPDX-License-Identifier: Apache-2.0
"""Dirty bitmaps that an image stores outlive the commands that change it: QEMU reads from them
afterwards what it wrote into them before, and what was changed meanwhile."""
import json
import struct

import pytest
from cli import MiB, QemuNbd, fails, info_of, make_image
from stillpoint import qemu_img, run, stillpoint

GRANULE = 65536


def add_bitmaps(image, *writes):
    """b0 follows these writes, b1 is disabled and has the first granule, b2 is a fine one."""
    qemu_img("bitmap", "--add", "-g", str(GRANULE), image, "b1")
    run("qemu-io", "-c", "read 0 512", "-c", "write -P 1 0 512", image)
    qemu_img("bitmap", "--disable", image, "b1")
    qemu_img("bitmap", "--add", "-g", str(GRANULE), image, "b0")
    qemu_img("bitmap", "--add", "-g", "512", image, "b2")
    if writes:
        run("qemu-io", *[a for w in writes for a in ("-c", w)], image)


def dirty(image, tmp_path):
    """What QEMU says is set in b0 .. b2: sets of granules."""
    result = []
    for name in ("b0", "b1", "b2"):
        with QemuNbd(tmp_path, image, "qcow2", ["-r", "-B", name]) as nbd:
            extents = json.loads(run("nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{name}",
                                     nbd.uri).stdout)
        result.append({g for e in extents if e["type"] & 1 for g in
                       range(e["offset"] // GRANULE,
                             -(-(e["offset"] + e["length"]) // GRANULE))})
    return result


def flags(image):
    data = info_of(image)["format-specific"]["data"]
    return {b["name"]: set(b["flags"]) for b in data["bitmaps"]}


VALID = {"b0": {"auto"}, "b1": set(), "b2": {"auto"}}


def test_rebase_keeps_bitmaps(chain, tmp_path):
    add_bitmaps(chain, "write -P 4 1M 100k")
    before = dirty(chain, tmp_path)
    assert before == [{16, 17}, {0}, {16, 17}]
    stillpoint("rebase", chain, "-b", "base.raw")
    stillpoint("rebase", chain, "-b", "")
    qemu_img("check", chain)
    assert flags(chain) == VALID
    assert dirty(chain, tmp_path) == before


@pytest.mark.parametrize("size, added", [("+1M", set(range(128, 144))), ("+512", {128}),
                                         ("+0", set()), ("-1M", set())])
def test_resize_keeps_bitmaps(size, added, tmp_path):
    """What was added counts as changed."""
    image = make_image(tmp_path / "a.qcow2", 8 * MiB)
    add_bitmaps(image, "write -P 4 1M 100k")
    stillpoint("resize", "--shrink", image, size)
    qemu_img("check", image)
    assert flags(image) == VALID
    assert dirty(image, tmp_path) == [{16, 17} | added, {0}, {16, 17} | added]


def test_commit_keeps_bitmaps_and_marks_what_went_down(tmp_path):
    base = make_image(tmp_path / "base.qcow2", 7 * MiB)
    add_bitmaps(base, "write -P 4 6M 1k")
    top = make_image(tmp_path / "top.qcow2", 8 * MiB, backing=base)
    add_bitmaps(top, "write -P 5 2M 128k")
    stillpoint("commit", top)
    for image in (top, base):
        qemu_img("check", image)
        assert flags(image) == VALID
    assert dirty(top, tmp_path) == [{32, 33}, {0}, {32, 33}]
    grown = set(range(112, 128))
    assert dirty(base, tmp_path) == [{0, 32, 33, 96} | grown, {0}, {0, 32, 33, 96} | grown]


def test_info_of_bitmaps_and_snapshots(tmp_path):
    image = make_image(tmp_path / "a.qcow2", 8 * MiB)
    add_bitmaps(image, "write -P 4 1M 100k")
    qemu_img("snapshot", "-c", "one", image)
    qemu_img("snapshot", "-c", "two", image)
    ours = json.loads(stillpoint("info", "--json", image).stdout)
    del ours["children"]
    theirs = info_of(image)
    theirs.pop("children", None)
    assert ours == theirs
    words = stillpoint("info", image).stdout
    words = words[:words.index("Child node")].splitlines()
    theirs = qemu_img("info", image).stdout.split("Child node")[0].splitlines()
    assert sorted(words) == sorted(theirs)


def test_bitmaps_that_would_fill_the_memory_are_refused(tmp_path):
    """A small image can tell of any number of bitmaps, each of 4 Gbit that are all set."""
    image = make_image(tmp_path / "a.qcow2", 2 << 40)
    qemu_img("bitmap", "--add", "-g", "512", image, "b")
    with open(image, "r+b") as f:
        raw = f.read()
        extension = raw.index(struct.pack(">II", 0x23852875, 24)) + 8
        directory, = struct.unpack_from(">Q", raw, extension + 16)
        table, entries = struct.unpack_from(">QI", raw, directory)
        f.seek(table)
        f.write(struct.pack(">Q", 1) * entries)
    before = open(image, "rb").read()
    for size in ("+0", "+1M"):
        assert "need more than 96 MiB of memory to be kept" in fails("resize", image, size)
    assert open(image, "rb").read() == before
    assert flags(image) == {"b": {"auto"}}
    qemu_img("check", image)
