# SPDX-License-Identifier: Apache-2.0
"""create, with qemu-img as the judge of what it makes."""
import json
import os
import signal
import subprocess

import pytest
from cli import MiB, fails, held_open, info_of, make_image
from stillpoint import BINARY, poll_until, qemu_img, run, stillpoint


# ---- create ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, expected", [
    ([], {"compat": "1.1", "refcount-bits": 16}),
    (["--compat", "0.10"], {"compat": "0.10", "refcount-bits": 16}),
    (["--cluster-size", "512", "--refcount-bits", "1"], {"compat": "1.1", "refcount-bits": 1}),
    (["--cluster-size", "2M", "--refcount-bits", "64"], {"compat": "1.1", "refcount-bits": 64}),
])
def test_create_makes_what_was_asked_for(options, expected, tmp_path):
    image = tmp_path / "a.qcow2"
    stillpoint("create", image, "100M", *options)
    qemu_img("check", image)
    info = json.loads(qemu_img("info", "--output=json", image).stdout)
    assert info["virtual-size"] == 100 * MiB
    if "--cluster-size" in options:
        assert info["cluster-size"] == {"512": 512, "2M": 2 * MiB}[options[1]]
    data = info["format-specific"]["data"]
    assert {k: data[k] for k in expected} == expected


def test_create_raw_is_sparse(tmp_path):
    image = tmp_path / "a.img"
    stillpoint("create", image, "1G")
    st = os.stat(image)
    assert (st.st_size, st.st_blocks) == (1 << 30, 0)


def test_create_over_a_backing_file_takes_its_size(chain, tmp_path):
    stillpoint("create", tmp_path / "new.qcow2", "--backing", "top.qcow2")
    info = json.loads(qemu_img("info", "--output=json", tmp_path / "new.qcow2").stdout)
    assert info["virtual-size"] == 8 * MiB
    assert (info["backing-filename"], info["backing-filename-format"]) == ("top.qcow2", "qcow2")
    qemu_img("compare", tmp_path / "new.qcow2", chain)


def test_create_wants_to_know_what_a_backing_file_is(chain, tmp_path):
    os.rename(chain, tmp_path / "top.img")
    words = fails("create", tmp_path / "new.qcow2", "--backing", "top.img")
    assert "say --backing-format" in words
    stillpoint("create", tmp_path / "new.qcow2", "--backing", "top.img", "--backing-format",
               "qcow2")


def test_create_leaves_what_is_there_alone(tmp_path):
    image = make_image(tmp_path / "a.raw", writes=["write -P 5 0 64k"])
    assert "exists: choose another name, or overwrite it with --force" in \
        fails("create", image, "1M")
    assert os.path.getsize(image) == 8 * MiB
    stillpoint("create", image, "1M", "--force")
    assert os.path.getsize(image) == MiB
    assert open(image, "rb").read() == bytes(MiB)


@pytest.mark.parametrize("args, words", [
    (["nodir/a.qcow2", "1M"], "Cannot create 'nodir/a.qcow2': No such file or directory"),
    (["a.qcow2", "1M", "--cluster-size", "1000"], "luster size"),
    (["a.qcow2", "1M", "--refcount-bits", "3"], "efcount"),
    (["a.qcow2", "1M", "--backing", "none.raw"], "The backing file: Could not open 'none.raw'"),
    (["/dev/null", "1M"], "is neither a file nor a block device"),
])
def test_create_says_why_not(args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in fails("create", *args)
    assert os.listdir(tmp_path) == []


def test_create_keeps_off_an_image_in_use(tmp_path):
    image = make_image(tmp_path / "a.qcow2", writes=["write -P 5 0 64k"])
    with held_open(image):
        assert "is open in another process" in fails("create", image, "1M", "--force")
    qemu_img("check", image)


# ---- create -o ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options, expected", [
    (["compat=0.10"], {"compat": "0.10"}),
    (["compat=v3,cluster_size=4k", "refcount_bits=64"], {"compat": "1.1", "refcount-bits": 64}),
    (["refcount_bits=8", "refcount_bits=32"], {"refcount-bits": 32}),
    (["compression_type=zlib,lazy_refcounts=off,extended_l2=no"], {"compression-type": "zlib"}),
    (["lazy_refcounts=on"], {"lazy-refcounts": True}),
    (["extended_l2=on,cluster_size=128k"], {"extended-l2": True}),
    (["compression_type=zstd"], {"compression-type": "zstd"}),
])
def test_create_takes_the_keys_of_qemu_img(options, expected, tmp_path):
    """One option or several; of the same key the last one counts."""
    ours, theirs = tmp_path / "a.qcow2", tmp_path / "b.qcow2"
    flags = [arg for o in options for arg in ("-o", o)]
    stillpoint("create", ours, "100M", *flags)
    qemu_img("create", "-q", "-f", "qcow2", *flags, theirs, "100M")
    qemu_img("check", ours)
    a, b = info_of(ours), info_of(theirs)
    for info in (a, b):
        del info["filename"], info["actual-size"]
    assert a == b
    assert {k: a["format-specific"]["data"][k] for k in expected} == expected


@pytest.mark.parametrize("raw", ["on", "off"])
def test_create_with_a_data_file(raw, tmp_path):
    """The file with the data is made beside the image, and not written over by accident."""
    image, data = tmp_path / "a.qcow2", tmp_path / "a.data"
    args = ["create", image, "3000000", "-o", f"data_file=a.data,data_file_raw={raw}"]
    stillpoint(*args)
    subprocess.run(["qemu-img", "check", "a.qcow2"], cwd=tmp_path, check=True)   # as QEMU looks
    described = info_of(image)
    assert described["format-specific"]["data"]["data-file"] == "a.data"
    assert described["format-specific"]["data"]["data-file-raw"] == (raw == "on")
    assert data.stat().st_size == described["virtual-size"] == 3000320
    data.write_bytes(b"precious")
    assert "a.data' exists" in fails("create", tmp_path / "b.qcow2", "1M", "-o", "data_file=a.data")
    assert not (tmp_path / "b.qcow2").exists()
    assert data.read_bytes() == b"precious"
    stillpoint(*args, "--force")
    assert data.read_bytes() == bytes(3000320)


def test_create_with_a_backing_file_among_the_keys(chain, tmp_path):
    new = tmp_path / "new.qcow2"
    stillpoint("create", new, "-o", "backing_file=top.qcow2,backing_fmt=qcow2")
    qemu_img("compare", new, chain)
    stillpoint("create", "--force", new, "9M", "-o", "backing_file=base.raw")
    assert info_of(new)["backing-filename-format"] == "raw"


@pytest.mark.parametrize("name, args, words, status", [
    ("a.qcow2", ["-o", "colour=red"], "Parameter 'colour' is unexpected", 2),
    ("a.qcow2", ["-o", "compat=2.0"], "Parameter 'compat' does not accept value '2.0'", 2),
    ("a.qcow2", ["-o", "cluster_size=many"], "Parameter 'cluster_size' expects", 2),
    ("a.qcow2", ["-o", "refcount_bits"], "Expected '=' after parameter 'refcount_bits'", 2),
    ("a.qcow2", ["-o", "encryption=on"], "Encrypted images are not supported", 2),
    ("a.qcow2", ["-o", "encrypt.format=luks,encrypt.key-secret=s0"],
     "Encrypted images are not supported", 2),
    ("a.qcow2", ["-o", "cluster_size=64k", "--cluster-size", "64k"], "leave one out", 2),
    ("a.qcow2", ["-o", "backing_fmt=raw"], "backing_fmt without backing_file", 2),
    ("a.qcow2", ["-o", "cluster_size=3k"], "power of two", 1),
    ("a.qcow2", ["-o", "extended_l2=on,cluster_size=8k"], "at least 16384 bytes", 1),
    ("a.qcow2", ["-o", "extended_l2=on,compat=v2"], "compatibility level 1.1", 1),
    ("a.raw", ["-o", "cluster_size=64k"], "Parameter 'cluster_size' is unexpected", 2),
    ("a.raw", ["-o", "preallocation=metadata"], "has no metadata", 2),
])
def test_create_refuses_keys_by_name(name, args, words, status, tmp_path):
    assert words in fails("create", tmp_path / name, "1M", *args, status=status)
    assert os.listdir(tmp_path) == []


def test_create_lists_the_keys(tmp_path):
    keys = stillpoint("create", "-f", "qcow2", "-o", "help").stdout
    for key in ("cluster_size=<size>", "extended_l2=<on|off>", "compression_type=<zlib|zstd>"):
        assert key in keys
    keys = stillpoint("create", tmp_path / "a.raw", "-o", "help").stdout
    assert "preallocation=<off|" in keys and "cluster_size" not in keys


@pytest.mark.parametrize("how", ["falloc", "full"])
@pytest.mark.parametrize("size", [3 * MiB, 3 * MiB + 513])
def test_create_a_raw_image_that_has_its_space(how, size, tmp_path):
    image = tmp_path / "a.raw"
    stillpoint("create", image, size, "--preallocation", how)
    st = os.stat(image)
    assert st.st_size == size and st.st_blocks * 512 >= size
    assert image.read_bytes() == bytes(size)
    # Over an old image too: nothing of it is left.
    image.write_bytes(b"x" * 100000)
    stillpoint("create", "--force", image, size, "-o", f"preallocation={how}")
    assert image.read_bytes() == bytes(size) and os.stat(image).st_blocks * 512 >= size


@pytest.mark.parametrize("name", ["a.raw", "a.qcow2"])
def test_create_cancelled_leaves_nothing(name, work):
    """Ctrl-C while the space is written."""
    image = os.path.join(work, name)
    with subprocess.Popen([BINARY, "create", image, "400G", "--preallocation", "full"], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        poll_until("the writing", lambda: p.poll() is not None or
                   (os.path.exists(image) and os.stat(image).st_blocks > 16384))
        p.send_signal(signal.SIGINT)
        out, err = p.communicate()
    assert p.returncode == 130, (out, err)
    assert "Nothing is left of it" in err
    assert os.listdir(work) == []


@pytest.mark.parametrize("how", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("options, size", [
    ([], 40 * MiB), (["cluster_size=512"], 3 * MiB + 512), (["extended_l2=on"], 9 * MiB + 512),
    (["compat=0.10,cluster_size=2M"], 5 * MiB), (["refcount_bits=1"], 0),
])
def test_create_a_qcow2_image_that_has_its_clusters(how, options, size, tmp_path):
    image = tmp_path / "a.qcow2"
    stillpoint("create", image, size, "--preallocation", how,
               *[arg for o in options for arg in ("-o", o)])
    qemu_img("check", image)
    info = info_of(image)
    assert info["virtual-size"] == size
    if how == "metadata":
        assert info["actual-size"] < 8 * MiB
    else:
        assert info["actual-size"] >= size
    if "extended_l2=on" not in options:
        entries = json.loads(qemu_img("map", "--output=json", image).stdout)
        assert all(e["present"] and "offset" in e for e in entries if e["length"])
    # Nothing moves when it is written, and nothing but what is written changes.
    was = os.path.getsize(image)
    if size:
        run("qemu-io", "-c", f"write -P 7 {size - 1024} 1024", "-c", "write -P 8 700k 300k", image)
        flat = bytearray(size)
        flat[size - 1024:] = b"\7" * 1024
        flat[700 * 1024:1000 * 1024] = b"\10" * (300 * 1024)
        (tmp_path / "flat.raw").write_bytes(flat)
        qemu_img("compare", image, tmp_path / "flat.raw")
        qemu_img("check", image)
    assert os.path.getsize(image) <= max(was, -(-was // (1 << 21)) << 21)


def test_preallocation_over_a_backing_file_needs_subclusters(chain, tmp_path):
    new = tmp_path / "new.qcow2"
    words = fails("create", new, "-b", "top.qcow2", "--preallocation", "metadata", status=2)
    assert "would hide the backing file" in words and not new.exists()
    stillpoint("create", new, "-b", "top.qcow2", "-o", "preallocation=metadata,extended_l2=on")
    qemu_img("check", new)
    qemu_img("compare", new, chain)
    run("qemu-io", "-c", "write -P 9 100k 10k", new)
    run("qemu-io", "-c", "write -P 9 100k 10k", chain)
    qemu_img("compare", new, chain)
