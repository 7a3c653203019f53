# SPDX-License-Identifier: Apache-2.0
"""commit: what an overlay has goes down, and the disk reads the same all the time. qemu-img and
a flat copy made by it beforehand are the judges."""
import json
import os
import random
import shutil
import signal
import subprocess

import live
import pytest
from cli import MiB, fails, held_open, leaks_at_worst, make_image
from stillpoint import BINARY, poll_until, qemu_img, run, stillpoint


def flat(image, to):
    qemu_img("convert", "-O", "raw", image, to)
    return to


def is_empty(image):
    """Whether nothing is allocated in this layer."""
    return not any(e["depth"] == 0 and e["present"] for e in
                   json.loads(qemu_img("map", "--output=json", image).stdout))


def test_into_the_image_below(chain, tmp_path):
    before = flat(chain, tmp_path / "before.raw")
    words = stillpoint("commit", chain).stdout
    assert "mid.qcow2, and it is empty now" in words
    for image in (chain, tmp_path / "mid.qcow2"):
        qemu_img("check", image)
        qemu_img("compare", image, before)
    assert is_empty(chain)
    assert os.stat(chain).st_blocks * 512 < MiB


def test_keep(chain, tmp_path):
    before = flat(chain, tmp_path / "before.raw")
    content = open(chain, "rb").read()
    stillpoint("commit", "--keep", chain)
    assert open(chain, "rb").read() == content
    qemu_img("compare", tmp_path / "mid.qcow2", before)


@pytest.mark.parametrize("name", ["base.raw", "{}/base.raw", "./sub/../base.raw"])
def test_into_an_image_further_down(name, chain, tmp_path, monkeypatch):
    """It stays as it was, as with qemu-img, since what lies between is of no use by itself."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("sub")
    before = flat(chain, tmp_path / "before.raw")
    content = open(chain, "rb").read()
    words = stillpoint("commit", chain, "--base", name.format(tmp_path)).stdout
    assert words.endswith(", and it stays as it was\n")
    assert open(chain, "rb").read() == content
    for image in (chain, tmp_path / "base.raw"):
        qemu_img("compare", image, before)


def test_the_same_as_qemu_img(chain, tmp_path):
    """Which images of a chain are changed, with and without a base."""
    names = os.listdir(tmp_path)
    for image, below in (("top.qcow2", "mid.qcow2"), ("mid.qcow2", "base.raw")):
        stillpoint("rebase", tmp_path / image, "--unsafe", "--backing", below)
    for args in ([], ["-d"], ["BASE"]):
        changed = []
        for commit, option in ((stillpoint, "--base"), (qemu_img, "-b")):
            work = tmp_path / (commit.__name__ + "".join(args))
            work.mkdir()
            for name in names:
                shutil.copy(tmp_path / name, work)
            commit("commit", *([option, work / "base.raw"] if args == ["BASE"] else args),
                   work / "top.qcow2")
            changed.append({n for n in names
                            if (work / n).read_bytes() != (tmp_path / n).read_bytes()})
        assert changed[0] == changed[1]


def test_into_an_image_further_down_and_keep(chain, tmp_path):
    before = flat(chain, tmp_path / "before.raw")
    content = open(chain, "rb").read()
    stillpoint("commit", chain, "-d", "--base", tmp_path / "base.raw")
    assert open(chain, "rb").read() == content
    for image in (chain, tmp_path / "base.raw"):
        qemu_img("compare", image, before)


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("size", [512, 1000, 65536, 3 * MiB - 512, 5 * MiB])
def test_bases_of_other_lengths(fmt, size, tmp_path):
    """One that is shorter grows; what a longer one has more stays."""
    base = tmp_path / ("base." + fmt)
    if fmt == "raw":
        base.write_bytes(b"b" * size)
    else:
        make_image(base, size, writes=[f"write -P 98 0 {size & ~511}"])
    top = make_image(tmp_path / "top.qcow2", 3 * MiB, backing=base,
                     writes=["write -P 3 2500k 100k", "write -z 32k 64k"])
    whole = flat(base, tmp_path / "base.flat").read_bytes()
    before = flat(top, tmp_path / "before.raw").read_bytes()
    stillpoint("commit", top)
    qemu_img("check", top)
    assert flat(top, tmp_path / "after.raw").read_bytes() == before
    assert flat(base, tmp_path / "base.flat").read_bytes() == before + whole[3 * MiB:]
    assert is_empty(top)


def test_snapshots_inside_an_overlay_are_not_changed_without_a_word(tmp_path):
    base = make_image(tmp_path / "base.raw", 4 * MiB, writes=["write -P 1 0 4M"])
    top = make_image(tmp_path / "top.qcow2", 4 * MiB, backing=base, writes=["write -P 2 0 1M"])
    qemu_img("snapshot", "-c", "s", top)
    make_image(tmp_path / "dummy.raw", MiB)
    before = flat(top, tmp_path / "before.raw")
    contents = [open(image, "rb").read() for image in (top, base)]
    for args in ([], ["--keep"], ["--base", base]):
        assert "'" + top + "' has 1 snapshot inside" in fails("commit", *args, top)
    assert [open(image, "rb").read() for image in (top, base)] == contents
    stillpoint("commit", "--change-snapshots", top)
    qemu_img("check", top)
    qemu_img("compare", top, before)
    qemu_img("snapshot", "-a", "s", top)
    qemu_img("check", top)
    qemu_img("compare", top, before)


def test_compressed_overlays(tmp_path):
    base = make_image(tmp_path / "base.raw", 4 * MiB, writes=["write -P 1 0 4M"])
    src = make_image(tmp_path / "src.raw", 4 * MiB, writes=["write -P 1 0 4M", "write -P 2 1M 1M"])
    qemu_img("convert", "-c", "-O", "qcow2", "-B", base, "-F", "raw", src, tmp_path / "top.qcow2")
    stillpoint("commit", tmp_path / "top.qcow2")
    qemu_img("check", tmp_path / "top.qcow2")
    qemu_img("compare", base, src)
    assert is_empty(tmp_path / "top.qcow2")


@pytest.mark.parametrize("options", ["compat=0.10", "cluster_size=512", "extended_l2=on"])
def test_overlays_of_all_kinds(options, tmp_path):
    base = make_image(tmp_path / "base.qcow2", 3 * MiB, writes=["write -P 1 0 3M"])
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, "-b", base, "-F", "qcow2", top, "6M")
    run("qemu-io", "-c", "write -P 3 100k 4k", "-c", "write -P 4 5M 4k", "-c", "write -z 2M 6k",
        top)
    before = flat(top, tmp_path / "before.raw")
    stillpoint("commit", top)
    for image in (top, base):
        qemu_img("check", image)
        qemu_img("compare", image, before)
    assert is_empty(top)


def test_a_long_chain(tmp_path):
    """Into an image in the middle, and to the bottom."""
    below = make_image(tmp_path / "base.raw", MiB, writes=["write -P 255 0 1M"])
    for i in range(20):
        below = make_image(tmp_path / f"{i}.qcow2", 2 * MiB, backing=below,
                           writes=[f"write -P {i + 1} {i * 60000 // 512 * 512} 512"])
    before = flat(below, tmp_path / "before.raw")
    for name in ("10.qcow2", "base.raw"):
        stillpoint("commit", below, "--base", tmp_path / name)
        qemu_img("check", below)
        for image in (below, tmp_path / name):
            qemu_img("compare", image, before)


@pytest.mark.parametrize("which", ["base", "top"])
def test_images_with_data_files(which, tmp_path):
    for name, backing in (("base", []), ("top", ["-b", "base.qcow2", "-F", "qcow2"])):
        options = ["-o", f"data_file={tmp_path}/{name}.data"] if name == which else []
        qemu_img("create", "-q", "-f", "qcow2", *options, *backing, tmp_path / f"{name}.qcow2",
                 {"base": "3M", "top": "4M"}[name])
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    run("qemu-io", "-c", "write -P 1 0 3M", base)
    run("qemu-io", "-c", "write -P 2 1M 100k", "-c", "write -z 2M 128k", top)
    before = flat(top, tmp_path / "before.raw")
    stillpoint("commit", top)
    for image in (top, base):
        qemu_img("check", image)
        qemu_img("compare", image, before)
    assert is_empty(top)


@pytest.mark.parametrize("seed", live.seeds())
def test_random_chains(seed, tmp_path):
    """Long chains of odd sizes, into any image of them; qemu-img commits a copy."""
    rnd = random.Random(seed)
    for _ in range(3):
        names, below = [], None
        for i in range(rnd.randrange(2, 8)):
            fmt = "qcow2" if below or rnd.random() < .5 else "raw"
            size = rnd.randrange(1, 4 * MiB // 512) * 512
            writes = []
            for _ in range(3):
                off = rnd.randrange(size // 512) * 512
                length = min(size - off, rnd.choice([512, 65536, 700 * 1024]))
                writes.append(rnd.choice([f"write -P {rnd.randrange(1, 255)} {off} {length}",
                                          f"write -z {off} {length}"]))
            names.append(f"{i}.{fmt}")
            make_image(tmp_path / names[-1], size, backing=below, writes=writes)
            below = tmp_path / names[-1]
        top = below
        before = flat(top, tmp_path / "before.raw")
        base = tmp_path / rnd.choice(names[:-1])
        stillpoint("commit", top, "--base", base)
        qemu_img("check", top)
        qemu_img("compare", top, before)
        size = os.path.getsize(before)
        flat(base, tmp_path / "base.flat")
        with open(tmp_path / "base.flat", "rb") as f, open(before, "rb") as g:
            assert f.read(size) == g.read()
        for f in names + ["before.raw", "base.flat"]:
            os.unlink(tmp_path / f)


@pytest.mark.parametrize("args, words, status", [
    (["base.raw"], "there is nowhere to commit to", 1),
    (["top.qcow2", "--base", "other.raw"], "does not stand on 'other.raw'", 1),
    (["top.qcow2", "--base", "top.qcow2"], "does not stand on 'top.qcow2'", 1),
    (["none.qcow2"], "No such file", 1),
    ([], "something is missing", 2),
])
def test_commit_says_why_not(args, words, status, chain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in fails("commit", *args, status=status)


def test_commit_keeps_off_images_in_use(chain, tmp_path):
    contents = {n: open(tmp_path / n, "rb").read() for n in os.listdir(tmp_path)}
    for image in (chain, tmp_path / "mid.qcow2"):
        with held_open(image):
            assert "is open in another process" in fails("commit", chain)
    assert {n: open(tmp_path / n, "rb").read() for n in os.listdir(tmp_path)} == contents


@pytest.mark.parametrize("seed", live.seeds())
def test_commit_killed_at_any_moment(seed, tmp_path):
    """kill -9: the overlay reads the same, and the same command goes on with it."""
    rnd = random.Random(seed)
    base = make_image(tmp_path / "base.qcow2", 40 * MiB, writes=["write -P 1 0 20M"])
    mid = make_image(tmp_path / "mid.qcow2", 64 * MiB, backing=base,
                     writes=["write -P 2 10M 30M", "write -z 1M 1M"])
    top = make_image(tmp_path / "top.qcow2", 64 * MiB, backing=mid, writes=["write -P 3 5M 20M"])
    before = flat(top, tmp_path / "before.raw")
    command = [BINARY, "commit", top, "--base", base]
    for _ in range(6):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as p:
            try:
                p.wait(rnd.uniform(0, .3))
            except subprocess.TimeoutExpired:
                p.kill()
        for image in (top, base):
            leaks_at_worst(image)
        qemu_img("compare", top, before)
        if p.returncode == 0:
            break
    stillpoint("commit", top, "--base", base)
    qemu_img("compare", top, before)
    qemu_img("compare", base, before)


def test_commit_cancelled_leaves_both_valid(work):
    """Ctrl-C while it copies; the same command goes on with it."""
    base = make_image(os.path.join(work, "base.raw"), 256 * MiB)
    top = make_image(os.path.join(work, "top.qcow2"), 256 * MiB, backing=base,
                     writes=["write -P 1 0 256M"])
    with subprocess.Popen([BINARY, "commit", top], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        poll_until("the copy", lambda: os.stat(base).st_blocks > 4096 or p.poll() is not None)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate()
    assert p.returncode == 130, (out, err)
    assert "the same command goes on with it" in err
    qemu_img("check", top)
    assert not is_empty(top)
    stillpoint("commit", top)
    qemu_img("check", top)
    assert is_empty(top)
    qemu_img("compare", top, base)
