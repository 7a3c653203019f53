# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with a backup does not go wrong for the clients of the disk.

Targets, sources and scratch that fail, fill up, hang or vanish while clients write without a
pause. In each: no request of a client fails or takes long (live.py checks that, and that what
was written is there); the job ends, pauses or goes on as its policy says, and never says
that it is good when it is not; questions are answered at once; cancelling takes no time.
"""
import os
import random
import signal
import socket
import struct
import subprocess
import time

import pytest
from live import LiveDisk, seeds

import disks
from disks import MIB
from stillpoint import QmpError, poll_until, qemu_img, terminate

AT_ONCE = 1                  # seconds within which questions are answered
BOUND = 3                    # seconds within which cancel and quit are done
STEP = 40
EIO, ENOSPC = "Input/output error", "No space left on device"


@pytest.fixture
def rng(request):
    return random.Random(f"{request.node.name} {seeds()[0]}")


@pytest.fixture
def live(work, rng):
    """A qcow2 disk over a raw one."""
    return LiveDisk(work, "qcow2-over-raw-longer", rng, apart="zeros")


@pytest.fixture
def live_raw(work, rng):
    return LiveDisk(work, "raw", rng, apart="data")


class Job:
    """A full backup named "job" to a target that has faults."""

    def __init__(self, live, target, **options):
        self.live = live
        self.asked = time.monotonic_ns()
        live.qmp("blockdev-backup", {"job-id": "job", "device": "disk", "sync": "full",
                                     "target": target, **options})
        self.answered = time.monotonic_ns()

    def event(self, name, deadline=20, **data):
        return self.live.qmp.wait_event(name, deadline, **data)["data"]

    def state(self):
        jobs = self.live.qmp("query-block-jobs")
        return jobs[0] if jobs else None

    def good_end(self):
        end = self.live.qmp.wait_job("job")
        assert end["event"] == "BLOCK_JOB_COMPLETED" and "error" not in end["data"], end

    def bad_end(self, *words):
        """It fails, and says why."""
        end = self.live.qmp.wait_job("job", 20)
        assert end["event"] == "BLOCK_JOB_COMPLETED", end
        for word in words:
            assert word in end["data"].get("error", "no error"), end

    def cancel(self):
        start = time.monotonic()
        self.live.qmp("block-job-cancel", device="job", force=True)
        end = self.live.qmp.wait_job("job", 20)
        assert end["event"] == "BLOCK_JOB_CANCELLED", end
        assert time.monotonic() - start < BOUND

    def told(self, name):
        """All events of this name so far."""
        return [e["data"] for e in self.live.qmp.events if e["event"] == name]


def answers_at_once(live):
    """Any client, and anything that can be asked."""
    with live.daemon.connect() as other:
        for question in ("query-block-jobs", "query-jobs", "query-named-block-nodes",
                         "query-block-exports", "query-version"):
            for qmp in (live.qmp, other):
                start = time.monotonic()
                qmp(question)
                assert time.monotonic() - start < AT_ONCE, question


def faulty(path, *rules):
    """A file whose operations fail as these rules say."""
    return {"driver": "fault", "rules": list(rules),
            "file": {"driver": "file", "filename": str(path)}}


def add_target(live, *rules, fmt="raw"):
    """A target node with a fault driver below its format."""
    path = os.path.join(live.work, f"target.{fmt}")
    qemu_img("create", "-q", "-f", fmt, path, live.disk.size)
    os.truncate(path, max(os.path.getsize(path), live.disk.size if fmt == "raw" else 0))
    live.qmp("blockdev-add", {"driver": fmt, "node-name": "target", "discard": "unmap",
                              "file": faulty(path, *rules)})
    return path


def add_nbd_target(live, *argv, **options):
    """A target served by nbdkit; gives the server and its socket."""
    server, path = live.start_peer("target", "nbdkit", "-f", "-U", "SOCKET", *argv)
    live.qmp("blockdev-add", {"driver": "nbd", "node-name": "target",
                              "server": {"type": "unix", "path": path}, **options})
    return server, path


def nbdkit_memory(live):
    return ["memory", str(live.disk.size)]


# ---- the target fails --------------------------------------


@pytest.mark.parametrize("op", ["write", "write-zeroes", "flush"])
def test_report_ends_the_job_at_the_first_error(live, op):
    with live.on_line():
        add_target(live, {"op": op, "errno": "EIO", "nth": 3 if op == "write" else 1})
        job = Job(live, "target", **{"on-target-error": "report"})
        error = job.event("BLOCK_JOB_ERROR")
        assert error["operation"] == "write" and error["action"] == "report", error
        job.bad_end(EIO, "target")
        answers_at_once(live)
        live.writers.wait_for_more(STEP)


@pytest.mark.parametrize("op", ["read", "write", "flush"])
def test_whatever_fails_of_an_image_is_no_success(live, op):
    """The first, second, third, fifth... operation on a qcow2 target's file fails, until the
    job gets through before its turn has come. It may hit the opening already."""
    nth, following, failures = 1, 2, 0
    with live.on_line():
        while True:
            try:
                path = add_target(live, {"op": op, "errno": "EIO", "nth": nth}, fmt="qcow2")
                job = Job(live, "target")
                if "error" not in live.qmp.wait_job("job")["data"]:
                    break
                live.qmp("blockdev-del", node_name="target")
            except QmpError as e:
                assert EIO in e.desc
            failures += 1
            nth, following = following, nth + following
    assert failures > 0
    live.judge(path, "qcow2", job.asked, job.answered)


@pytest.mark.parametrize("policy", ["ignore", "stop"])
def test_an_error_that_passes_is_got_over(live, policy):
    with live.on_line():
        path = add_target(live, {"op": "write", "errno": "EIO", "nth": 3},
                          {"op": "write", "errno": "ENOSPC", "nth": 5})
        job = Job(live, "target", **{"on-target-error": policy})
        while policy == "stop" and job.event("JOB_STATUS_CHANGE")["status"] != "pending":
            state = job.state()
            if state and state["status"] == "paused":
                assert state["io-status"] in ("failed", "nospace"), state
                live.writers.wait_for_more(STEP)
                live.qmp("block-job-resume", device="job")
        job.good_end()
        errors = job.told("BLOCK_JOB_ERROR")
        assert errors and all(e["action"] == policy for e in errors), errors
    live.judge(path, "raw", job.asked, job.answered)


def test_errors_that_are_ignored_come_paced(live):
    with live.on_line():
        add_target(live, {"op": "write", "errno": "EIO"})
        job = Job(live, "target", **{"on-target-error": "ignore"})
        job.event("BLOCK_JOB_ERROR")
        start = time.monotonic()
        for _ in range(3):
            error = job.event("BLOCK_JOB_ERROR")
            assert error["action"] == "ignore" and error["operation"] == "write", error
            answers_at_once(live)
        assert time.monotonic() - start > 2
        live.writers.wait_for_more(STEP)
        job.cancel()
        assert not job.told("BLOCK_JOB_ERROR")


@pytest.mark.parametrize("error,action", [("ENOSPC", "stop"), ("EIO", "report")])
@pytest.mark.parametrize("policy", ["enospc", "auto", None])
def test_enospc_stops_for_want_of_space_alone(live, policy, error, action):
    """It is what there is when nothing is said: "auto"."""
    if policy is None and error == "ENOSPC":
        action = "report"                    # QAPI's default of on-target-error
    with live.on_line():
        add_target(live, {"op": "write", "errno": error, "nth": 2})
        job = Job(live, "target", **({"on-target-error": policy} if policy else {}))
        event = job.event("BLOCK_JOB_ERROR")
        assert event["action"] == action, event
        if action == "stop":
            job.event("JOB_STATUS_CHANGE", status="paused")
            assert job.state()["io-status"] == "nospace"
            live.writers.wait_for_more(STEP)
            live.qmp("block-job-resume", device="job")
            job.good_end()
        else:
            job.bad_end(EIO if error == "EIO" else ENOSPC)


@pytest.fixture
def small(work):
    """A file system of 2 MiB."""
    path = os.path.join(work, "small")
    os.mkdir(path)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path],
                          capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting needs root: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_a_full_file_system_stops_the_job_until_there_is_room(live, small, fmt):
    target = os.path.join(small, "target")
    with live.on_line():
        asked = time.monotonic_ns()
        live.qmp("drive-backup", job_id="job", device="disk", sync="full", target=target,
                 format=fmt, on_target_error="enospc")
        answered = time.monotonic_ns()
        event = live.qmp.wait_event("BLOCK_JOB_ERROR")["data"]
        assert event["action"] == "stop", event
        live.qmp.wait_event("JOB_STATUS_CHANGE", status="paused")
        assert live.qmp("query-block-jobs")[0]["io-status"] == "nospace"
        answers_at_once(live)
        live.writers.wait_for_more(STEP)
        subprocess.run(["mount", "-o", "remount,size=200m", small], check=True)
        live.qmp("block-job-resume", device="job")
        end = live.qmp.wait_job("job")
        assert "error" not in end["data"], end
    live.judge(target, fmt, asked, answered)


def test_a_server_that_refuses_writes(live):
    with live.on_line():
        add_nbd_target(live, "--filter=error", *nbdkit_memory(live), "error-pwrite=ENOSPC",
                       "error-pwrite-rate=100%")
        Job(live, "target").bad_end(ENOSPC)


# ---- the target hangs or vanishes --------------------------------------


@pytest.mark.parametrize("how", ["hang", "stopped server"])
def test_a_hung_target_holds_up_nobody(live, how):
    with live.on_line():
        server = None
        if how == "hang":
            add_target(live, {"op": "write", "hang": True, "nth": 3})
        else:
            server, _ = add_nbd_target(live, *nbdkit_memory(live))
        job = Job(live, "target", speed=4 * MIB)
        live.writers.wait_for_more(STEP)
        if server:
            server.signal(signal.SIGSTOP)
        live.qmp("block-job-set-speed", device="job", speed=0)
        live.writers.wait_for_more(5 * STEP)
        answers_at_once(live)
        assert job.state()["status"] == "running"
        job.cancel()
        answers_at_once(live)
        live.writers.wait_for_more(STEP)
        # The disk is as good as before.
        path = os.path.join(live.work, "second.qcow2")
        asked = time.monotonic_ns()
        live.qmp("drive-backup", job_id="job", device="disk", sync="full", target=path,
                 format="qcow2")
        answered = time.monotonic_ns()
        job.good_end()
    live.judge(path, "qcow2", asked, answered)


@pytest.mark.parametrize("end", ["quit", "SIGTERM"])
@pytest.mark.parametrize("how", ["hang", "stopped server"])
def test_a_hung_target_does_not_hold_up_the_end_of_the_daemon(live, how, end):
    with live.on_line():
        server = None
        if how == "hang":
            add_target(live, {"op": "any", "hang": True})
        else:
            server, _ = add_nbd_target(live, *nbdkit_memory(live))
        job = Job(live, "target")
        if server:
            server.signal(signal.SIGSTOP)
        live.writers.wait_for_more(STEP)
        live.writers.stop()
        start = time.monotonic()
        if end == "quit":
            live.daemon.quit()
        else:
            status, _ = terminate(live.daemon)
            assert status == 0, live.daemon.log()
        assert time.monotonic() - start < BOUND
        del job


def test_a_server_that_dies_fails_the_job(live):
    with live.on_line():
        server, _ = add_nbd_target(live, *nbdkit_memory(live))
        job = Job(live, "target", speed=2 * MIB)
        live.writers.wait_for_more(STEP)
        server.kill()
        job.bad_end("target")
        answers_at_once(live)
        live.writers.wait_for_more(STEP)


def killed_and_back(live, path, **options):
    """A server of a file dies in the middle, and another takes its place. Gives the job, which
    has seen it, or not."""
    disks.write_raw(path, live.disk.size, live.rng)
    server, socket = add_nbd_target(live, "file", path, **options)
    job = Job(live, "target", **{"speed": 4 * MIB, "on-target-error": "stop"})
    live.writers.wait_for_more(STEP)
    server.kill()
    live.writers.wait_for_more(STEP)
    os.unlink(socket)
    live.start_peer("target", "nbdkit", "-f", "-U", "SOCKET", "file", path)
    live.qmp("block-job-set-speed", device="job", speed=0)
    return job


def test_a_server_that_comes_back_in_time_is_used_again(live):
    path = os.path.join(live.work, "target.raw")
    with live.on_line():
        job = killed_and_back(live, path, **{"reconnect-delay": 30})
        job.good_end()
        assert not job.told("BLOCK_JOB_ERROR")
    live.judge(path, "raw", job.asked, job.answered)


def test_a_server_that_was_away_may_have_lost_writes(live):
    """The job can go on, but nobody knows whether what was written before is there: the flush
    at its end fails."""
    with live.on_line():
        job = killed_and_back(live, os.path.join(live.work, "target.raw"))

        def resumed_to_its_end():
            state = job.state()
            if state and state["status"] == "paused":
                live.qmp("block-job-resume", device="job")
            return not state

        poll_until("the end of the job", resumed_to_its_end)
        assert all(e["action"] == "stop" for e in job.told("BLOCK_JOB_ERROR")[:-1])
        job.bad_end("flush the target")


# ---- the source fails --------------------------------------


def fail_source(live, **rule):
    """Reading fails where clients do not write."""
    live.source["file"] = faulty(live.disk.path, {"op": "read", "offset": live.apart,
                                                  "length": MIB, **rule})


@pytest.mark.parametrize("policy", ["report", "ignore", "stop"])
def test_a_source_that_cannot_be_read(live_raw, policy):
    live = live_raw
    fail_source(live, errno="EIO")
    with live.on_line():
        add_target(live)
        job = Job(live, "target", **{"on-source-error": policy})
        error = job.event("BLOCK_JOB_ERROR")
        assert error["operation"] == "read" and error["action"] == policy, error
        live.writers.wait_for_more(STEP)
        if policy == "report":
            job.bad_end(EIO, "source")
        elif policy == "stop":
            job.event("JOB_STATUS_CHANGE", status="paused")
            live.qmp("block-job-resume", device="job")
            job.event("JOB_STATUS_CHANGE", status="paused")
            assert job.state()["io-status"] == "failed"
            job.cancel()
        else:
            answers_at_once(live)
            job.cancel()


def test_a_source_that_can_be_read_again(live_raw):
    live = live_raw
    fail_source(live, errno="EIO", nth=1)
    with live.on_line():
        path = add_target(live)
        job = Job(live, "target", **{"on-source-error": "ignore"})
        job.good_end()
    live.judge(path, "raw", job.asked, job.answered)


def write_where_reading_fails(live):
    """Old data that cannot be read cannot be kept."""
    return subprocess.run(["/usr/bin/python3", "-m", "nbd", "-u", live.uri, "-c",
                           f"h.pwrite(b'x' * 4096, {live.apart})"], capture_output=True, text=True)


def test_old_data_that_cannot_be_kept_ends_the_job_not_the_write(live_raw):
    live = live_raw
    fail_source(live, errno="EIO")
    with live.on_line():
        add_target(live)
        job = Job(live, "target", speed=MIB)
        assert write_where_reading_fails(live).returncode == 0
        job.bad_end(EIO, "read the old data", "disk")
        live.writers.wait_for_more(STEP)
        live.writers.stop()
        forget_foreign_write(live)


def forget_foreign_write(live):
    """What was written by nobody whom the judge knows was there from the beginning."""
    with open(live.initial, "r+b") as f:
        f.seek(live.apart)
        f.write(b"x" * 4096)


def test_break_guest_write_fails_the_write_and_saves_the_backup(live_raw):
    live = live_raw
    fail_source(live, errno="EIO", nth=1)
    with live.on_line():
        path = add_target(live)
        job = Job(live, "target", **{"speed": MIB, "on-cbw-error": "break-guest-write"})
        refused = write_where_reading_fails(live)
        assert refused.returncode != 0 and EIO in refused.stderr, refused
        live.qmp("block-job-set-speed", device="job", speed=0)
        job.good_end()
    live.judge(path, "raw", job.asked, job.answered)


def test_a_source_that_hangs_breaks_the_backup_after_cbw_timeout(live_raw):
    live = live_raw
    live.env = {"ASAN_OPTIONS": "detect_leaks=0"}        # what hangs for ever cannot be freed
    fail_source(live, hang=True)
    with live.on_line():
        add_target(live)
        job = Job(live, "target", **{"speed": MIB, "cbw-timeout": 1})
        start = time.monotonic()
        assert write_where_reading_fails(live).returncode == 0
        assert time.monotonic() - start < 3
        job.bad_end("cbw-timeout")
        answers_at_once(live)
        live.writers.wait_for_more(STEP)
        live.writers.stop()
        forget_foreign_write(live)


# ---- scratch fails --------------------------------------


@pytest.mark.parametrize("source", ["raw", "qcow2-over-qcow2-shorter"])
def test_scratch_at_its_limit_breaks_the_backup_after_cbw_timeout(work, source):
    """The target hangs, so nothing is drained. Clients wait once, and not for long."""
    live = LiveDisk(work, source, random.Random(source))
    with live.on_line():
        add_target(live, {"op": "write", "hang": True})
        job = Job(live, "target", **{"scratch-limit": 256 * 1024, "cbw-timeout": 1})
        job.bad_end("scratch stayed full")
        answers_at_once(live)
        live.writers.wait_for_more(STEP)


def test_a_slow_target_with_little_scratch_slows_clients_and_no_more(live):
    """At the limit clients wait for the copy, which goes on: nothing breaks."""
    with live.on_line():
        path = add_target(live, {"op": "write", "delay-ns": 10**7})
        job = Job(live, "target", **{"scratch-limit": 256 * 1024, "x-perf": {"max-workers": 1}})
        job.good_end()
    live.judge(path, "raw", job.asked, job.answered)


def test_a_second_backup_starts_while_clients_wait_for_scratch(live):
    """Their requests are inside, and the copy that will let them go on has to go on too."""
    with live.on_line():
        add_target(live, {"op": "write", "delay-ns": 10**7})
        job = Job(live, "target", **{"scratch-limit": 64 * 1024, "x-perf": {"max-workers": 1}})
        for i in range(5):
            live.writers.wait_for_more(1)
            start = time.monotonic()
            live.qmp("drive-backup", job_id=f"other{i}", device="disk", sync="full",
                     target=os.path.join(live.work, f"other{i}.qcow2"), format="qcow2")
            assert time.monotonic() - start < BOUND
            live.qmp("block-job-cancel", device=f"other{i}", force=True)
        job.good_end()


def test_a_full_scratch_directory_breaks_the_backup(live, small):
    with live.on_line():
        add_target(live)
        job = Job(live, "target", **{"speed": MIB, "scratch-memory": 0, "scratch-dir": small})
        job.bad_end(ENOSPC, "scratch")
        answers_at_once(live)
        live.writers.wait_for_more(STEP)


def test_break_guest_write_fails_clients_when_scratch_is_full(live, small):
    """That is what was asked for; and the backup is good."""
    with live.on_line():
        path = add_target(live)
        job = Job(live, "target", **{"speed": MIB, "scratch-memory": 0, "scratch-dir": small,
                                     "on-cbw-error": "break-guest-write"})
        poll_until("clients that fail",
                   lambda: all(p.poll() is not None for p in live.writers.processes))
        live.writers.stop(check=False)
        assert job.state()["status"] == "running"
        live.qmp("block-job-set-speed", device="job", speed=0)
        job.good_end()
    live.judge(path, "raw", job.asked, job.answered)


# ---- a client misbehaves --------------------------------------


class RawClient:
    """As much of the NBD protocol (doc/proto.md) as it takes to stall in the middle of it."""

    def __init__(self, live):
        path = live.uri.partition("socket=")[2]
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.sock.recv(18, socket.MSG_WAITALL)                     # magic, IHAVEOPT, flags
        name = live.node.encode()
        self.sock.sendall(struct.pack(">I", 3))                    # fixed newstyle, no zeroes
        self.sock.sendall(b"IHAVEOPT" + struct.pack(">II", 1, len(name)) + name)  # EXPORT_NAME
        self.sock.recv(10, socket.MSG_WAITALL)                     # size, flags

    def request(self, kind, off, length, data=b""):
        self.sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 1, off, length) + data)

    def stall_in_a_write(self):
        self.request(1, 0, MIB, b"x" * (MIB // 2))

    def stall_in_replies(self):
        for _ in range(16):
            self.request(0, 0, 4 * MIB)


@pytest.mark.parametrize("how", ["stall_in_a_write", "stall_in_replies"])
def test_a_client_that_stalls_does_not_hold_up_the_instant(live, how):
    path = os.path.join(live.work, "target.qcow2")
    with live.on_line():
        client = RawClient(live)
        with client.sock:
            getattr(client, how)()
            live.writers.wait_for_more(STEP)
            asked = time.monotonic_ns()
            live.qmp("drive-backup", job_id="job", device="disk", sync="full", target=path,
                     format="qcow2")
            answered = time.monotonic_ns()
            end = live.qmp.wait_job("job")
            assert "error" not in end["data"], end
            answers_at_once(live)
    assert answered - asked < AT_ONCE * 10**9
    live.judge(path, "qcow2", asked, answered)


# ---- the daemon ends --------------------------------------


@pytest.mark.parametrize("source", disks.KINDS)
def test_a_signal_in_the_middle_loses_nothing(work, source):
    """Clients are cut off; what they were told to be written is there (on_line checks)."""
    live = LiveDisk(work, source, random.Random(source))
    with live.on_line():
        add_target(live)
        job = Job(live, "target", speed=MIB)
        live.writers.wait_for_more(STEP)
        status, seconds = terminate(live.daemon)
        assert status == 0 and seconds < BOUND, (status, seconds, live.daemon.log())
        job.event("BLOCK_JOB_CANCELLED")
        live.writers.stop(check=False)


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("source", disks.KINDS)
def test_kill_leaves_a_disk_that_goes_on(work, source, seed):
    """kill -9 at some moment of writes and a backup: the image is sound, all that was flushed
    is there, and it is served, written and backed up again as if nothing had happened."""
    live = LiveDisk(work, source, random.Random(f"{source} {seed}"))
    live.pattern.update(flush=0.05, fua=0.05)
    target = os.path.join(work, "target.qcow2")
    for _ in range(2):
        with live.on_line():
            live.qmp("drive-backup", device="disk", sync=live.rng.choice(["full", "top", "none"]),
                     target=target, format="qcow2", speed=live.rng.choice([0, MIB]))
            live.writers.wait_for_more(live.rng.randrange(STEP))
            live.kill()
    with live.on_line():
        path = add_target(live)
        job = Job(live, "target", speed=8 * MIB)
        live.writers.wait_for_more(STEP)
        job.good_end()
    live.judge(path, "raw", job.asked, job.answered)
