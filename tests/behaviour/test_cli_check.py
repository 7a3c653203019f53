# SPDX-License-Identifier: Apache-2.0
"""check: exit statuses and JSON as qemu-img's, repairs that it finds nothing after, and those
that are refused because something would be lost."""
import json
import os
import struct

import pytest

from cli import MiB, make_image
from stillpoint import qemu_img, run, stillpoint


def leaked(path):
    """An image of which a cluster has a refcount that is too high."""
    image = make_image(path, 8 * MiB, writes=["write -P 1 0 1M"])
    with open(image, "r+b") as f:
        f.seek(0x20000 + 4)
        f.write(b"\0\5")
    return image


def test_statuses_and_json_are_those_of_qemu_img(tmp_path):
    sound = make_image(tmp_path / "sound.qcow2", 8 * MiB, writes=["write -P 1 0 1M"])
    corrupt = make_image(tmp_path / "corrupt.qcow2", 8 * MiB, writes=["write -P 1 0 1M"])
    with open(corrupt, "r+b") as f:
        f.seek(0x20000)
        f.write(b"\0\0" * 8)
    raw = make_image(tmp_path / "disk.raw", MiB)
    for image, status in [(sound, 0), (corrupt, 2), (leaked(tmp_path / "leak.qcow2"), 3),
                          (raw, 63)]:
        ours = stillpoint("check", "--json", image, check=False)
        theirs = qemu_img("check", "--output=json", image, check=False)
        assert (ours.returncode, theirs.returncode) == (status, status)
        if status != 63:
            assert json.loads(ours.stdout) == json.loads(theirs.stdout)
    assert stillpoint("check", tmp_path / "missing.qcow2", check=False).returncode == 1


def test_repair(tmp_path):
    image = leaked(tmp_path / "leak.qcow2")
    done = json.loads(stillpoint("check", "--json", "--repair", "leaks", image).stdout)
    assert done["leaks-fixed"] == 1 and "leaks" not in done
    qemu_img("check", image)
    assert "No errors" in stillpoint("check", image).stdout


# ---- a repair that would lose something is none ----------------------------------------

def peek(image, at, fmt=">Q"):
    with open(image, "rb") as f:
        f.seek(at)
        return struct.unpack(fmt, f.read(struct.calcsize(fmt)))[0]


def poke(image, at, value, fmt=">Q"):
    with open(image, "r+b") as f:
        f.seek(at)
        f.write(struct.pack(fmt, value))


def refuses(image, *words, repairs=("leaks", "all")):
    before = open(image, "rb").read()
    found = json.loads(stillpoint("check", "--json", image, check=False).stdout)
    for repair in repairs:
        done = stillpoint("check", "--repair", repair, "--json", image, check=False)
        assert done.returncode == 1 and json.loads(done.stdout) == found and found["corruptions"]
        assert all(word in done.stderr for word in words), done.stderr
        assert open(image, "rb").read() == before


@pytest.mark.parametrize("at,change", [(0, 512), (0, 1 << 40), (8, 1 << 31)])
def test_a_snapshot_whose_table_is_lost_is_not_given_away(tmp_path, at, change):
    image = make_image(tmp_path / "disk.qcow2", 8 * MiB, writes=["write -P 1 0 1M"])
    qemu_img("snapshot", "-c", "monday", image)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 2 0 1M", image)
    entry, fmt = peek(image, 64) + at, ">I" if at else ">Q"
    right = peek(image, entry, fmt)
    poke(image, entry, right + change, fmt)
    refuses(image, "Nothing was repaired", "stillpoint convert",
            "L1 table" if change == 1 << 40 else "id '1'")
    stillpoint("convert", image, tmp_path / "copy.raw")      # the advice is good
    assert open(tmp_path / "copy.raw", "rb").read(MiB) == b"\2" * MiB
    poke(image, entry, right, fmt)
    qemu_img("check", image)


def test_an_l2_table_behind_the_end_is_not_given_away(tmp_path):
    image = make_image(tmp_path / "disk.qcow2", 8 * MiB, writes=["write -P 1 0 1M"])
    poke(image, peek(image, 40), 1 << 63 | 1 << 40)
    refuses(image, "L2 table", "0x10000000000")


def test_new_refcounts_do_not_lie_where_a_cut_file_had_data(tmp_path):
    image = make_image(tmp_path / "disk.qcow2", 8 * MiB, writes=["write -P 1 0 4M"])
    length = os.stat(image).st_size
    os.truncate(image, length - 2 * MiB)
    poke(image, peek(image, 48), 0)              # no refcounts: they have to be made anew
    refuses(image, f"truncate -s {length}", repairs=["all"])
    os.truncate(image, length)
    assert stillpoint("check", "--repair", "all", image).returncode == 0
    qemu_img("check", image)
    assert stillpoint("convert", image, tmp_path / "copy.raw").returncode == 0
    assert open(tmp_path / "copy.raw", "rb").read(4 * MiB) == b"\1" * 2 * MiB + bytes(2 * MiB)


def test_one_bit_refcounts_do_not_make_a_shared_cluster_ones_own(tmp_path):
    image = str(tmp_path / "disk.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-o", "refcount_bits=1", image, "8M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 128k", image)
    l2 = peek(image, peek(image, 40)) & (1 << 56) - 1
    shared = peek(image, l2) & (1 << 56) - 1
    poke(image, l2, shared)                      # two entries without the flag COPIED
    poke(image, l2 + 8, shared)
    assert stillpoint("check", "--repair", "all", image, check=False).returncode == 2
    assert [peek(image, l2), peek(image, l2 + 8)] == [shared, shared]


# ---- bitmaps -----------------------------------------------------------------------------

def with_bitmaps(path):
    image = make_image(path, 8 * MiB)
    qemu_img("bitmap", "--add", image, "one")
    qemu_img("bitmap", "--add", image, "two")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", image)
    return image


def directory_of(image):
    """Where the header says that the bitmap directory is."""
    data = open(image, "rb").read(65536)
    at = data.index(struct.pack(">II", 0x23852875, 24)) + 8
    return struct.unpack(">Q", data[at + 16:at + 24])[0]


@pytest.mark.parametrize("at,value,fmt", [(12, 1 << 7, ">I"), (16, 9, ">B"), (17, 40, ">B")])
def test_bitmaps_of_unknown_kinds_are_no_error_and_stay(tmp_path, at, value, fmt):
    """qemu-img does not open such images at all; the driver keeps what it does not know."""
    image = with_bitmaps(tmp_path / "disk.qcow2")
    poke(image, directory_of(image) + at, value, fmt)
    poke(image, 0x20000 + 4, 5, ">H")            # a leak to repair
    assert qemu_img("check", image, check=False).returncode == 1
    assert stillpoint("check", image, check=False).returncode == 3
    assert stillpoint("check", "--repair", "all", image).returncode == 0
    assert peek(image, directory_of(image) + at, fmt) == value
    assert peek(image, 88) & 1                   # autoclear: the directory still counts


def test_one_bad_table_entry_does_not_cost_the_other_bitmaps(tmp_path):
    image = with_bitmaps(tmp_path / "disk.qcow2")
    table = peek(image, directory_of(image))
    poke(image, table, 1 << 60)
    poke(image, directory_of(image) + 12, 1, ">I")       # in_use: images with such a one are opened
    ours = json.loads(stillpoint("check", "--json", image, check=False).stdout)
    assert ours["corruptions"] == 1
    assert "Check failed" in qemu_img("check", image, check=False).stderr
    assert stillpoint("check", "--repair", "all", image, check=False).returncode == 2
    listed = json.loads(stillpoint("info", "--json", image).stdout)["format-specific"]["data"]
    assert [b["name"] for b in listed["bitmaps"]] == ["one", "two"]
