# SPDX-License-Identifier: Apache-2.0
"""The NBD server as other people's clients see it: nbdinfo, nbdcopy, qemu-img, qemu-io, fio
and libnbd, on both engines, over Unix sockets and TCP."""
import json
import os
import random
import socket
import struct
import threading
import time

import nbd
import pytest

from stillpoint import Daemon, free_port, qemu_img, run

MiB = 1 << 20
SIZE = 64 * MiB


@pytest.fixture(params=["uring", "pool"])
def daemon(request, tmp_path):
    """A daemon on each engine; asked for by name in every test below."""
    with Daemon(tmp_path, engine=request.param) as d:
        d.engine = request.param
        yield d


@pytest.fixture
def disk(daemon, tmp_path):
    """A raw file with data, holes and zeros, served writable; gives (path, uri)."""
    path = tmp_path / "disk.raw"
    with open(path, "wb") as f:
        f.truncate(SIZE)
        for at, n in ((0, MiB), (8 * MiB, 3 * MiB), (63 * MiB, MiB)):
            f.seek(at)
            f.write(random.Random(at).randbytes(n))
    daemon.add_file("disk", path, discard="unmap")
    return path, daemon.serve("disk")("disk")


def connect(uri, contexts=False, structured=True):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    if contexts:
        h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    return h


def extents(h, count, offset, flags=0):
    """What one BLOCK_STATUS says: [(length, flags)]."""
    seen = []
    h.block_status(count, offset,
                   lambda context, at, entries, error: seen.extend(entries), flags)
    return list(zip(seen[::2], seen[1::2]))


# ---- what clients are told ---------------------------------------------------------------


def test_nbdinfo_sees_what_is_offered(disk):
    info = json.loads(run("nbdinfo", "--json", disk[1]).stdout)
    export = info["exports"][0]
    assert info["protocol"] == "newstyle-fixed" and info["structured"]
    assert export["export-size"] == SIZE
    assert export["contexts"] == ["base:allocation"]
    assert not export["is_read_only"] and not export["is_rotational"]
    for can in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"):
        assert export["can_" + can], can
    assert export["block_size_minimum"] == 1
    assert export["block_size_preferred"] == 4096
    assert export["block_size_maximum"] == 32 * MiB


def test_nbdinfo_lists_exports(daemon, tmp_path):
    with open(tmp_path / "a.raw", "wb") as f:
        f.truncate(MiB)
    daemon.add_file("n", tmp_path / "a.raw")
    daemon.serve()
    for name, description in (("first", None), ("a name / with ü", "words for people")):
        extra = {"description": description} if description else {}
        daemon.qmp("block-export-add", {"type": "nbd", "id": f"id{len(name)}", "node-name": "n",
                                        "name": name, **extra})
    listed = json.loads(run("nbdinfo", "--list", "--json",
                            f"nbd+unix:///?socket={daemon.directory}/nbd.sock").stdout)
    names = {e["export-name"]: e.get("description") for e in listed["exports"]}
    assert names == {"first": None, "a name / with ü": "words for people"}
    assert all(e["is_read_only"] for e in listed["exports"])


def test_map_tells_data_from_holes(disk):
    listed = json.loads(run("nbdinfo", "--map", "--json", disk[1]).stdout)
    got = [(e["offset"], e["length"], e["type"]) for e in listed]
    assert got == [(0, MiB, 0), (MiB, 7 * MiB, 3), (8 * MiB, 3 * MiB, 0),
                   (11 * MiB, 52 * MiB, 3), (63 * MiB, MiB, 0)]
    mapped = json.loads(qemu_img("map", "-f", "raw", "--output=json", disk[1]).stdout)
    assert [(e["start"], e["length"]) for e in mapped if e["data"]] == \
        [(0, MiB), (8 * MiB, 3 * MiB), (63 * MiB, MiB)]


def test_a_chain_is_mapped_as_a_whole(daemon, tmp_path):
    qemu_img("create", "-f", "qcow2", tmp_path / "base.qcow2", "8M")
    run("qemu-io", "-c", "write -P 1 1M 1M", "-c", "write -P 2 3M 1M", tmp_path / "base.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", tmp_path / "base.qcow2", "-F", "qcow2",
             tmp_path / "top.qcow2")
    run("qemu-io", "-c", "write -z 1M 512k", "-c", "write -P 3 6M 64k", tmp_path / "top.qcow2")
    daemon.add_file("top", tmp_path / "top.qcow2", driver="qcow2")
    uri = daemon.serve("top")("top")
    got = [(e["offset"], e["length"], e["type"] & 2)
           for e in json.loads(run("nbdinfo", "--map", "--json", uri).stdout)]
    merged = []
    for offset, length, zero in got:
        if merged and merged[-1][2] == zero:
            merged[-1][1] += length
        else:
            merged.append([offset, length, zero])
    k = 1024
    assert merged == [[0, 1536 * k, 2], [1536 * k, 512 * k, 0], [2048 * k, 1024 * k, 2],
                      [3072 * k, 1024 * k, 0], [4096 * k, 2048 * k, 2], [6144 * k, 64 * k, 0],
                      [6208 * k, 1984 * k, 2]]


# ---- copying -----------------------------------------------------------------------------


def test_nbdcopy_both_ways(disk, tmp_path):
    path, uri = disk
    copy, other = tmp_path / "copy.raw", tmp_path / "other.raw"
    run("nbdcopy", "--connections=4", uri, copy)
    run("cmp", copy, path)
    assert os.stat(copy).st_blocks * 512 < 8 * MiB      # holes stayed holes
    other.write_bytes(random.Random(5).randbytes(SIZE))
    run("nbdcopy", "--connections=4", "--flush", other, uri)
    run("cmp", other, path)


def test_qemu_img_converts_and_compares(disk, tmp_path):
    path, uri = disk
    qemu_img("convert", "-f", "raw", "-O", "qcow2", uri, tmp_path / "copy.qcow2")
    qemu_img("compare", "-f", "qcow2", "-F", "raw", tmp_path / "copy.qcow2", uri)
    qemu_img("create", "-f", "qcow2", tmp_path / "new.qcow2", str(SIZE))
    run("qemu-io", "-c", "write -P 9 5M 1M", tmp_path / "new.qcow2")
    qemu_img("convert", "-n", "-W", "-f", "qcow2", "-O", "raw", tmp_path / "new.qcow2", uri)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", tmp_path / "new.qcow2", uri)


def test_qemu_io_does_everything(disk):
    path, uri = disk
    run("qemu-io", "-f", "raw", "-c", "write -P 1 0 1M", "-c", "read -P 1 0 1M",
        "-c", "write -f -P 2 1M 64k", "-c", "write -z 0 64k", "-c", "read -P 0 0 64k",
        "-c", "write -zu 64k 64k", "-c", "read -P 0 64k 64k", "-c", "write -zn 128k 64k",
        "-c", "read -P 0 128k 64k", "-c", "write -P 7 1234567 777", "-c", "read -P 7 1234567 777",
        "-c", "discard 2M 1M", "-c", "flush", "-c", "aio_write -P 5 4M 32M",
        "-c", "aio_read -P 5 4M 32M", "-c", "aio_flush", uri)
    with open(path, "rb") as f:
        f.seek(1234567)
        assert f.read(777) == b"\7" * 777


@pytest.mark.parametrize("jobs", [1, 4])
def test_fio_verifies_what_it_wrote(disk, tmp_path, jobs):
    """Several connections at a time, each with a deep queue, every block verified."""
    run("fio", "--name=verify", "--ioengine=nbd", f"--uri={disk[1]}", "--rw=randwrite",
        "--bsrange=512-64k", "--bs_unaligned", "--iodepth=64", f"--numjobs={jobs}", "--size=8M",
        "--offset_increment=8M", "--verify=crc32c", "--verify_fatal=1",
        "--verify_state_save=0", "--thread",
        f"--output={tmp_path}/fio.txt")
    assert "err= 0" in (tmp_path / "fio.txt").read_text()


# ---- requests ----------------------------------------------------------------------------


@pytest.mark.parametrize("structured", [True, False])
def test_errors_are_the_protocols_and_the_connection_goes_on(disk, structured):
    h = connect(disk[1], structured=structured)
    h.set_strict_mode(0)          # let libnbd send what it would refuse itself

    def error_of(call, *args):
        with pytest.raises(nbd.Error) as caught:
            call(*args)
        return caught.value.errno

    assert error_of(h.pwrite, b"x" * 512, SIZE) == "ENOSPC"
    assert error_of(h.pwrite, b"x" * 512, SIZE - 511) == "ENOSPC"
    assert error_of(h.zero, 512, SIZE) == "ENOSPC"
    assert error_of(h.pread, 512, SIZE) == "EINVAL"
    assert error_of(h.trim, 512, SIZE) == "EINVAL"
    assert error_of(h.cache, 512, SIZE) == "EINVAL"
    assert error_of(h.pwrite, b"x" * 512, 0, 1 << 12) == "EINVAL"       # an unknown flag
    assert error_of(h.pread, 33 * MiB, 0) in ("EINVAL", "ERANGE")
    h.pwrite(b"y" * 512, SIZE - 512, nbd.CMD_FLAG_FUA)
    assert h.pread(512, SIZE - 512) == b"y" * 512
    h.shutdown()


def test_a_read_only_export_refuses_writes(daemon, tmp_path):
    (tmp_path / "ro.raw").write_bytes(b"r" * MiB)
    daemon.add_file("ro", tmp_path / "ro.raw")
    h = connect(daemon.serve("ro", writable=False)("ro"))
    h.set_strict_mode(0)
    assert h.is_read_only() and not h.can_trim() and not h.can_zero()
    for call, args in ((h.pwrite, (b"w" * 512, 0)), (h.trim, (512, 0)), (h.zero, (512, 0))):
        with pytest.raises(nbd.Error) as caught:
            call(*args)
        assert caught.value.errno == "EPERM"
    assert h.pread(512, 0) == b"r" * 512
    assert (tmp_path / "ro.raw").read_bytes() == b"r" * MiB


def test_block_status_with_one_extent_and_unaligned(disk):
    h = connect(disk[1], contexts=True)
    assert extents(h, SIZE, 0, nbd.CMD_FLAG_REQ_ONE) == [(MiB, 0)]
    assert extents(h, 100, MiB - 50) == [(50, 0), (50, 3)]
    assert sum(n for n, _ in extents(h, SIZE, 0)) == SIZE


def test_zeroing_and_trimming_make_holes(disk):
    path, uri = disk
    h = connect(uri, contexts=True)
    h.zero(MiB, 8 * MiB)
    assert extents(h, MiB, 8 * MiB) == [(MiB, 3)]
    h.pwrite(b"d" * MiB, 8 * MiB)
    h.zero(MiB, 8 * MiB, nbd.CMD_FLAG_NO_HOLE)
    assert extents(h, MiB, 8 * MiB)[0][1] & nbd.STATE_HOLE == 0
    assert h.pread(MiB, 8 * MiB) == bytes(MiB)
    h.zero(MiB, 9 * MiB, nbd.CMD_FLAG_FAST_ZERO)
    h.trim(MiB, 63 * MiB)
    assert extents(h, MiB, 63 * MiB) == [(MiB, 3)]
    h.flush()
    with open(path, "rb") as f:
        f.seek(8 * MiB)
        assert f.read(2 * MiB) == bytes(2 * MiB)


def test_two_connections_are_coherent(disk):
    """What one connection has been told is written, another one reads, and one's flush is
    the other's."""
    a, b = connect(disk[1]), connect(disk[1])
    assert a.can_multi_conn()
    rng = random.Random(1)
    for i in range(500):
        writer, reader = (a, b) if i % 2 else (b, a)
        at, data = rng.randrange(SIZE - 8192), rng.randbytes(rng.randint(1, 8192))
        writer.pwrite(data, at)
        assert reader.pread(len(data), at) == data
    b.flush()


def test_deep_queues_on_many_connections(disk):
    """A thousand requests in flight at once; every answer is the right one."""
    path, uri = disk
    content = path.read_bytes()
    handles = [connect(uri) for _ in range(8)]
    rng = random.Random(2)
    wanted, got = [], []

    def done(buf, at, length, error):
        assert error == 0
        got.append(bytes(buf.to_bytearray()) == content[at:at + length])
        return 1

    for _ in range(1000):
        h = rng.choice(handles)
        length = rng.choice([512, 4096, 65536])
        at = rng.randrange(SIZE - length)
        buf = nbd.Buffer(length)
        wanted.append(buf)
        h.aio_pread(buf, at, lambda error, b=buf, a=at, n=length: done(b, a, n, error.value))
    while any(h.aio_in_flight() for h in handles):
        for h in handles:
            if h.aio_in_flight():
                h.poll(0)
    assert len(got) == 1000 and all(got)


def test_tcp_on_all_addresses(daemon, tmp_path):
    (tmp_path / "t.raw").write_bytes(b"t" * MiB)
    daemon.add_file("t", tmp_path / "t.raw")
    port = free_port()
    daemon.qmp("nbd-server-start",
               {"addr": {"type": "inet", "data": {"host": "", "port": str(port)}}})
    daemon.qmp("block-export-add", type="nbd", id="t", node_name="t")
    assert connect(f"nbd://127.0.0.1:{port}/t").pread(512, 0) == b"t" * 512
    if socket.has_dualstack_ipv6():
        assert connect(f"nbd://[::1]:{port}/t").pread(512, 0) == b"t" * 512
    run("nbdcopy", f"nbd://localhost:{port}/t", tmp_path / "copy.raw")
    run("cmp", tmp_path / "copy.raw", tmp_path / "t.raw")


def test_tls_is_refused_politely(disk):
    h = nbd.NBD()
    h.set_tls(nbd.TLS_ALLOW)
    h.connect_uri(disk[1])
    assert not h.get_tls_negotiated() and h.get_size() == SIZE


# ---- bad company -------------------------------------------------------------------------


def negotiate(path):
    """A raw connection to the export "disk", negotiated with simple replies."""
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    assert s.recv(18, socket.MSG_WAITALL)[:16] == b"NBDMAGICIHAVEOPT"
    s.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 4) + b"disk")
    assert struct.unpack(">Q", s.recv(10, socket.MSG_WAITALL)[:8])[0] == SIZE
    return s


def request(kind, cookie, offset, length):
    return struct.pack(">IHHQQI", 0x25609513, 0, kind, cookie, offset, length)


def test_hostile_clients_do_not_hurt_a_good_one(disk, daemon):
    """Each kind of misbehaviour over and over, while a good client verifies what it does."""
    path = os.path.join(daemon.directory, "nbd.sock")
    stop = threading.Event()
    trouble = []

    def good():
        try:
            h, rng = connect(disk[1]), random.Random(3)
            while not stop.is_set():
                data, at = rng.randbytes(4096), rng.randrange(SIZE // 4096) * 4096
                h.pwrite(data, at)
                assert h.pread(4096, at) == data
        except Exception as e:                          # told below, in the test's thread
            trouble.append(e)

    thread = threading.Thread(target=good)
    thread.start()
    rng, idle = random.Random(4), []
    for i in range(60):
        s = negotiate(path)
        kind = i % 6
        if kind == 0:
            s.sendall(rng.randbytes(1000))                        # rubbish
        elif kind == 1:
            s.sendall(request(1, 1, 0, 32 * MiB) + bytes(100000))  # vanishes in mid-write
        elif kind == 2:
            s.sendall(b"".join(request(0, k, 0, MiB) for k in range(200)))
            idle.append(s)                                        # never takes its replies
            continue
        elif kind == 3:
            s.sendall(request(1, 1, 0, 32 * MiB))                 # never sends its data
            idle.append(s)
            continue
        elif kind == 4:
            s.sendall(request(0, 1, 0, 4096)[:rng.randrange(28)])  # half a header
        else:
            s.sendall(request(9, 1, 2 ** 64 - 1, 2 ** 32 - 1))    # nonsense, then silence
            idle.append(s)
            continue
        s.close()
    stop.set()
    thread.join()
    assert not trouble, trouble
    # What they hold is bounded: not the 10 times 200 MiB that they asked for, at least.
    with open(f"/proc/{daemon.pid}/status") as status, open(f"/proc/{daemon.pid}/maps") as maps:
        rss = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
        if "san.so" not in maps.read():        # sanitizers keep memory of their own
            assert rss < 800 * 1024, f"{rss} KiB"
    for s in idle:
        s.close()
    h = connect(disk[1])
    h.pwrite(b"alive", 0)
    assert h.pread(5, 0) == b"alive"


def test_who_sits_on_shared_memory_is_disconnected(disk, daemon):
    """Clients that leave 64 MiB of replies each in the server, until all that clients share is
    used up. One that needs memory gets it when they have not moved for ten seconds."""
    if daemon.engine == "pool":
        pytest.skip("ten seconds are enough for once")
    idle = [negotiate(os.path.join(daemon.directory, "nbd.sock")) for _ in range(10)]
    for s in idle:
        s.sendall(b"".join(request(0, k, 0, MiB) for k in range(70)))
        assert s.recv(1)
    h = connect(disk[1])
    start = time.monotonic()
    assert h.pread(512, 0)                      # a small one need not wait
    assert time.monotonic() - start < 5
    h.pwrite(b"x" * (32 * MiB), 0)
    assert h.pread(MiB, 16 * MiB) == b"x" * MiB
    assert "holds memory and does not move" in daemon.log()
    for s in idle:
        s.close()


def test_deleting_an_export_in_use(disk, daemon):
    h = connect(disk[1])
    refused = daemon.qmp.ask("block-export-del", {"id": "disk"})
    assert refused["error"]["desc"] == "export 'disk' still in use"
    daemon.qmp("block-export-del", id="disk", mode="hard")
    daemon.wait_event("BLOCK_EXPORT_DELETED", id="disk")
    with pytest.raises(nbd.Error):
        h.pread(512, 0)
    with pytest.raises(nbd.Error):
        connect(disk[1])
