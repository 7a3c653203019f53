# SPDX-License-Identifier: Apache-2.0
"""The point-in-time oracle: writers that stamp what they write, and the judge.

A writer is a process with one NBD connection. It does one operation after another on
blocks that belong to it alone, and logs each with the moments when it was sent and
acknowledged. Every stamped block names its writer, its place and its sequence number, so
that the judge can tell from a backup's bytes which operation each block last saw.

The judge knows when the backup was asked for and when that was answered. For every block:
what was acknowledged before the question must be in; what was sent after the answer must
be out; what was in flight in between may be either, but whole. And since each writer is
strictly serial, its part of the backup must be a prefix of its log: there is one moment
that explains all of its blocks.
"""
import argparse
import os
import random
import signal
import struct
import subprocess
import sys
import time

BLOCK = 4096
MAGIC = 0x5374696C6C707431
STAMP = struct.Struct("<QIIQQ")      # magic, writer, block's writer-side nonce, seq, block
RECORD = struct.Struct("<QQQQIB3x")  # seq, sent, acknowledged, first block, blocks, kind
NEVER = 2**64 - 1
WRITE, ZERO, TRIM = 0, 1, 2
PER_BLOCK = BLOCK // STAMP.size


def stamp(writer, seq, block):
    """The content of one block; STAMP repeated to its end, so a torn block shows."""
    return STAMP.pack(MAGIC, writer, 0, seq, block) * PER_BLOCK


# ---- the writer process -----------------------------------------------------------------


def pick(rng, args, blocks):
    """A run of blocks that this writer owns: runs of up to 8 blocks go round-robin."""
    stripe = 8
    stripes = blocks // stripe
    own = rng.randrange(args.writer, stripes, args.of)
    at = rng.randrange(stripe)
    run = rng.randint(1, stripe - at) if rng.random() < 0.2 else 1
    return args.first_block + own * stripe + at, run


def writer_main(args):
    import nbd

    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    h = nbd.NBD()
    h.connect_uri(args.uri)
    rng = random.Random(args.seed * 1000 + args.writer)
    blocks = args.blocks or h.get_size() // BLOCK - args.first_block
    with open(args.log, "wb", buffering=0) as log:
        print("ready", flush=True)
        seq, error = 0, None
        while not stop:
            seq += 1
            block, run = pick(rng, args, blocks)
            roll = rng.random()
            kind = TRIM if roll < args.trim else ZERO if roll < args.trim + args.zero else WRITE
            sent = time.monotonic_ns()
            try:
                if kind == WRITE:
                    data = b"".join(stamp(args.writer, seq, block + i) for i in range(run))
                    h.pwrite(data, block * BLOCK)
                elif kind == ZERO:
                    h.zero(run * BLOCK, block * BLOCK)
                else:
                    h.trim(run * BLOCK, block * BLOCK)
                done = time.monotonic_ns()
            except nbd.Error as e:
                error, done = e, NEVER
            log.write(RECORD.pack(seq, sent, done, block, run, kind))
            if error:
                print(f"writer {args.writer}: operation {seq}: {error}", file=sys.stderr)
                return 1
            if args.pause_us:
                time.sleep(args.pause_us / 1e6)
    return 0


# ---- driving writers from a test ----------------------------------------------------------


class Writers:
    """n writer processes on the disk at @uri; a context manager that stops them."""

    def __init__(self, uri, directory, n=2, seed=1, first_block=0, blocks=0, trim=0.05, zero=0.05,
                 pause_us=0):
        self.logs = [os.path.join(directory, f"writer-{i}.log") for i in range(n)]
        self.processes = []
        for i, log in enumerate(self.logs):
            self.processes.append(subprocess.Popen(
                ["/usr/bin/python3", os.path.abspath(__file__), uri, log, "--writer", str(i),
                 "--of", str(n), "--seed", str(seed), "--first-block", str(first_block),
                 "--blocks", str(blocks), "--trim", str(trim), "--zero", str(zero),
                 "--pause-us", str(pause_us)],
                stdout=subprocess.PIPE, text=True))
        for p in self.processes:
            if p.stdout.readline().strip() != "ready":
                raise RuntimeError("a writer did not start")

    def wait_for(self, operations, deadline_s=60):
        """Until every writer has logged that many operations in all."""
        end = time.monotonic() + deadline_s
        while min(self.counts()) < operations:
            if time.monotonic() > end:
                raise RuntimeError(f"writers too slow: {self.counts()} of {operations}")
            for p in self.processes:
                if p.poll() is not None:
                    raise RuntimeError("a writer ended")
            time.sleep(0.005)    # polling a growing file; the loop decides, not the pause

    def counts(self):
        return [os.path.getsize(log) // RECORD.size for log in self.logs]

    def stop(self):
        """Stop all; raises when a guest operation had failed."""
        for p in self.processes:
            if p.poll() is None:
                p.send_signal(signal.SIGTERM)
        bad = [i for i, p in enumerate(self.processes) if p.wait(timeout=60) != 0]
        for p in self.processes:
            p.stdout.close()
        self.processes = []
        if bad:
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


def histories(logs):
    """block -> [(writer, seq, sent, done, kind)] in order; a block has one writer."""
    out = {}
    for writer, log in enumerate(logs):
        for seq, sent, done, first, run, kind in read_log(log):
            for block in range(first, first + run):
                out.setdefault(block, []).append((writer, seq, sent, done, kind))
    return out


def content_of(op, block, before):
    """The contents that a block may have after @op, given those it may have had before."""
    writer, seq, _, _, kind = op
    if kind == WRITE:
        return {stamp(writer, seq, block)}
    if kind == ZERO:
        return {bytes(BLOCK)}
    return {bytes(BLOCK)} | before


def judge(backup, initial, logs, asked, answered):
    """Compare the raw image @backup with what it must be. @initial: the raw image before any
    writer. @asked, @answered: time.monotonic_ns() around the command that took the instant."""
    v = Verdict()
    hist = histories(logs)
    cuts = [[0, NEVER] for _ in logs]      # per writer: the cut lies in [low, high)
    with open(backup, "rb") as b, open(initial, "rb") as i:
        size = os.fstat(i.fileno()).st_size
        if os.fstat(b.fileno()).st_size < size:
            v.problems.append("the backup is smaller than the disk")
            return v
        for block in range((size + BLOCK - 1) // BLOCK):
            got, old = b.read(BLOCK), i.read(BLOCK)
            v.blocks += 1
            judge_block(v, cuts, block, got[:len(old)], old, hist.get(block, ()), asked, answered)
        b.seek(size)
    for writer, (low, high) in enumerate(cuts):
        if low >= high:
            v.problems.append(f"writer {writer}: no single moment explains its blocks: one shows "
                              f"operation {low}, another lacks operation {high}")
    return v


def judge_block(v, cuts, block, got, old, ops, asked, answered):
    states, settled = {old}, None
    candidates = []       # (contents, last operation in, first operation out)
    for n, op in enumerate(ops):
        writer, seq, sent, done, _ = op
        if done > asked and settled is None:
            settled = True
            candidates.append((set(states), ops[n - 1][1] if n else 0, seq))
        if sent >= answered:
            break
        states = content_of(op, block, states)
        if settled:
            v.in_flight += 1
            following = ops[n + 1][1] if n + 1 < len(ops) else NEVER
            candidates.append((set(states), seq, following))
    if settled is None:
        candidates.append((states, ops[-1][1] if ops else 0, NEVER))
    v.touched += bool(ops)
    fit = [c for c in candidates if got in c[0]]
    if not fit:
        v.problems.append(f"block {block}: {describe(got)}; expected operation "
                          + " or ".join(str(c[1]) for c in candidates))
    elif ops and len(fit) == 1:
        cut = cuts[ops[0][0]]
        cut[0], cut[1] = max(cut[0], fit[0][1]), min(cut[1], fit[0][2])


def describe(data):
    if not any(data):
        return "zeros"
    magic, writer, _, seq, block = STAMP.unpack_from(data)
    if magic != MAGIC:
        return "content that no writer wrote"
    torn = "" if data == stamp(writer, seq, block) else ", torn"
    return f"writer {writer}'s operation {seq} for block {block}{torn}"


def main():
    p = argparse.ArgumentParser(description="A stamping NBD writer; SIGTERM ends it.")
    p.add_argument("uri")
    p.add_argument("log")
    p.add_argument("--writer", type=int, default=0)
    p.add_argument("--of", type=int, default=1)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--first-block", type=int, default=0)
    p.add_argument("--blocks", type=int, default=0)
    p.add_argument("--trim", type=float, default=0.05)
    p.add_argument("--zero", type=float, default=0.05)
    p.add_argument("--pause-us", type=int, default=0)
    return writer_main(p.parse_args())


if __name__ == "__main__":
    sys.exit(main())
