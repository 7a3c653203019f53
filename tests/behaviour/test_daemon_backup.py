# SPDX-License-Identifier: Apache-2.0
"""drive-backup and blockdev-backup through QMP: what the target is, what is refused before
anything is touched, what the end of the daemon leaves behind. That a backup is the disk at
one instant is the business of test_oracle.py."""
import json
import os
import signal
import time

import pytest

import stillpoint
from stillpoint import Daemon, QmpError, poll_until, qemu_img, run

MIB = 1 << 20


def info(path):
    return json.loads(qemu_img("info", "-U", "--output=json", path).stdout)


def same(a, b, *formats):
    """That two images read the same."""
    options = [o for f, fmt in zip(("-f", "-F"), formats) for o in (f, fmt)]
    done = qemu_img("compare", *options, a, b, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def snapshot(path):
    """What must not change when something is refused."""
    if not os.path.exists(path):
        return None
    with open(path, "rb") as f:
        return f.read()


@pytest.fixture
def chain(tmp_path):
    """base.qcow2 <- top.qcow2, with data in both."""
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, "4M")
    run("qemu-io", "-c", "write -P 1 0 2M", base)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    run("qemu-io", "-c", "write -P 2 1M 64k", "-c", "write -z 1536k 64k", top)
    return base, top


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "a.raw"
    path.write_bytes(os.urandom(MIB) + bytes(2 * MIB) + os.urandom(MIB))
    return path


def backup(d, target, sync="full", device="disk", wait=True, **options):
    d.qmp("drive-backup", {"job-id": "j", "device": device, "target": str(target), "sync": sync,
                           **{k.replace("_", "-"): v for k, v in options.items()}})
    if wait:
        end = d.qmp.wait_job("j")
        assert end["event"] == "BLOCK_JOB_COMPLETED" and "error" not in end["data"], end
        return end["data"]
    return None


# ---- what the target is --------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_full_of_a_raw_disk(tmp_path, daemon, raw, fmt):
    daemon.add_file("disk", raw)
    backup(daemon, tmp_path / "t", format=fmt)
    daemon.quit()
    same(raw, tmp_path / "t", "raw", fmt)
    assert "backing-filename" not in info(tmp_path / "t")
    assert info(tmp_path / "t")["format"] == fmt or fmt == "raw"


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_full_of_a_chain_has_everything_and_no_backing_file(tmp_path, daemon, chain, fmt):
    daemon.add_file("disk", chain[1], driver="qcow2")
    backup(daemon, tmp_path / "t", format=fmt)
    daemon.quit()
    same(chain[1], tmp_path / "t", "qcow2", fmt)
    assert "backing-filename" not in info(tmp_path / "t")


def test_top_has_the_source_s_backing_file_as_its_own(tmp_path, daemon, chain):
    base, top = chain
    daemon.add_file("disk", top, driver="qcow2")
    backup(daemon, tmp_path / "t", sync="top", format="qcow2")
    daemon.quit()
    facts = info(tmp_path / "t")
    assert facts["full-backing-filename"] == str(base)
    assert facts["backing-filename-format"] == "qcow2"
    same(top, tmp_path / "t", "qcow2", "qcow2")
    qemu_img("check", "-q", tmp_path / "t")
    # What only the base holds is not in it.
    extents = json.loads(qemu_img("map", "--output=json", tmp_path / "t").stdout)
    assert sum(e["depth"] == 0 and e["data"] for e in extents) == 1


def test_top_of_a_disk_without_backing_file_is_full(tmp_path, daemon, raw):
    daemon.add_file("disk", raw)
    backup(daemon, tmp_path / "t", sync="top")
    daemon.quit()
    same(raw, tmp_path / "t", "raw", "raw")


def test_none_has_the_source_as_its_backing_file(tmp_path, daemon, raw):
    before = raw.read_bytes()
    daemon.add_file("disk", raw)
    uri = daemon.serve("disk")("disk")
    backup(daemon, tmp_path / "t", sync="none", format="qcow2", wait=False)
    run("qemu-io", "-f", "raw", "-c", "write -P 9 64k 128k", "-c", "write -z 3M 4k", uri)
    daemon.qmp("block-job-complete", device="j")
    assert "error" not in daemon.qmp.wait_job("j")["data"]
    daemon.quit()
    facts = info(tmp_path / "t")
    assert facts["full-backing-filename"] == str(raw)
    assert facts["backing-filename-format"] == "raw"
    (tmp_path / "before").write_bytes(before)
    same(tmp_path / "before", tmp_path / "t", "raw", "qcow2")
    assert raw.read_bytes() != before


def test_none_that_is_cancelled_keeps_what_it_has(tmp_path, daemon, raw):
    before = raw.read_bytes()
    daemon.add_file("disk", raw)
    uri = daemon.serve("disk")("disk")
    backup(daemon, tmp_path / "t", sync="none", format="qcow2", wait=False)
    run("qemu-io", "-f", "raw", "-c", "write -P 9 64k 128k", uri)
    daemon.qmp("block-job-cancel", device="j")
    assert daemon.qmp.wait_job("j")["event"] == "BLOCK_JOB_CANCELLED"
    daemon.quit()
    (tmp_path / "before").write_bytes(before)
    same(tmp_path / "before", tmp_path / "t", "raw", "qcow2")


def test_the_format_is_the_source_s_unless_given(tmp_path, daemon, chain):
    daemon.add_file("disk", chain[1], driver="qcow2")
    backup(daemon, tmp_path / "t")
    assert info(tmp_path / "t")["format"] == "qcow2"


def test_a_relative_name_of_the_source_is_made_absolute_in_the_target(tmp_path, raw):
    """The target may lie elsewhere than the program's working directory."""
    os.mkdir(tmp_path / "elsewhere")
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        with Daemon(tmp_path) as d:
            d.add_file("disk", "a.raw")
            backup(d, "elsewhere/t", sync="none", format="qcow2", wait=False)
            d.qmp("block-job-complete", device="j")
            d.qmp.wait_job("j")
    finally:
        os.chdir(here)
    assert info(tmp_path / "elsewhere" / "t")["backing-filename"] == str(raw)


def test_a_sparse_disk_gives_a_sparse_target(tmp_path, daemon):
    path = tmp_path / "sparse.raw"
    with open(path, "wb") as f:
        f.truncate(1 << 40)
        f.seek(1 << 39)
        f.write(os.urandom(MIB))
    daemon.add_file("disk", path)
    start = time.monotonic()
    backup(daemon, tmp_path / "t.raw")
    backup(daemon, tmp_path / "t.qcow2", format="qcow2")
    assert time.monotonic() - start < 30
    assert os.stat(tmp_path / "t.raw").st_size == 1 << 40
    for name in ("t.raw", "t.qcow2"):
        assert os.stat(tmp_path / name).st_blocks * 512 < 64 * MIB


def test_a_file_that_is_there_is_made_anew(tmp_path, daemon, raw):
    target = tmp_path / "t"
    target.write_bytes(b"x" * 9 * MIB)
    daemon.add_file("disk", raw)
    backup(daemon, target, format="qcow2")
    same(raw, target, "raw", "qcow2")
    backup(daemon, target, format="raw")
    assert target.read_bytes() == raw.read_bytes()


def test_an_existing_image_is_used_as_it_is(tmp_path, daemon, raw):
    target = tmp_path / "t.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", target, "4M")
    run("qemu-io", "-c", "write -P 5 0 4M", target)
    daemon.add_file("disk", raw)
    backup(daemon, target, format="qcow2", mode="existing")
    daemon.quit()
    same(raw, target, "raw", "qcow2")
    assert info(target)["cluster-size"] == 4096


def test_an_nbd_export_is_a_target(tmp_path, daemon, raw):
    path = tmp_path / "nbdkit.sock"
    with stillpoint.Process(["nbdkit", "-f", "-U", path, "memory", "4M"], tmp_path / "log"):
        poll_until("nbdkit", path.exists)
        daemon.add_file("disk", raw)
        uri = f"nbd+unix:///?socket={path}"
        backup(daemon, uri, mode="existing", format="raw")
        same(raw, uri, "raw", "raw")


def test_the_device_may_be_an_export(tmp_path, daemon, raw):
    daemon.add_file("r0", raw)
    daemon.serve()
    daemon.qmp("block-export-add", type="nbd", id="disk", node_name="r0")
    backup(daemon, tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == raw.read_bytes()


def test_the_job_has_the_device_s_name_unless_given(tmp_path, daemon, raw):
    daemon.add_file("disk", raw)
    daemon.qmp("drive-backup", device="disk", target=str(tmp_path / "t"), sync="full")
    daemon.qmp.wait_job("disk")


def test_options_of_scratch_are_taken(tmp_path, raw):
    os.mkdir(tmp_path / "scratch")
    with Daemon(tmp_path, "--scratch-dir", str(tmp_path / "scratch")) as d:
        d.add_file("disk", raw)
        backup(d, tmp_path / "t", scratch_limit=MIB, scratch_memory=64 << 10, cbw_timeout=5,
               on_cbw_error="break-snapshot", scratch_dir=str(tmp_path))
        with pytest.raises(QmpError, match="no/dir"):
            backup(d, tmp_path / "u", scratch_dir="/no/dir")
        assert not os.path.exists(tmp_path / "u")


# ---- what is refused before anything is touched -------------------------------------------------


@pytest.mark.parametrize("mode", ["absolute-paths", "existing"])
def test_the_source_s_own_files_are_refused(tmp_path, daemon, chain, mode):
    daemon.add_file("disk", chain[1], driver="qcow2")
    os.link(chain[1], tmp_path / "link")
    os.symlink(chain[0], tmp_path / "symlink")
    for target in (*chain, tmp_path / "link", tmp_path / "symlink"):
        before = snapshot(target)
        with pytest.raises(QmpError, match="belongs to the source"):
            backup(daemon, target, format="qcow2", mode=mode)
        assert snapshot(target) == before


@pytest.mark.parametrize("mode", ["absolute-paths", "existing"])
def test_an_image_in_use_is_refused(tmp_path, daemon, raw, mode):
    target = tmp_path / "t.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", target, "4M")
    before = snapshot(target)
    daemon.add_file("disk", raw)
    # By ourselves, and by another program.
    daemon.add_file("other", target, driver="qcow2")
    with pytest.raises(QmpError, match="lock"):
        backup(daemon, target, format="qcow2", mode=mode)
    daemon.qmp("blockdev-del", node_name="other")
    os.mkdir(tmp_path / "second")
    with Daemon(tmp_path / "second") as second:
        second.add_file("other", target, driver="qcow2")
        with pytest.raises(QmpError, match="lock"):
            backup(daemon, target, format="qcow2", mode=mode)
    assert snapshot(target) == before
    backup(daemon, target, format="qcow2", mode=mode)


@pytest.mark.parametrize("size", [4 * MIB - 512, 4 * MIB - MIB])
def test_a_target_that_is_too_small_is_refused(tmp_path, daemon, raw, size):
    target = tmp_path / "t"
    target.write_bytes(b"x" * size)
    daemon.add_file("disk", raw)
    with pytest.raises(QmpError):
        backup(daemon, target, format="raw", mode="existing")
    assert target.read_bytes() == b"x" * size


def test_a_raw_backup_does_not_silently_go_over_a_qcow2_image(tmp_path, daemon, raw):
    target = tmp_path / "t"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=full", target, "4M")
    before = snapshot(target)
    daemon.add_file("disk", raw)
    with pytest.raises(QmpError, match="holds a qcow2 image"):
        backup(daemon, target, mode="existing")
    assert snapshot(target) == before


def check_of(path):
    return json.loads(qemu_img("check", "--output=json", path).stdout)


@pytest.mark.parametrize("sync", ["full", "top"])
def test_a_compressed_backup(sync, tmp_path, daemon, chain):
    daemon.add_file("disk", chain[1], driver="qcow2")
    backup(daemon, tmp_path / "t.qcow2", sync=sync, compress=True)
    check = check_of(tmp_path / "t.qcow2")
    assert check["compressed-clusters"] == check["allocated-clusters"] > 0
    qemu_img("compare", "-U", chain[1], tmp_path / "t.qcow2")


def test_a_backup_that_is_repeated_compressed_replaces_what_was_there(tmp_path, daemon, raw):
    """Into an image whose clusters are larger, of another type, and in use."""
    target = tmp_path / "t.qcow2"
    raw.write_bytes((b"some text " * 30000)[:MIB // 4] * 15 + b"x" * 1000)
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=128k,compression_type=zstd,"
             "preallocation=full", target, os.path.getsize(raw) + 24)
    daemon.add_file("disk", raw)
    for _ in range(2):
        backup(daemon, target, format="qcow2", mode="existing", compress=True)
        # The last sector is one that the source has only a part of.
        check = check_of(target)
        assert check["compressed-clusters"] == check["allocated-clusters"] - 1
        assert "leaks" not in check and "corruptions" not in check
        qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, target)


def test_blockdev_backup_compresses_where_the_node_can(tmp_path, daemon, raw):
    raw.write_bytes(b"text" * MIB)
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "t.qcow2", "4M")
    (tmp_path / "t.raw").write_bytes(bytes(4 * MIB))
    daemon.add_file("disk", raw)
    for fmt in ("raw", "qcow2"):
        daemon.add_file(f"t-{fmt}", tmp_path / f"t.{fmt}", driver=fmt)
    args = {"job-id": "j", "device": "disk", "sync": "full", "compress": True}
    with pytest.raises(QmpError, match="Compression is not supported for this drive 't-raw'"):
        daemon.qmp("blockdev-backup", {**args, "target": "t-raw"})
    daemon.qmp("blockdev-backup", {**args, "target": "t-qcow2"})
    assert "error" not in daemon.qmp.wait_job("j")["data"]
    daemon.qmp("blockdev-del", {"node-name": "t-qcow2"})
    assert check_of(tmp_path / "t.qcow2")["compressed-clusters"] == 64


REFUSED = [
    ({"compress": True}, "Compression is not supported for this drive"),
    ({"discard-source": True}, "Discarding the source"),
    ({"sync": "bitmap", "bitmap": "b"}, "Bitmap 'b' could not be found"),
    ({"new-bitmap": {"name": ""}}, "Bitmap name cannot be empty"),
    ({"sync": "none", "format": "qcow2", "new-bitmap": {"name": "b"}}, "A new bitmap can begin"),
    ({"backing-file": "x", "backing-fmt": "raw"}, "'backing-file' is for sync modes"),
    ({"sync": "none", "format": "raw"}, "Backing file not supported for file format 'raw'"),
    ({"format": "null-co"}, "does not support image creation"),
    ({"job-id": "taken"}, "Job ID 'taken' already in use"),
    ({"x-perf": {"min-cluster-size": 3}}, "power of 2"),
]


@pytest.mark.parametrize("options,words", REFUSED, ids=lambda o: str(o)[:40])
def test_what_cannot_be_is_refused_and_leaves_no_target(tmp_path, daemon, raw, options, words):
    daemon.add_file("disk", raw)
    daemon.qmp("drive-backup", job_id="taken", device="disk", sync="none", format="qcow2",
               target=str(tmp_path / "taken"))
    with pytest.raises(QmpError, match=words):
        backup(daemon, tmp_path / "t", **options)
    assert not (tmp_path / "t").exists()


def test_a_backup_that_does_not_start_leaves_no_new_file(tmp_path, raw):
    with Daemon(tmp_path) as d:
        d.add_file("disk", raw)
        d.qmp("blockdev-add", driver="raw", node_name="part", size=MIB,
              file={"driver": "null-co", "size": 2 * MIB})
        with pytest.raises(QmpError):
            backup(d, tmp_path / "t", scratch_dir=str(tmp_path / "nope"))
        assert not (tmp_path / "t").exists()


def test_an_overlay_of_a_disk_that_is_written_is_no_source(tmp_path, daemon, raw):
    overlay = tmp_path / "overlay.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", overlay, "4M")
    daemon.add_file("base", raw)
    daemon.add_file("disk", overlay, driver="qcow2", backing="base")
    daemon.serve("base")
    with pytest.raises(QmpError, match="shows the content of node 'base'.*writes to it"):
        backup(daemon, tmp_path / "b.raw", format="raw")
    assert not (tmp_path / "b.raw").exists()
    daemon.qmp("block-export-del", id="base", mode="hard")
    daemon.wait_event("BLOCK_EXPORT_DELETED", id="base")
    backup(daemon, tmp_path / "b.raw", format="raw", wait=False, speed=1)
    with pytest.raises(QmpError, match="does not let others write to it"):
        daemon.qmp("block-export-add", type="nbd", id="base", node_name="base", writable=True)
    daemon.qmp("block-job-cancel", device="j", force=True)
    daemon.qmp.wait_job("j")


def test_a_file_under_a_growing_image_is_no_source(tmp_path, daemon):
    image = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "64M")
    daemon.qmp("blockdev-add", {"driver": "file", "node-name": "file", "filename": str(image)})
    daemon.qmp("blockdev-add", {"driver": "qcow2", "node-name": "disk", "file": "file"})
    with pytest.raises(QmpError, match="'disk' as its file, which may resize it"):
        backup(daemon, tmp_path / "b.raw", device="file")
    assert not (tmp_path / "b.raw").exists()


def test_a_part_of_a_file_cannot_be_named_as_backing_file(tmp_path, daemon, raw):
    daemon.add_file("disk", raw, offset=MIB, size=MIB)
    with pytest.raises(QmpError, match="only a part of a file"):
        backup(daemon, tmp_path / "b.qcow2", sync="none", format="qcow2")
    assert not (tmp_path / "b.qcow2").exists()


# ---- the daemon ends while a backup runs ---------------------------------------------------------


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_source_is_whole_when_the_daemon_ends_in_a_backup(tmp_path, chain, end):
    base, top = chain
    with Daemon(tmp_path) as d:
        d.add_file("disk", top, driver="qcow2")
        uri = d.serve("disk")("disk")
        run("qemu-io", "-f", "raw", "-c", "write -P 3 2M 1M", "-c", "flush", uri)
        backup(d, tmp_path / "t", format="raw", wait=False, speed=64 << 10)
        run("qemu-io", "-f", "raw", "-c", "write -P 4 2560k 128k", "-c", "flush", uri)
        status, seconds = stillpoint.terminate(d, end)
        assert status == (0 if end == signal.SIGTERM else -signal.SIGKILL), d.log()
        assert seconds < 20
    done = qemu_img("check", top, check=False)
    # After a kill clusters may be leaked (status 3), and nothing worse.
    assert done.returncode in ((0,) if end == signal.SIGTERM else (0, 3)), done.stdout
    read = run("qemu-io", "-f", "qcow2", "-c", "read -P 3 2M 512k", "-c", "read -P 4 2560k 128k",
               "-c", "read -P 2 1M 64k", "-c", "read -P 1 0 1M", top)
    assert "verification failed" not in read.stdout


def test_a_signal_tells_that_jobs_were_cancelled(tmp_path, raw):
    with Daemon(tmp_path) as d:
        d.add_file("disk", raw)
        backup(d, tmp_path / "t", wait=False, speed=64 << 10)
        d.signal(signal.SIGTERM)
        d.wait_event("SHUTDOWN", reason="host-signal")
        d.wait_event("BLOCK_JOB_CANCELLED", device="j")
        assert d.wait() == 0, d.log()
