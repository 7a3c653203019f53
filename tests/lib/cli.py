# SPDX-License-Identifier: Apache-2.0
"""Driving the commands for people: `serve` in the background, `backup` step by step, and
images to do it with."""
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time

from stillpoint import (BINARY, DEADLINE, ENGINE, Process, Qmp, poll_until, qemu_img, run,
                        stillpoint)

MiB = 1 << 20


def make_image(path, size=8 * MiB, fmt=None, backing=None, writes=()):
    """An image by qemu-img, filled by qemu-io: writes are commands such as "write -P 1 0 1M"."""
    path = str(path)
    fmt = fmt or ("qcow2" if path.endswith(".qcow2") else "raw")
    args = ["create", "-q", "-f", fmt]
    if backing:
        args += ["-b", backing, "-F", "qcow2" if str(backing).endswith(".qcow2") else "raw"]
    qemu_img(*args, path, *([] if backing and size is None else [size]))
    if writes:
        commands = [arg for w in writes for arg in ("-c", w)]
        run("qemu-io", "-f", fmt, *commands, path)
    return path


def info_of(image):
    """What qemu-img says of an image."""
    return json.loads(qemu_img("info", "--output=json", image).stdout)


def leaks_at_worst(image):
    """What qemu-img has to find after a crash. The locks of a killed process take a moment to
    go: until then it cannot look."""
    done = poll_until(f"a look at {image}",
                      lambda: (d := qemu_img("check", image, check=False)).returncode != 1 and d)
    assert done.returncode in (0, 3), done


def fails(*args, status=1):
    """What a command that has to fail says."""
    done = stillpoint(*args, check=False)
    assert done.returncode == status, done
    assert done.stdout == ""
    return done.stderr


class held_open:
    """A qemu-io process that has an image open for writing."""

    def __init__(self, image):
        fmt = "qcow2" if str(image).endswith(".qcow2") else "raw"
        self.process = subprocess.Popen(["qemu-io", "-f", fmt, str(image)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self):
        self.process.stdin.write("length\n")
        self.process.stdin.flush()
        while "iB" not in self.process.stdout.readline():
            pass
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def files_in(directory):
    """Names of the files in a directory, hidden ones too; no sockets and no logs."""
    return sorted(n for n in os.listdir(directory)
                  if os.path.isfile(os.path.join(directory, n)) and not n.endswith(".log"))


class Serve(Process):
    """`stillpoint serve` with a socket for NBD and one for control in the directory. At the
    end of a `with` it gets SIGTERM, and has to end with status 0 and without a sanitizer's
    report."""

    count = 0

    def __init__(self, directory, *args, engine=ENGINE, sockets=True):
        self.socket = os.path.join(str(directory), "nbd.sock")
        self.control = os.path.join(str(directory), "control.sock")
        argv = [BINARY, "serve", *args]
        if sockets and "--listen" not in args:
            argv += ["--listen", f"unix:{self.socket}"]
        if sockets and "--control" not in args:
            argv += ["--control", self.control]
        if engine and "--engine" not in args:
            argv += ["--engine", engine]
        Serve.count += 1
        super().__init__(argv, os.path.join(str(directory), f"serve-{Serve.count}.log"),
                         cwd=str(directory))
        try:
            poll_until("the disks", lambda: "control socket:" in self.log()
                       or not self.running())
            assert self.running(), f"serve did not come up:\n{self.log()}"
        except BaseException:
            self.kill()
            raise

    def lines(self):
        return self.log().splitlines()

    def uri(self, name):
        return f"nbd+unix:///{name}?socket={self.socket}"

    def qmp(self):
        return Qmp.connect(self.control)

    def write(self, name, *commands):
        """Write through NBD as a guest would; commands of qemu-io."""
        return run("qemu-io", "-f", "raw", *[a for c in commands for a in ("-c", c)],
                   self.uri(name))

    def __exit__(self, kind, *_):
        try:
            if kind is None and self.running():
                self.signal(signal.SIGTERM)
                status = self.wait()
                assert status == 0, f"exit status {status}\n{self.log()}"
        finally:
            self.kill()
        if kind is None:
            assert "Sanitizer" not in self.log(), self.log()


def somebody_answers(path):
    """Whether there is a listener: the file is there a moment earlier than that."""
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


class QemuNbd(Process):
    """A peer that serves an image as export "e" to several clients."""

    def __init__(self, directory, image, fmt="raw", options=("--discard=unmap",)):
        self.socket = os.path.join(str(directory), "qemu-nbd.sock")
        self.uri = f"nbd+unix:///e?socket={self.socket}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)      # an earlier one's, which nobody answers at
        super().__init__(["qemu-nbd", "-f", fmt, "-k", self.socket, "-x", "e", "-t",
                          "--shared=8", *options, image],
                         os.path.join(str(directory), "qemu-nbd.log"))
        poll_until("qemu-nbd", lambda: somebody_answers(self.socket) or not self.running())
        assert self.running(), self.log()


class Backup:
    """`stillpoint backup --progress json`, started; its events one by one."""

    def __init__(self, source, target, *args, control=None, **kwargs):
        argv = [BINARY, "backup", source, target, "--progress", "json", *args]
        if control:
            argv += ["--control", control]
        self.popen = subprocess.Popen([str(a) for a in argv], stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, **kwargs)
        self.buffer = b""
        self.stderr = ""

    def event(self, deadline=DEADLINE):
        """The next event; None at the end."""
        end = time.monotonic() + deadline
        while b"\n" not in self.buffer:
            if not select.select([self.popen.stdout], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError("no event of the backup")
            data = os.read(self.popen.stdout.fileno(), 1 << 16)
            if not data:
                return None
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def until(self, name, **members):
        """The first event of that name with these members, those before it dropped."""
        while True:
            event = self.event()
            if event is None:
                self.finish()
                raise AssertionError(f"the backup ended before '{name}': {self.stderr}")
            if event["event"] == name and all(event.get(k) == v for k, v in members.items()):
                return event

    def signal(self, number=signal.SIGINT):
        self.popen.send_signal(number)

    def finish(self):
        """See it to its end: exit status and the last event."""
        last = None
        while (event := self.event()) is not None:
            last = event
        self.stderr = self.popen.stderr.read().decode()
        self.popen.stdout.close()
        self.popen.stderr.close()
        status = self.popen.wait(DEADLINE)
        assert "Sanitizer" not in self.stderr, self.stderr
        return status, last

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
