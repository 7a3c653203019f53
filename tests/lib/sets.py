# SPDX-License-Identifier: Apache-2.0
"""Backup sets as tests look at them: what the program lists, and what qemu-img reads."""
import json
import os
import subprocess

from stillpoint import BINARY, qemu_img, stillpoint


def points(directory):
    """The manifests that are listed, oldest first."""
    return json.loads(stillpoint("list", "--json", directory).stdout)["points"]


def listing(directory):
    return json.loads(stillpoint("list", "--json", directory).stdout)


def image_of(directory, point, disk):
    return os.path.join(directory, next(d["file"] for d in point["disks"] if d["name"] == disk))


def read_image(path, scratch):
    """What plain qemu-img makes of it."""
    flat = os.path.join(scratch, "restored.raw")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, flat)
    with open(flat, "rb") as f:
        data = f.read()
    os.unlink(flat)
    return data


def content(directory, point, disk, scratch):
    return read_image(image_of(directory, point, disk), scratch)


def backup(*args, control="", check=True, **kwargs):
    """`stillpoint backup ARGS`: the manifest of the new point, or None where it failed."""
    done = subprocess.run([BINARY, "backup", *map(str, args), "--control", str(control), "--json"],
                          capture_output=True, text=True, timeout=120, check=False, **kwargs)
    assert "Sanitizer" not in done.stderr, done.stderr
    if check:
        assert done.returncode == 0, done
    return json.loads(done.stdout) if done.returncode == 0 else None


def files_of(found):
    """The names of the files that a set has which lists so."""
    names = {".lock", "set.json"}
    for p in found["points"]:
        names.add(f"{p['id']}.json")
        for d in p["disks"]:
            names |= {d["file"], d["digest"]["file"]}
    return names


def how(point, disk):
    """("full", reason) or ("incremental", parent)."""
    d = next(d for d in point["disks"] if d["name"] == disk)
    return (d["kind"], d["parent"] if d["kind"] == "incremental" else d["reason"])
