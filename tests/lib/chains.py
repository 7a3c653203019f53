# SPDX-License-Identifier: Apache-2.0
"""Chains of backups of a live disk by a dirty bitmap: full, then whatever has changed since
the one before, with jobs in between that fail, are cancelled or leave the bitmap alone."""
import os
import shutil
import time

import disks
from stillpoint import qemu_img


class Point:
    """A link that came out well: to be judged at the end."""

    def __init__(self, path, fmt, asked, answered):
        self.path, self.format = path, fmt
        self.asked, self.answered = asked, answered


class Chain:
    """Points over each other; or, @in_place, one image that is brought up to date again and
    again, of which copies are judged."""

    def __init__(self, live, name, in_place=False):
        self.live, self.name, self.in_place = live, name, in_place
        self.points = []
        self.beside = []                     # to be judged as well, and nothing stands on them
        self.jobs = 0
        self.place = os.path.join(live.work, f"{name}.raw")

    # ---- targets ----------------------------------------------------------------------

    def overlay(self):
        """Arguments of a job whose target stands on the last point, and the target."""
        live, last = self.live, self.points[-1]
        path = os.path.join(live.work, f"{self.name}-{self.jobs}.qcow2")
        how = live.rng.choice(["drive-backup", "existing", "blockdev-backup"])
        if how == "drive-backup":
            return how, {"target": path, "format": "qcow2", "backing-file": last.path,
                         "backing-fmt": last.format}, path
        qemu_img("create", "-q", "-f", "qcow2", "-o", disks.qcow2_options(live.rng), "-b",
                 last.path, "-F", last.format, "-u", path, live.disk.size)
        if how == "existing":
            return "drive-backup", {"target": path, "format": "qcow2", "mode": "existing"}, path
        return how, {"target": self.add_node(path, "qcow2")}, path

    def add_node(self, path, fmt, *rules):
        image = {"driver": fmt, "node-name": f"t-{self.name}-{self.jobs}", "discard": "unmap",
                 "file": {"driver": "fault", "rules": list(rules),
                          "file": {"driver": "file", "filename": path}}}
        if fmt == "qcow2":
            image["backing"] = None
        self.live.qmp("blockdev-add", image)
        return image["node-name"]

    # ---- jobs -------------------------------------------------------------------------

    def start(self, command, **args):
        """Start it, and give its name and the moments around the instant."""
        self.jobs += 1
        job = f"{self.name}-{self.jobs}"
        asked = time.monotonic_ns()
        self.live.qmp(command, {"job-id": job, "device": self.live.node, **args})
        return job, asked, time.monotonic_ns()

    def end(self, job):
        event = self.live.qmp.wait_job(job)
        assert "error" not in event["data"] and event["event"] == "BLOCK_JOB_COMPLETED", event
        assert event["data"]["offset"] == event["data"]["len"], event

    def begin(self):
        """A full backup, and the bitmap with it."""
        fmt = "raw" if self.in_place else self.live.rng.choice(["raw", "qcow2"])
        path = self.place if self.in_place else \
            os.path.join(self.live.work, f"{self.name}-0.{fmt}")
        job, *moments = self.start("drive-backup", sync="full", target=path, format=fmt,
                                   **{"new-bitmap": {"name": self.name, "granularity":
                                                     512 << self.live.rng.randrange(11)}})
        self.end(job)
        self.points.append(Point(path, fmt, *moments))

    def bitmap(self, mode):
        if mode == "on-success" and self.live.rng.random() < 0.5:
            return {"sync": "incremental", "bitmap": self.name}
        return {"sync": "bitmap", "bitmap": self.name, "bitmap-mode": mode}

    def link(self, mode="on-success"):
        """The next point. With mode never it is one beside the chain."""
        command, args, path = self.overlay()
        job, *moments = self.start(command, **self.bitmap(mode), **args)
        self.end(job)
        if command == "blockdev-backup":
            self.live.qmp("blockdev-del", node_name=args["target"])
        point = Point(path, "qcow2", *moments)
        (self.beside if mode == "never" else self.points).append(point)

    def update(self):
        """Bring the image up to date, and keep a copy of it."""
        mode = self.live.rng.choice(["on-success", "always", "always"])
        node = self.add_node(self.place, "raw")
        job, *moments = self.start("blockdev-backup", **self.bitmap(mode), target=node)
        self.end(job)
        self.live.qmp("blockdev-del", node_name=node)
        copy = f"{self.place}.{self.jobs}"
        shutil.copyfile(self.place, copy)
        self.beside.append(Point(copy, "raw", *moments))

    def fail(self):
        """A job that does not come to a good end: an error, a cancel while it works, and when
        all is done. What it was to copy has to be in the next one."""
        rng, live = self.live.rng, self.live
        kind = rng.choice(["write", "flush", "cancel", "cancel pending"])
        rules = {"write": [{"op": "write", "nth": rng.randint(1, 4), "errno": "EIO", "once": True}],
                 "flush": [{"op": "flush", "errno": "EIO"}]}.get(kind, [])
        if self.in_place:
            path, fmt, mode = self.place, "raw", rng.choice(["on-success", "always", "always"])
        else:
            path, fmt, mode = f"{live.work}/{self.name}-failed.qcow2", "qcow2", "on-success"
            qemu_img("create", "-q", "-f", "qcow2", path, live.disk.size)
        # Something to fail with.
        live.writers.wait_for_more(5)
        node = self.add_node(path, fmt, *rules)
        more = {"speed": 1} if kind == "cancel" else \
            {"auto-finalize": False} if kind == "cancel pending" else {}
        job, _, _ = self.start("blockdev-backup", **self.bitmap(mode), target=node, **more)
        if kind == "cancel pending":
            live.qmp.wait_event("BLOCK_JOB_PENDING")
        if kind.startswith("cancel"):
            live.qmp("job-cancel", id=job)
            assert live.qmp.wait_job(job)["event"] == "BLOCK_JOB_CANCELLED"
        else:
            # One that has less to write than it takes to fail ends well: then it was a point
            # of no chain, and what it has copied has to be begun anew.
            if "error" not in live.qmp.wait_job(job)["data"] and not self.in_place:
                live.qmp("blockdev-del", node_name=node)
                self.begin_anew()
                return
        live.qmp("blockdev-del", node_name=node)

    def begin_anew(self):
        path = os.path.join(self.live.work, f"{self.name}-{self.jobs}-full.qcow2")
        job, *moments = self.start("drive-backup", sync="full", bitmap=self.name, target=path,
                                   format="qcow2", **{"bitmap-mode": "on-success"})
        self.end(job)
        self.points.append(Point(path, "qcow2", *moments))

    def step(self):
        roll = self.live.rng.random()
        if roll < 0.35:
            self.fail()
        elif self.in_place:
            self.update()
        elif roll < 0.45:
            self.link("never")
        else:
            self.link()

    # ---- the judgement ----------------------------------------------------------------

    def judge(self, point):
        self.live.judge(point.path, point.format, point.asked, point.answered)

    def judge_all(self):
        """All links, as qemu-img reads them through the chain; the daemon has ended."""
        for point in self.beside if self.in_place else self.points + self.beside:
            self.judge(point)
