# SPDX-License-Identifier: Apache-2.0
"""The command `stillpoint daemon` as a process: options, where clients come from, its end."""
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time

import pytest

import stillpoint
from stillpoint import BINARY, Daemon, Process, Qmp, poll_until, run

QSD = shutil.which("qemu-storage-daemon")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a.raw"
    with open(path, "wb") as f:
        f.truncate(1 << 20)
    return path


@contextlib.contextmanager
def started(tmp_path, *options, **kwargs):
    with Process([BINARY, "daemon", *options], tmp_path / "log", **kwargs) as p:
        yield p


def ends_well(process):
    assert process.wait() == 0, process.log()
    assert "Sanitizer" not in process.log(), process.log()


def quit_by(qmp, process):
    assert qmp.ask("quit") == {"return": {}}
    ends_well(process)


# ---- a service manager --------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_a_service_manager_is_told(abstract, tmp_path, image):
    name = f"@stillpoint-{os.getpid()}" if abstract else str(tmp_path / "notify.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind("\0" + name[1:] if abstract else name)
        s.settimeout(stillpoint.DEADLINE)
        with Daemon(tmp_path, "--blockdev", f"driver=file,node-name=f0,filename={image}",
                    env={"NOTIFY_SOCKET": name}) as d:
            assert s.recv(100) == b"READY=1"
            assert [n["node-name"] for n in d.qmp("query-named-block-nodes")] == ["f0"]
        assert s.recv(100) == b"STOPPING=1"


def test_no_service_manager_harms(tmp_path):
    for name in ("", "x", "/", str(tmp_path / "nobody"), "/" + "x" * 200):
        with Daemon(tmp_path, env={"NOTIFY_SOCKET": name}):
            pass


# ---- options ----------------------------------------------------------------------------


def test_a_disk_is_served_by_options_alone(tmp_path, image):
    nbd = tmp_path / "nbd.sock"
    with Daemon(tmp_path,
                "--blockdev", f"driver=file,node-name=f0,filename={image}",
                "--blockdev", '{"driver":"raw","node-name":"r0","file":"f0"}',
                "--nbd-server", f"addr.type=unix,addr.path={nbd}",
                "--export", "type=nbd,id=e0,node-name=r0,name=disk,writable=on") as d:
        info = run("nbdinfo", "--json", f"nbd+unix:///disk?socket={nbd}").stdout
        assert '"export-size": 1048576' in info
        assert d.qmp("query-block-exports")[0]["id"] == "e0"


def test_first_words_of_options_may_be_left_out(tmp_path, image):
    nbd = tmp_path / "nbd.sock"
    with Daemon(tmp_path, "--object", "iothread,id=io0",
                "--blockdev", f"raw,node-name=r0,file.driver=file,file.filename={image}",
                "--nbd-server", f"addr.type=unix,addr.path={nbd},max-connections=3",
                "--export", "nbd,id=e0,node-name=r0,iothread=io0") as d:
        assert len(d.qmp("query-block-exports")) == 1


def test_options_are_carried_out_in_their_order(tmp_path, image):
    done = run(BINARY, "daemon", "--export", "nbd,id=e0,node-name=r0",
               "--blockdev", f"raw,node-name=r0,file.driver=file,file.filename={image}",
               check=False)
    assert done.returncode == 1
    assert "--export nbd,id=e0,node-name=r0: " in done.stderr


REFUSED = [
    ["--blockdev", "file,filename=a.raw"],
    ["--blockdev", '{"driver":"file"'],
    ["--blockdev", "driver=file"],
    ["--blockdev", "driver=nope,node-name=n"],
    ["--blockdev", "driver=file,node-name=n,filename=a.raw,foo=1"],
    ["--blockdev", "driver=file,node-name=n,filename=nope"],
    ["--blockdev"],
    ["--chardev", "socket,id=c"],
    ["--chardev", "socket,path=s"],
    ["--chardev", "nope,id=c"],
    ["--chardev", "socket,id=c,path=no/dir,server=on,wait=off"],
    ["--chardev", "socket,id=c,path=nope"],
    ["--chardev", "socket,id=c,path=s,server=on,wait=off,foo=1"],
    ["--chardev", "socket,id=c,path=s,server=on,wait=maybe"],
    ["--chardev", "socket,id=c,path=s,server=on,wait=off",
     "--chardev", "socket,id=c,path=t,server=on,wait=off"],
    ["--chardev", "stdio,id=c,foo=1"],
    ["--chardev", "stdio,id=c", "--chardev", "stdio,id=d"],
    ["--daemonize", "--chardev", "stdio,id=c"],
    ["--monitor", "nope"],
    ["--monitor", "chardev=nope,mode=nope"],
    ["--export", "nbd,id=e,node-name=nope"],
    ["--export", "type=nope,id=e,node-name=nope"],
    ["--nbd-server", "unix"],
    ["--nbd-server", "addr.type=unix"],
    ["--nbd-server", "addr.type=unix,addr.path=s", "--nbd-server", "addr.type=unix,addr.path=t"],
    ["--object", "nope,id=x"],
    ["--object", "iothread"],
    ["--object", "iothread,id=x", "--object", "iothread,id=x"],
    ["--pidfile", "no/dir"],
    ["--nope"],
    ["nope"],
]


@pytest.mark.parametrize("options", REFUSED, ids=" ".join)
def test_what_qemu_refuses_is_refused(tmp_path, options):
    (tmp_path / "a.raw").write_bytes(bytes(4096))
    ours = run(BINARY, "daemon", *options, check=False, cwd=tmp_path)
    assert ours.returncode == 1, ours.stderr
    assert ours.stderr.startswith("stillpoint daemon: "), ours.stderr
    if QSD:
        assert run(QSD, *options, check=False, cwd=tmp_path).returncode == 1


OURS_REFUSED = [
    (["--threads", "0"], "--threads 0"),
    (["--threads", "x"], "--threads x"),
    (["--engine", "x"], "--engine x"),
    (["--scratch-dir", "/no/dir"], "--scratch-dir /no/dir: No such file"),
    (["--image-dir", "/no/dir"], "--image-dir /no/dir"),
    (["--object", "secret,id=s,data=x"], "no objects of type 'secret'"),
    (["--chardev", "stdio,id=c", "--monitor", "c", "--monitor", "c"], "has a monitor already"),
    (["--chardev", "stdio,id=c", "--monitor", "c,mode=readline"], "mode=control"),
    (["--chardev", "socket,id=c,path=s,host=h,port=1"], "None or one of"),
    (["--chardev", "socket,id=c,host=h"], "port"),
    (["--chardev", "socket,id=c,path=s,server=on,reconnect=1"], "'reconnect' option"),
    (["--chardev", "socket,id=c,fd=x"], "FD number 'x'"),
    (["--chardev", "socket,id=c,fd=0,server=on"], "not a listening"),
]


@pytest.mark.parametrize("options,words", OURS_REFUSED, ids=lambda o: " ".join(o)[:40])
def test_misuse_is_told_in_words(tmp_path, options, words):
    done = run(BINARY, "daemon", *options, check=False, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert words in done.stderr


def test_help_tells_of_every_option():
    text = run(BINARY, "daemon", "--help").stdout
    for option in ("--blockdev", "--chardev", "--monitor", "--nbd-server", "--export", "--object",
                   "--pidfile", "--daemonize", "--engine", "--threads", "--scratch-dir",
                   "--image-dir", "--control", "Example:"):
        assert option in text
    assert run(BINARY, "daemon", "-h").stdout == text


@pytest.mark.parametrize("option,words", [
    ("--blockdev", ["node-name", "driver=qcow2", "filename"]), ("--chardev", ["path", "server"]),
    ("--export", ["writable", "description"]), ("--nbd-server", ["max-connections", "host"]),
    ("--monitor", ["pretty"]), ("--object", ["iothread"])])
def test_help_tells_more_of_one_option(option, words):
    text = run(BINARY, "daemon", option, "help").stdout
    for word in words:
        assert word in text


def test_the_program_has_help_and_a_version():
    assert "daemon" in run(BINARY, "--help").stdout
    assert run(BINARY, "--version").stdout.startswith("stillpoint ")
    assert run(BINARY, "daemon", "-V").stdout == run(BINARY, "--version").stdout
    assert run(BINARY, check=False).returncode == 2
    assert "no command 'nope'" in run(BINARY, "nope", check=False).stderr


@pytest.mark.parametrize("engine", ["uring", "pool"])
def test_both_engines_serve(tmp_path, image, engine):
    with Daemon(tmp_path, engine=engine) as d:
        d.add_file("r0", image)
        uri = d.serve("r0")
        assert "1048576" in run("nbdinfo", "--size", uri("r0")).stdout


# ---- where QMP clients come from ----------------------------------------------------------


@pytest.mark.parametrize("server", ["server=on,wait=off", "server,nowait"])
def test_a_listening_socket_takes_any_number_of_clients(tmp_path, server):
    path = tmp_path / "qmp.sock"
    with started(tmp_path, "--chardev", f"socket,id=c,path={path},{server}",
                 "--monitor", "chardev=c") as p:
        with Qmp.connect(path) as a, Qmp.connect(path) as b, Qmp.connect(path) as c:
            for client in (c, a, b):
                assert client("query-jobs") == []
            quit_by(b, p)
            a.wait_event("SHUTDOWN", reason="host-qmp-quit", guest=False)
            with pytest.raises(ConnectionError):
                c.wait_event("nope")
    assert not path.exists()


def test_a_tcp_socket(tmp_path):
    port = stillpoint.free_port()
    with started(tmp_path, "--chardev",
                 f"socket,id=c,host=127.0.0.1,port={port},server=on,wait=off",
                 "--monitor", "c,mode=control,pretty=on") as p:
        def connect():
            try:
                return socket.create_connection(("127.0.0.1", port))
            except ConnectionRefusedError:
                return None
        s = poll_until("the listener", connect)
        lines = s.makefile()
        assert lines.readline() == "{\n"
        assert lines.readline() == '    "QMP": {\n'
        s.close()
        p.signal(signal.SIGTERM)
        ends_well(p)


def test_an_address_may_be_told_the_other_way(tmp_path):
    path = tmp_path / "qmp.sock"
    with started(tmp_path, "--chardev",
                 f"socket,id=c,addr.type=unix,addr.path={path},server=on,wait=off",
                 "--monitor", "c") as p:
        with Qmp.connect(path) as qmp:
            quit_by(qmp, p)


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path):
    path = tmp_path / "qmp.sock"
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))
    options = ["--chardev", f"socket,id=c,path={path},server=on,wait=off", "--monitor", "c"]
    with started(tmp_path, *options) as p:
        with Qmp.connect(path) as qmp:
            second = run(BINARY, "daemon", *options, check=False)
            assert second.returncode == 1
            assert "Address already in use" in second.stderr
            assert path.exists()
            quit_by(qmp, p)


def test_a_listening_descriptor_can_be_passed(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        path = tmp_path / "passed.sock"
        listener.bind(str(path))
        listener.listen()
        fd = listener.fileno()
        with started(tmp_path, "--chardev", f"socket,id=c,fd={fd},server=on,wait=off",
                     "--monitor", "c", pass_fds=[fd]) as p:
            with Qmp.connect(path) as qmp:
                quit_by(qmp, p)
        # It is ours: the daemon has neither removed nor shut it.
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            listener.accept()[0].close()


def test_a_listening_descriptor_can_be_passed_for_nbd(tmp_path, image):
    with socket.socket(socket.AF_UNIX) as listener:
        path = tmp_path / "passed.sock"
        listener.bind(str(path))
        listener.listen()
        with started(tmp_path, "--nbd-server", f"addr.type=fd,addr.str={listener.fileno()}",
                     "--blockdev", f"raw,node-name=r0,file.driver=file,file.filename={image}",
                     "--export", "nbd,id=e0,node-name=r0", "--pidfile", tmp_path / "pid",
                     pass_fds=[listener.fileno()]) as p:
            poll_until("the PID file", (tmp_path / "pid").exists)
            assert "1048576" in run("nbdinfo", "--size", f"nbd+unix:///r0?socket={path}").stdout
            p.signal(signal.SIGTERM)
            ends_well(p)


def test_a_connected_descriptor_can_be_passed(tmp_path):
    ours, theirs = socket.socketpair()
    with started(tmp_path, "--chardev", f"socket,id=c,fd={theirs.fileno()}", "--monitor", "c",
                 pass_fds=[theirs.fileno()]) as p:
        theirs.close()
        with Qmp(ours) as qmp:
            quit_by(qmp, p)


def test_it_connects_to_a_client_that_listens(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        path = tmp_path / "client.sock"
        listener.bind(str(path))
        listener.listen()
        with started(tmp_path, "--chardev", f"socket,id=c,path={path},server=off",
                     "--monitor", "c") as p:
            with Qmp(listener.accept()[0]) as qmp:
                quit_by(qmp, p)


def test_it_connects_again_when_told_to(tmp_path):
    path = tmp_path / "client.sock"
    with started(tmp_path, "--chardev", f"socket,id=c,path={path},reconnect-ms=10",
                 "--monitor", "c") as p:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            for _ in range(3):
                with Qmp(listener.accept()[0]) as qmp:
                    assert qmp("query-jobs") == []
            with Qmp(listener.accept()[0]) as qmp:
                quit_by(qmp, p)


def test_with_wait_it_goes_on_when_a_client_is_there(tmp_path):
    path = tmp_path / "qmp.sock"
    pidfile = tmp_path / "pid"
    with started(tmp_path, "--chardev", f"socket,id=c,path={path},server=on", "--monitor", "c",
                 "--pidfile", pidfile) as p:
        poll_until("the listener", path.exists)
        assert not pidfile.exists()
        with Qmp.connect(path) as first, Qmp.connect(path) as second:
            poll_until("the PID file", pidfile.exists)
            assert second("query-jobs") == []
            quit_by(first, p)


def test_with_wait_any_address_of_a_name_will_do(tmp_path):
    port = stillpoint.free_port()
    with started(tmp_path, "--chardev", f"socket,id=c,host=localhost,port={port},server=on",
                 "--monitor", "c") as p:
        poll_until("its message", lambda: "waiting for a connection" in p.log())
        with Qmp(socket.create_connection(("127.0.0.1", port))) as qmp:
            quit_by(qmp, p)


def test_a_signal_ends_it_while_it_waits_for_a_client(tmp_path):
    path = tmp_path / "qmp.sock"
    with started(tmp_path, "--chardev", f"socket,id=c,path={path},server=on", "--monitor",
                 "c") as p:
        poll_until("the listener", path.exists)
        status, seconds = stillpoint.terminate(p)
        assert status == 0 and seconds < 20
        assert not path.exists()


def test_standard_input_and_output(tmp_path):
    text = '{"execute":"qmp_capabilities"}\n{"execute":"query-jobs","id":1}\n{"execute":"quit"}\n'
    done = run(BINARY, "daemon", "--chardev", "stdio,id=c", "--monitor", "c", input=text)
    lines = done.stdout.splitlines()
    assert lines[0].startswith('{"QMP": ')
    assert lines[1:3] == ['{"return": {}}', '{"return": [], "id": 1}']
    assert '"SHUTDOWN"' in lines[3] and lines[4] == '{"return": {}}'


def test_a_file_as_standard_input(tmp_path):
    script = tmp_path / "script"
    script.write_text('{"execute":"qmp_capabilities"} {"execute":"quit"}')
    with open(script) as f, open(tmp_path / "out", "w") as out:
        subprocess.run([BINARY, "daemon", "--chardev", "stdio,id=c", "--monitor", "c"], stdin=f,
                       stdout=out, check=True, timeout=stillpoint.DEADLINE)
    assert (tmp_path / "out").read_text().endswith('{"return": {}}\n')


# ---- running and ending ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_in_good_order(tmp_path, image, number):
    nbd, pidfile, control = tmp_path / "nbd.sock", tmp_path / "pid", tmp_path / "qmp.sock"
    with started(tmp_path, "--blockdev",
                 f"raw,node-name=r0,file.driver=file,file.filename={image}",
                 "--nbd-server", f"addr.type=unix,addr.path={nbd}",
                 "--export", "nbd,id=e0,node-name=r0,writable=on",
                 "--control", control, "--pidfile", pidfile) as p:
        poll_until("the PID file", lambda: pidfile.exists() and pidfile.read_text())
        assert int(pidfile.read_text()) == p.pid
        assert nbd.exists()
        with Qmp.connect(control) as qmp:
            p.signal(number)
            qmp.wait_event("SHUTDOWN", reason="host-signal", guest=False)
            ends_well(p)
        assert not pidfile.exists() and not nbd.exists() and not control.exists()


def test_a_second_daemon_does_not_take_a_pid_file_over(tmp_path):
    pidfile = tmp_path / "pid"
    with Daemon(tmp_path, "--pidfile", str(pidfile)) as d:
        poll_until("the PID file", lambda: pidfile.exists() and pidfile.read_text())
        done = run(BINARY, "daemon", "--pidfile", pidfile, check=False)
        assert done.returncode == 1 and "Cannot lock" in done.stderr
        assert int(pidfile.read_text()) == d.pid


def test_daemonize_returns_when_all_is_up(tmp_path, image):
    pidfile, control = tmp_path / "pid", tmp_path / "qmp.sock"
    run(BINARY, "daemon", "--daemonize", "--pidfile", pidfile, "--control", control,
        "--blockdev", f"raw,node-name=r0,file.driver=file,file.filename={image}")
    pid = int(pidfile.read_text())
    try:
        with Qmp.connect(control) as qmp:
            assert len(qmp("query-named-block-nodes")) == 2
            assert qmp.ask("quit") == {"return": {}}
        poll_until("its end", lambda: not os.path.exists(f"/proc/{pid}"))
        assert not pidfile.exists()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_daemonize_tells_what_went_wrong(tmp_path):
    done = run(BINARY, "daemon", "--daemonize", "--blockdev",
               "file,node-name=n,filename=/no/file", check=False)
    assert done.returncode == 1
    assert "/no/file" in done.stderr


def test_what_was_written_is_there_after_quit(tmp_path):
    stillpoint.qemu_img("create", "-q", "-f", "qcow2", tmp_path / "q.qcow2", "8M")
    with Daemon(tmp_path) as d:
        d.add_file("q0", tmp_path / "q.qcow2", driver="qcow2")
        uri = d.serve("q0")
        run("qemu-io", "-f", "raw", "-c", "write -P 7 1M 1M", uri("q0"))
    stillpoint.qemu_img("check", "-q", tmp_path / "q.qcow2")
    read = run("qemu-io", "-f", "qcow2", "-c", "read -P 7 1M 1M", tmp_path / "q.qcow2")
    assert "verification failed" not in read.stdout


@pytest.mark.parametrize("round", range(3))
def test_killed_with_lazy_refcounts(round, tmp_path):
    """kill -9 while a client writes: what was flushed is there, after a repair by QEMU as by us."""
    import nbd
    image, rng = tmp_path / "q.qcow2", random.Random(round)
    stillpoint.qemu_img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on,cluster_size=4k",
                        image, "64M")
    blocks = rng.sample(range(16384), 600)
    flushed = rng.randrange(50, 500)
    with Daemon(tmp_path) as d:
        d.add_file("q0", image, driver="qcow2")
        h = nbd.NBD()
        h.connect_uri(d.serve("q0")("q0"))
        for i, block in enumerate(blocks[:flushed + 100]):
            h.pwrite(bytes([1 + i % 255]) * 4096, block * 4096)
            if i % 10 == 0 or i == flushed:
                h.flush()
        d.kill()
    copy = tmp_path / "copy.qcow2"
    shutil.copyfile(image, copy)
    info = json.loads(run("qemu-img", "info", "--output=json", image).stdout)
    assert info["dirty-flag"]
    run("qemu-img", "check", "-q", "-r", "all", copy)
    with Daemon(tmp_path) as d:             # repairs it while opening
        d.add_file("q0", image, driver="qcow2")
        h = nbd.NBD()
        h.connect_uri(d.serve("q0")("q0"))
        for i, block in enumerate(blocks[:flushed]):
            assert h.pread(4096, block * 4096) == bytes([1 + i % 255]) * 4096
        h.pwrite(b"\7" * 4096, 0)
    stillpoint.qemu_img("check", image)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4k", copy)
    stillpoint.qemu_img("compare", image, copy)
    info = json.loads(run("qemu-img", "info", "--output=json", image).stdout)
    assert not info["dirty-flag"]


def test_a_connected_nbd_client_does_not_hold_up_the_end(tmp_path, image):
    import nbd
    with Daemon(tmp_path) as d:
        d.add_file("r0", image)
        h = nbd.NBD()
        h.connect_uri(d.serve("r0")("r0"))
        start = time.monotonic()
        d.quit()
        assert time.monotonic() - start < 20
        with pytest.raises(nbd.Error):
            h.pread(512, 0)
