# SPDX-License-Identifier: Apache-2.0
"""What every behaviour test has: the helper library, a folder, a daemon in it."""
import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))

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
