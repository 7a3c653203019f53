# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, and say what they were made with; their pictures are pictures. What they
measure is not looked at: they measure, people judge."""
import json
import os
import subprocess
import sys
import xml.etree.ElementTree

BENCH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "bench")
sys.path.insert(0, BENCH)
import common  # noqa: E402
import stillpoint  # noqa: E402
import svg  # noqa: E402

NAMESPACE = "{http://www.w3.org/2000/svg}"


def elements(path, name):
    return list(xml.etree.ElementTree.parse(path).getroot().iter(NAMESPACE + name))


def test_a_run_keeps_every_figure_with_what_it_was_made_with(tmp_path):
    out = tmp_path / "bench.json"
    subprocess.run([os.path.join(BENCH, "run.py"), "--stillpoint", stillpoint.BINARY, "--only",
                    "copy", "--where", "tmpfs", "--rounds", "2", "--copy-mib", "8", "--json", out,
                    "--svg", tmp_path], check=True, stdout=subprocess.DEVNULL, timeout=120)
    got = json.loads(out.read_text(encoding="utf-8"))
    assert got["versions"]["stillpoint"].startswith("stillpoint ")
    assert "--copy-mib" in got["command"] and got["machine"]["kernel"]
    for name in ("stillpoint job", "stillpoint backup", "qsd job", "qemu-img -W", "nbdcopy", "cp"):
        assert len(got["figures"]["copy tmpfs"][f"raw | {name}"]) == 2, name
    assert [t["title"] for t in got["tables"]]
    # Raw to raw has six ways that are drawn, raw to qcow2 four.
    assert len(elements(tmp_path / "copy-tmpfs.svg", "rect")) == 10


def test_a_peer_that_is_not_installed_is_named_and_left_out(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("cp", "sync", "cc", "git", "as", "ld"):
        found = subprocess.run(["which", name], check=False, text=True, capture_output=True)
        if found.stdout:
            (tools / name).symlink_to(found.stdout.strip())
    run = subprocess.run(
        ["/usr/bin/python3", os.path.join(BENCH, "run.py"), "--stillpoint", stillpoint.BINARY,
         "--only", "copy", "--only", "latency", "--where", "tmpfs", "--rounds", "1",
         "--copy-mib", "4"],
        check=True, text=True, capture_output=True, timeout=120,
        env={**os.environ, "PATH": str(tools)})
    first = run.stdout.splitlines()[0]
    assert first.startswith("not installed, and left out: ") and "nbdcopy" in first
    assert "latency: left out, it needs fio, nbdkit" in run.stdout
    assert "qsd job" not in run.stdout


def test_ratios_are_those_of_neighbours():
    # The machine became ten times slower in the second round: the ratio did not.
    assert common.paired([200, 20, 210], [100, 10, 105]) == 2


def test_the_timeline_shows_both_programs_and_the_backup(tmp_path):
    def run(high):
        windows = [[t / 4, 10.0 if t < 12 or t > 40 else high, 50.0, 9] for t in range(52)]
        return [{"start": 3, "end": 10.2, "windows": windows} for _ in range(3)]

    svg.draw({"timeline tmpfs": {"stillpoint": run(12.0), "qemu-storage-daemon": run(2e4)}},
             tmp_path)
    path = tmp_path / "timeline-tmpfs.svg"
    lines = elements(path, "polyline")
    assert [line.get("stroke") for line in lines] == [svg.THEIRS, svg.OURS]
    words = [t.text for t in elements(path, "text")]
    assert {"Stillpoint", "QEMU", "backup starts", "backup ends"} <= set(words)
    heights = [min(float(p.split(",")[1]) for p in line.get("points").split()) for line in lines]
    assert heights[0] < heights[1] - 100       # slower is higher up
