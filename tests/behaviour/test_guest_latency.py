# SPDX-License-Identifier: Apache-2.0
"""What a backup tells of its cost to the disk's writers."""
from cli import Backup, MiB, Serve, make_image
from stillpoint import Daemon, qemu_img, run, stillpoint

GRANULE = 4096
FIGURES = {"writes", "delayed", "p50-ns", "p99-ns", "p999-ns", "max-ns"}


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
        assert set(first) == FIGURES
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
        assert last == third


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
        assert set(figures) == FIGURES and not any(figures.values())


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
        assert set(last["guest-latency"]) == FIGURES and last["guest-latency"]["writes"] == 2
        qemu_img("compare", tmp_path / "a.qcow2", tmp_path / "b.qcow2")
