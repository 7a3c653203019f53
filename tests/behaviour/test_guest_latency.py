# SPDX-License-Identifier: Apache-2.0
"""What a backup tells of its cost to the disk's users, and the budget that bounds it."""
import pytest
from cli import Backup, MiB, Serve, make_image
from stillpoint import Daemon, QmpError, qemu_img, run, stillpoint

GRANULE = 4096
FIGURES = {"writes", "delayed", "p50-ns", "p99-ns", "p999-ns", "max-ns"}
BUDGET = {"factor", "holding-back"}       # and "slowdown", when it is known


def told(qmp):
    """The same by both questions, but for the time that lies between them."""
    jobs, block_jobs = qmp("query-jobs"), qmp("query-block-jobs")
    assert [j["guest-latency"]["writes"] for j in jobs] == \
           [j["guest-latency"]["writes"] for j in block_jobs]
    return block_jobs[0]["guest-latency"]


def start(d, tmp_path, **options):
    """A job that copies the first MiB and then waits, for days; the disk's URI."""
    make_image(tmp_path / "disk", size=4 * MiB, fmt="raw", writes=["write -P 1 0 4M"])
    make_image(tmp_path / "target", size=4 * MiB, fmt="raw")
    for node in ("disk", "target"):
        d.add_file(node, tmp_path / node, discard="unmap")
    d.qmp("blockdev-backup", job_id="j", device="disk", target="target", sync="full",
          speed=1, x_perf={"use-copy-range": False}, **options)
    return d.serve("disk")("disk")


def write(uri, *commands):
    run("qemu-io", "-f", "raw", *[a for c in commands for a in ("-c", c)], uri)


def test_each_write_counts_and_only_the_first_to_a_place_is_delayed(tmp_path):
    with Daemon(tmp_path) as d:
        uri = start(d, tmp_path)
        commands = [f"write -P 2 {2 * MiB + i * GRANULE} 4k" for i in range(8)]
        write(uri, *commands)
        first = told(d.qmp)
        assert set(first) - {"slowdown"} == FIGURES | BUDGET
        assert (first["writes"], first["delayed"]) == (8, 8)
        assert 0 < first["p50-ns"] <= first["p99-ns"] <= first["p999-ns"] <= first["max-ns"]
        write(uri, *commands)
        second = told(d.qmp)
        assert (second["writes"], second["delayed"]) == (16, 8)
        assert second["p50-ns"] == 0 and second["max-ns"] == first["max-ns"]
        write(uri, f"discard {2 * MiB} 4k", f"write -z {3 * MiB} 4k")
        third = told(d.qmp)
        assert (third["writes"], third["delayed"]) == (18, 9)
        d.qmp("block-job-cancel", device="j", force=True)
        last = d.qmp.wait_job("j")["data"]["guest-latency"]
        assert {f: last[f] for f in FIGURES} == {f: third[f] for f in FIGURES}


def test_the_end_tells_what_it_was_until_the_copy_was_whole(tmp_path):
    with Daemon(tmp_path) as d:
        uri = start(d, tmp_path)
        write(uri, f"write -P 2 {2 * MiB} 4k")
        d.qmp("block-job-set-speed", device="j", speed=0)
        done = d.qmp.wait_job("j")["data"]
        assert "error" not in done
        assert (done["guest-latency"]["writes"], done["guest-latency"]["delayed"]) == (1, 1)
        assert d.qmp("query-jobs") == []


def test_a_disk_that_nobody_writes_costs_nobody_anything(tmp_path):
    with Daemon(tmp_path) as d:
        start(d, tmp_path)
        figures = told(d.qmp)
        assert set(figures) == FIGURES | BUDGET and not any(figures[f] for f in FIGURES)


def test_the_command_sums_it_up(tmp_path):
    make_image(tmp_path / "disk.raw", size=8 * MiB, writes=["write -P 1 0 8M"])
    with Serve(tmp_path, "disk.raw") as s:
        quiet = stillpoint("backup", "disk", tmp_path / "a.qcow2", "--control", s.control)
        assert "writes to 'disk'" not in quiet.stdout
        with Backup("disk", tmp_path / "b.qcow2", "--speed", "4M", control=s.control) as b:
            b.until("started")
            s.write("disk", f"write -P 2 {7 * MiB} 64k", f"write -P 2 {7 * MiB} 64k")
            status, last = b.finish()
        assert status == 0
        assert set(last["guest-latency"]) - {"slowdown"} == FIGURES | BUDGET
        assert last["guest-latency"]["writes"] == 2
        qemu_img("compare", tmp_path / "a.qcow2", tmp_path / "b.qcow2")


# ---- the budget --------------------------------------------------------------------------------


def change(d, factor, **kwargs):
    d.qmp("block-job-change", **{"id": "j", "type": "backup", "guest-latency": factor, **kwargs})


def test_the_budget_is_the_default_and_can_be_changed_while_the_job_runs(tmp_path):
    with Daemon(tmp_path) as d:
        uri = start(d, tmp_path)
        assert told(d.qmp)["factor"] == 1.5
        for factor in (0, 3, 1, 1000, 0, 1.25):
            change(d, factor)
            assert told(d.qmp)["factor"] == factor
            write(uri, f"write -P 2 {2 * MiB} 4k", f"read {3 * MiB} 128k")
        # What the views have cost is counted on.
        assert told(d.qmp)["writes"] == 6
        d.qmp("job-pause", id="j")
        change(d, 2)
        d.qmp("job-resume", id="j")
        assert told(d.qmp)["factor"] == 2
        d.qmp("block-job-set-speed", device="j", speed=0)
        assert "error" not in d.qmp.wait_job("j")["data"]


@pytest.mark.parametrize("factor", [0, 1, 2.5])
def test_a_budget_of_ones_own(factor, tmp_path):
    with Daemon(tmp_path) as d:
        start(d, tmp_path, guest_latency=factor)
        figures = told(d.qmp)
        assert figures["factor"] == factor
        assert factor or not figures["holding-back"]


@pytest.mark.parametrize("factor", [0.5, -1, 0.999, 1001])
def test_budgets_that_make_no_sense(factor, tmp_path):
    words = "guest-latency must be 0 .* or between 1 and 1000"
    with Daemon(tmp_path) as d:
        with pytest.raises(QmpError, match=words):
            start(d, tmp_path, guest_latency=factor)
        assert d.qmp("query-jobs") == []
        d.qmp("blockdev-backup", job_id="j", device="disk", target="target", sync="full", speed=1)
        with pytest.raises(QmpError, match=words):
            change(d, factor)
        assert told(d.qmp)["factor"] == 1.5


def test_what_cannot_be_changed(tmp_path):
    with Daemon(tmp_path) as d:
        with pytest.raises(QmpError, match="Block job 'j' not found"):
            change(d, 2)
        start(d, tmp_path, auto_finalize=False)
        with pytest.raises(QmpError, match="does not support"):
            change(d, 2, type="mirror")
        with pytest.raises(QmpError, match="expects? .*number|Invalid parameter type"):
            change(d, "2")
        d.qmp("block-job-set-speed", device="j", speed=0)
        d.qmp.wait_event("BLOCK_JOB_PENDING")
        with pytest.raises(QmpError, match="in state 'pending' cannot accept command verb"):
            change(d, 2)
        d.qmp("job-finalize", id="j")
        d.qmp.wait_job("j")


def test_several_backups_of_one_disk_each_have_theirs(tmp_path):
    with Daemon(tmp_path) as d:
        uri = start(d, tmp_path)
        make_image(tmp_path / "other", size=4 * MiB, fmt="raw")
        d.add_file("other", tmp_path / "other")
        d.qmp("blockdev-backup", job_id="k", device="disk", target="other", sync="full", speed=1,
              guest_latency=0)
        write(uri, f"write -P 2 {2 * MiB} 4k")
        assert {j["id"]: j["guest-latency"]["factor"] for j in d.qmp("query-jobs")} == \
               {"j": 1.5, "k": 0}
        d.qmp("job-cancel", id="j")
        d.qmp.wait_job("j")
        write(uri, f"write -P 2 {2 * MiB} 4k")
        assert d.qmp("query-jobs")[0]["guest-latency"]["writes"] == 2


def test_the_commands_option(tmp_path):
    make_image(tmp_path / "disk.raw", size=8 * MiB, writes=["write -P 1 0 8M"])
    with Serve(tmp_path, "disk.raw") as s:
        for given, factor in (("off", 0), ("3", 3)):
            with Backup("disk", tmp_path / "b.qcow2", "--guest-latency", given, "--force",
                        "--speed", "4M", control=s.control) as b:
                b.until("started")
                with s.qmp() as qmp:
                    assert told(qmp)["factor"] == factor
                assert b.finish()[0] == 0
        for bad in ("fast", "1.5x", ""):
            done = stillpoint("backup", "disk", tmp_path / "c.qcow2", "--control", s.control,
                              "--guest-latency", bad, check=False)
            assert done.returncode == 2 and "--guest-latency" in done.stderr
        done = stillpoint("backup", "disk", tmp_path / "c.qcow2", "--control", s.control,
                          "--guest-latency", "0.5", check=False)
        assert done.returncode == 1 and "between 1 and 1000" in done.stderr
