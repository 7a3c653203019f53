# SPDX-License-Identifier: Apache-2.0
"""Persistent dirty bitmaps of qcow2 images go on from QEMU to us and back: what one has recorded,
cleared, merged or removed the other knows. The judges are qemu-img info, and nbdinfo over
qemu-nbd."""
import json

from cli import MiB, QemuNbd, fails, info_of, make_image
from stillpoint import Daemon, qemu_img, run, stillpoint

GRANULE = 65536


def stored(image):
    """Flags and granularity of the bitmaps in an image, as QEMU tells them."""
    data = info_of(image)["format-specific"]["data"]
    return {b["name"]: (set(b["flags"]), b["granularity"]) for b in data.get("bitmaps", [])}


def dirty(image, name, tmp_path):
    """The dirty granules, as QEMU tells them."""
    with QemuNbd(tmp_path, image, "qcow2", ["-r", "-B", name]) as nbd:
        extents = json.loads(run("nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{name}",
                                 nbd.uri).stdout)
    return {g for e in extents if e["type"] & 1
            for g in range(e["offset"] // GRANULE, -(-(e["offset"] + e["length"]) // GRANULE))}


def bitmaps(qmp):
    """What query-named-block-nodes tells of node "disk"."""
    node, = (n for n in qmp("query-named-block-nodes", flat=True) if n["node-name"] == "disk")
    return {b.pop("name"): b for b in node.get("dirty-bitmaps", [])}


class Served(Daemon):
    """A daemon with the image as node "disk"."""

    def __init__(self, directory, image, **options):
        super().__init__(directory)
        self.add_file("disk", image, "qcow2", **options)

    def write(self, *commands):
        run("qemu-io", "-f", "raw", *[a for c in commands for a in ("-c", c)],
            self.serve("disk")("disk"))

    def bitmap(self, verb, name, **more):
        self.qmp(f"block-dirty-bitmap-{verb}", node="disk", name=name, **more)


def test_bitmaps_go_to_and_fro(tmp_path):
    image = make_image(tmp_path / "a.qcow2", 8 * MiB)
    for name in "ours", "cleared", "removed":
        qemu_img("bitmap", "--add", "-g", str(GRANULE), image, name)
    qemu_img("bitmap", "--add", "--disable", "-g", "4k", image, "off")
    run("qemu-io", "-c", "write 1M 64k", image)

    with Served(tmp_path, image) as daemon:
        assert bitmaps(daemon.qmp)["ours"] == {
            "count": GRANULE, "granularity": GRANULE, "recording": True, "busy": False,
            "persistent": True}
        assert not bitmaps(daemon.qmp)["off"]["recording"]
        daemon.bitmap("clear", "cleared")
        daemon.bitmap("remove", "removed")
        daemon.bitmap("add", "new", persistent=True, granularity=GRANULE)
        daemon.write("write 3M 1k", "discard 5M 64k")
        daemon.qmp("block-dirty-bitmap-merge", node="disk", target="off", bitmaps=["ours", "new"])
    qemu_img("check", image)
    assert stored(image) == {"ours": ({"auto"}, GRANULE), "cleared": ({"auto"}, GRANULE),
                             "off": (set(), 4096), "new": ({"auto"}, GRANULE)}
    written = {48} | ({80} if 80 in dirty(image, "new", tmp_path) else set())
    assert dirty(image, "new", tmp_path) == dirty(image, "cleared", tmp_path) == written
    assert dirty(image, "ours", tmp_path) == dirty(image, "off", tmp_path) == written | {16}

    run("qemu-io", "-c", "write 7M 64k", image)
    qemu_img("bitmap", "--remove", image, "cleared")
    qemu_img("bitmap", "--disable", image, "new")
    with Served(tmp_path, image) as daemon:
        found = bitmaps(daemon.qmp)
        assert set(found) == {"ours", "off", "new"}
        assert found["ours"]["count"] == (len(written) + 2) * GRANULE
        assert not found["new"]["recording"]
        daemon.bitmap("enable", "new")
        daemon.write("write 0 512")
    assert dirty(image, "new", tmp_path) == written | {112, 0}
    qemu_img("check", image)


def test_in_use_and_read_only(tmp_path):
    image = make_image(tmp_path / "a.qcow2", 8 * MiB)
    qemu_img("bitmap", "--add", "-g", str(GRANULE), image, "b")
    before = open(image, "rb").read()
    with Served(tmp_path, image, **{"read-only": True}) as daemon:
        assert bitmaps(daemon.qmp)["b"]["count"] == 0
    assert open(image, "rb").read() == before
    flags = open(image, "rb").read().index(b"b", 1 << 18) - 24 + 12
    with open(image, "r+b") as f:
        f.seek(flags)
        f.write((3).to_bytes(4, "big"))
    assert stored(image) == {"b": ({"auto", "in-use"}, GRANULE)}
    with Served(tmp_path, image) as daemon:
        assert bitmaps(daemon.qmp)["b"]["inconsistent"]
        daemon.bitmap("remove", "b")
    assert stored(image) == {}
    qemu_img("check", image)


def test_the_command_is_that_of_qemu_img(tmp_path):
    """The same orders to both leave the same bitmaps."""
    images = [make_image(tmp_path / f"{who}.qcow2", 8 * MiB) for who in ("qemu", "ours")]
    other = make_image(tmp_path / "other.qcow2", 8 * MiB)
    qemu_img("bitmap", "--add", "-g", str(GRANULE), other, "far")
    run("qemu-io", "-c", "write 4M 64k", other)
    orders = (["--add", "-g", "64k", "a"], ["--add", "--disable", "-g", "512", "b"],
              ["--add", "c"], ["--enable", "b"], "write 1M 4k", ["--clear", "a"],
              ["--disable", "c"], ["--merge", "b", "a"],
              ["--merge", "far", "-b", other, "-F", "qcow2", "a"], ["--remove", "c"],
              ["--add", "a"], ["--remove", "nope"], ["--merge", "nope", "a"],
              ["--add", "-g", "100", "d"])
    for image, tool in zip(images, (qemu_img, stillpoint)):
        outcome = []
        for order in orders:
            if isinstance(order, str):
                run("qemu-io", "-c", order, image)
                continue
            *options, name = order
            outcome.append(tool("bitmap", *options, image, name, check=False).returncode)
        assert outcome == [0] * 9 + [1] * 4
        qemu_img("check", image)
    assert stored(images[0]) == stored(images[1])
    for name in "a", "b":
        assert dirty(images[0], name, tmp_path) == dirty(images[1], name, tmp_path)
    assert "only qcow2" in fails("bitmap", "--add", make_image(tmp_path / "r.raw", MiB), "x")
    assert "say what to do" in fails("bitmap", images[1], "a", status=2)
