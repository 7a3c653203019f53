# SPDX-License-Identifier: Apache-2.0
"""What a backup costs the guest: fio over NBD, idle and while full backups run.

Limited to 1 MiB/s, nearly all that a backup costs is the price of capturing. At full speed the
copying comes on top: with the default latency budget and without one; backups follow one
another as long as the guest is measured. Targets: a local qcow2, and servers that take
some time for every write.
"""
import os
import subprocess
import threading

from common import Daemon, Nbdkit, fio, make_disk, median, table

# Label, milliseconds of each write of the target (None: a local qcow2), copying at full speed,
# the budget (None: the default, which QEMU has not).
CASES = [
    ("(a) captures, qcow2", None, False, 0),
    ("(b) captures, 20 ms", 20, False, 0),
    ("(c) qcow2, budget", None, True, None),
    ("(d) qcow2, no budget", None, True, 0),
    ("(e) 1 ms, budget", 1, True, None),
    ("(f) 1 ms, no budget", 1, True, 0),
    ("(g) 20 ms, budget", 20, True, None),
    ("(h) 20 ms, no budget", 20, True, 0),
    ("(i) 200 ms, budget", 200, True, None),
    ("(j) 200 ms, no budget", 200, True, 0),
]


def add_target(server, delay_ms, directory, size_mib):
    """Give the daemon a target node "t"; returns what has to be ended afterwards."""
    if delay_ms is None:
        path = os.path.join(directory, "target.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, f"{size_mib}M"],
                       check=True)
        server.qmp("blockdev-add", **{
            "driver": "qcow2", "node-name": "t", "discard": "unmap",
            "file": {"driver": "file", "filename": path}})
        return None
    kit = Nbdkit(directory, "--filter=delay", "memory", f"wdelay={delay_ms}ms",
                 f"size={size_mib}M", name="slow")
    server.qmp("blockdev-add", **{
        "driver": "nbd", "node-name": "t",
        "server": {"type": "unix", "path": kit.socket}})
    return kit


class Backups:
    """Full backups, one after the other, inside a `with`; .mib is what they have copied."""

    def __init__(self, server, full_speed, budget):
        self.qmp = server.qmp
        self.arguments = {"job-id": "b", "device": "d", "target": "t", "sync": "full",
                          "auto-dismiss": False}
        if not full_speed:
            self.arguments["speed"] = 1 << 20
        if budget is not None:
            self.arguments["guest-latency"] = budget
        self.mib = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        copied = 0
        while True:
            ending = self.over.wait(0.05)
            job = self.qmp("query-block-jobs")[0]
            self.mib = copied + job["offset"] / 2**20
            if ending:
                return
            if job["status"] == "concluded":
                copied = self.mib
                self.qmp("job-dismiss", id="b")
                self.qmp("blockdev-backup", **self.arguments)

    def __enter__(self):
        self.qmp("blockdev-backup", **self.arguments)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def one(program, directory, image, depth, seconds, size_mib, case):
    """What fio says of a guest, idle (no case) or beside backups, and how fast those copy."""
    def guest():
        return fio(server.uri, "randwrite", "4k", depth, seconds, f"{size_mib}m", directory)

    with Daemon(program, directory, image) as server:
        if not case:
            return guest()
        _, delay_ms, full_speed, budget = case
        kit = add_target(server, delay_ms, directory, size_mib)
        try:
            ours = "stillpoint" in program[0]
            with Backups(server, full_speed, budget if ours else None) as b:
                figures = guest()
            return {**figures, "copied": b.mib / seconds}
        finally:
            if kit:
                kit.__exit__()


def cells(got, idle):
    """Requests a second, of idle, p99, p99.9, max, MiB/s copied."""
    rate = median([g["iops"] for g in got])
    return [f"{rate:,.0f}", f"{100 * rate / idle:.0f} %",
            f"{median([g['p99'] for g in got]):,.0f}", f"{median([g['p999'] for g in got]):,.0f}",
            f"{max(g['max'] for g in got) / 1e3:,.1f}",
            f"{median([g['copied'] for g in got]):,.0f}" if "copied" in got[0] else ""]


def run(ours, directory, where, rounds, seconds, size_mib=1024):
    image = os.path.join(directory, "disk.raw")
    make_disk(image, size_mib)
    programs = {"stillpoint": [ours, "daemon"], "qemu-storage-daemon": ["qemu-storage-daemon"]}
    figures = {}
    for _ in range(rounds):
        for depth in (1, 16):
            for case in (None, *CASES):
                for name, program in programs.items():
                    if name != "stillpoint" and case and case[3] is None:
                        continue
                    r = one(program, directory, image, depth, seconds, size_mib, case)
                    figures.setdefault((depth, case[0] if case else "idle", name), []).append(r)
    rows = []
    for depth in (1, 16):
        for label in ("idle", *(c[0] for c in CASES)):
            row = [f"QD{depth} {label}"]
            for name in programs:
                idle = median([g["iops"] for g in figures[depth, "idle", name]])
                got = figures.get((depth, label, name))
                row += cells(got, idle) if got else [""] * 6
            rows.append(row)
    columns = ["of idle", "p99 us", "p99.9 us", "max ms", "copy MiB/s"]
    table(f"Guest 4 KiB random writes during full backups, raw disk of {size_mib} MiB on {where}, "
          f"medians of {rounds} runs of {seconds} s",
          ["", "stillpoint /s", *columns, "qsd /s", *columns], rows)
    os.unlink(image)
    return {" ".join(map(str, k)): v for k, v in figures.items()}
