# SPDX-License-Identifier: Apache-2.0
"""Command lines, right and wrong: --help, misuse, output that cannot be written."""
import subprocess

import pytest
from stillpoint import BINARY, stillpoint

COMMANDS = ["serve", "backup", "jobs", "cancel", "pause", "resume", "complete", "set-speed",
            "create", "info", "map", "compare", "resize", "rebase", "commit", "daemon"]


def misuse(*args):
    """The words of a command that is refused for how it was written."""
    done = stillpoint(*args, check=False)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert f"Try 'stillpoint {args[0]} --help'" in done.stderr
    return done.stderr


def test_the_overview_names_every_command():
    words = stillpoint("--help").stdout
    for command in COMMANDS:
        assert f"\n  {command} " in words


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_usage_and_an_example(command):
    words = stillpoint(command, "--help").stdout
    assert words.startswith(f"Usage: stillpoint {command} ")
    assert f"Example:\n  stillpoint {command} " in words
    assert command == "daemon" or max(len(line) for line in words.splitlines()) <= 88


def test_unknown_command():
    done = stillpoint("bakup", check=False)
    assert done.returncode == 2
    assert "there is no command 'bakup'" in done.stderr


@pytest.mark.parametrize("args, words", [
    (["info"], "something is missing: it takes IMAGE"),
    (["info", "a", "b"], "too many arguments: it takes IMAGE"),
    (["info", "a", "--nonsense"], "there is no option --nonsense"),
    (["info", "a", "-x"], "there is no option -x"),
    (["info", "a", "--format"], "--format needs a value"),
    (["info", "a", "-f"], "-f needs a value"),
    (["info", "a", "--json=yes"], "--json takes no value"),
    (["backup", "a", "b", "--sync", "most"], "--sync cannot be 'most': it is one of full, top"),
    (["backup", "a", "b", "--speed", "fast"], "--speed: 'fast' is not a size"),
    (["backup", "a", "b", "--speed", "50MB"], "with units of 1000 or 1024?"),
    (["backup", "a", "b", "--speed", "-1"], "it is negative"),
    (["backup", "a", "b", "--speed", "9E"], "--speed: '9E' is more than"),
    (["backup", "a", "b", "--cbw-timeout", "1.5"], "--cbw-timeout: '1.5' is not a number"),
    (["backup", "a", "b", "--sync", "none"], "--sync none is for a disk that is served"),
    (["backup", "a", "b", "--sync", "none", "--control", "c"], "can stand on a backing file"),
    (["backup", "a", "b", "--control", "c", "--source-format", "raw"], "--source-format is for"),
    (["serve"], "something is missing"),
    (["serve", "a.raw", "--listen", "somewhere"], "it is unix:PATH or tcp:HOST:PORT"),
    (["serve", "a.raw", "--listen", "tcp:::1:10809"], "it is unix:PATH or tcp:HOST:PORT"),
    (["serve", "a.raw", "--listen", "tcp:localhost"], "it is unix:PATH or tcp:HOST:PORT"),
    (["serve", "x=a.raw", "x=b.raw"], "Two disks are called 'x'"),
    (["serve", "2024.raw"], "A disk cannot be called '2024'"),
    (["serve", "a" * 40 + ".raw"], "is longer than 31 bytes"),
    (["serve", "x="], "names no image"),
    (["serve", "a.raw", "--threads", "100000"], "is more than 1024"),
    (["create", "a.qcow2"], "how large shall it be?"),
    (["create", "a.qcow2", "-5"], "there is no option -5"),
    (["create", "a.qcow2", "5X"], "it has an unknown suffix"),
    (["create", "a.qcow2", "9E"], "is more than an image can have"),
    (["create", "a.raw", "1M", "--cluster-size", "64k"], "a raw image has neither"),
    (["create", "a.raw", "1M", "--backing", "b.raw"], "a raw image has neither"),
    (["create", "a.qcow2", "1M", "--backing-format", "raw"], "--backing-format without --backing"),
    (["create", "nbd://localhost/x", "1M"], "is not a file"),
    (["jobs"], "which daemon?"),
    (["cancel", "j"], "which daemon?"),
    (["set-speed", "j", "--control", "c"], "something is missing: it takes JOB RATE"),
    (["set-speed", "j", "quick", "--control", "c"], "'quick' is not a size"),
])
def test_misuse_is_told_and_how_to_do_it(args, words, monkeypatch):
    monkeypatch.delenv("STILLPOINT_CONTROL", raising=False)
    assert words in misuse(*args)


@pytest.mark.parametrize("args", [["--help"], ["info", "--help"], ["compare", "{i}", "{i}"],
                                  ["info", "{i}"], ["map", "--json", "{i}"]])
def test_a_full_standard_output_is_no_success(args, tmp_path):
    image = tmp_path / "a.raw"
    image.write_bytes(bytes(65536))
    with open("/dev/full", "w") as full:
        done = subprocess.run([BINARY, *[a.format(i=image) for a in args]], stdout=full,
                              stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode not in (0, None)
