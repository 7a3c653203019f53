# SPDX-License-Identifier: Apache-2.0
"""The point-in-time oracle: writers that stamp what they write, and the judge.

A writer is a process with one NBD connection. It does one operation after another on
blocks that belong to it alone, and logs each with the moments when it was sent and
acknowledged. Every stamped block names its writer, its place and its sequence number, so
that the judge can tell from a backup's bytes which operation each block last saw.

The judge knows when the backup was asked for and when that was answered. For every block:
what was acknowledged before the question must be in; what was sent after the answer must
be out; what was in flight in between may be either, but whole. And there must be one
moment that explains all blocks of all writers: since each writer is strictly serial, its
part of the backup is a prefix of its log, and no operation may be in that was sent after
another was acknowledged which is out.

After a crash it is another question, that judge_crash answers: every sector must show the
last operation that a flush, or FUA, had made durable, or one that came later.
"""
import argparse
import os
import random
import signal
import struct
import subprocess
import sys
import time

BLOCK = 4096                         # unless a test says otherwise; the last may be shorter
SECTOR = 512
STRIPE = 8                           # blocks in a row that one writer owns
MAGIC = 0x5374696C6C707431
STAMP = struct.Struct("<QIIQQ")      # magic, writer, 0, seq, block
RECORD = struct.Struct("<QQQQIB3x")  # seq, sent, acknowledged, first block, blocks, kind
NEVER = 2**64 - 1
WRITE, ZERO, TRIM, FLUSH, FUA = range(5)     # FUA: a write that is durable when acknowledged


def stamp(writer, seq, block, size=BLOCK):
    """The content of one block; STAMP repeated to its end, so a torn block shows."""
    return (STAMP.pack(MAGIC, writer, 0, seq, block) * -(-size // STAMP.size))[:size]


# ---- the writer process -----------------------------------------------------------------


class Writer:
    def __init__(self, args):
        import nbd

        self.args = args
        self.failure = nbd.Error
        self.fua = nbd.CMD_FLAG_FUA
        self.no_hole = nbd.CMD_FLAG_NO_HOLE
        self.h = nbd.NBD()
        self.h.connect_uri(args.uri)
        self.rng = random.Random(args.seed * 1000 + args.writer)
        self.end = self.h.get_size()
        if args.blocks:
            self.end = min(self.end, (args.first_block + args.blocks) * args.block)
        self.blocks = -(-self.end // args.block) - args.first_block

    def pick(self):
        """A run of blocks that this writer owns: stripes of blocks go round-robin."""
        args, rng = self.args, self.rng
        own = rng.randrange(args.writer, -(-self.blocks // args.stripe), args.of)
        end = min(self.blocks, (own + 1) * args.stripe)
        at = rng.randrange(own * args.stripe, end)
        run = rng.randint(1, end - at) if rng.random() < args.long else 1
        return args.first_block + at, run

    def pick_kind(self):
        args, roll = self.args, self.rng.random()
        for kind, share in ((TRIM, args.trim), (ZERO, args.zero), (FLUSH, args.flush),
                            (FUA, args.fua)):
            if roll < share:
                return kind
            roll -= share
        return WRITE

    def operate(self, kind, seq, block, run):
        size = self.args.block
        off = block * size
        length = min(run * size, self.end - off)
        if kind in (WRITE, FUA):
            data = b"".join(stamp(self.args.writer, seq, block + i, size) for i in range(run))
            self.h.pwrite(data[:length], off, self.fua if kind == FUA else 0)
        elif kind == ZERO:
            self.h.zero(length, off, self.no_hole if seq % 2 else 0)
        elif kind == TRIM:
            self.h.trim(length, off)
        else:
            self.h.flush()

    def step(self, log, seq):
        """One operation, logged. False when it failed."""
        kind = self.pick_kind()
        block, run = self.pick() if kind != FLUSH else (0, 0)
        sent, error = time.monotonic_ns(), None
        try:
            self.operate(kind, seq, block, run)
            done = time.monotonic_ns()
        except self.failure as e:
            error, done = e, NEVER
        log.write(RECORD.pack(seq, sent, done, block, run, kind))
        if error:
            print(f"writer {self.args.writer}: operation {seq}: {error}", file=sys.stderr)
        return error is None

    def main(self):
        stop = []
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
        with open(self.args.log, "wb", buffering=0) as log:
            print("ready", flush=True)
            seq = 0
            while not stop:
                seq += 1
                if not self.step(log, seq):
                    return 1
                if self.args.pause_us:
                    time.sleep(self.args.pause_us / 1e6)
        return 0


# ---- driving writers from a test ----------------------------------------------------------


class Writers:
    """n writer processes on the disk at @uri; a context manager that stops them. Further
    keywords are the writer's options (see main)."""

    def __init__(self, uri, directory, n=2, seed=1, name="writer", quiet=False, **options):
        self.logs = [os.path.join(directory, f"{name}-{i}.log") for i in range(n)]
        self.processes = []
        for i, log in enumerate(self.logs):
            options.update(writer=i, of=n, seed=seed)
            argv = ["/usr/bin/python3", os.path.abspath(__file__), uri, log]
            for key, value in options.items():
                argv += ["--" + key.replace("_", "-"), str(value)]
            self.processes.append(subprocess.Popen(
                argv, stdout=subprocess.PIPE, text=True,
                stderr=subprocess.DEVNULL if quiet else None))
        for p in self.processes:
            if p.stdout.readline().strip() != "ready":
                self.__exit__()
                raise RuntimeError("a writer did not start")

    def wait_for(self, operations, since=None, deadline_s=60):
        """Until every writer has logged that many operations in all, or @since those counts."""
        end = time.monotonic() + deadline_s
        since = since or [0] * len(self.logs)
        while min(n - s for n, s in zip(self.counts(), since)) < operations:
            if time.monotonic() > end:
                raise RuntimeError(f"writers too slow: {self.counts()}, {operations} wanted")
            for p in self.processes:
                if p.poll() is not None:
                    raise RuntimeError("a writer ended")
            time.sleep(0.005)    # polling a growing file; the loop decides, not the pause

    def wait_for_more(self, operations, deadline_s=60):
        """Until every writer has done so many more than now."""
        self.wait_for(operations, self.counts(), deadline_s)

    def counts(self):
        return [os.path.getsize(log) // RECORD.size for log in self.logs]

    def stop(self, check=True):
        """Stop all; raises when a guest operation had failed."""
        for p in self.processes:
            if p.poll() is None:
                p.send_signal(signal.SIGTERM)
        bad = [i for i, p in enumerate(self.processes) if p.wait(timeout=60) != 0]
        for p in self.processes:
            p.stdout.close()
        self.processes = []
        if bad and check:
            raise RuntimeError(f"operations failed in writers {bad}")

    def slowest_ms(self):
        """The longest that any operation took, in milliseconds."""
        return max((done - sent) / 1e6 for log in self.logs
                   for _, sent, done, _, _, _ in read_log(log) if done != NEVER)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for p in self.processes:
            p.kill()
            p.wait()
            p.stdout.close()


def read_log(path):
    with open(path, "rb") as f:
        data = f.read()
    whole = len(data) - len(data) % RECORD.size
    return list(RECORD.iter_unpack(data[:whole]))


# ---- the judge ------------------------------------------------------------------------------


class Verdict:
    def __init__(self):
        self.problems = []
        self.blocks = self.touched = self.in_flight = 0

    @property
    def ok(self):
        return not self.problems

    def __str__(self):
        if self.ok:
            return (f"{self.blocks} blocks judged, {self.touched} of them written, "
                    f"{self.in_flight} operations in flight at the instant: all as they stood")
        shown = "\n  ".join(self.problems[:10])
        return f"{len(self.problems)} problems, first ones:\n  {shown}"


def histories(records):
    """block -> [(writer, seq, sent, done, kind)] in order; a block has one writer."""
    out = {}
    for writer, log in enumerate(records):
        for seq, sent, done, first, run, kind in log:
            op = (writer, seq, sent, done, kind)      # one for all: there are millions
            for block in range(first, first + run):
                out.setdefault(block, []).append(op)
    return out


def content_of(op, block, before, size):
    """The contents that a block may have after @op, given those it may have had before."""
    writer, seq, _, _, kind = op
    if kind in (WRITE, FUA):
        return {stamp(writer, seq, block, size)}
    if kind == ZERO:
        return {bytes(size)}
    return {bytes(size)} | before


def each_block(v, image, initial, size):
    """(number, content in @image, content in @initial) of every block. An image that is
    longer than @initial has to have zeros there; at most a sector's worth is right."""
    with open(image, "rb") as b, open(initial, "rb") as i:
        length = os.fstat(i.fileno()).st_size
        if not 0 <= os.fstat(b.fileno()).st_size - length < 512:
            v.problems.append(f"the image has {os.fstat(b.fileno()).st_size} bytes, the disk "
                              f"{length}")
            return
        for block in range(-(-length // size)):
            old = i.read(size)
            v.blocks += 1
            yield block, b.read(len(old)), old
        if any(b.read()):
            v.problems.append("the image is not zero behind the end of the disk")


def judge(backup, initial, logs, asked, answered, block=BLOCK):
    """Compare the raw image @backup with what it must be. @initial: the raw image before any
    writer. @asked, @answered: time.monotonic_ns() around the command that took the instant;
    both NEVER for a disk that nobody writes any more."""
    v = Verdict()
    records = [read_log(log) for log in logs]
    hist = histories(records)
    cuts = [[0, NEVER] for _ in logs]      # per writer: operations up to low in, from high on out
    for number, got, old in each_block(v, backup, initial, block):
        ops = hist.get(number)
        if ops:
            judge_block(v, cuts, number, got, old, ops, asked, answered)
        elif got != old:
            v.problems.append(f"block {number}: {describe(got)}; nobody wrote there")
    judge_moment(v, cuts, records)
    return v


def judge_block(v, cuts, block, got, old, ops, asked, answered):
    states, settled = {old}, None
    candidates = []       # (contents, last operation in, first operation out)
    for n, op in enumerate(ops):
        writer, seq, sent, done, _ = op
        if settled is None and (done > asked or done == NEVER):
            settled = True
            candidates.append((set(states), ops[n - 1][1] if n else 0, seq))
        if sent >= answered:
            break
        states = content_of(op, block, states, len(old))
        if settled:
            v.in_flight += 1
            following = ops[n + 1][1] if n + 1 < len(ops) else NEVER
            candidates.append((set(states), seq, following))
    if settled is None:
        candidates.append((states, ops[-1][1], NEVER))
    v.touched += 1
    fit = [c for c in candidates if got in c[0]]
    if not fit:
        v.problems.append(f"block {block}: {describe(got)}; expected operation "
                          + " or ".join(str(c[1]) for c in candidates))
    elif len(fit) == 1:
        cut = cuts[ops[0][0]]
        cut[0], cut[1] = max(cut[0], fit[0][1]), min(cut[1], fit[0][2])


def judge_moment(v, cuts, records):
    """Is there one moment that has everything in that is in, and out that is out?"""
    earliest, latest = (0, ""), (NEVER, "")
    for writer, ((low, high), log) in enumerate(zip(cuts, records)):
        if low >= high:
            v.problems.append(f"writer {writer}: no single moment explains its blocks: one shows "
                              f"operation {low}, another lacks operation {high}")
        if low:       # it took effect after it was sent
            earliest = max(earliest, (log[low - 1][1], f"operation {low} of writer {writer}"))
        if high != NEVER:
            latest = min(latest, (log[high - 1][2], f"operation {high} of writer {writer}"))
    if earliest[0] > latest[0]:
        v.problems.append(f"no single moment explains all: {earliest[1]} is in, and was sent "
                          f"after {latest[1]} was acknowledged, which is out")


def judge_crash(disk, initial, logs, block=BLOCK):
    """Compare the raw image @disk, as found after its server was killed, with what it must
    be: the last durable operation or one behind it. This holds for every sector, not block:
    nobody is promised that an operation which is not durable is there as a whole."""
    v = Verdict()
    records = [read_log(log) for log in logs]
    flushed = max((sent for log in records for _, sent, done, _, _, kind in log
                   if kind == FLUSH and done != NEVER), default=0)
    hist = histories(records)
    for number, got, old in each_block(v, disk, initial, block):
        states = {old}
        for op in hist.get(number, ()):
            durable = op[3] < flushed or (op[4] == FUA and op[3] != NEVER)
            after = content_of(op, number, states, len(old))
            states = after if durable else states | after
        v.touched += number in hist
        if not all(any(got[i:i + SECTOR] == s[i:i + SECTOR] for s in states)
                   for i in range(0, len(old), SECTOR)):
            v.problems.append(f"block {number}: {describe(got)}; durable or later would be any of "
                              + " or ".join(sorted(describe(s) for s in states)))
    return v


def describe(data):
    if not any(data):
        return "zeros"
    if len(data) < STAMP.size:
        return "a short block"
    magic, writer, _, seq, block = STAMP.unpack_from(data)
    if magic != MAGIC:
        return "content that no writer wrote"
    torn = "" if data == stamp(writer, seq, block, len(data)) else ", torn"
    return f"writer {writer}'s operation {seq} for block {block}{torn}"


def main():
    p = argparse.ArgumentParser(description="A stamping NBD writer; SIGTERM ends it.")
    p.add_argument("uri")
    p.add_argument("log")
    p.add_argument("--writer", type=int, default=0)
    p.add_argument("--of", type=int, default=1)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--block", type=int, default=BLOCK)
    p.add_argument("--stripe", type=int, default=STRIPE)
    p.add_argument("--long", type=float, default=0.2)    # share of more than one block
    p.add_argument("--first-block", type=int, default=0)
    p.add_argument("--blocks", type=int, default=0)
    p.add_argument("--trim", type=float, default=0.05)
    p.add_argument("--zero", type=float, default=0.05)
    p.add_argument("--flush", type=float, default=0.01)
    p.add_argument("--fua", type=float, default=0.01)
    p.add_argument("--pause-us", type=int, default=0)
    return Writer(p.parse_args()).main()


if __name__ == "__main__":
    sys.exit(main())
