# SPDX-License-Identifier: Apache-2.0
"""The progress bar, as a terminal sees it."""
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

import pytest
from cli import Serve, make_image
from stillpoint import BINARY, DEADLINE, qemu_img


class Terminal:
    """A program on a terminal of its own, some columns wide."""

    def __init__(self, argv, columns):
        self.columns = columns
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.popen = subprocess.Popen([str(a) for a in argv], stdin=slave, stdout=slave,
                                      stderr=slave, start_new_session=True,
                                      preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        self.seen = ""

    def read_until(self, pattern):
        """Read until the output so far matches; the match."""
        end = time.monotonic() + DEADLINE
        while not (found := re.search(pattern, self.seen)):
            if not select.select([self.master], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"no {pattern!r} in {self.seen[-300:]!r}")
            if not self.read():
                raise AssertionError(f"ended without {pattern!r}: {self.seen[-300:]!r}")
        return found

    def read(self):
        try:
            data = os.read(self.master, 4096)
        except OSError:           # how a terminal's end shows
            return False
        self.seen += data.decode()
        return bool(data)

    def finish(self):
        while self.read():
            pass
        os.close(self.master)
        return self.popen.wait(DEADLINE)

    def screen(self):
        """The lines that stand on the screen in the end."""
        return [self.shown(line) for line in self.seen.replace("\r\n", "\n").split("\n")]

    @staticmethod
    def shown(line):
        """What is left of a line that was written over."""
        text = ""
        for overwriting in line.split("\r"):
            column = 0
            for n, piece in enumerate(overwriting.split("\033[K")):
                if n:
                    text = text[:column]
                text = text[:column] + piece + text[column + len(piece):]
                column += len(piece)
        return text


@pytest.fixture
def disk(tmp_path):
    make_image(tmp_path / "disk.raw", writes=["write -P 1 0 8M"])
    with Serve(tmp_path, "disk.raw") as s:
        yield s


def backup(disk, target, *args, columns=100):
    return Terminal([BINARY, "backup", "disk", target, "--control", disk.control, *args], columns)


@pytest.mark.parametrize("columns", [200, 100, 60, 30])
def test_a_bar_that_moves_and_goes(columns, disk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    t = backup(disk, "b.raw", "--speed", "4M", columns=columns)
    t.read_until(r"(?!0%)\d+%")
    assert t.finish() == 0
    bars = [p.split("\033")[0] for p in t.seen.split("\r") if "%" in p]
    assert bars and max(len(b) for b in bars) < columns
    if columns >= 60:
        assert re.fullmatch(r"disk -> b\.raw  +\d+% (\[=*>? *\]  )?[\d.]+ [KM]?i?B of 8 MiB  "
                            r"[\d.]+ [KM]?i?B/s(  \d+ s left)?", bars[-1]), bars[-1]
    last = [line for line in t.screen() if line]
    assert len(last) == 1 and last[0].startswith("b.raw: 'disk' as it stood at ")
    qemu_img("compare", "-U", tmp_path / "disk.raw", "b.raw")


def test_ctrl_c_on_the_terminal(disk, tmp_path):
    t = backup(disk, tmp_path / "b.raw", "--speed", "64k")
    t.read_until(r"\d+%")
    os.write(t.master, b"\x03")
    assert t.finish() == 130
    assert [line for line in t.screen() if line and line != "^C"][-1].endswith(
        "stillpoint backup: cancelled; nothing was left behind")
    assert not (tmp_path / "b.raw").exists()


def test_none_counts_what_it_keeps(disk, tmp_path):
    t = backup(disk, tmp_path / "b.qcow2", "--sync", "none")
    t.read_until("Ctrl-C or 'stillpoint complete disk-none' ends the backup")
    disk.write("disk", "write -P 2 0 1M")
    t.read_until(r"1 MiB of old data kept")
    t.popen.send_signal(signal.SIGINT)
    assert t.finish() == 0


def test_plain_lines_on_a_terminal_if_asked_for(disk, tmp_path):
    t = backup(disk, tmp_path / "b.raw", "--progress", "plain")
    assert t.finish() == 0
    assert "\033" not in t.seen
