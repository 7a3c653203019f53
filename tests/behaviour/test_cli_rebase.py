# SPDX-License-Identifier: Apache-2.0
"""rebase: a disk reads the same before and after, whatever it stands on. qemu-img and a flat
copy made by it beforehand are the judges."""
import json
import os
import random
import signal
import subprocess

import live
import pytest
from cli import MiB, fails, held_open, leaks_at_worst, make_image
from stillpoint import BINARY, poll_until, qemu_img, run, stillpoint


def flat(image, to):
    qemu_img("convert", "-O", "raw", image, to)
    return to


def backing_of(image):
    info = json.loads(qemu_img("info", "--output=json", "-U", image).stdout)
    return info.get("backing-filename"), info.get("backing-filename-format")


def reads_as(image, raw):
    qemu_img("check", image)
    qemu_img("compare", image, raw)


def test_from_one_chain_to_another(chain, tmp_path):
    before = flat(chain, tmp_path / "before.raw")
    other = make_image(tmp_path / "other.raw", 8 * MiB,
                       writes=["write -P 1 256k 512k", "write -P 7 4M 1M"])
    stillpoint("rebase", chain, "--backing", "other.raw")
    assert backing_of(chain) == ("other.raw", "raw")
    reads_as(chain, before)
    # What the new one has too was not copied.
    entries = json.loads(qemu_img("map", "--output=json", chain).stdout)
    assert any(e["depth"] == 1 and e["data"] for e in entries)
    qemu_img("compare", other, other)


def test_snapshots_inside_an_overlay_are_not_changed_without_a_word(chain, tmp_path):
    qemu_img("snapshot", "-c", "s", chain)
    before, content = flat(chain, tmp_path / "before.raw"), open(chain, "rb").read()
    for backing in ("base.raw", ""):
        said = fails("rebase", chain, "--backing", backing)
        assert "has 1 snapshot inside" in said and "--change-snapshots" in said
    assert open(chain, "rb").read() == content
    stillpoint("rebase", chain, "--backing", "base.raw", "--change-snapshots")
    reads_as(chain, before)
    stillpoint("rebase", chain, "--unsafe", "--backing", "./base.raw")


def test_to_an_image_further_down_copies_only_what_lies_between(chain, tmp_path):
    before = flat(chain, tmp_path / "before.raw")
    words = stillpoint("rebase", chain, "-b", "base.raw").stdout
    assert words.endswith("came from what it stood on\n")
    assert backing_of(chain) == ("base.raw", "raw")
    reads_as(chain, before)
    depths = {e["start"]: e["depth"] for e in
              json.loads(qemu_img("map", "--output=json", chain).stdout)}
    assert depths[0] == 1                 # base.raw's own is still base.raw's


def test_to_an_image_that_stands_on_the_old_one(tmp_path):
    base = make_image(tmp_path / "base.raw", 8 * MiB, writes=["write -P 1 0 4M"])
    top = make_image(tmp_path / "top.qcow2", 8 * MiB, backing=base, writes=["write -P 2 0 64k"])
    make_image(tmp_path / "mid.qcow2", 8 * MiB, backing=base, writes=["write -P 3 1M 128k"])
    before = flat(top, tmp_path / "before.raw")
    words = stillpoint("rebase", top, "-b", "mid.qcow2").stdout
    assert "128 KiB came" in words
    reads_as(top, before)


def test_to_nothing(chain, tmp_path):
    before = flat(chain, tmp_path / "before.raw")
    stillpoint("rebase", chain, "--backing", "")
    assert backing_of(chain) == (None, None)
    os.unlink(tmp_path / "mid.qcow2")
    reads_as(chain, before)


def test_from_nothing(tmp_path):
    top = make_image(tmp_path / "top.qcow2", 8 * MiB, writes=["write -P 2 1M 1M"])
    make_image(tmp_path / "base.raw", 5 * MiB, writes=["write -P 1 512k 1M", "write -P 1 3M 2M"])
    before = flat(top, tmp_path / "before.raw")
    stillpoint("rebase", top, "-b", "base.raw")
    reads_as(top, before)


@pytest.mark.parametrize("old, new", [
    (1, 511), (511, 1), (1, 3 * MiB), (3 * MiB, 1), (65536, MiB + 512), (MiB + 512, 65536),
    (MiB + 512, 3 * MiB - 1), (3 * MiB - 1, MiB + 512), (3 * MiB - 1, 3 * MiB),
    (MiB + 512, MiB + 512)])
def test_backing_files_of_other_lengths(old, new, tmp_path):
    """Ends inside of clusters and sectors; the overlay is shorter, longer or as long."""
    for name, size, byte in (("old.raw", old, b"o"), ("new.raw", new, b"n")):
        (tmp_path / name).write_bytes(byte * size)
    for size in (MiB, 3 * MiB):
        top = make_image(tmp_path / "top.qcow2", size, backing=tmp_path / "old.raw",
                         writes=["write -P 5 192k 10k"])
        before = flat(top, tmp_path / "before.raw")
        stillpoint("rebase", top, "-b", "new.raw")
        reads_as(top, before)


@pytest.mark.parametrize("options", ["compat=0.10", "cluster_size=512", "cluster_size=2M",
                                     "extended_l2=on", "extended_l2=on,cluster_size=2M"])
def test_overlays_of_all_kinds(options, tmp_path):
    make_image(tmp_path / "old.qcow2", 3 * MiB, writes=["write -P 1 0 1M", "write -z 1M 128k"])
    make_image(tmp_path / "new.raw", 7 * MiB, writes=["write -P 2 0 7M"])
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, "-b", "old.qcow2", "-F", "qcow2", top,
             "6M")
    run("qemu-io", "-c", "write -P 3 100k 4k", "-c", "write -P 4 5M 4k", "-c", "write -z 2M 6k",
        top)
    before = flat(top, tmp_path / "before.raw")
    stillpoint("rebase", top, "-b", "new.raw")
    reads_as(top, before)


def test_zeros_stay_zeros_and_take_no_space(tmp_path):
    """Zeros in the old one over data in the new one: written as zero, not as data."""
    make_image(tmp_path / "old.raw", 64 * MiB, writes=["write -P 1 0 1M"])
    make_image(tmp_path / "new.raw", 80 * MiB, writes=["write -P 2 0 80M"])
    top = make_image(tmp_path / "top.qcow2", 80 * MiB, backing=tmp_path / "old.raw")
    before = flat(top, tmp_path / "before.raw")
    stillpoint("rebase", top, "-b", "new.raw")
    reads_as(top, before)
    assert os.stat(top).st_blocks * 512 < 3 * MiB


@pytest.mark.parametrize("hole", [(64, 68), (68, 72)])
def test_holes_smaller_than_clusters(hole, tmp_path):
    """What both read as zero at the border of the old file ends inside a cluster of the
    overlay; the new file has more than a piece of data behind it."""
    make_image(tmp_path / "old.raw", 68 * 1024, writes=["write -P 1 0 64k"])
    begin, end = hole
    make_image(tmp_path / "new.raw", 5 * MiB,
               writes=[f"write -P 2 0 {begin}k", f"write -P 3 {end}k {5 * 1024 - end}k"])
    top = make_image(tmp_path / "top.qcow2", 5 * MiB, backing=tmp_path / "old.raw")
    before = flat(top, tmp_path / "before.raw")
    stillpoint("rebase", top, "-b", "new.raw")
    reads_as(top, before)


@pytest.mark.parametrize("seed", live.seeds())
def test_random_chains(seed, tmp_path):
    """Long chains of odd sizes, rebased up and down and to strangers, again and again."""
    rnd = random.Random(seed)
    for round_no in range(2):
        names = []
        for family in "ab":
            below = None
            for i in range(rnd.randrange(1, 7)):
                fmt = "qcow2" if below or rnd.random() < .5 else "raw"
                name = f"{family}{i}.{fmt}"
                size = rnd.randrange(1, 4 * MiB // 512) * 512
                writes = []
                for _ in range(3):
                    off = rnd.randrange(size // 512) * 512
                    length = min(size - off, rnd.choice([512, 65536, 700 * 1024]))
                    writes.append(rnd.choice([f"write -P {rnd.randrange(1, 255)} {off} {length}",
                                              f"write -z {off} {length}"]))
                make_image(tmp_path / name, size, backing=below, writes=writes)
                names.append(name)
                below = tmp_path / name
        top = make_image(tmp_path / "top.qcow2", rnd.randrange(1, 5 * MiB // 512) * 512,
                         backing=tmp_path / rnd.choice(names))
        before = flat(top, tmp_path / "before.raw")
        for _ in range(3):
            stillpoint("rebase", top, "-b", rnd.choice(names + [""]))
            reads_as(top, before)
        for f in names + ["top.qcow2", "before.raw"]:
            os.unlink(tmp_path / f)


def long_chain(tmp_path, length):
    """base.raw under so many overlays, each with a sector of its own."""
    below = make_image(tmp_path / "base.raw", 2 * MiB, writes=["write -P 255 0 1M"])
    for i in range(length):
        below = make_image(tmp_path / f"{i}.qcow2", 2 * MiB, backing=below,
                           writes=[f"write -P {i + 1} {i * 50000 // 512 * 512} 512"])
    return below


def test_a_long_chain(tmp_path):
    """From the top to the bottom, to the middle, to nothing."""
    top = long_chain(tmp_path, 24)
    before = flat(top, tmp_path / "before.raw")
    infos = json.loads(stillpoint("info", "--json", "--chain", top).stdout)
    assert len(infos) == 25
    for backing in ("base.raw", "12.qcow2", ""):
        stillpoint("rebase", top, "-b", backing)
        reads_as(top, before)


def test_an_overlay_with_a_data_file(tmp_path):
    base = make_image(tmp_path / "base.raw", 4 * MiB, writes=["write -P 1 0 3M"])
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/top.data",
             "-b", base, "-F", "raw", top)
    run("qemu-io", "-c", "write -P 2 1M 100k", "-c", "write -z 2M 128k", top)
    before = flat(top, tmp_path / "before.raw")
    make_image(tmp_path / "new.raw", 5 * MiB, writes=["write -P 3 0 5M"])
    for backing in ("new.raw", ""):
        stillpoint("rebase", top, "-b", backing)
        reads_as(top, before)


def test_unsafe_only_changes_the_name(chain, tmp_path):
    content = flat(chain, tmp_path / "before.raw")
    os.mkdir(tmp_path / "moved")
    os.rename(tmp_path / "mid.qcow2", tmp_path / "moved" / "mid.qcow2")
    os.rename(tmp_path / "base.raw", tmp_path / "moved" / "base.raw")
    make_image(tmp_path / "other.raw", 8 * MiB)
    assert "only moved or renamed, say --unsafe" in fails("rebase", chain, "-b", "other.raw")
    stillpoint("rebase", chain, "--unsafe", "-b", "moved/mid.qcow2")
    assert backing_of(chain) == ("moved/mid.qcow2", "qcow2")
    run("qemu-img", "rebase", "-u", "-b", "base.raw", "-F", "raw", tmp_path / "moved/mid.qcow2")
    reads_as(chain, content)
    stillpoint("rebase", chain, "-u", "-b", "")
    assert backing_of(chain) == (None, None)
    qemu_img("check", chain)


@pytest.mark.parametrize("args, words, status", [
    (["base.raw", "-b", "mid.qcow2"], "is a raw image, which stands on nothing", 1),
    (["top.qcow2"], "on what?", 2),
    (["top.qcow2", "-b", "none.raw"], "The new backing file: Could not open", 1),
    (["top.qcow2", "-b", "nbd://localhost/x"], "is not a file", 2),
    (["top.qcow2", "-b", "", "-F", "raw"], "without a backing file", 2),
    (["mid.qcow2", "-b", "top.qcow2"], "they cannot stand on each other", 1),
    (["mid.qcow2", "-b", "mid.qcow2"], "they cannot stand on each other", 1),
])
def test_rebase_says_why_not(args, words, status, chain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = {n: open(n, "rb").read() for n in os.listdir(tmp_path)}
    assert words in fails("rebase", *args, status=status)
    assert {n: open(n, "rb").read() for n in os.listdir(tmp_path)} == contents


@pytest.mark.parametrize("mode", [[], ["--unsafe"]])
def test_an_image_with_a_raw_data_file_stands_on_nothing(mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)         # QEMU takes names of data files from here
    make_image(tmp_path / "base.raw", MiB)
    top = tmp_path / "top.qcow2"
    stillpoint("create", top, "1M", "-o", "data_file=top.data,data_file_raw=on")
    assert "such images stand on nothing" in fails("rebase", top, "-b", "base.raw", *mode)
    assert backing_of(top) == (None, None)
    stillpoint("rebase", top, "-b", "", *mode)
    qemu_img("check", top)


def test_rebase_keeps_off_an_image_in_use(chain, tmp_path):
    with held_open(chain):
        assert "is open in another process" in fails("rebase", chain, "-b", "base.raw")
        assert "is open in another process" in fails("rebase", chain, "-u", "-b", "base.raw")
    assert backing_of(chain)[0].endswith("mid.qcow2")


@pytest.mark.parametrize("seed", live.seeds())
def test_rebase_killed_at_any_moment(seed, tmp_path):
    """kill -9: the overlay reads the same, and the same command goes on with it."""
    rnd = random.Random(seed)
    make_image(tmp_path / "old.raw", 64 * MiB, writes=["write -P 1 0 40M", "write -P 2 50M 5M"])
    make_image(tmp_path / "new.raw", 80 * MiB, writes=["write -P 3 1M 79M"])
    top = make_image(tmp_path / "top.qcow2", 72 * MiB, backing=tmp_path / "old.raw",
                     writes=["write -P 4 10M 1M"])
    before = flat(top, tmp_path / "before.raw")
    command = [BINARY, "rebase", top, "-b", "new.raw"]
    for _ in range(6):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as p:
            try:
                p.wait(rnd.uniform(0, .3))
            except subprocess.TimeoutExpired:
                p.kill()
        leaks_at_worst(top)
        qemu_img("compare", top, before)
        if p.returncode == 0:
            break
    stillpoint(*command[1:])
    qemu_img("compare", top, before)
    assert backing_of(top)[0] == "new.raw"


def test_rebase_cancelled_leaves_the_image_as_it_was(work):
    """Ctrl-C while it copies; the same command goes on with it."""
    make_image(os.path.join(work, "old.raw"), 256 * MiB, writes=["write -P 1 0 256M"])
    make_image(os.path.join(work, "new.raw"), 256 * MiB)
    top = make_image(os.path.join(work, "top.qcow2"), 256 * MiB,
                     backing=os.path.join(work, "old.raw"))
    was = os.path.getsize(top)
    with subprocess.Popen([BINARY, "rebase", top, "-b", "new.raw"], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        poll_until("the copy", lambda: os.path.getsize(top) > was + MiB or p.poll() is not None)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate()
    assert p.returncode == 130, (out, err)
    assert "reads as before" in err
    assert backing_of(top)[0].endswith("old.raw")
    qemu_img("check", top)
    qemu_img("compare", top, os.path.join(work, "old.raw"))
    stillpoint("rebase", top, "-b", "new.raw")
    reads_as(top, os.path.join(work, "old.raw"))
