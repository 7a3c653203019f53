# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: servers under test, QMP, fio, medians and tables.

Stillpoint takes qemu-storage-daemon's command line, so one class starts both. Runs of the
peers are interleaved by the callers: these machines drift, and only ratios of figures
taken side by side mean anything.
"""
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import threading
import time

SOCKET = object()        # stands for the socket's path in a command
TABLES = []              # all that table() has printed, for run.py's JSON


class Qmp:
    """A QMP connection that keeps events for those who wait for them."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.file = self.socket.makefile("rw")
        self.events = []
        json.loads(self.file.readline())
        self("qmp_capabilities")

    def _next(self):
        line = self.file.readline()
        if not line:
            raise RuntimeError("the monitor closed")
        return json.loads(line)

    def __call__(self, command, **arguments):
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            message = self._next()
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise RuntimeError(f"{command}: {message['error']['desc']}")
            elif "return" in message:
                return message["return"]
            # Else a second greeting: QEMU greets whom it meets while it starts twice.

    def wait_event(self, name):
        while True:
            for i, event in enumerate(self.events):
                if event["event"] == name:
                    return self.events.pop(i)
            message = self._next()
            if "event" in message:
                self.events.append(message)


def wait_socket(path, process):
    end = time.monotonic() + 60
    while not os.path.exists(path):
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise RuntimeError(f"{process.args[0]} did not start")
        time.sleep(0.01)


class Daemon:
    """A storage daemon with one writable disk "d" (node and export) and a monitor.

    @options: more options of the disk's node, each with a comma before it."""

    def __init__(self, program, directory, image, fmt="raw", aio="threads", options=""):
        self.socket = os.path.join(directory, "nbd.sock")
        self.control = os.path.join(directory, "qmp.sock")
        for path in (self.socket, self.control):
            if os.path.exists(path):
                os.unlink(path)
        self.process = subprocess.Popen(
            [*program, "--blockdev", f"driver=file,node-name=f,filename={image},aio={aio},"
             "discard=unmap",
             "--blockdev", f"driver={fmt},node-name=d,file=f,discard=unmap{options}",
             "--nbd-server", f"addr.type=unix,addr.path={self.socket}",
             "--export", "type=nbd,id=e,node-name=d,name=d,writable=on",
             "--chardev", f"socket,id=c,path={self.control},server=on,wait=off",
             "--monitor", "chardev=c"])
        wait_socket(self.socket, self.process)
        wait_socket(self.control, self.process)
        self.uri = f"nbd+unix:///d?socket={self.socket}"
        self.qmp = Qmp(self.control)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def make_disk(path, size_mib):
    """A file of random data, written in pieces as small as a guest's.

    Written in large ones, ext4 on current kernels keeps it in the page cache as large
    folios, and then spends some 18 us of CPU on each 4 KiB write, for whoever asks: all
    servers look alike."""
    with open(path, "wb", buffering=0) as f:
        for _ in range(size_mib * 256):
            f.write(os.urandom(4096))


class Server:
    """A program without a monitor that serves one disk. @command gets the socket's path in
    place of SOCKET."""

    def __init__(self, directory, name, command):
        self.socket = os.path.join(directory, f"{name}.sock")
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        self.process = subprocess.Popen([self.socket if c is SOCKET else c for c in command])
        wait_socket(self.socket, self.process)
        self.uri = f"nbd+unix:///?socket={self.socket}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


class Nbdkit(Server):
    def __init__(self, directory, *arguments, name="nbdkit", prefix=()):
        super().__init__(directory, name, [*prefix, "nbdkit", "-f", "-U", SOCKET, *arguments])


class QemuNbd(Server):
    def __init__(self, directory, image):
        super().__init__(directory, "qemu-nbd",
                         ["qemu-nbd", "-t", "-e", "64", "-f", "raw", "-k", SOCKET, image])


def compiled(name, directory):
    """The program of bench/@name.c."""
    program = os.path.join(directory, name)
    if not os.path.exists(program):
        code = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.c")
        subprocess.run(["cc", "-O2", "-pthread", "-o", program, code], check=True)
    return program


class Floor:
    """What a server with one thread could reach at best: see floor_nbd.c."""

    def __init__(self, directory, image):
        self.socket = os.path.join(directory, "floor.sock")
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        self.process = subprocess.Popen([compiled("floor_nbd", directory), image, self.socket],
                                        start_new_session=True)
        wait_socket(self.socket, self.process)
        self.uri = f"nbd+unix:///?socket={self.socket}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def fio_start(uri, rw, bs, depth, seconds, size, out, count=None, extra=()):
    """For @seconds; with None, @count requests or, without that too, the size once."""
    length = ["--time_based", f"--runtime={seconds}"] if seconds else []
    if count:
        length = [f"--number_ios={count}"]
    return subprocess.Popen(
        ["fio", "--name=x", "--ioengine=nbd", f"--uri={uri}", f"--rw={rw}", f"--bs={bs}",
         f"--iodepth={depth}", *length, *extra, f"--size={size}",
         "--norandommap", "--randrepeat=0", "--output-format=json", f"--output={out}"],
        stdout=subprocess.DEVNULL)


def fio_result(process, out):
    """Requests a second, and completion latency percentiles in microseconds."""
    if process.wait() != 0:
        raise RuntimeError("fio failed")
    with open(out, encoding="utf-8") as f:
        job = json.load(f)["jobs"][0]
    side = job["read"] if job["read"]["total_ios"] else job["write"]
    percentile = side["clat_ns"].get("percentile", {})
    return {"iops": side["iops"], "total": side["total_ios"],
            "p50": percentile.get("50.000000", 0) / 1e3,
            "p99": percentile.get("99.000000", 0) / 1e3,
            "p999": percentile.get("99.900000", 0) / 1e3, "max": side["clat_ns"]["max"] / 1e3}


def fio(uri, rw, bs, depth, seconds, size, directory, count=None):
    out = os.path.join(directory, "fio.json")
    return fio_result(fio_start(uri, rw, bs, depth, seconds, size, out, count), out)


def stop(process):
    """Let it end in order."""
    process.terminate()
    process.wait(timeout=60)


def cpu_seconds(pid):
    """What it has used so far, all its threads."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid):
    """The most memory that was resident."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as f:
        line = next((line for line in f if line.startswith("VmHWM")), "VmHWM: 0 kB")
    return int(line.split()[1]) / 1024


def measured(*command):
    """Run it; seconds, CPU seconds and peak memory (looked at every 20 ms) in MiB."""
    over, peak = threading.Event(), [0]

    def watch(pid):
        while not over.wait(0.02):
            with contextlib.suppress(OSError):      # it has just ended
                peak[0] = max(peak[0], peak_mib(pid))

    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    thread = threading.Thread(target=watch, args=[process.pid])
    thread.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    over.set()
    thread.join()
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} failed")
    return {"s": seconds, "cpu": usage.ru_utime + usage.ru_stime, "MiB": peak[0]}


def timed(*command):
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def median(values):
    return statistics.median(values)


def spread(values):
    """(max - min) / median, in percent."""
    return 100 * (max(values) - min(values)) / median(values) if median(values) else 0


def paired(mine, theirs):
    """How many times larger @mine are: the median over the rounds of the ratio of neighbours.

    A machine that drifts, or has a noisy neighbour for some rounds, changes both of a pair."""
    ratios = [a / b for a, b in zip(mine, theirs) if b]
    return median(ratios) if ratios else 0


def in_turns(names, n):
    """The order for round @n: there and back, so that none is always measured first."""
    return list(names) if n % 2 == 0 else list(reversed(list(names)))


def table(title, header, rows):
    TABLES.append({"title": title, "header": header, "rows": rows})
    print(f"\n{title}\n")
    widths = [max(len(str(r[i])) for r in [header, *rows]) for i in range(len(header))]
    for n, row in enumerate([header, *rows]):
        print("| " + " | ".join(str(c).rjust(w) if i else str(c).ljust(w)
                                for i, (c, w) in enumerate(zip(row, widths))) + " |")
        if n == 0:
            print("|" + "|".join("-" * (w + 2) for w in widths) + "|")
    print(flush=True)
