from __future__ import annotations

import subprocess
import sys

import pytest

from saelab_kernels.rules import PerBatch, PerFeature, PerToken, Threshold, rule_from_json, rule_to_json


@pytest.mark.parametrize("rule", [PerToken(32), PerBatch(2.5), PerBatch(3), PerFeature(), Threshold()])
def test_json_round_trip(rule):
    assert rule_from_json(rule_to_json(rule)) == rule


def test_json_form():
    assert rule_to_json(PerToken(k=32)) == {"name": "per_token", "k": 32}
    assert rule_to_json(Threshold()) == {"name": "threshold"}


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"name": "per_row", "k": 3}, "per_row"),
        ({"name": "per_token"}, "lacks the field k"),
        ({"name": "per_token", "k": 3, "m": 1}, "no field m"),
        ({"name": "per_token", "k": 3.0}, "integer"),
        ({"name": "per_token", "k": True}, "integer"),
        ({"name": "per_token", "k": 0}, "at least 1"),
        ({"name": "per_batch", "k": "3"}, "number"),
        ({"name": "per_batch", "k": float("nan")}, "finite"),
        ({"name": "per_batch", "k": -1}, "above 0"),
        ({"name": ["per_token"]}, "unknown rule"),
        ({"k": 3}, "name"),
        ("per_token", "name"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_records_say_what_is_wrong(record, text):
    with pytest.raises(ValueError, match=text):
        rule_from_json(record)


@pytest.mark.usefixtures("unchecked")
def test_something_else_is_not_a_rule():
    with pytest.raises(ValueError, match="not a rule"):
        rule_to_json("per_token")  # pyright: ignore[reportArgumentType]


def test_batch_budget_rounds_as_python_does():
    assert [PerBatch(0.5).budget(rows) for rows in (0, 1, 2, 3, 5)] == [0, 0, 1, 2, 2]


def test_rules_import_no_torch():
    script = "import sys, saelab_kernels.rules; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
