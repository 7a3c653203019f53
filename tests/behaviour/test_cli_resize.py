# SPDX-License-Identifier: Apache-2.0
"""resize, with qemu-img as the judge."""
import os
import resource
import signal
import subprocess

import pytest
from cli import MiB, fails, held_open, info_of, make_image
from stillpoint import BINARY, qemu_img, run, stillpoint


@pytest.fixture(params=["raw", "qcow2"])
def image(request, tmp_path):
    return make_image(tmp_path / f"a.{request.param}", 4 * MiB, writes=["write -P 5 0 4M"])


def size_of(image):
    return info_of(image)["virtual-size"]


@pytest.mark.parametrize("size, expected", [
    ("+1M", 5 * MiB), ("9M", 9 * MiB), ("4M", 4 * MiB), ("+0", 4 * MiB), ("+1.5k", 4 * MiB + 1536),
])
def test_grow(size, expected, image, tmp_path):
    stillpoint("resize", image, size)
    assert size_of(image) == expected
    qemu_img("convert", "-O", "raw", image, tmp_path / "flat.raw")
    content = (tmp_path / "flat.raw").read_bytes()
    assert content == b"\x05" * 4 * MiB + bytes(expected - 4 * MiB)


@pytest.mark.parametrize("size", ["-1M", "3M"])
def test_shrinking_has_to_be_meant(size, image):
    words = fails("resize", image, size)
    assert "would be lost: if that is meant, say --shrink" in words
    assert size_of(image) == 4 * MiB


@pytest.mark.parametrize("size", ["-1M", "3M"])
def test_shrink(size, image, tmp_path):
    """What was cut off does not come back."""
    stillpoint("resize", "--shrink", image, size)
    assert size_of(image) == 3 * MiB
    stillpoint("resize", image, "5M")
    if image.endswith("qcow2"):
        qemu_img("check", image)
    qemu_img("convert", "-O", "raw", image, tmp_path / "flat.raw")
    assert (tmp_path / "flat.raw").read_bytes() == b"\5" * 3 * MiB + bytes(2 * MiB)


def test_shrink_below_a_backing_file(tmp_path):
    base = make_image(tmp_path / "base.raw", 4 * MiB, writes=["write -P 1 0 4M"])
    top = make_image(tmp_path / "top.qcow2", 4 * MiB, backing=base, writes=["write -P 2 0 64k"])
    stillpoint("resize", "--shrink", top, "-3000k")
    stillpoint("resize", top, "+3000k")
    qemu_img("check", top)
    qemu_img("convert", "-O", "raw", top, tmp_path / "flat.raw")
    assert (tmp_path / "flat.raw").read_bytes() == \
        b"\2" * 65536 + b"\1" * (4 * MiB - 65536 - 3000 * 1024) + bytes(3000 * 1024)


def test_sizes_are_of_whole_sectors_in_qcow2_only(image):
    stillpoint("resize", image, "+1")
    if image.endswith("qcow2"):
        assert size_of(image) == 4 * MiB + 512
    else:
        assert os.path.getsize(image) == 4 * MiB + 1


def test_grow_over_a_longer_backing_file(tmp_path):
    """What was behind the end of the disk does not come back into sight."""
    base = make_image(tmp_path / "base.raw", 4 * MiB, writes=["write -P 1 0 4M"])
    top = make_image(tmp_path / "top.qcow2", MiB + 512, backing=base)
    stillpoint("resize", top, "6M")
    qemu_img("check", top)
    qemu_img("convert", "-O", "raw", top, tmp_path / "flat.raw")
    assert (tmp_path / "flat.raw").read_bytes() == \
        b"\1" * (MiB + 512) + bytes(5 * MiB - 512)


@pytest.mark.parametrize("how", ["falloc", "full"])
def test_grow_with_space(how, tmp_path):
    image = make_image(tmp_path / "a.raw", MiB)
    stillpoint("resize", "--preallocation", how, image, "+2M")
    st = os.stat(image)
    assert st.st_size == 3 * MiB and 2 * MiB <= st.st_blocks * 512 < 3 * MiB
    assert open(image, "rb").read() == bytes(3 * MiB)


@pytest.mark.parametrize("how", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("extended", ["on", "off"])
def test_grow_a_qcow2_image_with_its_clusters(how, extended, tmp_path):
    """Old clusters that were given up are used again, and what they had does not show."""
    image = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"extended_l2={extended}", image, 4 * MiB + 512)
    run("qemu-io", "-c", "write -P 5 0 4M", "-c", "discard 64k 3M", image)
    stillpoint("resize", "--preallocation", how, image, "+5M")
    qemu_img("check", image)
    assert size_of(image) == 9 * MiB + 512
    qemu_img("convert", "-O", "raw", image, tmp_path / "flat.raw")
    assert (tmp_path / "flat.raw").read_bytes() == \
        b"\5" * 65536 + bytes(3 * MiB) + b"\5" * (MiB - 65536) + bytes(5 * MiB + 512)
    if how != "metadata":
        assert info_of(image)["actual-size"] >= 6 * MiB


def test_bitmaps_stay_when_the_space_is_not_to_be_had(tmp_path):
    """The disk is as it was then, and so are they."""
    image = make_image(tmp_path / "a.qcow2", 4 * MiB, writes=["write -P 5 0 1M"])
    qemu_img("bitmap", "--add", image, "b")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 6 0 64k", image)

    def no_long_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 * MiB, 16 * MiB))

    r = subprocess.run([BINARY, "resize", "--preallocation", "full", image, "+100M"], text=True,
                       capture_output=True, preexec_fn=no_long_files, restore_signals=False)
    assert r.returncode == 1, r
    assert size_of(image) == 4 * MiB
    bitmaps = info_of(image)["format-specific"]["data"]["bitmaps"]
    assert [(b["name"], b["flags"]) for b in bitmaps] == [("b", ["auto"])]
    qemu_img("check", image)


def test_a_disk_without_bytes_has_no_bitmaps(tmp_path):
    image = make_image(tmp_path / "a.qcow2", 4 * MiB)
    qemu_img("bitmap", "--add", image, "b")
    assert "a disk without bytes cannot" in fails("resize", "--shrink", image, "0")
    assert size_of(image) == 4 * MiB
    qemu_img("bitmap", "--remove", image, "b")
    stillpoint("resize", "--shrink", image, "0")
    assert size_of(image) == 0


def test_growing_with_clusters_over_a_backing_file(chain):
    words = fails("resize", "--preallocation", "metadata", chain, "+1M")
    assert "would hide the backing file" in words
    assert size_of(chain) == 8 * MiB


@pytest.mark.parametrize("args, words, status", [
    (["a.raw"], "it takes IMAGE [+|-]SIZE", 2),
    (["a.raw", "much"], "SIZE: 'much' is not a size", 2),
    (["a.raw", "--shrink", "-5M"], "it cannot be 5242880 smaller", 1),
    (["a.raw", "+16E"], "is too large", 2),
    (["a.raw", "+8E"], "more than an image can have", 1),
    (["a.raw", "--preallocation", "metadata", "+1M"], "has no metadata", 1),
    (["a.raw", "--preallocation", "full", "--shrink", "-1M"], "for images that grow", 1),
    (["none.raw", "+1M"], "No such file", 1),
    (["a.raw", "-x"], "there is no option -x", 2),
])
def test_resize_says_why_not(args, words, status, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_image("a.raw", 4 * MiB)
    assert words in fails("resize", *args, status=status)
    assert os.path.getsize("a.raw") == 4 * MiB


def test_resize_keeps_off_an_image_in_use(image):
    with held_open(image):
        assert "is open in another process" in fails("resize", image, "+1M")
