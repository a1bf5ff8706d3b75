"""Which runs belong together, whatever their recipes are called."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from saelab.evaluation.comparison.settings import settings_of
from saelab.training.config import TrainConfig
from saelab.training.recipes.topk import TopK


@dataclass(frozen=True, kw_only=True, slots=True)
class Odd(TopK):
    name: ClassVar[str] = "odd"
    beta: float = 0.5


def config(recipe=None, *, width=64, lr=None, **changes):
    recipe = recipe or TopK(k=8)
    made = TrainConfig(
        recipe=recipe,
        hook="layers.0",
        width=width,
        tokens=10_000,
        lr=1.0,
        pool_rows=512,
        source_identity="a" * 32,
    )
    made = replace(made, **changes)
    return replace(made, lr=recipe.default_lr(width, made.first_steps) if lr is None else lr)


def labels(*configs):
    found = settings_of(configs)
    return [one.front for one in found], [one.setting for one in found]


def test_seeds_share_a_setting_and_k_makes_a_front():
    fronts, settings = labels(config(), config(seed=3), config(TopK(k=16)))
    assert fronts == ["topk", "topk", "topk"]
    assert settings == ["topk, k=8", "topk, k=8", "topk, k=16"]


def test_a_front_is_told_by_what_differs_and_nothing_else():
    fronts, _ = labels(config(), config(width=128), config(Odd(beta=0.25)), config(Odd(beta=1.0), width=128))
    assert fronts == [
        "topk, width=64",
        "topk, width=128",
        "odd, beta=0.25, width=64",
        "odd, beta=1, width=128",
    ]


def test_the_default_learning_rate_is_no_difference_and_another_one_is():
    fronts, _ = labels(config(), config(lr=0.125))
    assert fronts == ["topk, lr=default", "topk, lr=0.125"]


@pytest.mark.parametrize("change", [{"device": "cuda"}, {"checkpoint_every": 7}, {"log_every": 3}])
def test_what_changes_no_result_is_no_difference(change):
    fronts, settings = labels(config(), config(**change))
    assert len(set(fronts)) == len(set(settings)) == 1


@pytest.mark.parametrize("change", [{"data_seed": 1}, {"tokens": 20_000}, {"source_identity": "b" * 32}])
def test_what_changes_the_result_is_another_front(change):
    fronts, _ = labels(config(), config(**change))
    assert len(set(fronts)) == 2


def test_values_that_are_shortened_alike_still_have_labels_of_their_own():
    fronts, settings = labels(
        config(source_identity="a" * 32),
        config(source_identity="a" * 31 + "b"),
        config(source_identity="a" * 32),
    )
    assert fronts[0] == fronts[2] != fronts[1] == f"{fronts[0]} (2)"
    assert settings[0] == settings[2] != settings[1]
