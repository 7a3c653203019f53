# SPDX-License-Identifier: Apache-2.0
"""A backup is the disk as it stood at one instant, whatever clients do meanwhile.

The real program, with several client processes that write, zero, trim and flush without
a pause; backups of every kind are taken of it, steered while they run, and judged by
lib/oracle.py and by qemu-img. A case is one way to set all this up; what varies within it
comes from its seed: one seed a case, or as many as STILLPOINT_SEEDS says.
"""
import contextlib
import os
import random

import disks
import pytest
from backups import STEP, Backup, targets
from chains import Chain
from disks import MIB
from live import LiveDisk, engines, seeds

from stillpoint import qemu_img, run


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


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("engine", engines())
@pytest.mark.parametrize("source", ["raw", "qcow2-over-raw-longer"])
def test_every_link_of_a_chain_is_the_disk_at_its_instant(work, source, engine, seed):
    """Two chains of incremental backups by two bitmaps, interleaved, with jobs that fail."""
    live = live_disk(work, source, engine, f"chain {source} {seed}", size=6 * MIB)
    # Every point is judged by all that was written.
    live.pattern["pause_us"] = 1000
    chains = [Chain(live, "over"), Chain(live, "place", in_place=True)]
    with live.on_line():
        for chain in chains:
            chain.begin()
        for _ in range(14):
            live.writers.wait_for_more(live.rng.randrange(STEP))
            live.rng.choice(chains).step()
        live.writers.stop()
        chains[0].link()
        chains[1].update()
    for chain in chains:
        chain.judge_all()
    qemu_img("compare", "-f", live.disk.format, "-F", "raw", live.disk.path, chains[1].place)
    qemu_img("compare", "-f", live.disk.format, "-F", "qcow2", live.disk.path,
             chains[0].points[-1].path)


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
