# SPDX-License-Identifier: Apache-2.0
"""snapshot, and what other commands tell of snapshots and bitmaps inside an image, with qemu-img
as the judge."""
import json

import nbd
from cli import MiB, Serve, fails, held_open, make_image
from stillpoint import qemu_img, run, stillpoint


def listed(image):
    return json.loads(stillpoint("snapshot", "list", "--json", image).stdout)


def qemu_info(image):
    return json.loads(qemu_img("info", "--output=json", image).stdout)


def image_with(tmp_path, *snapshots):
    """Before each of the snapshots the first MiB is filled with its number, from 1."""
    image = make_image(tmp_path / "a.qcow2", 4 * MiB)
    for i, name in enumerate(snapshots, 1):
        run("qemu-io", "-f", "qcow2", "-c", f"write -P {i} 0 1M", image)
        qemu_img("snapshot", "-c", name, image)
    return image


def holds(image, byte, *options):
    """Whether the first MiB is of this byte, as qemu-img reads it."""
    raw = f"{image}.raw"
    qemu_img("convert", *options, "-f", "qcow2", "-O", "raw", image, raw)
    with open(raw, "rb") as f:
        return f.read(MiB) == bytes([byte]) * MiB


def test_list_is_that_of_qemu_img(tmp_path):
    image = image_with(tmp_path, "one", "two words")
    assert listed(image) == qemu_info(image)["snapshots"]
    ours = stillpoint("snapshot", "list", image).stdout
    assert ours == qemu_img("snapshot", "-l", image).stdout
    assert ours in stillpoint("info", image).stdout
    info = json.loads(stillpoint("info", "--json", image).stdout)
    assert info["snapshots"] == qemu_info(image)["snapshots"]


def test_create_apply_delete(tmp_path):
    image = image_with(tmp_path, "one", "two")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 3 0 1M", image)
    assert stillpoint("snapshot", "create", image, "three").stdout == ""
    assert [s["name"] for s in qemu_info(image)["snapshots"]] == ["one", "two", "three"]
    assert [s["id"] for s in listed(image)] == ["1", "2", "3"]
    stillpoint("snapshot", "apply", image, "one")
    assert holds(image, 1) and holds(image, 2, "-l", "two") and holds(image, 3, "-l", "three")
    qemu_img("snapshot", "-a", "three", image)
    assert holds(image, 3)
    left = json.loads(stillpoint("snapshot", "delete", "--json", image, "2").stdout)
    assert [s["name"] for s in left] == ["one", "three"]
    qemu_img("snapshot", "-d", "three", image)
    stillpoint("snapshot", "delete", image, "snapshot.name=one")
    assert listed(image) == []
    assert stillpoint("snapshot", "list", image).stdout == ""
    assert holds(image, 3)
    qemu_img("check", "-q", image)


def test_others_look_at_a_snapshot(tmp_path):
    image = image_with(tmp_path, "one", "two")
    raw = tmp_path / "one.raw"
    qemu_img("convert", "-l", "one", "-O", "raw", image, raw)
    stillpoint("compare", "--snapshot-a", "one", image, raw)
    stillpoint("convert", "-l", "one", image, tmp_path / "flat.raw")
    assert raw.read_bytes() == (tmp_path / "flat.raw").read_bytes()
    assert stillpoint("compare", image, raw, check=False).returncode == 1
    for name in ("one", "two"):
        mapped = json.loads(stillpoint("map", "--json", "--snapshot", name, image).stdout)
        assert mapped[0]["length"] == MiB and mapped[0]["data"]
    assert "has no snapshot 'no'" in fails("map", "--snapshot", "no", image)
    assert "only qcow2 images have snapshots" in fails("map", "--snapshot", "one", raw)


def test_serve_puts_a_snapshot_on_line(tmp_path):
    image = image_with(tmp_path, "one", "two")
    with Serve(tmp_path, "--read-only", "--snapshot", "one", image) as s:
        h = nbd.NBD()
        h.connect_uri(s.uri("a"))
        assert h.is_read_only() and h.pread(MiB, 0) == b"\1" * MiB
        h.shutdown()
    assert "add --read-only" in fails("serve", "--snapshot", "one", image, status=2)


def test_what_is_refused(tmp_path):
    image = image_with(tmp_path, "one")
    assert "already: choose another name" in fails("snapshot", "create", image, "one")
    assert "has no snapshot 'none'" in fails("snapshot", "delete", image, "none")
    assert "needs the NAME" in fails("snapshot", "apply", image, status=2)
    assert "none of list, create" in fails("snapshot", "take", image, status=2)
    raw = make_image(tmp_path / "b.raw", MiB)
    assert "only qcow2 images have snapshots" in fails("snapshot", "list", raw)
    with held_open(image):
        assert "open in another process" in fails("snapshot", "create", image, "two")
        assert "--force-share" in fails("snapshot", "list", image)
        assert len(json.loads(stillpoint("snapshot", "list", "--json", "-U", image).stdout)) == 1


def test_info_tells_bitmaps(tmp_path):
    image = make_image(tmp_path / "a.qcow2", 4 * MiB)
    assert "    bitmaps:" not in stillpoint("info", image).stdout
    qemu_img("bitmap", "--add", image, "b0")
    qemu_img("bitmap", "--add", "--disable", "-g", "4k", image, "b1")

    def specific(info):
        return json.loads(info)["format-specific"]["data"]["bitmaps"]

    assert specific(stillpoint("info", "--json", image).stdout) == \
        qemu_info(image)["format-specific"]["data"]["bitmaps"]
    ours, theirs = stillpoint("info", image).stdout, qemu_img("info", image).stdout
    for line in theirs[theirs.index("    bitmaps:"):theirs.index("    refcount bits")].splitlines():
        assert line in ours.splitlines()


def test_a_bad_snapshot_is_told_and_costs_only_itself(tmp_path):
    image = image_with(tmp_path, "one", "two")
    with open(image, "r+b") as f:
        f.seek(64)
        table = int.from_bytes(f.read(8), "big")
        f.seek(table + 6)
        f.write(b"\2\0")                         # the L1 table of the first, not on a cluster
    done = stillpoint("snapshot", "list", "--json", image)
    assert json.loads(done.stdout) == qemu_info(image)["snapshots"]
    assert "snapshot 'one' (id '1') cannot be used" in done.stderr and "'two'" not in done.stderr
    assert "snapshot 0 l1_offset" in stillpoint("check", image, check=False).stderr
    assert "cannot be used" in fails("snapshot", "delete", image, "one")
    stillpoint("snapshot", "apply", image, "two")
    assert holds(image, 2) and [s["name"] for s in listed(image)] == ["one", "two"]
