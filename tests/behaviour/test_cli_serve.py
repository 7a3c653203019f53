# SPDX-License-Identifier: Apache-2.0
"""serve: disks on line with one command, and how to reach them."""
import os
import signal
import socket

import nbd
import pytest
from cli import MiB, QemuNbd, Serve, make_image
from stillpoint import Qmp, free_port, poll_until, qemu_img, run, stillpoint, terminate


def refused(directory, *args):
    """The words of a serve that does not come up; nothing may be left on line."""
    options = [*args]
    if "--listen" not in args:
        options += ["--listen", "unix:nbd.sock"]
    if "--control" not in args:
        options += ["--control", "control.sock"]
    done = stillpoint("serve", *options, check=False, cwd=directory, errors="surrogateescape")
    assert done.returncode in (1, 2), done
    assert done.stdout == ""
    assert done.stderr.startswith("stillpoint serve: ")
    assert not os.path.exists(f"{directory}/control.sock")
    assert not os.path.exists(f"{directory}/nbd.sock")
    return done.stderr


def connect(uri):
    h = nbd.NBD()
    h.connect_uri(uri)
    return h


def test_the_first_line_is_the_disks_uri_and_it_works(tmp_path):
    make_image(tmp_path / "disk.qcow2", writes=["write -P 7 0 64k"])
    with Serve(tmp_path, "disk.qcow2") as s:
        name, uri = s.lines()[0].split()
        assert (name, uri) == ("disk", s.uri("disk"))
        h = connect(uri)
        assert h.get_size() == 8 * MiB
        assert h.pread(65536, 0) == b"\7" * 65536
        h.pwrite(b"\1" * 512, 512)
        h.flush()
        h.shutdown()
        assert s.lines()[-1] == f"control socket: {s.control}"
    qemu_img("check", tmp_path / "disk.qcow2")
    run("qemu-io", "-c", "read -P 1 512 512", tmp_path / "disk.qcow2")


def test_several_disks_on_several_sockets(tmp_path):
    make_image(tmp_path / "a.raw", MiB)
    make_image(tmp_path / "b.qcow2", 2 * MiB)
    make_image(tmp_path / "c=d.raw", 3 * MiB)
    port = free_port()
    with Serve(tmp_path, "a.raw", "second=b.qcow2", "third=c=d.raw",
               "--listen", f"tcp:127.0.0.1:{port}", "--listen", "unix:x.sock") as s:
        uris = [line.split() for line in s.lines()[:-1]]
        assert [n for n, _ in uris] == ["a", "a", "second", "second", "third", "third"]
        assert uris[0][1] == f"nbd://127.0.0.1:{port}/a"
        assert uris[1][1] == f"nbd+unix:///a?socket={tmp_path}/x.sock"
        sizes = {"a": MiB, "second": 2 * MiB, "third": 3 * MiB}
        for name, uri in uris:
            assert connect(uri).get_size() == sizes[name]
        with s.qmp() as q:
            assert sorted(e["id"] for e in q("query-block-exports")) == sorted(sizes)


def test_any_free_port_is_told(tmp_path):
    make_image(tmp_path / "a.raw", MiB)
    with Serve(tmp_path, "a.raw", "--listen", "tcp:127.0.0.1:0") as s:
        assert connect(s.lines()[0].split()[1]).get_size() == MiB


def test_without_options_the_sockets_are_in_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("STILLPOINT_CONTROL", raising=False)
    make_image(tmp_path / "a.raw", MiB)
    with Serve(tmp_path, "a.raw", sockets=False) as s:
        assert s.lines() == [f"a  nbd+unix:///a?socket={tmp_path}/stillpoint-nbd.sock",
                             f"control socket: {tmp_path}/stillpoint-control.sock"]


def test_control_is_taken_from_the_environment(tmp_path, monkeypatch):
    make_image(tmp_path / "a.raw", MiB)
    monkeypatch.setenv("STILLPOINT_CONTROL", str(tmp_path / "env.sock"))
    with Serve(tmp_path, "a.raw", sockets=False) as s:
        assert s.lines()[-1] == f"control socket: {tmp_path}/env.sock"
        assert stillpoint("jobs").stdout == "no jobs\n"


def test_read_only(tmp_path):
    image = make_image(tmp_path / "a.raw", writes=["write -P 1 0 64k"])
    before = open(image, "rb").read()
    with Serve(tmp_path, "a.raw", "--read-only") as s:
        h = connect(s.uri("a"))
        assert h.is_read_only()
        h.shutdown()
        with Serve(tmp_path, "again=a.raw", "--read-only",
                   "--listen", "unix:two.sock", "--control", "two-control.sock"):
            pass
    assert open(image, "rb").read() == before


@pytest.mark.parametrize("engine", ["uring", "pool"])
@pytest.mark.parametrize("more", [[], ["--direct"], ["--threads", "1"]])
def test_engines_threads_and_direct(engine, more, tmp_path):
    make_image(tmp_path / "a.qcow2")
    with Serve(tmp_path, "a.qcow2", "--engine", engine, *more) as s:
        s.write("a", "write -P 3 0 1M", "read -P 3 0 1M", "read -P 0 1M 1M")


def test_discards_reach_the_file(tmp_path):
    image = make_image(tmp_path / "a.raw", writes=["write -P 1 0 8M"])
    before = os.stat(image).st_blocks
    with Serve(tmp_path, "a.raw") as s:
        s.write("a", "discard 0 4M")
    assert os.stat(image).st_blocks <= before - 4 * MiB // 512


def test_a_format_that_the_name_does_not_say(tmp_path):
    image = make_image(tmp_path / "a.img", fmt="qcow2", writes=["write -P 4 0 64k"])
    words = refused(tmp_path, "a.img")
    assert "'a.img' looks like a qcow2 image, but its name does not say so: say --format" in words
    with Serve(tmp_path, "a.img", "--format", "qcow2") as s:
        s.write("a", "read -P 4 0 64k")
    size = os.path.getsize(image)
    with Serve(tmp_path, "a.img", "--format", "raw") as s:
        assert connect(s.uri("a")).get_size() == size


@pytest.mark.parametrize("args, words", [
    (["none.raw"], "Could not open 'none.raw': No such file or directory"),
    (["good.raw", "none.raw"], "Could not open 'none.raw': No such file or directory"),
    (["junk.qcow2"], "not in qcow2 format"),
    (["."], "A disk cannot be called"),
    (["d=/dev/null"], "/dev/null"),
    (["a=good.raw", "b=good.raw"], "or as another disk of this one"),
    (["good.raw", "--listen", "unix:\udcff"], "not UTF-8"),
    (["good.raw", "--format", "vmdk"], "Unknown format 'vmdk'"),
    (["good.raw", "--image-dir", "nodir"], "image directory 'nodir': No such file"),
    (["good.raw", "--scratch-dir", "nodir"], "--scratch-dir nodir: No such file or directory"),
    (["good.raw", "--listen", "unix:nodir/s"], "nodir/s"),
    (["good.raw", "--listen", "unix:" + "x" * 200], "x" * 100),
    (["good.raw", "--listen", "tcp:no.such.host.invalid:1"], "no.such.host.invalid"),
    (["good.raw", "--control", "nodir/c"], "nodir/c"),
    (["nbd+unix:///e?socket=none.sock", "n=good.raw"], "none.sock"),
])
def test_what_cannot_be_served_is_told(args, words, tmp_path):
    make_image(tmp_path / "good.raw", MiB)
    (tmp_path / "junk.qcow2").write_bytes(b"junk" * 1000)
    assert words in refused(tmp_path, *args)
    with Serve(tmp_path, "good.raw"):      # nothing holds it
        pass


def test_an_image_that_somebody_has_open(tmp_path):
    image = make_image(tmp_path / "a.qcow2")
    with QemuNbd(tmp_path, image, "qcow2"):
        words = refused(tmp_path, "a.qcow2")
        assert "'a.qcow2', or an image that it stands on, is in use" in words


def test_nobody_else_opens_what_is_served(tmp_path):
    image = make_image(tmp_path / "a.qcow2")
    with Serve(tmp_path, "a.qcow2"):
        done = qemu_img("check", image, check=False)
        assert 'Failed to get' in done.stderr
        done = stillpoint("serve", "a.qcow2", "--listen", "unix:2", "--control", "c2",
                          check=False, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert "is in use, in another process" in done.stderr


def test_a_socket_that_somebody_uses(tmp_path):
    make_image(tmp_path / "a.raw", MiB)
    make_image(tmp_path / "b.raw", MiB)
    with Serve(tmp_path, "a.raw") as s:
        done = stillpoint("serve", "b.raw", "--listen", f"unix:{s.socket}", "--control", "other",
                          check=False, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert "Address already in use" in done.stderr
        done = stillpoint("serve", "b.raw", "--listen", "unix:other", "--control", s.control,
                          check=False, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert "Address already in use" in done.stderr
        assert connect(s.uri("a")).get_size() == MiB
        assert stillpoint("jobs", "--control", s.control).stdout == "no jobs\n"


def test_sockets_of_a_daemon_that_was_killed_are_replaced(tmp_path):
    make_image(tmp_path / "a.raw", MiB)
    with Serve(tmp_path, "a.raw") as s:
        s.kill()
        assert os.path.exists(s.socket) and os.path.exists(s.control)
    with Serve(tmp_path, "a.raw") as s:
        assert connect(s.uri("a")).get_size() == MiB
    assert not os.path.exists(s.socket) and not os.path.exists(s.control)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_in_good_order(number, tmp_path):
    image = make_image(tmp_path / "a.qcow2")
    with Serve(tmp_path, "a.qcow2") as s:
        h = connect(s.uri("a"))
        h.pwrite(b"\5" * 65536, 0)
        assert terminate(s, number)[0] == 0
    assert not os.path.exists(s.socket) and not os.path.exists(s.control)
    qemu_img("check", image)
    run("qemu-io", "-c", "read -P 5 0 64k", image)


def test_quit_by_qmp(tmp_path):
    make_image(tmp_path / "a.raw", MiB)
    with Serve(tmp_path, "a.raw") as s:
        with s.qmp() as q:
            q("quit")
            q.wait_event("SHUTDOWN")
        assert s.wait() == 0


def test_a_backing_file_elsewhere_has_to_be_allowed(tmp_path):
    (tmp_path / "images").mkdir()
    base = make_image(tmp_path / "base.raw", MiB, writes=["write -P 8 0 64k"])
    make_image(tmp_path / "images" / "top.qcow2", MiB, backing=base)
    assert "allow it with --image-dir" in refused(tmp_path, "images/top.qcow2")
    with Serve(tmp_path, "images/top.qcow2", "--image-dir", ".") as s:
        s.write("top", "read -P 8 0 64k")


def test_a_remote_disk_is_served_on(tmp_path):
    image = make_image(tmp_path / "a.raw", writes=["write -P 6 0 64k"])
    with QemuNbd(tmp_path, image) as far, Serve(tmp_path, far.uri) as s:
        assert s.lines()[0].split()[0] == "e"
        s.write("e", "read -P 6 0 64k", "write -P 9 64k 64k")
    run("qemu-io", "-f", "raw", "-c", "read -P 9 64k 64k", image)


def test_qmp_clients_can_add_disks(tmp_path):
    make_image(tmp_path / "a.raw", MiB)
    with Serve(tmp_path, "a.raw") as s, s.qmp() as q:
        q("blockdev-add", driver="null-co", node_name="n", size=MiB)
        q("block-export-add", type="nbd", id="more", node_name="n")
        assert connect(s.uri("n")).get_size() == MiB


def test_a_control_socket_path_that_is_long_but_relative(tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    make_image(deep / "a.raw", MiB)
    with Serve(deep, "a.raw", "--listen", "unix:n.sock", "--control", "c.sock") as s:
        assert s.lines() == ["a  nbd+unix:///a?socket=n.sock", "control socket: c.sock"]
        old = os.getcwd()
        os.chdir(deep)
        try:
            assert stillpoint("jobs", "--control", "c.sock").stdout == "no jobs\n"
        finally:
            os.chdir(old)


def test_qmp_is_spoken_on_the_control_socket(tmp_path):
    make_image(tmp_path / "a.raw", MiB)
    with Serve(tmp_path, "a.raw") as s:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(s.control)
            q = Qmp(sock)
            assert "QMP" in q.greeting
            nodes = {n["node-name"]: n for n in q("query-named-block-nodes")}
            assert nodes["a"]["drv"] == "raw"
