# SPDX-License-Identifier: Apache-2.0
"""What every behaviour test has: the helper library, a folder, a daemon in it."""
import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))

import cli  # noqa: E402
import live  # noqa: E402
import stillpoint  # noqa: E402


@pytest.fixture
def daemon(tmp_path):
    """A daemon with nothing in it, and a QMP client. It has to quit well at the end."""
    with stillpoint.Daemon(tmp_path) as d:
        yield d


@pytest.fixture
def qmp(daemon):
    return daemon.qmp


@pytest.fixture
def work():
    """A folder on a disk for large images, gone at once; pytest keeps tmp_path for a while."""
    with live.work_folder() as path:
        yield path


@pytest.fixture
def chain(tmp_path):
    """base.raw <- mid.qcow2 <- top.qcow2, each with something of its own."""
    base = cli.make_image(tmp_path / "base.raw", 8 * cli.MiB, writes=["write -P 1 0 1M"])
    mid = cli.make_image(tmp_path / "mid.qcow2", 8 * cli.MiB, backing=base,
                         writes=["write -P 2 512k 1M", "write -z 2M 256k", "write -P 9 7M 64k"])
    return cli.make_image(tmp_path / "top.qcow2", 8 * cli.MiB, backing=mid,
                          writes=["write -P 3 64k 64k", "discard 512k 128k", "write -z 3M 128k"])
