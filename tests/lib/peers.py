# SPDX-License-Identifier: Apache-2.0
"""The same storage daemon twice: QEMU's and ours, each in a folder of its own, to be given the
same orders.

    with both(work) as peers:
        for peer in peers:
            peer.qmp("blockdev-add", ...)
"""
import contextlib
import os
import shutil

import stillpoint

QSD = shutil.which("qemu-storage-daemon")


class StorageDaemon(stillpoint.Process):
    """One of the two. .name is "qemu" or "we". At the end of a `with` without an error it has to
    quit well."""

    def __init__(self, name, directory):
        self.name = name
        self.directory = os.path.join(str(directory), name)
        os.mkdir(self.directory)
        argv = [QSD] if name == "qemu" else [stillpoint.BINARY, "daemon"]
        sock = self.path("qmp.sock")
        super().__init__([*argv, "--chardev", f"socket,id=c,path={sock},server=on,wait=off",
                          "--monitor", "chardev=c"], self.path("log"))
        try:
            self.qmp = stillpoint.Qmp.connect(sock)
        except BaseException:
            self.kill()
            raise

    def path(self, name):
        return os.path.join(self.directory, name)

    def uri(self, export):
        return f"nbd+unix:///{export}?socket={self.path('nbd')}"

    def serve(self):
        self.qmp("nbd-server-start", {"addr": {"type": "unix",
                                               "data": {"path": self.path("nbd")}}})

    def export(self, node, name=None, **more):
        self.qmp("block-export-add", type="nbd", id=name or node, node_name=node,
                 name=name or node, **more)

    def end_export(self, name):
        self.qmp("block-export-del", id=name, mode="hard")
        self.qmp.wait_event("BLOCK_EXPORT_DELETED", id=name)

    def qemu_io(self, export, *commands, check=True):
        return stillpoint.run("qemu-io", "-f", "raw", *[a for c in commands for a in ("-c", c)],
                              self.uri(export), check=check)

    def content(self, export):
        path = self.path("content.raw")
        stillpoint.run("nbdcopy", self.uri(export), path)
        with open(path, "rb") as f:
            return f.read()

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.qmp.ask("quit")
                assert self.wait() == 0, self.log()
        finally:
            self.kill()
        if kind is None:
            assert "Sanitizer" not in self.log(), self.log()


@contextlib.contextmanager
def both(directory):
    with StorageDaemon("qemu", directory) as qemu, StorageDaemon("we", directory) as we:
        yield qemu, we
