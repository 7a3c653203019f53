# SPDX-License-Identifier: Apache-2.0
"""A real Linux guest: Debian's kernel and a busybox initramfs under qemu-system-x86_64.

    with Guest(directory, uri, INIT) as g:
        g.wait_for("ready")
        ...
        print(g.lines)          # [(time.monotonic_ns() when it came, text)]

There is no KVM where the tests run, so it is interpreted: ten seconds to boot.
"""
import glob
import gzip
import os
import re
import shutil
import subprocess
import threading
import time

from stillpoint import poll_until, run

MODULES = ["virtio_pci", "virtio_blk", "ext4"]
BOOT_DEADLINE = 180          # a guest that is interpreted on a loaded machine

# The beginning of every /init: all file systems that are not the disk, the disk as /dev/vda.
INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin
for m in $(cat /modules/order); do insmod /modules/$m || echo "insmod $m failed"; done
until [ -b /dev/vda ]; do usleep 100000; done
"""


def kernel():
    """Version of the newest Debian kernel that is installed, or None."""
    images = glob.glob("/boot/vmlinuz-*-amd64")
    versions = [i.removeprefix("/boot/vmlinuz-") for i in images]
    versions = [v for v in versions if os.path.isdir(f"/lib/modules/{v}")]
    return max(versions, key=lambda v: [int(n) for n in re.findall(r"\d+", v)], default=None)


def missing():
    """What a guest needs and is not there, or None."""
    for program in ("qemu-system-x86_64", "busybox", "cpio", "modprobe", "mke2fs", "e2fsck"):
        if not find_program(program):
            return f"{program} is not installed"
    return None if kernel() else "no kernel in /boot with modules (package linux-image-amd64)"


def find_program(name):
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def module_files(names):
    """In the order in which they have to be loaded."""
    files = []
    for name in names:
        shown = run(find_program("modprobe"), "-S", kernel(), "--show-depends", name).stdout
        for line in shown.splitlines():
            kind, path = line.split()[:2]
            if kind == "insmod" and path not in files:
                files.append(path)
    return files


def add_program(root, path):
    """A program of the host, with the libraries that it needs. In a folder of its own: the shell
    prefers what busybox has by the same name."""
    shutil.copy(path, os.path.join(root, "programs"))
    for library in re.findall(r"(/\S+) \(0x", run("ldd", path).stdout):
        target = root + library
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy(library, target)


def make_initramfs(directory, init):
    root = os.path.join(directory, "initramfs")
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("bin", "programs", "modules", "proc", "sys", "dev", "mnt", "etc"):
        os.makedirs(os.path.join(root, folder))
    shutil.copy(find_program("busybox"), os.path.join(root, "bin/busybox"))
    add_program(root, find_program("mke2fs"))
    shutil.copy("/etc/mke2fs.conf", os.path.join(root, "etc"))
    files = module_files(MODULES)
    for f in files:
        shutil.copy(f, os.path.join(root, "modules"))
    with open(os.path.join(root, "modules/order"), "w") as f:
        f.writelines(os.path.basename(m) + "\n" for m in files)
    with open(os.path.join(root, "init"), "w") as f:
        f.write(INIT + init)
    os.chmod(os.path.join(root, "init"), 0o755)

    names = "\n".join(os.path.join(folder, name)[len(root) + 1:] for folder, folders, files in
                      os.walk(root) for name in folders + files)
    archive = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], input=names.encode(),
                             cwd=root, stdout=subprocess.PIPE, check=True).stdout
    path = os.path.join(directory, "initramfs.gz")
    with gzip.open(path, "wb", compresslevel=1) as f:
        f.write(archive)
    return path


class Guest:
    """Boots at once. Its disk is the NBD export at that Unix socket; leaving the `with` is
    like pulling its plug."""

    def __init__(self, directory, socket, export, init):
        self.lines = []
        initramfs = make_initramfs(directory, init)
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
             "-m", "512M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
             "-kernel", f"/boot/vmlinuz-{kernel()}", "-initrd", initramfs,
             "-append", "console=ttyS0 quiet loglevel=3 panic=-1", "-serial", "stdio",
             "-blockdev", f"driver=nbd,node-name=d,export={export},server.type=unix,"
                          f"server.path={socket},cache.direct=on,discard=unmap",
             "-device", "virtio-blk-pci,drive=d,discard=on,write-zeroes=on"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace")
        self.reader = threading.Thread(target=self.read_console, daemon=True)
        self.reader.start()

    def read_console(self):
        for line in self.process.stdout:
            self.lines.append((time.monotonic_ns(), line.rstrip()))

    def text(self):
        return "\n".join(line for _, line in self.lines)

    def running(self):
        return self.process.poll() is None

    def wait_for(self, pattern, times=1, deadline=BOOT_DEADLINE):
        """Until so many lines of the console match."""
        def enough():
            found = sum(bool(re.search(pattern, line)) for _, line in list(self.lines))
            assert found >= times or self.running(), f"the guest has ended:\n{self.text()}"
            return found >= times
        try:
            poll_until(f"{times} times {pattern!r} on the console", enough, deadline)
        except TimeoutError as e:
            raise AssertionError(f"{e}:\n{self.text()}") from None

    def wait(self, deadline=BOOT_DEADLINE):
        """Until it has powered itself off."""
        self.process.wait(deadline)
        self.reader.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()
