# SPDX-License-Identifier: Apache-2.0
"""info, map and compare, with qemu-img as the judge of what they say."""
import json
import os

import pytest
from cli import MiB, QemuNbd, fails, held_open, make_image
from stillpoint import qemu_img, run, stillpoint


# ---- info --------------------------------------------------------------------------------------


def json_of(command, *args):
    return json.loads(command(*args).stdout)


def both_info(*args):
    """Ours, which is qemu-img's: one before version 8 does not tell the children."""
    ours = json_of(stillpoint, "info", "--json", *args)
    theirs = json_of(qemu_img, "info", "--output=json", *args)
    for a, b in zip(*[x if isinstance(x, list) else [x] for x in (ours, theirs)], strict=True):
        assert {k: v for k, v in a.items() if k in b or k != "children"} == b
    return ours


def both_print(image):
    ours = stillpoint("info", image).stdout
    theirs = qemu_img("info", image).stdout
    if "Child node" not in theirs:
        ours = ours[:ours.index("Child node")]
    assert sorted(ours.splitlines()) == sorted(theirs.splitlines())


def test_info_says_what_qemu_img_says(chain, tmp_path):
    for image in (chain, tmp_path / "mid.qcow2", tmp_path / "base.raw"):
        both_info(image)
    assert json_of(stillpoint, "info", "--json", "--chain", chain) == \
        both_info("--backing-chain", chain)


@pytest.mark.parametrize("options", ["compat=0.10", "lazy_refcounts=on,refcount_bits=1",
                                     "extended_l2=on", "compression_type=zstd,cluster_size=2M"])
def test_info_of_all_kinds(options, tmp_path):
    image = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, image, "10M")
    both_info(image)
    both_print(image)


def test_info_tells_the_files_below(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = make_image("a.qcow2", MiB)
    (child,) = both_info(image)["children"]
    assert child == {"name": "file", "info": {
        "children": [], "virtual-size": os.path.getsize(image), "filename": image,
        "format": "file", "actual-size": os.stat(image).st_blocks * 512, "dirty-flag": False,
        "format-specific": {"type": "file", "data": {}}}}
    assert "Child node '/file':\n    filename: a.qcow2\n    protocol type: file\n" in \
        stillpoint("info", image).stdout


def test_info_follows_relative_names_from_the_image(chain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("sub")
    make_image("sub/a.qcow2", 1 * MiB)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "sub/b.qcow2")
    ours = both_info("--backing-chain", "sub/b.qcow2")
    assert [i["filename"] for i in ours] == ["sub/b.qcow2", "sub/a.qcow2"]


def test_info_for_people(chain, tmp_path):
    both_print(chain)


def test_info_of_an_image_that_was_not_closed(tmp_path):
    image = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", image, "1M")
    run("qemu-io", "-c", "write 0 64k", "-c", "abort", image, check=False)
    assert both_info(image)["dirty-flag"] is True
    both_print(image)


def test_info_follows_no_name_out_of_the_directory(tmp_path):
    os.mkdir(tmp_path / "a")
    os.mkdir(tmp_path / "b")
    base = make_image(tmp_path / "b" / "base.raw", MiB)
    top = make_image(tmp_path / "a" / "top.qcow2", MiB, backing=base)
    assert "allow it with --image-dir" in fails("info", "--chain", top)
    stillpoint("info", top)
    assert "base.raw" in stillpoint("info", "--chain", "--image-dir", tmp_path / "b", top).stdout


def test_info_of_a_chain_without_end(tmp_path):
    image = make_image(tmp_path / "a.qcow2", MiB)
    qemu_img("rebase", "-u", "-b", image, "-F", "qcow2", image)
    assert "one on itself" in fails("info", "--chain", image)


@pytest.mark.parametrize("make, args, words", [
    (lambda p: None, [], "No such file or directory"),
    (lambda p: p.mkdir(), [], "to be a regular file"),
    (lambda p: p.write_bytes(b"QFI\xfb" + bytes(508)), [], "say --format qcow2, or --format raw"),
    (lambda p: p.write_bytes(b"QFI\xfb" + bytes(508)), ["-f", "qcow2"], "version"),
    (lambda p: p.write_bytes(bytes(512)), ["-f", "qcow2"], "not in qcow2 format"),
    (lambda p: p.write_bytes(bytes(512)), ["-f", "vmdk"], "Unknown format 'vmdk'"),
])
def test_info_of_what_is_no_image(make, args, words, tmp_path):
    make(tmp_path / "a.img")
    assert words in fails("info", *args, tmp_path / "a.img")


def test_a_raw_image_that_a_guest_made_look_like_qcow2(tmp_path):
    image = tmp_path / "a.raw"
    image.write_bytes(b"QFI\xfb" + bytes(4092))
    assert json_of(stillpoint, "info", "--json", "-f", "raw", image)["virtual-size"] == 4096


# ---- map ---------------------------------------------------------------------------------------


def without_compressed(entries):
    """qemu-img before 8.2 does not tell."""
    return [{k: v for k, v in e.items() if k != "compressed"} for e in entries]


def test_map_says_what_qemu_img_says(chain, tmp_path):
    for image in (chain, tmp_path / "mid.qcow2", tmp_path / "base.raw"):
        assert without_compressed(json_of(stillpoint, "map", "--json", image)) == \
            without_compressed(json_of(qemu_img, "map", "--output=json", image))
        ours = stillpoint("map", image).stdout.splitlines()
        theirs = qemu_img("map", image).stdout.splitlines()
        assert [line.split() for line in ours] == [line.split() for line in theirs]


@pytest.mark.parametrize("args", [["-s", "1M"], ["-l", "1M"], ["-s", "100k", "-l", "700k"],
                                  ["-s", "7M", "-l", "1G"]])
def test_map_of_a_part(args, chain):
    args = [*args, chain]
    assert without_compressed(json_of(stillpoint, "map", "--json", *args)) == \
        without_compressed(json_of(qemu_img, "map", "--output=json", *args))


def test_map_from_behind_the_end(chain):
    assert "--start-offset lies behind its end" in fails("map", "-s", "9M", chain)


def test_map_tells_compressed_data(tmp_path):
    raw = make_image(tmp_path / "a.raw", MiB, writes=["write -P 7 0 1M"])
    qemu_img("convert", "-c", "-O", "qcow2", raw, tmp_path / "c.qcow2")
    entries = json_of(stillpoint, "map", "--json", tmp_path / "c.qcow2")
    assert entries and all(e["compressed"] and e["data"] for e in entries)
    assert "compressed" in stillpoint("map", tmp_path / "c.qcow2").stdout


def test_map_of_an_image_without_anything(tmp_path):
    image = make_image(tmp_path / "a.qcow2", MiB)
    assert without_compressed(json_of(stillpoint, "map", "--json", image)) == \
        without_compressed(json_of(qemu_img, "map", "--output=json", image))
    assert json_of(stillpoint, "map", "--json", make_image(tmp_path / "0.qcow2", 0)) == []


def test_map_behind_the_end_of_a_short_backing_file(tmp_path):
    base = make_image(tmp_path / "base.raw", MiB, writes=["write -P 1 0 1M"])
    top = make_image(tmp_path / "top.qcow2", 3 * MiB, backing=base, writes=["write -P 2 2M 64k"])
    entries = json_of(stillpoint, "map", "--json", top)
    assert [(e["start"], e["length"]) for e in entries if e["data"]] == \
        [(0, MiB), (2 * MiB, 65536)]
    assert sum(e["length"] for e in entries) == 3 * MiB
    assert all(e["zero"] for e in entries if not e["data"])


# ---- compare -----------------------------------------------------------------------------------


def both_compare(a, b, *args):
    """Ours and qemu-img's: the same words and the same status."""
    ours = stillpoint("compare", a, b, *args, check=False)
    theirs = qemu_img("compare", *(["-s"] if "--strict" in args else []), a, b, check=False)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
    return ours.returncode, ours.stdout


def test_compare_equal_images_of_any_kind(chain, tmp_path):
    qemu_img("convert", "-O", "raw", chain, tmp_path / "flat.raw")
    qemu_img("convert", "-c", "-O", "qcow2", chain, tmp_path / "small.qcow2")
    for other in ("flat.raw", "small.qcow2", "top.qcow2"):
        assert both_compare(chain, tmp_path / other) == (0, "Images are identical.\n")


@pytest.mark.parametrize("offset", [0, 511, 512 * 1024 - 1, 512 * 1024, 3 * MiB + 5,
                                    8 * MiB - 1])
def test_compare_finds_one_byte(offset, chain, tmp_path):
    flat = tmp_path / "flat.raw"
    qemu_img("convert", "-O", "raw", chain, flat)
    with open(flat, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ 1]))
    done = stillpoint("compare", chain, flat, check=False)
    assert (done.returncode, done.stdout) == (1, f"Content mismatch at offset {offset}!\n")


def test_compare_different_sizes(tmp_path):
    short = make_image(tmp_path / "short.raw", MiB, writes=["write -P 1 0 1M"])
    zeros = make_image(tmp_path / "zeros.raw", 2 * MiB, writes=["write -P 1 0 1M"])
    more = make_image(tmp_path / "more.raw", 2 * MiB,
                      writes=["write -P 1 0 1M", "write -P 2 1500k 4k"])
    assert both_compare(short, zeros)[0] == 0
    assert both_compare(zeros, short)[0] == 0
    assert both_compare(short, more) == (1, "Warning: Image size mismatch!\n"
                                            f"Content mismatch at offset {1500 * 1024}!\n")
    assert both_compare(short, zeros, "--strict") == (1, "Strict mode: Image size mismatch!\n")


def test_compare_strictly(tmp_path):
    a = make_image(tmp_path / "a.qcow2", MiB, writes=["write -P 1 0 64k"])
    b = make_image(tmp_path / "b.qcow2", MiB, writes=["write -P 1 0 64k", "write -z 128k 64k"])
    assert both_compare(a, b)[0] == 0
    assert both_compare(a, a, "--strict")[0] == 0
    done = stillpoint("compare", a, b, "--strict", check=False)
    assert (done.returncode, done.stdout) == \
        (1, f"Strict mode: Offset {128 * 1024} block status mismatch!\n")


def test_compare_cannot_tell(tmp_path):
    image = make_image(tmp_path / "a.raw", MiB)
    assert "No such file" in fails("compare", image, tmp_path / "none.raw", status=2)
    assert "No such file" in fails("compare", tmp_path / "none.raw", image, status=2)


def test_compare_tells_what_it_could_not(tmp_path):
    """3: what is allocated, an L2 entry that may not be; 4: reading, a cluster that cannot be
    unpacked."""
    raw = make_image(tmp_path / "a.raw", MiB, writes=["write -P 7 0 1M"])
    bad = make_image(tmp_path / "bad.qcow2", MiB, writes=["write -P 7 0 1M"])
    with open(bad, "r+b") as f:
        f.seek(40)
        f.seek(int.from_bytes(f.read(8), "big"))
        f.seek(int.from_bytes(f.read(8), "big") & ~(1 << 63))
        f.write((1 << 63 | 0x51200).to_bytes(8, "big"))
    packed = tmp_path / "packed.qcow2"
    qemu_img("convert", "-c", "-O", "qcow2", raw, packed)
    with open(packed, "r+b") as f:
        f.seek(5 * 65536)
        f.write(b"\xff" * (os.path.getsize(packed) - 5 * 65536))
    for image, status in ((bad, 3), (packed, 4)):
        assert qemu_img("compare", image, raw, check=False).returncode == status
        assert "cannot" in fails("compare", image, raw, status=status)


def test_compare_reads_errors_as_errors(tmp_path):
    """A cluster behind the end of the file: the image is broken, not different."""
    image = make_image(tmp_path / "a.qcow2", MiB, writes=["write -P 1 0 1M"])
    os.truncate(image, 256 * 1024)
    other = make_image(tmp_path / "b.raw", MiB, writes=["write -P 1 0 1M"])
    ours = stillpoint("compare", image, other, check=False)
    theirs = qemu_img("compare", image, other, check=False)
    assert (ours.returncode > 0) == (theirs.returncode > 0)


# ---- images that others have open --------------------------------------------------------------


@pytest.mark.parametrize("command", [["info"], ["map"], ["map", "--json"]])
def test_an_image_that_is_being_written(command, tmp_path):
    image = make_image(tmp_path / "a.qcow2", writes=["write -P 1 0 64k"])
    with held_open(image):
        assert "read it as it is now with --force-share" in fails(*command, image)
        stillpoint(*command, "--force-share", image)
        stillpoint(*command, "-U", image)


def test_compare_an_image_that_is_being_written(tmp_path):
    image = make_image(tmp_path / "a.raw")
    with held_open(image):
        assert "--force-share" in fails("compare", image, image, status=2)
        stillpoint("compare", "-U", image, image)


def test_images_over_nbd(tmp_path):
    """An NBD URI stands wherever a file name does."""
    image = make_image(tmp_path / "a.raw", writes=["write -P 6 1M 1M"])
    with QemuNbd(tmp_path, image) as server:
        assert stillpoint("compare", "-U", image, server.uri).stdout == "Images are identical.\n"
        assert json_of(stillpoint, "info", "--json", server.uri)["virtual-size"] == 8 * MiB
        entries = json_of(stillpoint, "map", "--json", server.uri)
        assert MiB in [e["start"] for e in entries if e["data"]]
    assert "Failed to connect to '/nonexistent'" in fails("info",
                                                          "nbd+unix:///e?socket=/nonexistent")


@pytest.mark.parametrize("how", ["missing", "outside"])
def test_info_without_the_data_file(how, tmp_path):
    """What the header says is said all the same, as qemu-img of version 9 does."""
    image, data = tmp_path / "disk.qcow2", tmp_path / "disk.data"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=disk.data,data_file_raw=on", image,
             "8M", cwd=tmp_path)
    whole = json.loads(stillpoint("info", "--json", image).stdout)
    data.unlink()
    if how == "outside":
        data.symlink_to("/etc/hostname")
    done = stillpoint("info", "--json", image)
    info = json.loads(done.stdout)
    reason = info.pop("data-file-error")
    assert ("No such file" if how == "missing" else "option 'data-file'") in reason
    assert [c["name"] for c in info["children"]] == ["file"]
    for key in ("children", "actual-size"):
        del whole[key], info[key]
    assert info == whole
    text = stillpoint("info", image).stdout
    assert "virtual size: 8 MiB" in text and "data file: disk.data" in text
    assert f"Child node '/data-file':\n    not available: {reason}" in text
    assert stillpoint("map", image, check=False).returncode == 1
