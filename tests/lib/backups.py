# SPDX-License-Identifier: Apache-2.0
"""Backups of a live disk, of every kind, steered while they run, and judged at the end."""
import json
import os
import time

import disks
import stillpoint
from disks import MIB
from stillpoint import QmpError, qemu_img

STEP = 40                    # operations of each client between two things that are done


def targets(source, sync):
    """Formats that can be the target of such a backup."""
    if sync == "full":
        return ["raw", "qcow2", "nbd"]
    if sync == "top" and "over" not in source:
        return ["raw", "qcow2"]
    return ["qcow2"]


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
        self.in_haste = False

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
        if self.format == "qcow2" and rng.random() < 0.4:
            more["compress"] = True
        # With little scratch clients have to wait for the copy: it must not be slow.
        self.in_haste = self.sync != "none" and rng.random() < 0.2
        return {**more, "scratch-limit": 2 * MIB} if self.in_haste else {**more, "speed": 4 * MIB}

    def start(self, **options):
        live, rng, qmp = self.live, self.live.rng, self.live.qmp
        args = {"job-id": self.name, "device": live.node, "sync": self.sync,
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
        after = self.query()
        for job in before, after:
            if job:
                job.pop("guest-latency", None)       # of the clients, who go on
        assert after == before
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
