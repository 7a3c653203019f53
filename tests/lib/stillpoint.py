# SPDX-License-Identifier: Apache-2.0
"""Starting the program and talking to it: what behaviour tests share.

    with Daemon(dir) as d:                     # stillpoint daemon, with a QMP client
        d.qmp("blockdev-add", driver="null-co", node_name="n0", size=1 << 20)
        d.wait_event("JOB_STATUS_CHANGE", status="concluded")

Nothing here sleeps for a fixed time: it waits for what is to happen, with a deadline that
is only met when something is wrong.
"""
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time

BINARY = os.path.abspath(os.environ.get("STILLPOINT", "build/stillpoint"))
ENGINE = os.environ.get("STILLPOINT_ENGINE")      # run everything with this engine

# Long enough for a loaded machine under a sanitizer.
DEADLINE = 60


def poll_until(what, condition, deadline=DEADLINE):
    """Wait until condition() gives something true, and return that."""
    end = time.monotonic() + deadline
    pause = 0.001
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise TimeoutError(f"waited {deadline} s for {what}")
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def free_port():
    """A TCP port of the loopback that nobody listens on at this moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(*args, check=True, **kwargs):
    """A command to its end; its output is text."""
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True,
                          timeout=DEADLINE, **kwargs)
    if check and done.returncode != 0:
        raise AssertionError(f"{args}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def stillpoint(*args, **kwargs):
    """A subcommand of the program to its end."""
    return run(BINARY, *args, **kwargs)


def qemu_img(*args, **kwargs):
    return run("qemu-img", *args, **kwargs)


class QmpError(Exception):
    """An error response: error class and text."""

    def __init__(self, error):
        super().__init__(f"{error['class']}: {error['desc']}")
        self.error_class = error["class"]
        self.desc = error["desc"]


class Qmp:
    """A QMP connection. Events are kept until somebody waits for them."""

    def __init__(self, sock, negotiate=True, deadline=DEADLINE):
        self.sock = sock
        self.deadline = deadline
        self.buffer = b""
        self.events = []
        self.greeting = self.receive()
        if negotiate:
            self.execute("qmp_capabilities")

    @classmethod
    def connect(cls, path, **kwargs):
        """To a Unix socket, which may still have to appear."""
        def attempt():
            s = socket.socket(socket.AF_UNIX)
            try:
                s.connect(str(path))
                return s
            except (FileNotFoundError, ConnectionRefusedError):
                s.close()
                return None
        return cls(poll_until(f"a listener on {path}", attempt), **kwargs)

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, message):
        """Send raw text, or an object as JSON."""
        text = message if isinstance(message, (str, bytes)) else json.dumps(message) + "\r\n"
        self.sock.sendall(text.encode() if isinstance(text, str) else text)

    def receive(self, deadline=None):
        """The next message, whatever it is; ConnectionError at the end."""
        end = time.monotonic() + (deadline or self.deadline)
        while b"\n" not in self.buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.sock], [], [], left)[0]:
                raise TimeoutError("no QMP message")
            data = self.sock.recv(1 << 16)
            if not data:
                raise ConnectionError("the QMP connection has ended")
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def response(self):
        """The next message that is not an event; events go to self.events."""
        while True:
            message = self.receive()
            if "event" not in message:
                return message
            self.events.append(message)

    def ask(self, command, arguments=None, **members):
        """Send a command and give the whole response."""
        message = {"execute": command, **members}
        if arguments is not None:
            message["arguments"] = arguments
        self.send(message)
        return self.response()

    def execute(self, command, arguments=None, **kwargs):
        """Send a command and give what it returns. Arguments as an object, or as keywords,
        where "_" stands for "-". QmpError if it fails."""
        if kwargs:
            arguments = {**(arguments or {}), **{k.replace("_", "-"): v for k, v in kwargs.items()}}
        response = self.ask(command, arguments)
        if "error" in response:
            raise QmpError(response["error"])
        return response["return"]

    __call__ = execute

    def wait_event(self, name, deadline=None, **data):
        """The first event of that name whose data has these members, taken out of
        self.events; those before it stay there."""
        end = time.monotonic() + (deadline or self.deadline)
        seen = 0
        while True:
            for i in range(seen, len(self.events)):
                event = self.events[i]
                if event["event"] == name and all(event.get("data", {}).get(k) == v
                                                  for k, v in data.items()):
                    return self.events.pop(i)
            seen = len(self.events)
            message = self.receive(max(end - time.monotonic(), 0.001))
            assert "event" in message, f"an event was expected: {message}"
            self.events.append(message)

    def wait_job(self, job, deadline=None):
        """Wait until a job that dismisses itself is over; gives BLOCK_JOB_COMPLETED's or
        BLOCK_JOB_CANCELLED's event."""
        self.wait_event("JOB_STATUS_CHANGE", deadline, id=job, status="null")
        for i, event in enumerate(self.events):
            if event["event"] in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED") and \
                    event["data"]["device"] == job:
                return self.events.pop(i)
        raise AssertionError(f"job {job} ended without telling how: {self.events}")


class Process:
    """A running program that is ended with the test, however that goes."""

    def __init__(self, argv, log, **kwargs):
        self.log_path = str(log)
        with open(self.log_path, "ab") as out:
            self.popen = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL,
                                          stdout=out, stderr=out, **kwargs)

    @property
    def pid(self):
        return self.popen.pid

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def running(self):
        return self.popen.poll() is None

    def wait(self, deadline=DEADLINE):
        """Its exit status."""
        return self.popen.wait(deadline)

    def signal(self, number):
        self.popen.send_signal(number)

    def kill(self):
        if self.running():
            self.popen.kill()
        self.popen.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


class Daemon(Process):
    """`stillpoint daemon` with a control socket, and a client connected to it. At the end
    of a `with` it is asked to quit, and has to do so with status 0 and without a
    sanitizer's report."""

    def __init__(self, directory, *options, engine=ENGINE, env=None):
        self.directory = str(directory)
        self.control = os.path.join(self.directory, "qmp.sock")
        argv = [BINARY, "daemon", *options, "--control", self.control]
        if engine:
            argv += ["--engine", engine]
        super().__init__(argv, os.path.join(self.directory, "daemon.log"),
                         env={**os.environ, **(env or {})})
        try:
            self.qmp = self.connect()
        except BaseException:
            self.kill()
            raise

    def connect(self, **kwargs):
        """A further QMP client; an error if the daemon ends before there is a listener."""
        poll_until("the control socket",
                   lambda: os.path.exists(self.control) or not self.running())
        if not self.running():
            raise AssertionError(f"the daemon did not come up:\n{self.log()}")
        return Qmp.connect(self.control, **kwargs)

    def wait_event(self, name, **data):
        return self.qmp.wait_event(name, **data)

    def quit(self):
        """Ask it to end, and see that it does."""
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            self.qmp.ask("quit")
        status = self.wait()
        assert status == 0, f"exit status {status}\n{self.log()}"

    def __exit__(self, kind, *_):
        try:
            if kind is None and self.running():
                self.quit()
        finally:
            self.qmp.close()
            self.kill()
        if kind is None:
            assert "Sanitizer" not in self.log(), self.log()

    # Shorthands for what nearly every test does.

    def add_file(self, node, path, driver="raw", **options):
        """blockdev-add of a format over a file."""
        self.qmp("blockdev-add", {"driver": driver, "node-name": node,
                                  "file": {"driver": "file", "filename": str(path)}, **options})

    def serve(self, *nodes, writable=True):
        """Start the NBD server and export these nodes under their names; gives a function
        from a node to its URI."""
        path = os.path.join(self.directory, "nbd.sock")
        self.qmp("nbd-server-start", {"addr": {"type": "unix", "data": {"path": path}}})
        for node in nodes:
            self.qmp("block-export-add", type="nbd", id=node, node_name=node, writable=writable)
        return lambda node: f"nbd+unix:///{node}?socket={path}"


def terminate(process, number=signal.SIGTERM):
    """Send a signal, and give the exit status and the seconds it took."""
    start = time.monotonic()
    process.signal(number)
    return process.wait(), time.monotonic() - start
