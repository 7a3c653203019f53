#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""make bench: Stillpoint beside its peers, on the same files in the same run.

Prints tables of medians and ratios; --json FILE keeps every figure. Benchmarks never
fail a build: they measure, people judge.
"""
import argparse
import json
import os
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import bitmaps  # noqa: E402
import copy_speed  # noqa: E402
import guest_latency  # noqa: E402
import incremental  # noqa: E402
import nbd_speed  # noqa: E402
import qcow2_speed  # noqa: E402


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--stillpoint", default="build/stillpoint")
    p.add_argument("--only", choices=["nbd", "latency", "copy", "qcow2", "incremental",
                                      "bitmaps"])
    p.add_argument("--where", choices=["tmpfs", "disk", "both"], default="both")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=int, default=3, help="length of one fio run")
    p.add_argument("--copy-mib", type=int, default=4096)
    p.add_argument("--json", metavar="FILE")
    args = p.parse_args()
    ours = os.path.abspath(args.stillpoint)
    places = {"tmpfs": "/dev/shm", "disk": "/var/tmp"}
    figures = {}
    for where, parent in places.items():
        if args.where not in (where, "both"):
            continue
        with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as d:
            if args.only in (None, "nbd"):
                figures[f"nbd {where}"] = nbd_speed.run(ours, d, where, args.rounds, args.seconds)
            if args.only in (None, "latency"):
                figures[f"latency {where}"] = guest_latency.run(ours, d, where, args.rounds,
                                                                args.seconds)
            if args.only in (None, "copy"):
                figures[f"copy {where}"] = copy_speed.run(ours, d, where, args.rounds,
                                                          args.copy_mib)
            if args.only in (None, "qcow2"):
                figures[f"qcow2 {where}"] = qcow2_speed.run(ours, d, where, args.rounds,
                                                            args.seconds)
            if args.only in (None, "incremental"):
                figures[f"incremental {where}"] = incremental.run(ours, d, where, args.rounds)
            if args.only in (None, "bitmaps"):
                figures[f"bitmaps {where}"] = bitmaps.run(ours, d, where, args.rounds,
                                                          args.seconds)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(figures, f, indent=1)


if __name__ == "__main__":
    main()
