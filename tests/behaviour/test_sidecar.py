# SPDX-License-Identifier: Apache-2.0
"""Persistent dirty bitmaps while a disk is written to: kill -9, other programs, and what
befalls the file that keeps them.

The judge is the disk: a granule that differs from the last backup has to be dirty, and an
incremental backup over the last one has to read as the disk does. STILLPOINT_KILLS is how
often each disk's daemon is killed.
"""
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import zlib

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from live import seeds, work_folder  # noqa: E402
from stillpoint import Daemon, QmpError, poll_until, qemu_img, run, stillpoint  # noqa: E402

nbd = pytest.importorskip("nbd")

MIB = 1 << 20
SIZE = 24 * MIB
GRAIN = 64 * 1024
KILLS = int(os.environ.get("STILLPOINT_KILLS", "5"))
# After a crash a change so soon after the last write cannot be told from one of ours
# (docs/dirty-bitmaps.md, I-S6).
SLACK = 1.0


def image_of(work, fmt):
    return os.path.join(work, f"disk.{fmt}")


def sidecar_of(work, fmt):
    return image_of(work, fmt) + ".bitmaps"


class Disk:
    """A daemon with one disk, exported as "disk" with its bitmap "b"."""

    def __init__(self, work, fmt, *options, writable=True):
        self.work, self.fmt = work, fmt
        for name in "qmp.sock", "nbd.sock":          # of one that was killed
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(work, name))
        self.daemon = Daemon(work, *options)
        self.qmp = self.daemon.qmp
        try:
            # What the kernel still does for a killed process keeps its locks.
            poll_until("the image's locks to go", self.add)
            self.socket = os.path.join(work, "nbd.sock")
            self.qmp("nbd-server-start", {"addr": {"type": "unix", "data": {"path": self.socket}}})
            self.writable = writable
        except BaseException:
            self.daemon.kill()
            raise

    def add(self):
        try:
            self.daemon.add_file("disk", image_of(self.work, self.fmt), self.fmt)
            return True
        except QmpError as e:
            assert "lock" in e.desc, e
            return False

    def export(self):
        self.qmp("block-export-add", type="nbd", id="e", node_name="disk", writable=self.writable)
        return f"nbd+unix:///disk?socket={self.socket}"

    def look(self):
        """Why the bitmap is of no use, and None; or None, and the set of dirty granules."""
        try:
            self.qmp("block-export-add", type="nbd", id="look", node_name="disk", name="look",
                     writable=self.writable, bitmaps=["b"])
        except QmpError as e:
            return e.desc, None
        uri = f"nbd+unix:///look?socket={self.socket}"
        extents = json.loads(run("nbdinfo", "--json", "--map=qemu:dirty-bitmap:b", uri).stdout)
        self.qmp("block-export-del", id="look", mode="hard")
        self.qmp.wait_event("BLOCK_EXPORT_DELETED", id="look")
        return None, {g for e in extents if e["type"] & 1 for g in
                      range(e["offset"] // GRAIN, (e["offset"] + e["length"] - 1) // GRAIN + 1)}

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.daemon.__exit__(*args)


def write_until_killed(uri, rng, daemon):
    """Eight writes at a time, and the daemon is killed at any moment."""
    h = nbd.NBD()
    h.connect_uri(uri)
    killer = threading.Timer(rng.uniform(0.0, 0.15), daemon.popen.kill)
    killer.start()
    narrow = rng.random() < 0.5
    try:
        while True:
            length = 512 * rng.choice([1, 8, 8, 8, 40, 300])
            reach = 2 * MIB if narrow else SIZE
            offset = 512 * rng.randrange((reach - length) // 512)
            h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(rng.randbytes(length))), offset)
            if rng.random() < 0.02:
                h.aio_flush()
            while h.aio_in_flight() > 8:
                h.poll(1000)
    except nbd.Error:
        pass
    killer.join()
    daemon.kill()


def flat(path, fmt, out):
    qemu_img("convert", "-f", fmt, "-O", "raw", path, out)
    return out


def differing(a, b):
    """Granules in which two raw images differ."""
    with open(a, "rb") as fa, open(b, "rb") as fb:
        return {g for g in range(SIZE // GRAIN) if fa.read(GRAIN) != fb.read(GRAIN)}


def incremental(disk, base, work):
    """The next backup over @base: what it restores to, flat."""
    target = os.path.join(work, "inc.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", target)
    disk.qmp("drive-backup", job_id="j", device="disk", sync="incremental", bitmap="b",
             target=target, format="qcow2", mode="existing")
    done = disk.qmp.wait_job("j")
    assert "error" not in done["data"], done
    return flat(target, "qcow2", os.path.join(work, "inc.raw"))


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_kill_at_any_moment(fmt, seed):
    rng = random.Random(seed)
    too_many = kills = 0
    with work_folder() as work:
        base = os.path.join(work, "base.raw")
        qemu_img("create", "-q", "-f", fmt, image_of(work, fmt), SIZE)
        flat(image_of(work, fmt), fmt, base)
        with Disk(work, fmt) as disk:
            disk.qmp("block-dirty-bitmap-add", node="disk", name="b", granularity=GRAIN,
                     persistent=True)
            write_until_killed(disk.export(), rng, disk.daemon)
        while kills < KILLS:
            with Disk(work, fmt) as disk:
                kills += 1
                trouble, dirty = disk.look()
                assert trouble is None, (kills, trouble)
                uri = disk.export()
                now = os.path.join(work, "now.raw")
                run("nbdcopy", uri, now)
                differ = differing(base, now)
                assert differ <= dirty, (kills, sorted(differ - dirty))
                too_many += len(dirty - differ)
                if rng.random() < 0.5:
                    restored = incremental(disk, base, work)
                    assert not differing(restored, now), kills
                    os.replace(restored, base)
                write_until_killed(uri, rng, disk.daemon)
    print(f"\n{fmt}: {too_many / kills:.1f} granules of {SIZE // GRAIN} too many dirty after each "
          f"kill\ntally {kills} kills of a disk with a bitmap")


# ---- other programs --------------------------------------------------------------------


def make(work, fmt, how):
    """A disk with a bitmap, whose daemon ended in good order or was killed."""
    qemu_img("create", "-q", "-f", fmt, image_of(work, fmt), SIZE)
    with Disk(work, fmt) as disk:
        disk.qmp("block-dirty-bitmap-add", node="disk", name="b", granularity=GRAIN,
                 persistent=True)
        run("qemu-io", "-f", "raw", "-c", "write -P 1 1M 64k", disk.export())
        if how == "killed":
            disk.daemon.kill()
    # An image with a place for bitmaps has them when it is closed, and QEMU knows them.
    in_image = fmt == "qcow2" and how == "closed"
    assert os.path.exists(sidecar_of(work, fmt)) == (not in_image)
    if in_image:
        info = json.loads(qemu_img("info", "--output=json", image_of(work, fmt)).stdout)
        assert info["format-specific"]["data"]["bitmaps"] == \
            [{"flags": ["auto"], "name": "b", "granularity": GRAIN}]


def found(work, fmt):
    with Disk(work, fmt) as disk:
        return disk.look()


@pytest.mark.parametrize("how", ["closed", "killed"])
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_nobody_wrote(fmt, how):
    """Looking at an image, reading it, and being started again are no writes."""
    with work_folder() as work:
        make(work, fmt, how)
        for _ in range(2):
            qemu_img("info", "-U", image_of(work, fmt))
            run("qemu-io", "-r", "-f", fmt, "-c", "read 0 64k", image_of(work, fmt))
            assert found(work, fmt) == (None, {MIB // GRAIN})


def rewrite(path, fmt):
    run("qemu-io", "-f", fmt, "-c", "write -P 2 4M 64k", path)


def replace(path, fmt):
    shutil.copy2(path, path + ".copy")
    os.replace(path + ".copy", path)


def dd(path, fmt):
    run("dd", "if=/dev/urandom", f"of={path}", "bs=64k", "seek=64", "count=1", "conv=notrunc")


def copy_over(path, fmt):
    shutil.copy2(path, path + ".copy")
    shutil.copy2(path + ".copy", path)


def touch(path, fmt):
    run("touch", path)


def chmod(path, fmt):
    os.chmod(path, 0o660)


def shorten(path, fmt):
    os.truncate(path, SIZE // 2)


@pytest.mark.parametrize("how", ["closed", "killed"])
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("change, words", [(rewrite, "was changed by another program after"),
                                           (replace, "is another file"),
                                           (shorten, "was changed by another program after"),
                                           (dd, "was changed by another program after"),
                                           (copy_over, "after"),
                                           (touch, "was changed by another program after"),
                                           (chmod, "after")])
def test_others_changed_the_image(fmt, how, change, words):
    if fmt == "qcow2" and change in (shorten, dd, copy_over, touch, chmod):
        pytest.skip("raw images show it; a qcow2 image that is cut cannot be opened")
    if (how, change) in [("closed", copy_over), ("closed", chmod)]:
        words = "mode, name or links were changed after"      # mtime is as it was
    if fmt == "qcow2" and how == "closed":
        pytest.skip("what the image itself vouches for counts: the next test")
    with work_folder() as work:
        make(work, fmt, how)
        if how == "killed" and change != replace:
            at = os.stat(image_of(work, fmt)).st_mtime
            poll_until("a moment later", lambda: time.time() > at + SLACK + 0.2)
        change(image_of(work, fmt), fmt)
        trouble, _ = found(work, fmt)
        assert trouble and "inconsistent" in trouble and words in trouble, trouble


@pytest.mark.parametrize("change, dirty", [(rewrite, {MIB // GRAIN, 4 * MIB // GRAIN}),
                                           (replace, {MIB // GRAIN})])
def test_what_a_closed_image_vouches_for_counts(change, dirty):
    """QEMU follows the bitmaps that are stored in it, and a copy has them too."""
    with work_folder() as work:
        make(work, "qcow2", "closed")
        change(image_of(work, "qcow2"), "qcow2")
        assert found(work, "qcow2") == (None, dirty)


def test_a_snapshot_has_none_of_the_disks_bitmaps():
    """Nor has what is made of the image by another driver."""
    with work_folder() as work:
        image = image_of(work, "qcow2")
        make(work, "qcow2", "killed")
        poll_until("the locks to go", lambda: not subprocess.run(
            ["qemu-img", "snapshot", "-c", "s", image], check=False).returncode)
        with Daemon(work) as daemon:
            below = {"driver": "file", "filename": image, "read-only": True}
            for name, more in [("now", {}), ("then", {"snapshot": "s"})]:
                daemon.qmp("blockdev-add", {"driver": "qcow2", "node-name": name, "file": below,
                                            "read-only": True, **more})
            daemon.qmp("blockdev-add", {"driver": "raw", "node-name": "then-raw", "file": "then",
                                        "read-only": True})
            daemon.qmp("blockdev-add", {"driver": "raw", "node-name": "now-raw", "file": "now",
                                        "read-only": True})
            nodes = {n["node-name"]: n for n in daemon.qmp("query-named-block-nodes")}
            assert [b["name"] for b in nodes["now"]["dirty-bitmaps"]] == ["b"]
            for name in "then", "then-raw", "now-raw":
                assert "dirty-bitmaps" not in nodes[name], nodes[name]


# ---- block devices ------------------------------------------------------------------------


class DeviceDisk(Disk):
    def __init__(self, work, device, *options):
        self.device = device
        super().__init__(work, "raw", "--state-dir", os.path.join(work, "state"), *options)

    def add(self):
        try:
            self.qmp("blockdev-add", {"driver": "raw", "node-name": "disk", "file": {
                "driver": "host_device", "filename": self.device}})
            return True
        except QmpError as e:
            if "lock" not in e.desc:
                raise
            return False

    def listed(self):
        return next(n for n in self.qmp("query-named-block-nodes")
                    if n["node-name"] == "disk")["dirty-bitmaps"][0]


@pytest.fixture
def device(tmp_path):
    """A block device, in a folder that has a state directory."""
    (tmp_path / "state").mkdir()
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, SIZE)
    made = subprocess.run(["losetup", "-f", "--show", path], capture_output=True, text=True,
                          check=False)
    if made.returncode:
        pytest.skip("needs loop devices, and root")
    yield made.stdout.strip()
    run("losetup", "-d", made.stdout.strip())


def use_device(work, device, how, *options):
    with DeviceDisk(work, device, *options) as disk:
        disk.qmp("block-dirty-bitmap-add", node="disk", name="b", granularity=GRAIN,
                 persistent=True)
        run("qemu-io", "-f", "raw", "-c", "write -P 1 1M 64k", disk.export())
        if how == "killed":
            disk.daemon.kill()


EXCLUSIVE = "--exclusive-devices"


@pytest.mark.parametrize("how, change, options, words", [
    ("closed", None, [], None),
    ("closed", dd, [], "was changed by another program after"),
    ("closed", dd, [EXCLUSIVE], "was changed by another program after"),
    ("killed", None, [], "(with --exclusive-devices you say that none does)"),
    ("killed", None, [EXCLUSIVE], None),
])
def test_a_device(tmp_path, device, how, change, options, words):
    use_device(str(tmp_path), device, how)
    if change:
        change(device, "raw")
        os.sync()
    with DeviceDisk(str(tmp_path), device, *options) as disk:
        listed = disk.listed()
        if words:
            assert listed["inconsistent"] and words in listed["inconsistent-reason"]
            assert words in disk.look()[0]
        else:
            assert disk.look() == (None, {MIB // GRAIN})
            assert not {"inconsistent-reason", "over-reported"} & set(listed)


def test_an_exclusive_device_is_not_written_without_its_file(tmp_path, device):
    """Else the file would be believed the next time, without what was written meanwhile."""
    use_device(str(tmp_path), device, "killed", EXCLUSIVE)
    (sidecar,) = (tmp_path / "state").iterdir()
    run("cp", "--sparse=always", sidecar, tmp_path / "kept")
    with open(sidecar, "r+b") as f:
        f.write(bytes(8192))
    with pytest.raises(QmpError, match="remove it to give its bitmaps up"):
        with DeviceDisk(str(tmp_path), device, EXCLUSIVE):
            pass
    with DeviceDisk(str(tmp_path), device) as disk:       # then they are no use in any case
        assert "not found" in disk.look()[0]
    os.replace(tmp_path / "kept", sidecar)
    with DeviceDisk(str(tmp_path), device, EXCLUSIVE) as disk:
        assert disk.look() == (None, {MIB // GRAIN})


def make_of_another_boot(sidecar):
    """What a power cut leaves, as far as this file goes."""
    with open(sidecar, "r+b") as f:
        for at in 0, 4096:
            f.seek(at)
            header = bytearray(f.read(4096))
            header[32:48] = b"of another boot."
            header[12:16] = bytes(4)
            header[12:16] = zlib.crc32(header).to_bytes(4, "big")
            f.seek(at)
            f.write(header)


def test_what_a_power_cut_adds_is_told(tmp_path, device):
    """The whole disk lies in one region, so that all of it counts as dirty."""
    use_device(str(tmp_path), device, "killed", EXCLUSIVE)
    (sidecar,) = (tmp_path / "state").iterdir()
    make_of_another_boot(sidecar)
    with DeviceDisk(str(tmp_path), device, EXCLUSIVE) as disk:
        listed = disk.listed()
        assert (listed["count"], listed["over-reported"]) == (SIZE, SIZE - GRAIN)
        disk.export()
        text = stillpoint("bitmap", "--control", disk.daemon.control, "--list", "disk").stdout
        assert "recording, up to 23.9 MiB too much after a power cut" in text, text
        disk.qmp("block-dirty-bitmap-clear", node="disk", name="b")
        assert "over-reported" not in disk.listed()


# ---- the file ------------------------------------------------------------------------------


def test_files_that_are_no_use():
    with work_folder() as work:
        make(work, "raw", "killed")
        sidecar = sidecar_of(work, "raw")
        with open(sidecar, "r+b") as f:
            f.write(os.urandom(8192))
        with Disk(work, "raw") as disk:
            assert "not found" in disk.look()[0]
            assert "cannot be used" in disk.daemon.log()
            with pytest.raises(QmpError, match="remove that file"):
                disk.qmp("block-dirty-bitmap-add", node="disk", name="c", persistent=True)
            os.unlink(sidecar)
            disk.qmp("block-dirty-bitmap-add", node="disk", name="c", persistent=True)
            disk.qmp("block-dirty-bitmap-remove", node="disk", name="c")
        assert not os.path.exists(sidecar)


def test_full_disk(tmp_path):
    """There is no room for a bit: the guest goes on, and the bitmap says why it does not."""
    mount = tmp_path / "small"
    mount.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none",
                                       str(mount)], check=False).returncode:
        pytest.skip("needs root, to mount")
    try:
        with work_folder() as work:
            qemu_img("create", "-q", "-f", "raw", image_of(work, "raw"), SIZE)
            with Disk(work, "raw", "--state-dir", mount) as disk:
                disk.qmp("block-dirty-bitmap-add", node="disk", name="b", granularity=GRAIN,
                         persistent=True)
                with open(mount / "filler", "wb", buffering=0) as f:
                    with pytest.raises(OSError):
                        while True:
                            f.write(bytes(4096))
                run("qemu-io", "-f", "raw", "-c", "write -P 1 1M 64k", disk.export())
                event = disk.qmp.wait_event("BLOCK_DIRTY_BITMAP_INCONSISTENT")["data"]
                assert (event["node-name"], event["name"]) == ("disk", "b")
                assert "No space left" in event["reason"]
                node = next(n for n in disk.qmp("query-named-block-nodes")
                            if n["node-name"] == "disk")
                assert node["dirty-bitmaps"][0]["inconsistent-reason"] == event["reason"]
                assert "No space left" in disk.look()[0]
                disk.daemon.kill()
            os.unlink(mount / "filler")
            with Disk(work, "raw", "--state-dir", mount) as disk:
                assert "No space left" in disk.look()[0]
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_no_place_for_the_file():
    with work_folder() as work:
        qemu_img("create", "-q", "-f", "raw", image_of(work, "raw"), SIZE)
        with Disk(work, "raw") as disk:
            os.mkdir(sidecar_of(work, "raw") + ".new")
            with pytest.raises(QmpError, match="Could not create"):
                disk.qmp("block-dirty-bitmap-add", node="disk", name="b", persistent=True)
            disk.qmp("block-dirty-bitmap-add", node="disk", name="volatile")
            os.rmdir(sidecar_of(work, "raw") + ".new")


def test_nbd_needs_a_promise(tmp_path):
    """Nobody can tell who else writes to an export."""
    with work_folder() as work:
        qemu_img("create", "-q", "-f", "raw", image_of(work, "raw"), SIZE)
        with Disk(work, "raw") as server:
            options = {"driver": "nbd", "node-name": "n", "export": "disk",
                       "server": {"type": "unix", "path": server.socket}}
            server.export()
            with Daemon(tmp_path) as daemon:
                daemon.qmp("blockdev-add", options)
                with pytest.raises(QmpError, match="--exclusive-devices"):
                    daemon.qmp("block-dirty-bitmap-add", node="n", name="b", persistent=True)
            for again in False, True:
                with Daemon(tmp_path, "--exclusive-devices", "--state-dir", tmp_path) as daemon:
                    daemon.qmp("blockdev-add", options)
                    if not again:
                        daemon.qmp("block-dirty-bitmap-add", node="n", name="b", persistent=True)
                    daemon.qmp("block-dirty-bitmap-clear", node="n", name="b")
