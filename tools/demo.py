#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""make demo: a live disk, writers that do not stop, three backups, and the proof of each.

Uses only what a user has: the stillpoint program, and other people's tools as judges
(qemu-img, e2fsck, debugfs). The proof is tests/lib/oracle.py: the writers stamp every
block and log every operation, so the judge knows what each block held at the instant.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tests", "lib"))
import oracle  # noqa: E402

DATA_MIB = 128
DATABASE_MIB = 48
SOURCES = ["/usr/include", "/usr/share/doc", "/usr/share/perl", "/usr/lib/python3.11",
           "/usr/share/qemu", "/usr/lib/git-core"]


def heading(text):
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def say(text):
    print(f"   {text}", flush=True)


def show_command(command):
    """As it would be typed in the folder where everything lies."""
    words = (os.path.basename(c) if os.path.isabs(c) else c for c in command)
    print("   $ " + " ".join(words), flush=True)


def run(*command, show=True, **kwargs):
    if show:
        show_command(command)
    return subprocess.run(command, check=True, text=True, capture_output=True, **kwargs).stdout


def collect(directory):
    """A folder of this machine's own files, and one file that plays the database."""
    total = 0
    for source in SOURCES:
        for folder, _, names in os.walk(source):
            into = os.path.join(directory, folder.lstrip("/"))
            for name in names:
                path = os.path.join(folder, name)
                if os.path.islink(path) or total > DATA_MIB * 2**20:
                    continue
                os.makedirs(into, exist_ok=True)
                shutil.copyfile(path, os.path.join(into, name))
                total += os.path.getsize(path)
    with open(os.path.join(directory, "database"), "wb") as f:
        for _ in range(DATABASE_MIB):
            f.write(os.urandom(2**20))
    return total


def database_blocks(image):
    """The longest contiguous run of file system blocks that the database file lies in."""
    numbers = [int(n) for n in run("debugfs", "-R", "blocks /database", image,
                                   show=False).split()]
    best = start = length = 0
    previous = -1
    for n in numbers + [-1]:
        if n != previous + 1:
            if length > best:
                best, first = length, start
            start, length = n, 0
        length += 1
        previous = n
    return first, best


def own_disk(work):
    """A raw base with a file system full of files, and a qcow2 overlay: the live disk."""
    heading("A disk with real data")
    files = os.path.join(work, "files")
    os.mkdir(files)
    total = collect(files)
    base = os.path.join(work, "base.raw")
    size = 2 * (total // 2**20 + DATABASE_MIB) + 64
    run("truncate", "-s", f"{size}M", base, show=False)
    run("mkfs.ext4", "-q", "-F", "-b", "4096", "-d", files, base)
    say(f"{total >> 20} MiB of this machine's files and a {DATABASE_MIB} MiB 'database' file,")
    say(f"in an ext4 file system of {size} MiB: the base image, raw")
    first, blocks = database_blocks(base)
    return base, "raw", files, first, blocks


def users_disk(program, disk, work):
    heading(f"Your disk: {disk}")
    info = json.loads(run(program, "info", "--json", disk))
    say("it is only read: everything below happens in a qcow2 overlay of it")
    # What it holds is copied for the judge, into the backup, and out of each backup again.
    needed, free = 4 * info.get("actual-size", info["virtual-size"]), shutil.disk_usage(work).free
    if needed > free:
        raise SystemExit(f"{needed >> 20} MiB are needed in {os.path.dirname(work)} for that, "
                         f"and {free >> 20} MiB are free")
    return os.path.abspath(disk), info["format"], None, 0, 0


class Backup:
    """`stillpoint backup` on the live disk; knows when it was asked for and answered."""

    def __init__(self, program, control, sync, target):
        command = [program, "backup", "live", target, "--sync", sync, "--control", control,
                   "--progress", "json"]
        show_command(command)
        self.asked = time.monotonic_ns()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if json.loads(line)["event"] == "started":
                break
        self.answered = time.monotonic_ns()
        self.last = {}

    def wait(self):
        """See it end well; gives the moment."""
        for line in self.process.stdout:
            self.last = json.loads(line)
        if self.process.wait() != 0:
            raise SystemExit(f"the backup failed: {self.last}")
        return time.monotonic_ns()


def prove(backup, target, initial, logs, files, work):
    """Judge one backup by the oracle and by other people's tools."""
    flat = os.path.join(work, "judged.raw")
    if target.endswith(".qcow2"):
        run("qemu-img", "check", target)
        say("qemu-img check: no errors")
    run("qemu-img", "convert", "-O", "raw", target, flat, show=False)
    verdict = oracle.judge(flat, initial, logs, backup.asked, backup.answered)
    say(f"oracle: {verdict}")
    if not verdict.ok:
        raise SystemExit(1)
    if files:
        run("e2fsck", "-fn", flat, show=False)
        copy = os.path.join(work, "restored")
        os.mkdir(copy)
        run("debugfs", "-R", f"rdump / {copy}", flat, show=False)
        run("diff", "-r", "--exclude=database", "--exclude=lost+found", files, copy, show=False)
        say("e2fsck: clean; every file in it equals the original")
        shutil.rmtree(copy)
    os.unlink(flat)


def demo(program, disk, work):
    base, base_format, files, first, blocks = \
        users_disk(program, disk, work) if disk else own_disk(work)
    live = os.path.join(work, "live.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", base_format, live)
    initial = os.path.join(work, "initial.raw")
    run("qemu-img", "convert", "-O", "raw", live, initial, show=False)

    heading("Served over NBD")
    socket, control = os.path.join(work, "nbd.sock"), os.path.join(work, "control.sock")
    say("$ stillpoint serve live.qcow2 --listen unix:nbd.sock --control control.sock")
    server = subprocess.Popen([program, "serve", live, "--listen", f"unix:{socket}",
                               "--control", control, "--image-dir", os.path.dirname(base)],
                              stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline().rstrip()
        if not line:
            raise SystemExit("the server did not come up")
        say(line)
        uri = f"nbd+unix:///live?socket={socket}"
        heading("Writers that do not stop")
        with oracle.Writers(uri, work, n=3, first_block=first, blocks=blocks) as writers:
            say("3 clients overwrite, zero and trim blocks at random, each stamped and logged")
            writers.wait_for(500)
            backups = take_all(program, control, work, writers)
            writers.stop()
            say(f"the writers are stopped after {sum(writers.counts())} operations; none failed; "
                f"the slowest took {writers.slowest_ms():.1f} ms")
            run(program, "complete", "live-none", "--control", control)
            backups["none"][0].wait()
        server.terminate()
        server.wait(timeout=30)

        heading("What is proven")
        say("the instant of a backup lies between its command and the answer to it: each block")
        say("must show the last write before, no write after, and one moment must explain all")
        for sync, (backup, target) in backups.items():
            heading(f"The proof of sync={sync}")
            prove(backup, target, initial, writers.logs, files, work)
    finally:
        server.kill()
        server.wait()
    heading("Done")
    say("three backups of a disk under writes, each exactly the disk at its instant")


def take_all(program, control, work, writers):
    """The three backups, one after the other, while the writers go on."""
    backups = {}
    heading("sync=full: the whole disk, stands alone")
    target = os.path.join(work, "full.qcow2")
    backups["full"] = (Backup(program, control, "full", target), target)
    rate(backups["full"][0].wait(), backups["full"][0], target, writers)

    heading("sync=top: what the overlay holds, over the same base image")
    target = os.path.join(work, "top.qcow2")
    backups["top"] = (Backup(program, control, "top", target), target)
    rate(backups["top"][0].wait(), backups["top"][0], target, writers)

    heading("sync=none: nothing is copied but what is overwritten from now on")
    target = os.path.join(work, "none.qcow2")
    backups["none"] = (Backup(program, control, "none", target), target)
    writers.wait_for(max(writers.counts()) + 1000)
    say("it keeps the old data of every block that a writer overwrites, until it is completed")
    return backups


def rate(done, backup, target, writers):
    """What a backup cost, and what the writers felt of it."""
    before, during = [], []
    for log in writers.logs:
        for op in oracle.read_log(log):
            if op[2] <= backup.asked:
                before.append(op[2] - op[1])
            elif backup.answered <= op[1] and op[2] <= done:
                during.append(op[2] - op[1])
    say(f"{os.stat(target).st_blocks * 512 / 2**20:.0f} MiB in "
        f"{(done - backup.asked) / 1e9:.2f} s, {len(during)} writes landed meanwhile")
    if before and during:
        say(f"a write took {statistics.median(during) / 1e6:.2f} ms in the median; before the "
            f"backup {statistics.median(before) / 1e6:.2f} ms")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("program")
    p.add_argument("disk", nargs="?", help="your own image; it is only read")
    args = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="stillpoint-demo-", dir="/var/tmp") as work:
        demo(os.path.abspath(args.program), args.disk, work)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as e:
        sys.exit(f"{' '.join(e.cmd)}: failed\n{e.stdout}{e.stderr}")
