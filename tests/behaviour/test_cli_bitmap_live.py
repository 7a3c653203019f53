# SPDX-License-Identifier: Apache-2.0
"""stillpoint bitmap for the disks of a running daemon: the same orders as qemu-img takes for an
image at rest leave the same bitmaps, while clients write; and `--list` of both."""
import json

import pytest
from cli import MiB, QemuNbd, Serve, fails, make_image
from stillpoint import Qmp, qemu_img, run, stillpoint

GRANULE = 65536


@pytest.fixture
def served(tmp_path):
    """A qcow2 and a raw disk, "disk" and "log"."""
    images = [make_image(tmp_path / name, 8 * MiB) for name in ("disk.qcow2", "log.raw")]
    with Serve(tmp_path, *images) as server:
        yield server


def bitmap(server, *args, **kwargs):
    return stillpoint("bitmap", "--control", server.control, *args, **kwargs)


def listed(server, disk="disk"):
    return {b.pop("name"): b for b in
            json.loads(bitmap(server, "--list", "--json", disk).stdout)}


def stored_extents(image, name, tmp_path):
    """What QEMU says is dirty in the image."""
    with QemuNbd(tmp_path, image, "qcow2", ["-r", "-B", name]) as peer:
        return dirty_extents(peer.uri, name)


def dirty_extents(uri, name):
    return [(e["offset"], e["length"]) for e in json.loads(
        run("nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{name}", uri).stdout) if e["type"] & 1]


ORDERS = (["--add", "-g", "64k", "a"], ["--add", "--disable", "-g", "512", "b"], ["--add", "c"],
          ["--enable", "b"], "write 1M 4k", ["--clear", "a"], ["--disable", "c"],
          ["--merge", "b", "a"], "write 6M 1k", ["--remove", "c"], ["--add", "d"],
          ["--clear", "--merge", "b", "--disable", "d"], "write 7M 1k",
          ["--add", "a"], ["--remove", "nope"], ["--merge", "nope", "a"], ["--clear", "nope"],
          ["--add", "-g", "100", "e"])


def test_orders_to_a_daemon_are_those_to_an_image(tmp_path):
    theirs = make_image(tmp_path / "theirs.qcow2", 8 * MiB)
    ours = make_image(tmp_path / "disk.qcow2", 8 * MiB)
    for order in ORDERS:
        if isinstance(order, str):
            run("qemu-io", "-c", order, theirs)
        else:
            qemu_img("bitmap", *order[:-1], theirs, order[-1], check=False)
    outcome = []
    with Serve(tmp_path, ours) as server:
        for order in ORDERS:
            if isinstance(order, str):
                server.write("disk", order)
            else:
                outcome.append(bitmap(server, *order[:-1], "disk", order[-1],
                                      check=False).returncode)
        live = listed(server)
    assert outcome == [0] * 10 + [1] * 5
    qemu_img("check", ours)
    offline = {b.pop("name"): b for b in
               json.loads(stillpoint("bitmap", "--list", "--json", ours).stdout)}
    assert live == offline and set(live) == {"a", "b", "d"}
    assert {n for n in live if live[n]["recording"]} == {"a", "b"}
    for name, extents in (("a", [(MiB, GRANULE), (6 * MiB, GRANULE), (7 * MiB, GRANULE)]),
                          ("b", [(MiB, 4096), (6 * MiB, 1024), (7 * MiB, 1024)]),
                          ("d", [(MiB, GRANULE), (6 * MiB, GRANULE)])):
        assert stored_extents(ours, name, tmp_path) == extents
        assert stored_extents(theirs, name, tmp_path) == extents
        assert live[name]["count"] == sum(length for _, length in extents)


def test_bitmaps_of_another_disk_are_merged(served):
    for disk in "disk", "log":
        bitmap(served, "--add", "-g", "4k", disk, "b")
    served.write("log", "write 5M 8k")
    bitmap(served, "--merge", "b", "-b", "log", "disk", "b")
    assert listed(served)["b"]["count"] == 8192
    failed = bitmap(served, "--merge", "b", "-b", "nope", "disk", "b", check=False)
    assert failed.returncode == 1 and "has no disk 'nope'" in failed.stderr


def test_several_changes_are_one_or_none(served):
    bitmap(served, "--add", "disk", "b")
    served.write("disk", "write 1M 4k")
    before = listed(served)
    failed = bitmap(served, "--clear", "--disable", "--merge", "nope", "disk", "b", check=False)
    assert failed.returncode == 1 and "'nope' not found" in failed.stderr
    failed = bitmap(served, "--add", "--merge", "nope", "disk", "new", check=False)
    assert failed.returncode == 1
    assert listed(served) == before


def test_it_outlives_the_daemon_unless_it_is_volatile(tmp_path):
    image = make_image(tmp_path / "log.raw", 8 * MiB)
    with Serve(tmp_path, image) as server:
        bitmap(server, "--add", "log", "kept")
        bitmap(server, "--add", "--volatile", "log", "gone")
        server.write("log", "write 1M 4k")
        text = bitmap(server, "--list", "log").stdout.splitlines()
        assert [line.split()[0] for line in text] == ["NAME", "kept", "gone"]
        assert "recording, volatile" in text[2] and "volatile" not in text[1]
    with Serve(tmp_path, image) as server:
        assert {n: b["count"] for n, b in listed(server, "log").items()} == {"kept": GRANULE}
        bitmap(server, "--remove", "log", "kept")
        assert bitmap(server, "--list", "log").stdout == "no dirty bitmaps\n"


def test_a_bitmap_in_use_is_told_and_left_alone(served):
    bitmap(served, "--add", "disk", "b")
    with Qmp.connect(served.control) as qmp:
        qmp("block-export-add", {"type": "nbd", "id": "e", "node-name": served_node(qmp, "disk"),
                                 "name": "e", "writable": True, "bitmaps": ["b"]})
        assert "recording, in use" in bitmap(served, "--list", "disk").stdout
        for verb in "--clear", "--remove", "--disable":
            failed = bitmap(served, verb, "disk", "b", check=False)
            assert failed.returncode == 1 and "in use" in failed.stderr


def served_node(qmp, export):
    return next(e["node-name"] for e in qmp("query-block-exports") if e["id"] == export)


def test_what_is_wrong_is_said(served, tmp_path, monkeypatch):
    failed = bitmap(served, "--add", "nope", "b", check=False)
    assert failed.returncode == 1
    assert "has no disk 'nope'; it serves 'disk' and 'log'" in failed.stderr
    failed = bitmap(served, "--list", tmp_path / "disk.qcow2", check=False)
    assert failed.returncode == 1 and "say --control ''" in failed.stderr
    for args, words in ((["disk", "b"], "say what to do"),
                        (["--list", "disk", "b"], "takes no NAME"),
                        (["--list", "--add", "disk", "b"], "nothing else"),
                        (["--add", "disk"], "which bitmap"),
                        (["--json", "--add", "disk", "b"], "--json is for --list"),
                        (["--volatile", "--clear", "disk", "b"], "for --add"),
                        (["--add", "-f", "qcow2", "disk", "b"], "are for images")):
        failed = bitmap(served, *args, check=False)
        assert failed.returncode == 2 and words in failed.stderr
    image = make_image(tmp_path / "rest.qcow2", MiB)
    assert "for a disk of a daemon" in fails("bitmap", "--add", "--volatile", image, "b", status=2)
    # What is set in the environment can be taken back.
    monkeypatch.setenv("STILLPOINT_CONTROL", served.control)
    assert "has no disk" in fails("bitmap", "--add", image, "b")
    stillpoint("bitmap", "--control", "", "--add", image, "b")
    assert "open in another process" in fails("bitmap", "--control", "", "--list",
                                              tmp_path / "disk.qcow2")
    stillpoint("bitmap", "--list", "disk")
