# SPDX-License-Identifier: Apache-2.0
"""A real guest is backed up while it works, and its backup boots.

A Linux guest makes a file system on our disk, and writes files over and over: it syncs each
and then says on its console what is in it. Meanwhile the disk is backed up. What was synced
before the backup was asked for is in it, as the guest's own kernel finds when it boots on the
backup: to it, the backup is a disk whose plug was pulled at that instant.
"""
import os
import re
import subprocess
import time

import guest
import pytest

from stillpoint import Daemon, qemu_img

pytestmark = pytest.mark.skipif(guest.missing() is not None, reason=str(guest.missing()))

DISK_MIB = 192
FILES = 120                   # each is written again and again

# A file is written in place: what it held before is overwritten. "start" comes before the
# first byte changes, "synced" when all is on the disk. Now and then one is removed, and the
# blocks of a large one are trimmed.
WORK = f"""
/programs/mke2fs -q -F -t ext4 -b 4096 /dev/vda || echo "mkfs failed"
mount -t ext4 -o discard /dev/vda /mnt || echo "mount failed"
cd /mnt
echo ready
i=0
while true; do
    i=$((i + 1))
    f=file$((i * 7 % {FILES}))
    echo "start $f"
    dd if=/dev/urandom of=$f bs=4k count=$((i * 13 % 97 + 1)) conv=notrunc,fsync 2>/dev/null
    echo "synced $f $(sha256sum < $f)"
    if [ $((i % 10)) = 0 ]; then
        echo "start file$((i % {FILES}))"
        rm file$((i % {FILES}))
        dd if=/dev/zero of=large bs=64k count=32 2>/dev/null
        rm large
    fi
done
"""

# The kernel replays the journal when it mounts.
READ = """
mount -t ext4 /dev/vda /mnt || echo "mount failed"
cd /mnt
for f in *; do [ -f $f ] && echo "found $f $(sha256sum < $f)"; done
cd /
umount /mnt && echo "finished"
poweroff -f
"""


def synced_files(lines, asked, answered):
    """name -> digest of those that did not change around the instant. The guest may have been
    further than its console: what it began within a second after the answer is left out."""
    files = {}
    for when, line in lines:
        if when > answered + 10**9:
            break
        m = re.match(r"(start|synced) (file\d+)(?: (\w{64}))?", line)
        if not m:
            continue
        kind, name, digest = m.groups()
        files.pop(name, None)
        if kind == "synced" and when < asked:
            files[name] = digest
    return files


def serve(d, image, writable):
    d.add_file("disk", image, driver="qcow2", discard="unmap")
    d.serve("disk", writable=writable)
    return os.path.join(d.directory, "nbd.sock")


def boot_and_read(work, image):
    """What the kernel finds in the files on a disk: name -> digest."""
    with Daemon(work) as d:
        with guest.Guest(work, serve(d, image, True), "disk", READ) as g:
            g.wait()
            assert "finished" in g.text() and "failed" not in g.text(), g.text()
            return dict(re.findall(r"found (\S+) (\w{64})", g.text()))


def check_file_system(image, work):
    """The backup is a disk that lost power, so its journal is to be replayed first, and files
    that were being removed are to be dropped: what `e2fsck -p` does by itself and a kernel
    at mount. After that not a thing may be wrong."""
    raw = os.path.join(work, "judged.raw")
    qemu_img("convert", "-O", "raw", image, raw)
    preen = subprocess.run([guest.find_program("e2fsck"), "-p", raw], capture_output=True,
                           text=True)
    assert preen.returncode in (0, 1), preen.stdout + preen.stderr
    full = subprocess.run([guest.find_program("e2fsck"), "-fn", raw], capture_output=True,
                          text=True)
    assert full.returncode == 0, full.stdout + full.stderr
    os.unlink(raw)


def make_disk(work):
    """qcow2 over a base full of rubbish, so that what is not written is not by luck zero."""
    base, disk = os.path.join(work, "base.raw"), os.path.join(work, "disk.qcow2")
    with open(base, "wb") as f:
        f.write(os.urandom(2**20) * (DISK_MIB // 2))
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", disk, f"{DISK_MIB}M")
    return disk


def test_a_guest_is_backed_up_while_it_works_and_its_backup_boots(work):
    disk, target = make_disk(work), os.path.join(work, "backup.qcow2")
    with Daemon(work) as d, guest.Guest(work, serve(d, disk, True), "disk", WORK) as g:
        g.wait_for("^ready")
        assert "failed" not in g.text(), g.text()
        g.wait_for("^synced", times=FILES + 20)
        asked = time.monotonic_ns()
        d.qmp("drive-backup", job_id="job", device="disk", sync="full", target=target,
              format="qcow2", speed=2**20)
        answered = time.monotonic_ns()
        g.wait_for("^synced", times=FILES + 120)
        d.qmp("block-job-set-speed", device="job", speed=0)
        end = d.qmp.wait_job("job")
        assert "error" not in end["data"], end
        lines = list(g.lines)
    during = [t for t, line in lines if t > answered and line.startswith("synced")]
    expected = synced_files(lines, asked, answered)
    assert len(expected) > FILES // 2 and len(during) > 10, g.text()

    qemu_img("check", target)
    check_file_system(target, work)
    # The backup itself is only read: the guest writes to an overlay of it.
    overlay = os.path.join(work, "overlay.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", target, "-F", "qcow2", overlay)
    found = boot_and_read(work, overlay)
    wrong = {name: (digest, found.get(name)) for name, digest in expected.items()
             if found.get(name) != digest}
    assert not wrong, wrong
    # And the disk itself is as good after the guest's plug was pulled.
    check_file_system(disk, work)
