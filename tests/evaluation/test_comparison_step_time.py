"""Time of a step from what a run wrote of itself."""

import json
import shutil

import pytest

from saelab.evaluation.comparison.step_time import step_time
from saelab.training.run import Run


@pytest.fixture
def timed(copy):
    """Return a function that gives a run the lines of a timing file."""

    def make(*lines, name="alone", member=""):
        run = Run.open(copy(name) / member)
        (run.path / "timing.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return run

    return make


def line(step, rate):
    return json.dumps({"step": step, "tokens_per_second": rate})


def test_one_stretch_gives_batch_over_rate(timed):
    run = timed(line(10, 640.0))
    time = step_time(run)
    assert run.config.batch == 64
    assert (time.seconds_per_step, time.tokens_per_second, time.saes_in_pass) == (0.1, 640.0, 1)


def test_stretches_count_by_their_steps(timed):
    # 30 steps of 0.1 s and 10 of 0.5 s.
    time = step_time(timed(line(30, 640.0), line(40, 128.0)))
    assert time.seconds_per_step == pytest.approx((30 * 0.1 + 10 * 0.5) / 40)
    assert time.tokens_per_second == pytest.approx(40 * 64 / 8.0)


def test_a_pass_is_divided_among_its_saes(timed):
    time = step_time(timed(line(10, 640.0), name="group", member="topk-k4-f32-s0"))
    assert (time.saes_in_pass, time.seconds_per_step) == (2, pytest.approx(0.05))
    assert time.tokens_per_second == 640.0


def test_a_member_without_its_group_counts_alone(timed, tmp_path):
    run = timed(line(10, 640.0), name="group", member="topk-k4-f32-s0")
    shutil.move(run.path, tmp_path / "taken")
    assert step_time(Run.open(tmp_path / "taken")).saes_in_pass == 1


@pytest.mark.parametrize("lines", [(), ("{",), ('{"step": 3}',), (line(0, 640.0),), (line(3, 0.0),), ("[]",)])
def test_without_a_record_there_is_no_time(timed, lines):
    assert step_time(timed(*lines)) is None


def test_a_line_that_was_cut_leaves_those_before_it(timed):
    assert step_time(timed(line(10, 640.0), '{"step": 2')).seconds_per_step == 0.1


def test_a_missing_file_is_no_error(timed):
    run = timed(line(10, 640.0))
    (run.path / "timing.jsonl").unlink()
    assert step_time(run) is None
