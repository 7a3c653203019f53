# SPDX-License-Identifier: Apache-2.0
"""check: exit statuses and JSON as qemu-img's, repairs that it finds nothing after."""
import json

from cli import MiB, make_image
from stillpoint import qemu_img, stillpoint


def leaked(path):
    """An image of which a cluster has a refcount that is too high."""
    image = make_image(path, 8 * MiB, writes=["write -P 1 0 1M"])
    with open(image, "r+b") as f:
        f.seek(0x20000 + 4)
        f.write(b"\0\5")
    return image


def test_statuses_and_json_are_those_of_qemu_img(tmp_path):
    sound = make_image(tmp_path / "sound.qcow2", 8 * MiB, writes=["write -P 1 0 1M"])
    corrupt = make_image(tmp_path / "corrupt.qcow2", 8 * MiB, writes=["write -P 1 0 1M"])
    with open(corrupt, "r+b") as f:
        f.seek(0x20000)
        f.write(b"\0\0" * 8)
    raw = make_image(tmp_path / "disk.raw", MiB)
    for image, status in [(sound, 0), (corrupt, 2), (leaked(tmp_path / "leak.qcow2"), 3),
                          (raw, 63)]:
        ours = stillpoint("check", "--json", image, check=False)
        theirs = qemu_img("check", "--output=json", image, check=False)
        assert (ours.returncode, theirs.returncode) == (status, status)
        if status != 63:
            assert json.loads(ours.stdout) == json.loads(theirs.stdout)
    assert stillpoint("check", tmp_path / "missing.qcow2", check=False).returncode == 1


def test_repair(tmp_path):
    image = leaked(tmp_path / "leak.qcow2")
    done = json.loads(stillpoint("check", "--json", "--repair", "leaks", image).stdout)
    assert done["leaks-fixed"] == 1 and "leaks" not in done
    qemu_img("check", image)
    assert "No errors" in stillpoint("check", image).stdout
