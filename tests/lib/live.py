# SPDX-License-Identifier: Apache-2.0
"""A live disk: the program serves it, and clients write it without a pause.

    live = LiveDisk(directory, "qcow2-over-raw-longer", random.Random(seed))
    with live.on_line():                  # daemon, export, writers
        live.qmp("drive-backup", ...)
        live.writers.stop()
    live.judge(target, "qcow2", asked, answered)

Leaving the `with` checks the promises to clients: none of their requests failed, none took
long, and what they were told to be written is on the disk; after live.kill(), what they were
told to be durable. It can be put on line again then.
"""
import contextlib
import os
import shutil
import socket
import tempfile

import disks
import oracle
from disks import MIB
from stillpoint import ENGINE, Daemon, Process, poll_until, qemu_img

SLOWEST_MS = 5000            # no request of a client may take longer


def seeds():
    """To run every case with: one, or as STILLPOINT_SEEDS says, "20" for 1 to 20, "7..7"."""
    first, _, last = os.environ.get("STILLPOINT_SEEDS", "1").rpartition("..")
    return range(int(first or 1), int(last) + 1)


def engines():
    return [ENGINE] if ENGINE else ["uring", "pool"]


@contextlib.contextmanager
def work_folder():
    """A folder on a disk. Images are large, so it goes at once (pytest keeps its own)."""
    path = tempfile.mkdtemp(prefix="stillpoint-test-", dir="/var/tmp")
    try:
        yield path
    finally:
        if not os.environ.get("STILLPOINT_KEEP"):
            shutil.rmtree(path)


def listens(path):
    with socket.socket(socket.AF_UNIX) as s:
        return s.connect_ex(path) == 0


class LiveDisk:
    """@apart: the end of the disk, 1 MiB and something, is not written by the clients, and
    has "data" or "zeros" in it."""

    def __init__(self, work, kind, rng, engine=None, size=None, apart=None, env=None,
                 node="disk"):
        self.work = work
        self.node = node
        self.rng = rng
        self.disk = disks.make_disk(kind, work, rng, size)
        self.block = rng.choice([512, 4096])
        self.pattern = {"stripe": rng.choice([4, 8, 64, 256, 2 * MIB // self.block])}
        if apart:
            self.set_apart(apart)
        self.initial = self.disk.flatten(os.path.join(work, "initial.raw"))
        self.source = self.disk.blockdev(node)       # what blockdev-add is given
        self.engine = engine
        self.env = env                               # of the daemon
        self.n_writers = 3
        self.daemon = self.writers = None
        self.killed = self.has_leaks = False
        self.peers = contextlib.ExitStack()          # other servers, ended with the daemon

    def set_apart(self, content):
        self.apart = self.disk.size // MIB * MIB - MIB
        self.pattern["blocks"] = self.apart // self.block
        what = "write -P 7" if content == "data" else "write -z"
        disks.qemu_io(self.disk.path, self.disk.format, [f"{what} {self.apart} {MIB}"])

    @property
    def qmp(self):
        return self.daemon.qmp

    @contextlib.contextmanager
    def on_line(self, operations=40):
        """Served, and written so many times by each client."""
        with self.peers, Daemon(self.work, engine=self.engine, env=self.env) as self.daemon:
            self.qmp("blockdev-add", self.source)
            self.uri = self.daemon.serve(self.node)(self.node)
            with self.write(operations):
                yield
                if self.writers.processes:
                    self.writers.stop()
        self.judge_source()

    @contextlib.contextmanager
    def beside(self, other):
        """On line in the daemon of another, which is. judge_source() when that has ended."""
        self.daemon = other.daemon
        self.qmp("blockdev-add", self.source)
        self.qmp("block-export-add", type="nbd", id=self.node, node_name=self.node, writable=True)
        self.uri = other.uri.replace(f"/{other.node}?", f"/{self.node}?")
        with self.write():
            yield
            self.writers.stop()

    def kill(self):
        """The daemon, in the middle of what it does; the clients notice."""
        self.daemon.kill()
        self.writers.stop(check=False)
        # The kernel ends what io_uring has under way, and drops the locks, only after that.
        poll_until("the locks to go", lambda: not qemu_img(
            "info", "-f", self.disk.format, self.disk.path, check=False).returncode)
        self.killed = self.has_leaks = True

    @contextlib.contextmanager
    def write(self, operations=40, **options):
        """The clients; inside it they are self.writers."""
        with oracle.Writers(self.uri, self.work, n=self.n_writers, block=self.block,
                            seed=self.rng.randrange(MIB), **{**self.pattern, **options}) \
                as self.writers:
            self.writers.wait_for(operations)
            yield self.writers

    def start_peer(self, name, *argv):
        """nbdkit or the like, listening on the socket whose path is given."""
        path = os.path.join(self.work, f"{name}.sock")
        argv = [path if a == "SOCKET" else a for a in argv]
        server = self.peers.enter_context(Process(argv, os.path.join(self.work, f"{name}.log")))
        poll_until(f"{argv[0]} to listen", lambda: listens(path))
        return server, path

    def judge_source(self):
        """The daemon has ended. In good order: all that clients were told is there."""
        assert self.writers.slowest_ms() < SLOWEST_MS
        if self.killed:
            self.judge_crash()
            return
        self.disk.check(self.has_leaks)
        flat = self.disk.flatten(os.path.join(self.work, "final.raw"))
        verdict = oracle.judge(flat, self.initial, self.writers.logs, oracle.NEVER, oracle.NEVER,
                               block=self.block)
        assert verdict.ok, f"the source itself: {verdict}"

    def judge_crash(self):
        """What is on the disk now is what the next ones begin with."""
        self.disk.check(self.has_leaks)
        flat = self.disk.flatten(os.path.join(self.work, "found.raw"))
        verdict = oracle.judge_crash(flat, self.initial, self.writers.logs, block=self.block)
        assert verdict.ok, f"after a crash: {verdict}"
        os.rename(flat, self.initial)
        self.killed = False

    def judge(self, path, fmt, asked, answered):
        """A target that nobody has open any more."""
        if fmt == "qcow2":
            qemu_img("check", path)
        flat = disks.flatten(path, fmt, path + ".flat")
        verdict = oracle.judge(flat, self.initial, self.writers.logs, asked, answered,
                               block=self.block)
        assert verdict.ok, f"{os.path.basename(path)}: {verdict}"
