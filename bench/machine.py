# SPDX-License-Identifier: Apache-2.0
"""What a run was made with and on: programs and their versions, machine, kernel, command line.

A figure without these says nothing a month later; run.py puts them into its JSON."""
import datetime
import os
import platform
import shutil
import subprocess
import sys

# What is started beside Stillpoint, with the option that makes it tell its version.
PROGRAMS = {"qemu-storage-daemon": "--version", "qemu-nbd": "--version", "qemu-img": "--version",
            "nbdkit": "--version", "nbdcopy": "--version", "cp": "--version", "fio": "--version",
            "perf": "--version", "strace": "--version", "valgrind": "--version"}


def have(program):
    return shutil.which(program) is not None


def left_out():
    """The programs that are not installed."""
    return [p for p in PROGRAMS if not have(p)]


def first_line(*command):
    run = subprocess.run(command, check=False, text=True, capture_output=True)
    return (run.stdout or run.stderr).strip().partition("\n")[0]


def cpu_model():
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        return next((line.partition(":")[2].strip() for line in f if line.startswith("model name")),
                    platform.machine())


def commit():
    folder = os.path.dirname(os.path.abspath(__file__))
    return first_line("git", "-C", folder, "describe", "--always", "--dirty")


def describe(ours):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "command": [os.path.relpath(sys.argv[0]), *sys.argv[1:]],
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu_model(), "cpus": len(os.sched_getaffinity(0)),
                    "memory MiB": memory >> 20, "kernel": platform.release(),
                    "load at start": os.getloadavg()},
        "versions": {"stillpoint": first_line(ours, "--version"), "commit": commit(),
                     "python": platform.python_version(),
                     **{p: first_line(p, how) for p, how in PROGRAMS.items() if have(p)}},
        "left out": left_out(),
    }
