# SPDX-License-Identifier: Apache-2.0
"""A backup is the disk as it stood at one instant, whatever clients do meanwhile.

The real program, with several client processes that write, zero, trim and flush without
a pause; backups of every kind are taken of it, steered while they run, and judged by
lib/oracle.py and by qemu-img. A case is one way to set all this up; what varies within it
comes from its seed: one seed a case, or as many as STILLPOINT_SEEDS says.
"""
import contextlib
import json
import os
import random
import time

import disks
import pytest
import stillpoint
from disks import MIB
from live import LiveDisk, seeds, work_folder
from stillpoint import QmpError, qemu_img, run

STEP = 40                    # operations of each writer between two things that are done


def engines():
    return [stillpoint.ENGINE] if stillpoint.ENGINE else ["uring", "pool"]


@pytest.fixture
def work():
    with work_folder() as path:
        yield path


# ---- one backup of a case ----------------------------------------------------------------


class Backup:
    """A target, the job that fills it, and what it has to be at the end."""

    def __init__(self, live, name, sync, kind):
        self.live = live
        self.name = name                     # of the job
        self.sync = sync
        self.format = "raw" if kind == "nbd" else kind
        self.path = os.path.join(live.work, f"{name}.{self.format}")
        # A target that has been there holds something else before.
        self.existing = live.rng.random() < 0.3
        self.remote = kind == "nbd"

    @property
    def backing(self):
        """What the target has to have as its backing file: a path, or None."""
        if self.sync == "none":
            return self.live.disk.path
        below = self.live.disk.backing
        return below.path if self.sync == "top" and below else None

    def make_image(self):
        """With qemu-img, the way a user would for mode=existing or blockdev-backup."""
        rng, size = self.live.rng, self.live.disk.size
        if self.format == "raw":
            disks.write_raw(self.path, size, rng, filled=0.3)
        elif self.backing:
            backing_format = self.live.disk.format if self.sync == "none" else \
                self.live.disk.backing.format
            qemu_img("create", "-q", "-f", "qcow2", "-o", disks.qcow2_options(rng), "-b",
                     self.backing, "-F", backing_format, "-u", self.path, size)
        else:
            disks.make_qcow2(self.path, size, rng)

    def options(self):
        """What a backup may be told, and what must not change its outcome."""
        rng, more = self.live.rng, {}
        if rng.random() < 0.5:
            more["scratch-memory"] = rng.choice([0, 64 * 1024, MIB])
            more["scratch-dir"] = self.live.work
        if rng.random() < 0.3:
            more["x-perf"] = {"max-workers": rng.choice([1, 2, 64])}
        # With little scratch clients have to wait for the copy: it must not be slow.
        self.in_haste = self.sync != "none" and rng.random() < 0.2
        return {**more, "scratch-limit": 2 * MIB} if self.in_haste else {**more, "speed": 4 * MIB}

    def start(self, **options):
        rng, qmp = self.live.rng, self.live.qmp
        args = {"job-id": self.name, "device": "disk", "sync": self.sync,
                **(options or self.options())}
        if self.remote:
            self.make_image()
            _, socket = self.live.start_peer(self.name, "nbdkit", "-f", "-U", "SOCKET", "file",
                                             self.path)
            args.update(target=f"nbd+unix:///?socket={socket}", format="raw", mode="existing")
            command = "drive-backup"
        elif rng.random() < 0.5:
            command = "drive-backup"
            args.update(target=self.path, format=self.format)
            if self.existing:
                self.make_image()
                args["mode"] = "existing"
        else:
            command = "blockdev-backup"
            self.make_image()
            node = f"target-{self.name}"
            image = {"driver": self.format, "node-name": node, "discard": "unmap",
                     "file": {"driver": "file", "filename": self.path}}
            if self.backing:
                image["backing"] = None
            if rng.random() < 0.2:
                image["cache"] = {"direct": True}
            qmp("blockdev-add", image)
            args["target"] = node
        self.asked = time.monotonic_ns()
        qmp(command, args)
        self.answered = time.monotonic_ns()

    def verb(self, command, **args):
        """A command for the job; False when it is over already."""
        try:
            self.live.qmp(command, device=self.name, **args)
            return True
        except QmpError as e:
            assert e.error_class == "DeviceNotActive", e
            return False

    def query(self):
        jobs = self.live.qmp("query-block-jobs")
        return next((j for j in jobs if j["device"] == self.name), None)

    def status(self):
        job = self.query()
        return job["status"] if job else "null"

    def pause_a_while(self):
        """It stands still while it is paused, and the clients go on."""
        if not self.verb("block-job-pause"):
            return
        stillpoint.poll_until("the pause", lambda: self.status() in ("paused", "null"))
        before = self.query()
        self.live.writers.wait_for_more(STEP)
        assert self.query() == before
        if before:
            assert self.verb("block-job-resume")

    def change_speed(self):
        self.verb("block-job-set-speed", speed=self.live.rng.choice([MIB, 8 * MIB, 1]))

    def steer(self):
        rng = self.live.rng
        if self.sync == "none":            # it does not pile up to the end what is captured
            stillpoint.poll_until("captured data to be copied", lambda: self.query()["offset"], 20)
        for _ in range(0 if self.in_haste else rng.randrange(3)):
            self.live.writers.wait_for_more(STEP)
            rng.choice([self.pause_a_while, self.change_speed])()
        self.live.writers.wait_for_more(STEP)

    def finish(self):
        """Let it run to its end, and see that it is a good one. Nobody writes any more if
        what it makes depends on the source."""
        self.verb("block-job-set-speed", speed=0)
        end = "BLOCK_JOB_COMPLETED"
        if self.sync == "none":
            soft_cancel = self.live.rng.random() < 0.3
            assert self.verb("block-job-cancel" if soft_cancel else "block-job-complete")
            end = "BLOCK_JOB_CANCELLED" if soft_cancel else end
        event = self.live.qmp.wait_job(self.name)
        assert event["event"] == end and "error" not in event["data"], event
        assert event["data"]["offset"] == event["data"]["len"], event

    def cancel(self):
        assert self.verb("block-job-cancel", force=True)
        event = self.live.qmp.wait_job(self.name)
        assert event["event"] == "BLOCK_JOB_CANCELLED", event

    def judge(self):
        """The daemon has ended: nobody has the images open."""
        info = image_info(self.path, self.format)
        assert info.get("full-backing-filename") == self.backing, info
        self.live.judge(self.path, self.format, self.asked, self.answered)


def image_info(path, fmt):
    return json.loads(qemu_img("info", "--output=json", "-f", fmt, path).stdout)


# ---- cases ---------------------------------------------------------------------------------


def live_disk(work, source, engine, seed, size=None):
    """With what must not make a difference to clients and backups."""
    live = LiveDisk(work, source, random.Random(seed), engine, size)
    live.source["discard"] = live.rng.choice(["unmap", "ignore"])
    if live.source["discard"] == "unmap":
        live.source["detect-zeroes"] = live.rng.choice(["off", "on", "unmap"])
    if live.rng.random() < 0.2:
        live.source["cache"] = {"direct": True}
    return live


def quiet_backup(live):
    """Nobody writes any more: the backup equals the disk."""
    target = os.path.join(live.work, "quiet.qcow2")
    live.qmp("drive-backup", job_id="quiet", device="disk", sync="full", target=target,
             format="qcow2")
    event = live.qmp.wait_job("quiet")
    assert "error" not in event["data"], event
    return target


def targets(source, sync):
    """Formats that can be the target of such a backup."""
    if sync == "full":
        return ["raw", "qcow2", "nbd"]
    if sync == "top" and "over" not in source:
        return ["raw", "qcow2"]
    return ["qcow2"]


CASES = [(sync, source, target, engine) for sync in ("full", "top", "none")
         for source in disks.KINDS for target in targets(source, sync) for engine in engines()]


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("sync,source,target,engine", CASES,
                         ids=["-".join(c) for c in CASES])
def test_backup_is_the_disk_at_one_instant(work, sync, source, target, engine, seed):
    live = live_disk(work, source, engine, f"{sync} {source} {target} {seed}")
    main, other = Backup(live, "main", sync, target), None
    with live.on_line():
        main.start()
        main.steer()
        if live.rng.random() < 0.5:
            other_sync = live.rng.choice(["full", "top", "none"])
            other = Backup(live, "other", other_sync,
                           live.rng.choice(targets(source, other_sync)))
            other.start()
            other.steer()
        if live.rng.random() < 0.3:
            given_up = Backup(live, "given-up", "full", "qcow2")
            given_up.start(speed=1)
            live.writers.wait_for_more(STEP)
            given_up.cancel()
        if sync != "none":
            main.finish()
        live.writers.wait_for_more(STEP)
        live.writers.stop()
        if sync == "none":
            main.finish()
        if other:
            other.finish()
        quiet = quiet_backup(live)
    main.judge()
    if other:
        other.judge()
    qemu_img("compare", "-f", live.disk.format, "-F", "qcow2", live.disk.path, quiet)


@contextlib.contextmanager
def served_by_nbdkit(live):
    _, socket = live.start_peer("source", "nbdkit", "-f", "-U", "SOCKET", "file", live.disk.path)
    yield {"driver": "nbd", "server": {"type": "unix", "path": socket}}


@contextlib.contextmanager
def block_device(live):
    made = run("losetup", "-f", "--show", live.disk.path, check=False)
    if made.returncode:
        pytest.skip(f"a loop device needs root: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield {"driver": "host_device", "filename": device}
    finally:
        run("losetup", "-d", device)


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("engine", engines())
@pytest.mark.parametrize("place", [served_by_nbdkit, block_device])
def test_disks_that_are_no_files(work, place, engine, seed):
    live = live_disk(work, "raw", engine, f"{place.__name__} {seed}", size=8 * MIB)
    backups = [Backup(live, kind, "full", kind) for kind in ("raw", "qcow2")]
    with place(live) as live.source["file"], live.on_line():
        for backup in backups:
            backup.start()
            backup.steer()
        for backup in backups:
            backup.finish()
    for backup in backups:
        backup.judge()


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("engine", engines())
def test_writes_in_flight_at_the_instant_are_in_or_out_whole(work, engine, seed):
    """Long writes to a slow disk: at every instant each client has one half done, and the
    copy passes by while it lands."""
    live = live_disk(work, "raw", engine, f"in flight {seed}", size=6 * MIB)
    slow = {"op": "write", "delay-ns": 20 * 10**6}
    live.source = {"driver": "raw", "node-name": "disk",
                   "file": {"driver": "fault", "rules": [slow],
                            "file": {"driver": "file", "filename": live.disk.path}}}
    live.pattern = {"stripe": 2 * MIB // live.block, "long": 1}
    backups = [Backup(live, f"backup-{i}", "full", "raw") for i in range(12)]
    with live.on_line():
        for backup in backups:
            backup.start(speed=100 * MIB, **{"x-perf": {"max-chunk": 65536}})
            event = live.qmp.wait_job(backup.name)
            assert "error" not in event["data"], event
        live.writers.stop()
    for backup in backups:
        backup.judge()
