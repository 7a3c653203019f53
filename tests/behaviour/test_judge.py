# SPDX-License-Identifier: Apache-2.0
"""The judge of the other tests is judged: it accepts what is right and sees what is not.

Logs and images are made up here: time is a number, an image is a list of blocks.
"""
import oracle
import pytest
from oracle import FLUSH, FUA, NEVER, RECORD, TRIM, WRITE, ZERO, stamp

BLOCKS = 8
OLD = b"\x55" * oracle.BLOCK
ZEROS = bytes(oracle.BLOCK)
ASKED, ANSWERED = 100, 200


@pytest.fixture
def court(tmp_path):
    return Court(tmp_path)


class Court:
    def __init__(self, path):
        self.path = path
        self.logs = []

    def image(self, name, blocks, tail=b""):
        path = self.path / name
        path.write_bytes(b"".join(blocks.get(i, OLD) for i in range(BLOCKS)) + tail)
        return str(path)

    def log(self, *operations):
        """What a further writer did: (sent, acknowledged, first block, blocks, kind) each."""
        path = self.path / f"log-{len(self.logs)}"
        path.write_bytes(b"".join(RECORD.pack(seq + 1, *op) for seq, op in enumerate(operations)))
        self.logs.append(str(path))

    def judge(self, blocks, tail=b"", tail_before=b""):
        initial = self.image("initial", {}, tail_before)
        return oracle.judge(self.image("backup", blocks, tail), initial, self.logs, ASKED, ANSWERED)

    def judge_crash(self, blocks):
        return oracle.judge_crash(self.image("disk", blocks), self.image("initial", {}), self.logs)


def problems(verdict):
    assert not verdict.ok
    return "\n".join(verdict.problems)


def test_what_was_acknowledged_before_is_in_and_what_was_sent_after_is_out(court):
    court.log((10, 20, 0, 2, WRITE), (30, 40, 1, 1, ZERO), (210, 220, 0, 1, WRITE))
    assert court.judge({0: stamp(0, 1, 0), 1: ZEROS}).ok
    assert "block 0: writer 0's operation 3" in problems(court.judge({0: stamp(0, 3, 0), 1: ZEROS}))
    assert "block 0: content that no writer wrote; expected operation 1" in \
        problems(court.judge({1: ZEROS}))
    assert "block 1: writer 0's operation 1" in \
        problems(court.judge({0: stamp(0, 1, 0), 1: stamp(0, 1, 1)}))


def test_what_is_in_flight_is_in_or_out_but_whole(court):
    court.log((90, 110, 2, 3, WRITE))
    everything = {i: stamp(0, 1, i) for i in (2, 3, 4)}
    assert court.judge({}).ok
    assert court.judge(everything).ok
    del everything[3]
    assert "no single moment explains its blocks" in problems(court.judge(everything))


def test_what_was_never_acknowledged_is_in_or_out(court):
    court.log((10, 20, 0, 1, WRITE), (30, NEVER, 0, 2, WRITE))
    assert court.judge({0: stamp(0, 1, 0)}).ok
    assert court.judge({0: stamp(0, 2, 0), 1: stamp(0, 2, 1)}).ok
    assert "no single moment" in problems(court.judge({0: stamp(0, 2, 0)}))
    assert "expected operation 1 or 2" in problems(court.judge({}))


def test_a_torn_block_is_seen(court):
    court.log((90, 110, 2, 1, WRITE))
    assert "torn" in problems(court.judge({2: stamp(0, 1, 2)[:2048] + OLD[2048:]}))


def test_a_block_in_the_wrong_place_is_seen(court):
    court.log((10, 20, 2, 2, WRITE))
    assert "for block 3" in problems(court.judge({2: stamp(0, 1, 3), 3: stamp(0, 1, 3)}))


def test_one_writer_is_cut_at_one_operation(court):
    court.log((110, 120, 0, 1, WRITE), (130, 140, 1, 1, WRITE), (150, 160, 2, 1, WRITE))
    assert court.judge({0: stamp(0, 1, 0), 1: stamp(0, 2, 1)}).ok
    assert "one shows operation 3, another lacks operation 2" in \
        problems(court.judge({0: stamp(0, 1, 0), 2: stamp(0, 3, 2)}))


def test_all_writers_are_cut_at_one_moment(court):
    court.log((110, 120, 0, 1, WRITE))
    court.log((130, 140, 1, 1, WRITE))
    assert court.judge({0: stamp(0, 1, 0)}).ok
    assert "no single moment explains all: operation 1 of writer 1 is in" in \
        problems(court.judge({1: stamp(1, 1, 1)}))


def test_two_that_overlap_in_time_may_be_cut_either_way(court):
    court.log((110, 125, 0, 1, WRITE))
    court.log((120, 130, 1, 1, WRITE))
    assert court.judge({0: stamp(0, 1, 0)}).ok
    assert court.judge({1: stamp(1, 1, 1)}).ok


def test_a_trimmed_block_is_zero_or_what_it_was(court):
    court.log((10, 20, 0, 2, WRITE), (30, 40, 0, 2, TRIM))
    assert court.judge({0: stamp(0, 1, 0), 1: ZEROS}).ok
    assert "content that no writer wrote" in problems(court.judge({0: ZEROS}))


def test_what_nobody_wrote_has_to_stay(court):
    assert court.judge({}).ok
    assert "nobody wrote there" in problems(court.judge({5: ZEROS}))


def test_the_size_has_to_be_right(court):
    assert court.judge({}, tail=bytes(511)).ok
    assert "has 33280 bytes" in problems(court.judge({}, tail=bytes(512)))
    assert "not zero behind the end" in problems(court.judge({}, tail=b"x"))
    assert "block 8" in problems(court.judge({}, tail=b"x", tail_before=b"y"))


def test_after_a_crash_what_was_flushed_is_there(court):
    court.log((10, 20, 0, 1, WRITE), (30, 40, 1, 1, FUA), (50, NEVER, 0, 1, WRITE))
    court.log((12, 22, 2, 1, WRITE), (25, 35, 0, 0, FLUSH), (45, 55, 2, 1, TRIM))
    kept = {0: stamp(0, 1, 0), 1: stamp(0, 2, 1), 2: stamp(1, 1, 2)}
    assert court.judge_crash(kept).ok
    assert court.judge_crash({**kept, 0: stamp(0, 3, 0), 2: ZEROS}).ok
    for lost in kept:
        blocks = {k: v for k, v in kept.items() if k != lost}
        assert f"block {lost}: " in problems(court.judge_crash(blocks))


def test_after_a_crash_what_was_not_flushed_may_be_there(court):
    court.log((10, 20, 0, 1, WRITE), (15, 18, 0, 0, FLUSH), (30, 40, 0, 1, WRITE))
    for content in (OLD, stamp(0, 1, 0), stamp(0, 3, 0)):
        assert court.judge_crash({0: content}).ok
    assert not court.judge_crash({0: ZEROS}).ok
    # Sectors are whole, blocks need not be.
    assert court.judge_crash({0: stamp(0, 3, 0)[:1024] + stamp(0, 1, 0)[1024:]}).ok
    assert not court.judge_crash({0: stamp(0, 3, 0)[:1000] + OLD[1000:]}).ok
