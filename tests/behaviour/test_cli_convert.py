# SPDX-License-Identifier: Apache-2.0
"""convert: the same content in an image of another kind, judged by qemu-img."""
import json
import os
import random
import signal
import subprocess

import pytest
from cli import MiB, QemuNbd, fails, files_in, held_open, make_image
from stillpoint import BINARY, poll_until, qemu_img, run, stillpoint

SIZE = 9 * MiB + 512


@pytest.fixture
def raw(tmp_path):
    """Text, noise, zeros that are written, and holes."""
    rng, path = random.Random(7), str(tmp_path / "disk.raw")
    with open(path, "wb") as f:
        f.truncate(SIZE)
        f.write(b"some text " * 200000)
        f.seek(3 * MiB + 1000)
        f.write(rng.randbytes(700000))
        f.seek(5 * MiB)
        f.write(bytes(300000))
        f.seek(SIZE - 700)
        f.write(b"the end" * 100)
    return path


def convert(*args, **kwargs):
    return stillpoint("convert", *args, **kwargs)


def info(path):
    return json.loads(qemu_img("info", "--output=json", path).stdout)


def check(path):
    done = json.loads(qemu_img("check", "--output=json", path).stdout)
    assert "leaks" not in done and "corruptions" not in done, done
    return done


def same(a, b):
    qemu_img("compare", a, b)


@pytest.mark.parametrize("options", [
    [], ["--compress"], ["-c", "-o", "compression_type=zstd"],
    ["-c", "-o", "cluster_size=4k,refcount_bits=4"], ["-c", "-o", "cluster_size=2M"],
    ["-c", "-o", "compat=0.10"], ["-c", "-o", "extended_l2=on"], ["--parallel", "1"],
    ["-o", "cluster_size=512,refcount_bits=64"], ["-o", "preallocation=metadata"],
], ids=" ".join)
def test_raw_to_qcow2_and_back(options, raw, tmp_path):
    there, back = tmp_path / "a.qcow2", tmp_path / "b.raw"
    convert(raw, there, *options)
    found = check(there)
    assert bool(found.get("compressed-clusters")) == ("-c" in options or "--compress" in options)
    same(raw, there)
    convert(there, back)
    assert back.read_bytes() == open(raw, "rb").read()
    assert os.stat(back).st_blocks * 512 < SIZE - 4 * MiB
    assert files_in(tmp_path) == ["a.qcow2", "b.raw", "disk.raw"]


@pytest.mark.parametrize("compressed", ["zlib", "zstd"])
def test_what_qemu_has_compressed(compressed, raw, tmp_path):
    qemu_img("convert", "-c", "-O", "qcow2", "-o", f"compression_type={compressed}", raw,
             tmp_path / "a.qcow2")
    convert(tmp_path / "a.qcow2", tmp_path / "b.qcow2", "-c")
    check(tmp_path / "b.qcow2")
    same(raw, tmp_path / "b.qcow2")
    assert os.path.getsize(tmp_path / "b.qcow2") < os.path.getsize(tmp_path / "a.qcow2") + 131072


def test_a_chain_becomes_flat(raw, tmp_path):
    top = make_image(tmp_path / "top.qcow2", size=None, backing=raw,
                     writes=["write -P 9 1M 100k", "write -z 3M 200k"])
    convert(top, tmp_path / "flat.qcow2")
    assert "backing-filename" not in info(tmp_path / "flat.qcow2")
    same(top, tmp_path / "flat.qcow2")
    check(tmp_path / "flat.qcow2")


@pytest.mark.parametrize("compress", [[], ["--compress"]])
def test_only_what_differs_over_a_backing_file(compress, raw, tmp_path):
    """Whatever the backing file is: shorter, and other data where the disk has zeros."""
    base = make_image(tmp_path / "base.raw", size=SIZE)
    with open(base, "r+b") as f:
        f.write(open(raw, "rb").read())
        f.seek(7 * MiB)
        f.write(b"x" * 5000)
        f.truncate(8 * MiB + 512)
    changed = make_image(tmp_path / "changed.qcow2", size=None, backing=raw,
                         writes=["write -P 9 1M 64k", "write -z 64k 64k"])
    convert(changed, tmp_path / "delta.qcow2", "--backing", "base.raw", *compress)
    found = info(tmp_path / "delta.qcow2")
    assert found["backing-filename"] == "base.raw"
    assert found["backing-filename-format"] == "raw"
    same(changed, tmp_path / "delta.qcow2")
    # One that was changed, and the two of the end, which the backing file has not.
    assert check(tmp_path / "delta.qcow2")["allocated-clusters"] == 3


def test_zeros_take_space_if_that_is_wished(raw, tmp_path):
    convert(raw, tmp_path / "full.raw", "--no-sparse")
    assert os.stat(tmp_path / "full.raw").st_blocks * 512 >= SIZE // 4096 * 4096
    same(raw, tmp_path / "full.raw")
    convert(raw, tmp_path / "full.qcow2", "--no-sparse")
    found = check(tmp_path / "full.qcow2")
    assert found["allocated-clusters"] == found["total-clusters"]
    same(raw, tmp_path / "full.qcow2")


def test_to_and_from_an_nbd_export(raw, tmp_path):
    target = make_image(tmp_path / "export.raw", size=SIZE, writes=["write -P 5 0 9M"])
    with QemuNbd(tmp_path, target) as nbd:
        convert(raw, nbd.uri)
    same(raw, target)
    with QemuNbd(tmp_path, target) as nbd:
        convert(nbd.uri, tmp_path / "b.qcow2", "-c")
    same(raw, tmp_path / "b.qcow2")


def test_into_an_image_that_is_there(raw, tmp_path):
    target = tmp_path / "a.qcow2"
    words = fails("convert", raw, target, "--no-create")
    assert "No such file" in words
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=128k", target, SIZE)
    run("qemu-io", "-c", "write -P 8 6M 1M", target)
    convert(raw, target, "--no-create")
    same(raw, target)
    assert info(target)["cluster-size"] == 131072
    assert check(target)
    # Whoever says that it is zero is believed.
    qemu_img("create", "-q", "-f", "qcow2", target, SIZE)
    run("qemu-io", "-c", "write -P 8 6M 64k", target)
    convert(raw, target, "--no-create", "--target-is-zero")
    run("qemu-io", "-c", "read -P 8 6M 64k", target)
    run("qemu-io", "-c", "write -z 6M 64k", target)
    same(raw, target)


def test_a_target_is_replaced_with_force_only_and_as_a_whole(raw, tmp_path):
    target = tmp_path / "a.qcow2"
    target.write_bytes(b"precious")
    assert "exists: choose another name" in fails("convert", raw, target)
    with pytest.raises(AssertionError):
        convert(tmp_path / "missing.raw", target, "--force")
    assert target.read_bytes() == b"precious"
    convert(raw, target, "--force")
    same(raw, target)


def test_what_belongs_to_the_source_is_not_overwritten(raw, tmp_path):
    top = make_image(tmp_path / "top.qcow2", size=None, backing=raw)
    before = open(raw, "rb").read()
    for source, target in ((raw, raw), (top, raw), (top, top)):
        assert "belongs to the source" in fails("convert", source, target, "--force")
    assert "belongs to the backing file" in \
        fails("convert", make_image(tmp_path / "o.raw", SIZE), top, "--force", "-B", "top.qcow2",
              "-F", "qcow2")
    assert open(raw, "rb").read() == before


def test_an_image_in_use_is_left_alone(raw, tmp_path):
    image = make_image(tmp_path / "busy.qcow2")
    with held_open(image):
        assert "is open in another process" in fails("convert", image, tmp_path / "b.raw")
        assert "is open in some process" in fails("convert", raw, image, "--force")
        convert(image, tmp_path / "b.raw", "--force-share")
    assert files_in(tmp_path) == ["b.raw", "busy.qcow2", "disk.raw"]


def test_a_name_that_another_command_is_writing_to(raw, tmp_path):
    partial = make_image(tmp_path / ".to.raw.stillpoint-partial", MiB, fmt="raw")
    with held_open(partial):
        said = fails("convert", raw, tmp_path / "to.raw")
    assert f"'{tmp_path}/to.raw' is being written already: another backup or convert" in said


def test_what_is_wrong_is_said_with_the_names_that_were_given(raw, tmp_path):
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "small.qcow2", "1M")
    words = fails("convert", raw, tmp_path / "small.qcow2", "-n")
    assert f"source '{raw}' has {SIZE} bytes, target '{tmp_path}/small.qcow2' has" in words
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/data",
             tmp_path / "d.qcow2", SIZE)
    words = fails("convert", raw, tmp_path / "d.qcow2", "-n", "-c")
    assert f"Compression is not supported for this drive '{tmp_path}/d.qcow2'" in words


@pytest.mark.parametrize("args, words", [
    (["a.raw", "-c"], "--compress needs a TARGET that can hold compressed data"),
    (["a.qcow2", "-c", "--no-sparse"], "contradict"),
    (["a.raw", "--backing", "x.qcow2"], "a raw image has no backing file"),
    (["a.qcow2", "-n", "-o", "compat=v3"], "--no-create takes TARGET as it is"),
    (["a.qcow2", "-o", "cluster_siz=4k"], "cluster_siz"),
    (["a.qcow2", "-o", "data_file=x"], "made with 'stillpoint create'"),
    (["a.qcow2", "-F", "raw"], "but no backing file"),
    (["a.qcow2", "-c", "-o", "preallocation=full"], "needs no preallocation"),
    ([], "something is missing"),
])
def test_misuse(args, words, raw, tmp_path):
    args = [tmp_path / args[0], *args[1:]] if args else []
    assert words in fails("convert", raw, *args, status=2)
    assert files_in(tmp_path) == ["disk.raw"]


def test_ctrl_c_leaves_nothing(raw, tmp_path):
    done = subprocess.Popen([BINARY, "convert", raw, tmp_path / "a.qcow2", "--speed", "64k",
                             "--progress", "json"], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)
    poll_until("the target", lambda: len(files_in(tmp_path)) == 2)
    poll_until("the first progress", lambda: "progress" in done.stdout.readline())
    done.send_signal(signal.SIGINT)
    out, err = done.communicate(timeout=60)
    assert done.returncode == 130
    assert "nothing was left behind" in err
    assert json.loads(out.splitlines()[-1]) == {"event": "cancelled"}
    assert files_in(tmp_path) == ["disk.raw"]


def test_a_full_disk_leaves_nothing(raw, tmp_path):
    """A limit on the size of files is the nearest to a full disk without root."""
    done = subprocess.run(["bash", "-c", f"ulimit -f 1000; trap '' XFSZ; exec {BINARY} convert "
                           f"{raw} {tmp_path}/a.qcow2"], capture_output=True, text=True,
                          check=False, timeout=60)
    assert done.returncode == 1
    assert "stillpoint convert: " in done.stderr
    assert files_in(tmp_path) == ["disk.raw"]


def test_progress_as_json(raw, tmp_path):
    lines = convert(raw, tmp_path / "a.qcow2", "--progress", "json").stdout.splitlines()
    events = [json.loads(line) for line in lines]
    assert events[0] == {"event": "started", "source": raw, "format": "qcow2",
                         "target": str(tmp_path / "a.qcow2")}
    assert events[-1]["event"] == "completed"
    assert events[-1]["size"] == SIZE
    assert 2 * MiB < events[-1]["bytes"] < SIZE - 3 * MiB


def test_help_of_options():
    assert "compression_type=<zlib|zstd>" in stillpoint("convert", "-o", "help").stdout
