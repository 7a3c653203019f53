# SPDX-License-Identifier: Apache-2.0
"""A guest agent such as qemu-ga behind QEMU's socket: one client at a time, and a state that
outlives each of them."""
import json
import os
import socket
import threading


class Agent:
    """What it does is told by attributes, which a test may change at any time:
    on_freeze, on_thaw: called before the answer; leftover: bytes that the next client finds;
    refuse: command -> words of an error; mute: commands that are done and not answered."""

    def __init__(self, directory, file_systems=2):
        self.path = os.path.join(str(directory), "agent.sock")
        self.file_systems = file_systems
        self.frozen = False
        self.log = []
        self.on_freeze = self.on_thaw = lambda: None
        self.leftover = b""
        self.refuse = {}
        self.mute = set()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(8)
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.listener.close()
        assert not self.thread.is_alive()

    def _serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client, client.makefile("rb") as lines:
                try:
                    client.sendall(self.leftover)
                    for line in lines:
                        self._command(client, json.loads(line.split(b"\xff")[-1]))
                except OSError:
                    pass            # such as that the client went away

    def _command(self, client, message):
        name, arguments = message["execute"], message.get("arguments", {})
        self.log.append(name)
        answer, before = {"return": None}, b""
        if name in self.refuse:
            answer = {"error": {"class": "GenericError", "desc": self.refuse[name]}}
        elif name == "guest-sync-delimited":
            answer, before = {"return": arguments["id"]}, b"\xff"
        elif name == "guest-fsfreeze-freeze":
            self.frozen = self.file_systems > 0
            self.on_freeze()
            answer = {"return": self.file_systems}
        elif name == "guest-fsfreeze-thaw":
            answer = {"return": self.file_systems if self.frozen else 0}
            self.frozen = False
            self.on_thaw()
        if name not in self.mute:
            client.sendall(before + json.dumps(answer).encode() + b"\n")
