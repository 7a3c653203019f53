# SPDX-License-Identifier: Apache-2.0
"""backup --to: several disks at one instant, all of them or none."""
import glob

import nbd
import pytest
import sets
from cli import Backup, MiB, files_in, make_image
from stillpoint import qemu_img, stillpoint
from test_transaction import DISKS, Clients, is_one_prefix, served  # noqa: F401

SLOW = ["--speed", "64k"]           # such jobs do not end by themselves during a test
NOTHING = [".lock", "set.json"]     # of a set without points


@pytest.fixture
def to(tmp_path):
    (tmp_path / "to").mkdir()
    return tmp_path / "to"


class Many(Backup):
    """Of the three disks, to a directory."""

    def __init__(self, daemon, to, *args):
        super().__init__(DISKS[0], DISKS[1], DISKS[2], "--to", to, *args,
                         control=daemon.control)


def fill(daemon):
    for d in DISKS:
        h = nbd.NBD()
        h.connect_uri(daemon.uri(d))
        h.pwrite(b"x" * MiB, 0)
        h.pwrite(b"x" * (MiB - 4096), MiB + 4096)     # d2 is slow in between
        h.shutdown()


def refused(*args, status=1):
    done = stillpoint("backup", *args, check=False)
    assert done.returncode == status, done
    return done.stderr


def test_they_are_one_prefix_of_what_was_written(served, to):  # noqa: F811
    with Clients(served.uri):
        for i in range(4):
            done = stillpoint("backup", *DISKS, "--to", to, "--control", served.control)
            assert "the disks as they stood at " in done.stdout
            point = sets.points(to)[i]
            assert is_one_prefix([sets.content(to, point, d, to) for d in DISKS]), i
            assert {sets.how(point, d)[0] for d in DISKS} == {"incremental" if i else "full"}


def test_no_name_appears_before_all_are_whole(served, to):  # noqa: F811
    fill(served)
    with Many(served, to, *SLOW) as b:
        started = b.until("started")
        jobs = [d["job"] for d in started["disks"]]
        assert [j.rsplit("-", 1)[0] for j in jobs] == DISKS
        assert {(d["kind"], d["reason"]) for d in started["disks"]} == {
            ("full", "first backup of this disk")}
        for j in jobs[:2]:
            served.qmp("block-job-set-speed", device=j, speed=0)
            served.wait_event("JOB_STATUS_CHANGE", id=j, status="waiting")
        progress = b.until("progress", note="2 of 3 copied")
        assert sum(j["total"] for j in progress["jobs"]) == progress["total"]
        assert all(n.startswith(".") or n == "set.json" for n in files_in(to))
        assert sets.points(to) == []
        served.qmp("block-job-set-speed", device=jobs[2], speed=0)
        status, last = b.finish()
    assert (status, last["event"]) == (0, "completed")
    assert last["bytes"] == sum(d["bytes"] for d in last["disks"]) > 0
    assert [p["id"] for p in sets.points(to)] == [started["point"]] == [last["point"]]
    assert set(files_in(to)) == sets.files_of(sets.listing(to))


def test_ctrl_c_leaves_nothing(served, to):  # noqa: F811
    fill(served)
    with Many(served, to, *SLOW) as b:
        b.until("started")
        b.signal()
        status, last = b.finish()
    assert (status, last) == (130, {"event": "cancelled"})
    assert "nothing was left behind" in b.stderr
    assert files_in(to) == NOTHING and served.qmp("query-jobs") == []
    assert not any(n.get("dirty-bitmaps") for n in served.qmp("query-named-block-nodes"))


def test_one_that_fails_takes_all_with_it(served, to):  # noqa: F811
    fill(served)
    served.qmp("blockdev-add", {"driver": "raw", "node-name": "bad", "file": {
        "driver": "fault", "rules": [{"op": "read", "errno": "EIO"}],
        "file": {"driver": "null-co", "size": MiB, "read-zeroes": False}}})
    with Backup("d0", "d1", "bad", "--to", to, control=served.control) as b:
        status, last = b.finish()
    assert (status, last["event"]) == (1, "failed")
    assert "Cannot read the source 'bad'" in last["error"]
    assert "the next backup will be a full one again" in b.stderr      # null-co keeps nothing
    assert files_in(to) == NOTHING and served.qmp("query-jobs") == []


def test_a_second_run_on_a_set_is_refused(served, to):  # noqa: F811
    fill(served)
    with Many(served, to, *SLOW) as b:
        b.until("started")
        words = refused("d1", "--to", to, "--control", served.control)
        assert f"is being changed by another stillpoint (process {b.popen.pid})" in words
        b.signal()
        b.finish()


def test_what_cannot_be_is_refused_before_anything_is_touched(served, to, tmp_path):  # noqa: F811
    live = ["--control", served.control]
    assert "it takes SOURCE TARGET, or SOURCE... --to DIR" in refused(*DISKS, *live, status=2)
    assert "something is missing" in refused("d0", *live, status=2)
    for args in (["--sync", "none"], ["--job-id", "j"], ["--bitmap", "b"], ["--format", "raw"],
                 ["--force"]):
        assert f"{args[0]}" in refused(*DISKS, "--to", to, *args, *live, status=2)
    for option in "--full", "--dry-run", "--json":
        assert "go with --to DIR" in refused("d0", tmp_path / "x", option, *live, status=2)
    assert "'d0' is named twice" in refused("d0", "d1", "d0", "--to", to, *live)
    words = refused("d0", "nope", "--to", to, *live)
    assert "has no disk 'nope'; it serves 'd0'" in words
    assert "is not the name of a disk" in refused("d0", "../x", "--to", to, *live)
    assert "There is no directory" in refused("d0", "--to", tmp_path / "none" / "set", *live)
    assert "is not a directory" in refused("d0", "--to", tmp_path / "d0.raw", *live)
    assert files_in(to) == NOTHING and served.qmp("query-jobs") == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("precious")
    assert "is not a backup set, and there are files in it" in refused(
        "d0", "--to", tmp_path / "mine", *live)
    assert "letter" in files_in(tmp_path / "mine")


def test_files_that_nobody_has_open(to, tmp_path):
    (tmp_path / "sub").mkdir()
    base = make_image(tmp_path / "base.raw", writes=["write -P 5 0 8M"])
    images = [make_image(tmp_path / "a.qcow2", backing=base, writes=["write -P 1 1M 1M"]),
              make_image(tmp_path / "b.raw", writes=["write -P 2 0 3M"]),
              make_image(tmp_path / "sub" / "a.raw", writes=["write -P 3 0 64k"])]
    words = refused(*images, "--to", to, "--control", "")
    assert "would both be the disk 'a'" in words
    assert sets.points(to) == []
    stillpoint("backup", *images[:2], "--to", to, "--control", "", "--compress")
    made = sorted(glob.glob(f"{to}/*.qcow2"))
    qemu_img("compare", images[0], made[0])
    qemu_img("compare", "-f", "raw", images[1], made[1])
