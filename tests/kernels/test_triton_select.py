"""The Triton selection in processes of its own: see `triton_select_checks`."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
CASES = (
    "ties_and_small_tiles",
    "ties_beyond_a_block",
    "random_numbers",
    "default_plan",
    "many_or_all_columns_kept",
    "nothing_positive_and_nothing_at_all",
    "memory_orders_and_lengths",
    "scale_and_attribution",
    "attribution_with_beta_zero_is_plain",
    "other_dtypes",
    "nan_and_infinity",
    "lost_rows_are_done_again",
    "scores_closer_than_bfloat16_can_tell",
    "bound_holds",
    "any_batch_gives_the_same_bits",
    "rows_that_outgrow_their_room",
    "capacity_while_a_graph_is_captured",
    "captured_graph",
)
BUILDS = (
    "every_kernel_compiles_for_hopper",
    "per_token_reads_nothing_from_the_device",
    "the_guard_sees_the_rules_that_read",
)

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


class Outcome:
    """What the checks of one process reported; it runs when the first is asked for."""

    def __init__(self, mode: str) -> None:
        run = subprocess.run(
            [sys.executable, HERE / "triton_select_checks.py", mode],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        self.end = f"ended with {run.returncode}\n{run.stderr[-4000:]}"
        self.failures: dict[str, str | None] = {}
        for line in run.stdout.splitlines():
            if line.startswith('{"check_'):
                self.failures.update(json.loads(line))

    def require(self, name: str, names: tuple[str, ...]) -> None:
        assert f"check_{name}" in self.failures, self.end
        assert self.failures[f"check_{name}"] is None, self.failures[f"check_{name}"]
        assert set(self.failures) <= {f"check_{known}" for known in names}, "a check is not listed here"


@pytest.fixture(scope="module")
def outcome():
    ran: dict[str, Outcome] = {}

    def of(mode: str) -> Outcome:
        if mode not in ran:
            ran[mode] = Outcome(mode)
        return ran[mode]

    return of


@pytest.mark.parametrize("name", CASES)
def test_selection_in_the_interpreter(outcome, name):
    outcome("interpret").require(name, CASES)


@pytest.mark.parametrize("name", BUILDS)
def test_selection_without_a_gpu(outcome, name):
    outcome("compile").require(name, BUILDS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CASES)
def test_selection_on_the_gpu(outcome, name):
    outcome("gpu").require(name, CASES)
