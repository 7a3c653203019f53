# SPDX-License-Identifier: Apache-2.0
"""Many disks of one daemon, all written and backed up at the same time."""
import contextlib
import os
import random

import disks
import pytest
from backups import Backup, targets
from live import LiveDisk, engines, seeds


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("engine", engines())
def test_each_backup_is_its_disk_at_one_instant(work, engine, seed):
    """They live on several threads, and so do their targets until the backups begin."""
    lives, backups = [], []
    for i, kind in enumerate(disks.KINDS):
        folder = os.path.join(work, str(i))
        os.mkdir(folder)
        lives.append(LiveDisk(folder, kind, random.Random(f"{kind} {seed}"), engine,
                              node=f"disk{i}"))
        lives[i].n_writers = 1
        backups.append(Backup(lives[i], f"full{i}", "full", "qcow2"))
        backups.append(Backup(lives[i], f"top{i}", "top", targets(kind, "top")[0]))
    with lives[0].on_line(), contextlib.ExitStack() as stack:
        for live in lives[1:]:
            stack.enter_context(live.beside(lives[0]))
        for backup in backups:
            backup.start()
        for backup in backups:
            backup.steer()
        for backup in backups:
            backup.finish()
    for live in lives[1:]:
        live.judge_source()
    for backup in backups:
        backup.judge()
