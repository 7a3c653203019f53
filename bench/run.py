#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""make bench: Stillpoint beside its peers, on the same files in the same run.

Prints tables of medians, spread and paired ratios; --json FILE keeps every figure with what it
was measured with, --svg DIR draws what can be drawn. Peers that are not installed are
named and left out. Benchmarks never fail a build: they measure, people judge.
"""
import argparse
import json
import os
import signal
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import bitmaps  # noqa: E402
import common  # noqa: E402
import copy_speed  # noqa: E402
import cost  # noqa: E402
import growth  # noqa: E402
import guest_latency  # noqa: E402
import incremental  # noqa: E402
import instructions  # noqa: E402
import machine  # noqa: E402
import nbd_speed  # noqa: E402
import qcow2_speed  # noqa: E402
import restore_speed  # noqa: E402
import stuck  # noqa: E402
import svg  # noqa: E402
import timeline  # noqa: E402

PLACES = {"tmpfs": "/dev/shm", "disk": "/var/tmp"}
QSD = ["qemu-storage-daemon", "qemu-img"]

# What is measured: how it is started, and the programs without which it cannot be.
SUITES = {
    "nbd": (lambda a, d, w: nbd_speed.run(a.stillpoint, d, w, a.rounds, a.seconds), ["fio"]),
    "timeline": (lambda a, d, w: timeline.run(a.stillpoint, d, w, a.rounds, max(a.seconds, 3)),
                 ["fio", "nbdkit", *QSD]),
    "latency": (lambda a, d, w: guest_latency.run(a.stillpoint, d, w, a.rounds, a.seconds),
                ["fio", "nbdkit", *QSD]),
    "stuck": (lambda a, d, w: stuck.run(a.stillpoint, d, w, a.rounds, a.seconds),
              ["fio", "nbdkit", *QSD]),
    "copy": (lambda a, d, w: copy_speed.run(a.stillpoint, d, w, a.rounds, a.copy_mib), []),
    "qcow2": (lambda a, d, w: qcow2_speed.run(a.stillpoint, d, w, a.rounds, a.seconds),
              ["fio", *QSD]),
    "incremental": (lambda a, d, w: incremental.run(a.stillpoint, d, w, a.rounds),
                    ["fio", *QSD]),
    "bitmaps": (lambda a, d, w: bitmaps.run(a.stillpoint, d, w, a.rounds, a.seconds),
                ["fio", *QSD]),
    "restore": (lambda a, d, w: restore_speed.run(a.stillpoint, d, w, a.rounds), QSD),
    "instructions": (lambda a, d, w: instructions.run(a.stillpoint, d, w), ["fio"]),
    "cost": (lambda a, d, w: cost.run(a.stillpoint, d, w, a.rounds, a.seconds, a.copy_mib),
             ["fio"]),
    "growth": (lambda a, d, w: growth.run(a.stillpoint, d, w, a.seconds), ["fio", *QSD]),
}

# make bench: minutes. What is named on the command line goes before.
QUICK = {"only": ["timeline", "stuck", "nbd", "copy"], "where": "tmpfs", "rounds": 3, "seconds": 1,
         "copy_mib": 1024}
FULL = {"only": list(SUITES), "where": "both", "rounds": 5, "seconds": 3, "copy_mib": 4096}


def arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--stillpoint", default="build/stillpoint", metavar="PROGRAM")
    p.add_argument("--full", action="store_true", help="everything, everywhere, more rounds")
    p.add_argument("--only", action="append", choices=list(SUITES), help="may be given again")
    p.add_argument("--where", choices=[*PLACES, "both"])
    p.add_argument("--rounds", type=int)
    p.add_argument("--seconds", type=int, help="length of one fio run")
    p.add_argument("--copy-mib", type=int)
    p.add_argument("--json", metavar="FILE", help="keep every figure")
    p.add_argument("--svg", metavar="DIR", help="draw timeline, nbd and copy there")
    args = p.parse_args()
    for name, value in (FULL if args.full else QUICK).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.stillpoint = os.path.abspath(args.stillpoint)
    return args


def main():
    args = arguments()
    # So that a run that is ended leaves no server behind, and no disk.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    about = machine.describe(args.stillpoint)
    if about["left out"]:
        print("not installed, and left out: " + ", ".join(about["left out"]))
    figures = {}
    for where, parent in PLACES.items():
        if args.where not in (where, "both"):
            continue
        for name in args.only:
            start, needs = SUITES[name]
            missing = [p for p in needs if not machine.have(p)]
            if missing:
                print(f"{name}: left out, it needs {', '.join(missing)}")
                continue
            with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as d:
                figures[f"{name} {where}"] = start(args, d, where)
    about["machine"]["load at end"] = os.getloadavg()
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({**about, "rounds": args.rounds, "seconds": args.seconds,
                       "figures": figures, "tables": common.TABLES}, f, indent=1)
    if args.svg:
        svg.draw(figures, args.svg)


if __name__ == "__main__":
    main()
