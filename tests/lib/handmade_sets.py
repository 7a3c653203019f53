# SPDX-License-Identifier: Apache-2.0
"""Backup sets made by hand: plain images by QEMU's tools, and digests and manifests as
docs/backup-sets.md describes them, by nothing of the program that is tested."""
import hashlib
import json
import os
import struct
import uuid

from stillpoint import qemu_img, run

LEAF, CHUNK = 65536, 1 << 20
ZERO = bytes(32)


def digest(data):
    return hashlib.sha256(data).digest() if data.strip(b"\0") else ZERO


def leaves_of(raw):
    return [digest(raw[i:i + LEAF]) for i in range(0, len(raw), LEAF)]


def root_of(raw):
    root = hashlib.sha256(b"stillpoint disk\0" + struct.pack(">QQ", len(raw), LEAF))
    for i, leaf in enumerate(leaves_of(raw)):
        if leaf != ZERO:
            root.update(struct.pack(">Q", i) + leaf)
    return root.hexdigest()


def digest_file(image, raw, before):
    """The bytes of the file of digests of an image of a disk that now holds raw, and held before
    (None: a full) at the point that it stands on."""
    now = leaves_of(raw)
    old = leaves_of(before) if before is not None else [ZERO] * len(now)
    old += [ZERO] * (len(now) - len(old))
    out = b"STLPDIGS" + struct.pack(">IIQII", 1, 1, len(raw), LEAF, CHUNK) + bytes(32)
    for i, leaf in enumerate(now):
        if leaf != old[i]:
            out += struct.pack(">QII", i, 1, 2 if leaf == ZERO else 1)
            out += b"" if leaf == ZERO else leaf
    out += bytes(16)
    chunks_at = len(out)
    with open(image, "rb") as f:
        data = f.read()
    for i in range(0, len(data), CHUNK):
        out += digest(data[i:i + CHUNK])
    out += b"STLPDIGE" + struct.pack(">QQ", chunks_at, len(data)) + bytes(40)
    return out + hashlib.sha256(out).digest()


def with_checksum(obj):
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"))
    return {**obj, "checksum": hashlib.sha256(text.encode()).hexdigest()}


class Set:
    """A set of one disk, called d."""

    def __init__(self, directory):
        self.dir = str(directory)
        os.makedirs(self.dir)
        self.uuid = str(uuid.UUID(int=0x1234, version=4))
        self.points, self.raws = [], []
        self.put("set.json", {"type": "stillpoint backup set", "format": 1, "id": self.uuid})

    def path(self, name):
        return os.path.join(self.dir, name)

    def put(self, name, obj):
        with open(self.path(name), "w", encoding="utf-8") as f:
            json.dump(with_checksum(obj), f, indent=2)
            f.write("\n")

    def image(self, point):
        return self.path(f"{point}-d.qcow2")

    def add(self, *writes, size=None, options="compat=1.1", full=False):
        """A point that differs from the one before by qemu-io's writes; its id."""
        i = len(self.points)
        point = f"2026120{i + 1}T030000Z"
        parent = self.points[-1] if self.points and not full else None
        image = self.image(point)
        args = ["create", "-q", "-f", "qcow2", "-o", options]
        if parent:
            args += ["-b", os.path.basename(self.image(parent)), "-F", "qcow2"]
        qemu_img(*args, image, *([size] if size else []))
        if writes:
            run("qemu-io", "-f", "qcow2", *[a for w in writes for a in ("-c", w)], image)
        self.finish(point, parent)
        return point

    def finish(self, point, parent):
        raw = self.raw(self.image(point))
        name = f"{point}-d.digests"
        with open(self.path(name), "wb") as f:
            f.write(digest_file(self.image(point), raw, self.raws[-1] if parent else None))
        disk = {"name": "d", "identity": "/x", "size": len(raw), "format": "qcow2",
                "file": os.path.basename(self.image(point)), "reason": "a test", "bytes": 1,
                "kind": "incremental" if parent else "full",
                "digest": {"algorithm": "sha256", "file": name, "leaf-size": LEAF,
                           "root": root_of(raw)}}
        if parent:
            disk["parent"] = parent
        self.put(f"{point}.json", {
            "format": 1, "set": self.uuid, "id": point, "sequence": len(self.points),
            "instant": f"2026-12-0{len(self.points) + 1}T03:00:00.000Z", "duration-ms": 1,
            "version": "x", "disks": [disk]})
        self.points.append(point)
        self.raws.append(raw)

    def raw(self, image):
        out = self.dir + ".raw"
        qemu_img("convert", "-O", "raw", image, out)
        with open(out, "rb") as f:
            raw = f.read()
        os.remove(out)
        return raw

    def files(self):
        return sorted(os.listdir(self.dir))
