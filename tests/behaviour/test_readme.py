# SPDX-License-Identifier: Apache-2.0
"""What the README tells people to type works as printed."""
import json
import os
import re
import subprocess

import pytest
from cli import MiB, make_image
from stillpoint import BINARY, DEADLINE, Process, Qmp, poll_until, qemu_img, run

README = os.path.join(os.path.dirname(__file__), "..", "..", "README.md")


def blocks_under(heading):
    """The indented blocks of a section, each a text."""
    with open(README) as f:
        section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", f.read(), re.M | re.S).group(1)
    return [re.sub(r"^    ", "", b, flags=re.M) for b in
            re.findall(r"(?:^    .*\n)+", section, re.M)]


@pytest.fixture
def shell(tmp_path):
    """Run text as a person would in an empty folder, with the program on the PATH."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    os.symlink(BINARY, bin_dir / "stillpoint")
    home = tmp_path / "home"
    home.mkdir()
    env = {k: v for k, v in os.environ.items() if k != "STILLPOINT_CONTROL"}
    env["PATH"] = f"{bin_dir}:{env['PATH']}"

    def start(text):
        return Process(["sh", "-e", "-c", "exec " + text], tmp_path / "shell.log", cwd=home,
                       env=env)
    start.home, start.env = home, env
    return start


def test_a_live_backup_in_five_lines(shell):
    create, serve, qemu, export, backup = blocks_under("A live backup in five lines")[0] \
        .splitlines()
    assert qemu.startswith("qemu-system-x86_64 ... -drive file=")
    drive = re.search(r"file=(\S+),format=raw &", qemu).group(1)
    subprocess.run(create, shell=True, check=True, cwd=shell.home, env=shell.env,
                   timeout=DEADLINE)
    with shell(serve.removesuffix(" &")) as server:
        poll_until("the disk", lambda: "control socket" in server.log() or not server.running())
        assert server.running(), server.log()
        run("qemu-io", "-f", "raw", "-c", "write -P 7 1G 1M", drive, cwd=shell.home)
        subprocess.run(f"{export}\n{backup}", shell=True, check=True, cwd=shell.home,
                       env=shell.env, timeout=DEADLINE)
        run("qemu-io", "-f", "raw", "-c", "write -P 9 1G 1M", drive, cwd=shell.home)
    run("qemu-io", "-c", "read -P 7 1G 1M", shell.home / "monday.qcow2")
    qemu_img("check", shell.home / "monday.qcow2")


def test_a_chain_of_backups(shell):
    first = blocks_under("A live backup in five lines")[0].splitlines()
    full, incremental = blocks_under("A live backup in five lines")[1].splitlines()
    make_image(shell.home / "disk.qcow2", writes=["write -P 1 0 4M"])
    env = {**shell.env, "STILLPOINT_CONTROL": "control.sock"}

    with shell(first[1].removesuffix(" &")) as server:
        poll_until("the disk", lambda: "control socket" in server.log() or not server.running())
        for command in (full, incremental):
            subprocess.run(command, shell=True, check=True, cwd=shell.home, env=env,
                           timeout=DEADLINE)
            run("qemu-io", "-f", "raw", "-c", "write -P 2 1M 64k",
                "nbd:unix:disk.sock:exportname=disk",
                cwd=shell.home)
    for image in ("monday.qcow2", "tuesday.qcow2"):
        run("qemu-io", "-c", f"read -P {1 if image[0] == 'm' else 2} 1M 64k", shell.home / image)


def test_the_qmp_way(shell):
    daemon, command = blocks_under("The QMP way")
    make_image(shell.home / "disk.qcow2", 8 * MiB, writes=["write -P 5 0 1M"])
    with shell(daemon) as d:
        with Qmp.connect(shell.home / "qmp.sock") as q:
            q.send(re.sub(r"\s*\n\s*", " ", command) + "\n")
            assert q.response() == {"return": {}}
            event = q.wait_event("BLOCK_JOB_COMPLETED")
            assert "error" not in event["data"], event
            run("qemu-io", "-f", "raw", "-c", "read -P 5 0 1M",
                f"nbd+unix:///disk?socket={shell.home}/nbd.sock")
            q("quit")
        assert d.wait() == 0
    qemu_img("compare", shell.home / "disk.qcow2", shell.home / "monday.qcow2")
    assert json.loads(re.sub(r"\s*\n\s*", " ", command))["arguments"]["target"] == "monday.qcow2"
