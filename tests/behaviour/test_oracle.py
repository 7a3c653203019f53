# SPDX-License-Identifier: Apache-2.0
"""A backup is the disk as it stood at one instant, whatever clients do meanwhile.

The real program, with several client processes that write, zero, trim and flush without
a pause; backups of every kind are taken of it, steered while they run, and judged by
lib/oracle.py and by qemu-img. A case is one way to set all this up; what varies within it
comes from its seed. One seed a case is run, or as many as STILLPOINT_SEEDS says: "20" is
seeds 1 to 20, "7..7" the seventh alone.
"""
import contextlib
import json
import os
import random
import shutil
import tempfile
import time

import disks
import oracle
import pytest
import stillpoint
from disks import MIB
from stillpoint import Daemon, Process, QmpError, qemu_img

SLOWEST_MS = 5000            # no request of a client may take longer
STEP = 40                    # operations of each writer between two things that are done


def seeds():
    first, _, last = os.environ.get("STILLPOINT_SEEDS", "1").rpartition("..")
    return range(int(first or 1), int(last) + 1)


def engines():
    return [stillpoint.ENGINE] if stillpoint.ENGINE else ["uring", "pool"]


@pytest.fixture
def work():
    """A folder on a disk. Images are large, so it goes at once (pytest keeps its own)."""
    path = tempfile.mkdtemp(prefix="stillpoint-oracle-", dir="/var/tmp")
    yield path
    if not os.environ.get("STILLPOINT_KEEP"):
        shutil.rmtree(path)


# ---- one backup of a case ----------------------------------------------------------------


class Backup:
    """A target, the job that fills it, and what it has to be at the end."""

    def __init__(self, case, name, sync, kind):
        self.case = case
        self.name = name                     # of the job
        self.sync = sync
        self.format = "raw" if kind == "nbd" else kind
        self.path = os.path.join(case.work, f"{name}.{self.format}")
        self.server = None
        # A target that has been there holds something else before.
        self.existing = kind == "nbd" or case.rng.random() < 0.3
        if kind == "nbd":
            self.make_nbd_target()

    @property
    def backing(self):
        """What the target has to have as its backing file: a path, or None."""
        if self.sync == "none":
            return self.case.disk.path
        below = self.case.disk.backing
        return below.path if self.sync == "top" and below else None

    def make_nbd_target(self):
        disks.write_raw(self.path, self.case.disk.size, self.case.rng, filled=0.3)
        self.socket = os.path.join(self.case.work, f"{self.name}.sock")
        self.server = Process(["nbdkit", "-f", "-U", self.socket, "file", self.path],
                              self.path + ".log")
        stillpoint.poll_until("nbdkit's socket", lambda: os.path.exists(self.socket))

    def make_image(self):
        """With qemu-img, the way a user would for mode=existing or blockdev-backup."""
        rng, size = self.case.rng, self.case.disk.size
        if self.format == "raw":
            disks.write_raw(self.path, size, rng, filled=0.3)
        elif self.backing:
            backing_format = self.case.disk.format if self.sync == "none" else \
                self.case.disk.backing.format
            qemu_img("create", "-q", "-f", "qcow2", "-o", disks.qcow2_options(rng), "-b",
                     self.backing, "-F", backing_format, "-u", self.path, size)
        else:
            disks.make_qcow2(self.path, size, rng)

    def options(self):
        """What a backup may be told, and what must not change its outcome."""
        rng, more = self.case.rng, {}
        if rng.random() < 0.5:
            more["scratch-memory"] = rng.choice([0, 64 * 1024, MIB])
            more["scratch-dir"] = self.case.work
        if rng.random() < 0.3:
            more["x-perf"] = {"max-workers": rng.choice([1, 2, 64])}
        # With little scratch clients have to wait for the copy: it must not be slow.
        if self.sync != "none" and rng.random() < 0.2:
            more["scratch-limit"] = 2 * MIB
        else:
            more["speed"] = 4 * MIB
        return more

    def start(self, **options):
        rng, qmp = self.case.rng, self.case.daemon.qmp
        args = {"job-id": self.name, "device": "disk", "sync": self.sync,
                **(options or self.options())}
        if self.server:
            args.update(target=f"nbd+unix:///?socket={self.socket}", format="raw",
                        mode="existing")
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
            qmp("blockdev-add", image)
            args["target"] = node
        self.asked = time.monotonic_ns()
        qmp(command, args)
        self.answered = time.monotonic_ns()

    def verb(self, command, **args):
        """A command for the job; False when it is over already."""
        try:
            self.case.daemon.qmp(command, device=self.name, **args)
            return True
        except QmpError as e:
            assert e.error_class == "DeviceNotActive", e
            return False

    def query(self):
        jobs = self.case.daemon.qmp("query-block-jobs")
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
        self.case.writers.wait_for_more(STEP)
        assert self.query() == before
        if before:
            assert self.verb("block-job-resume")

    def change_speed(self):
        self.verb("block-job-set-speed", speed=self.case.rng.choice([MIB, 8 * MIB, 1]))

    def steer(self):
        rng = self.case.rng
        for _ in range(rng.randrange(3)):
            self.case.writers.wait_for_more(STEP)
            rng.choice([self.pause_a_while, self.change_speed])()
        self.case.writers.wait_for_more(STEP)

    def finish(self):
        """Let it run to its end, and see that it is a good one. Nobody writes any more if
        what it makes depends on the source."""
        self.verb("block-job-set-speed", speed=0)
        end = "BLOCK_JOB_COMPLETED"
        if self.sync == "none":
            soft_cancel = self.case.rng.random() < 0.3
            assert self.verb("block-job-cancel" if soft_cancel else "block-job-complete")
            end = "BLOCK_JOB_CANCELLED" if soft_cancel else end
        event = self.case.daemon.qmp.wait_job(self.name)
        assert event["event"] == end and "error" not in event["data"], event
        assert event["data"]["offset"] == event["data"]["len"], event

    def cancel(self):
        assert self.verb("block-job-cancel", force=True)
        event = self.case.daemon.qmp.wait_job(self.name)
        assert event["event"] == "BLOCK_JOB_CANCELLED", event

    def judge(self):
        """The daemon has ended: nobody has the images open."""
        if self.server:
            self.server.kill()
        info = image_info(self.path, self.format)
        assert info.get("full-backing-filename") == self.backing, info
        if self.format == "qcow2":
            qemu_img("check", self.path)
        flat = disks.flatten(self.path, self.format, self.path + ".flat")
        verdict = oracle.judge(flat, self.case.initial, self.case.writers.logs, self.asked,
                               self.answered, block=self.case.block)
        assert verdict.ok, f"{self.name} (sync={self.sync}): {verdict}"


def image_info(path, fmt):
    return json.loads(qemu_img("info", "--output=json", "-f", fmt, path).stdout)


# ---- a case ----------------------------------------------------------------------------------


class Case:
    """A disk on line, written by several clients."""

    def __init__(self, work, source, engine, seed, size=None):
        self.work = work
        self.rng = random.Random(seed)
        self.disk = disks.make_disk(source, work, self.rng, size)
        self.disk.options = {"discard": self.rng.choice(["unmap", "ignore"])}
        if self.rng.random() < 0.2:
            self.disk.options["cache"] = {"direct": True}
        self.initial = self.disk.flatten(os.path.join(work, "initial.raw"))
        self.block = self.rng.choice([512, 4096])
        self.source = self.disk.blockdev("disk")
        self.write_pattern = {"stripe": self.rng.choice([4, 8, 64, 256])}
        self.daemon = Daemon(work, engine=engine)

    @contextlib.contextmanager
    def on_line(self):
        with self.daemon as d:
            d.qmp("blockdev-add", self.source)
            uri = d.serve("disk")("disk")
            with oracle.Writers(uri, self.work, n=3, seed=self.rng.randrange(MIB),
                                block=self.block, **self.write_pattern) as self.writers:
                self.writers.wait_for(STEP)
                yield
        assert self.writers.slowest_ms() < SLOWEST_MS
        self.judge_source()

    def judge_source(self):
        """Whatever was done to it: what clients were told to be written is there."""
        self.disk.check()
        flat = self.disk.flatten(os.path.join(self.work, "final.raw"))
        verdict = oracle.judge(flat, self.initial, self.writers.logs, oracle.NEVER, oracle.NEVER,
                               block=self.block)
        assert verdict.ok, f"the source itself: {verdict}"

    def quiet_backup(self):
        """Nobody writes any more: the backup equals the disk."""
        target = os.path.join(self.work, "quiet.qcow2")
        self.daemon.qmp("drive-backup", job_id="quiet", device="disk", sync="full",
                        target=target, format="qcow2")
        event = self.daemon.qmp.wait_job("quiet")
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
    case = Case(work, source, engine, f"{sync} {source} {target} {seed}")
    main, other = Backup(case, "main", sync, target), None
    with case.on_line():
        main.start()
        main.steer()
        if case.rng.random() < 0.5:
            other_sync = case.rng.choice(["full", "top", "none"])
            other = Backup(case, "other", other_sync,
                           case.rng.choice(targets(source, other_sync)))
            other.start()
            other.steer()
        if case.rng.random() < 0.3:
            given_up = Backup(case, "given-up", "full", "qcow2")
            given_up.start(speed=1)
            case.writers.wait_for_more(STEP)
            given_up.cancel()
        if sync != "none":
            main.finish()
        case.writers.wait_for_more(STEP)
        case.writers.stop()
        if sync == "none":
            main.finish()
        if other:
            other.finish()
        quiet = case.quiet_backup()
    main.judge()
    if other:
        other.judge()
    qemu_img("compare", "-f", case.disk.format, "-F", "qcow2", case.disk.path, quiet)


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("engine", engines())
def test_writes_in_flight_at_the_instant_are_in_or_out_whole(work, engine, seed):
    """Long writes to a slow disk: at every instant each client has one half done, and the
    copy passes by while it lands."""
    case = Case(work, "raw", engine, f"in flight {seed}", size=6 * MIB)
    slow = {"op": "write", "delay-ns": 20 * 10**6}
    case.source = {"driver": "raw", "node-name": "disk",
                   "file": {"driver": "fault", "rules": [slow],
                            "file": {"driver": "file", "filename": case.disk.path}}}
    case.write_pattern = {"stripe": 2 * MIB // case.block, "long": 1}
    backups = [Backup(case, f"backup-{i}", "full", "raw") for i in range(12)]
    with case.on_line():
        for backup in backups:
            backup.start(speed=100 * MIB, **{"x-perf": {"max-chunk": 65536}})
            event = case.daemon.qmp.wait_job(backup.name)
            assert "error" not in event["data"], event
        case.writers.stop()
    for backup in backups:
        backup.judge()
