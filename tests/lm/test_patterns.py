import pytest

from saelab.errors import UsageError
from saelab.lm.hooks import Hookpoint, resolve, resolve_all
from saelab.lm.patterns import expand_braces

HOOKPOINTS = [
    hookpoint
    for layer in range(12)
    for hookpoint in (
        Hookpoint(f"model.layers.{layer}.input", f"blocks.{layer}.hook_resid_pre", 8),
        Hookpoint(f"model.layers.{layer}.mlp.gate.output", None, 16),
        Hookpoint(f"model.layers.{layer}.output", f"blocks.{layer}.hook_resid_post", 8),
    )
]


def paths(*names):
    return [hookpoint.module_path for hookpoint in resolve_all(names, HOOKPOINTS)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("blocks.{4..6}.hook_resid_post", [f"model.layers.{i}.output" for i in (4, 5, 6)]),
        ("blocks.{0,2,5}.hook_resid_post", [f"model.layers.{i}.output" for i in (0, 2, 5)]),
        ("blocks.{0,9..11}.hook_resid_pre", [f"model.layers.{i}.input" for i in (0, 9, 10, 11)]),
        ("blocks.3.hook_*", ["model.layers.3.input", "model.layers.3.output"]),
        ("model.layers.1*.output", [f"model.layers.{i}.output" for i in (1, 10, 11)]),
        ("model.layers.2.**", [f"model.layers.2.{p}" for p in ("input", "mlp.gate.output", "output")]),
        ("**.gate.output", [f"model.layers.{i}.mlp.gate.output" for i in range(12)]),
        ("model.layers.{1,{2,3}}.input", [f"model.layers.{i}.input" for i in (1, 2, 3)]),
        ("model.layers.7.output", ["model.layers.7.output"]),
    ],
)
def test_a_pattern_selects_names_of_either_spelling(pattern, expected):
    assert paths(pattern) == expected


def test_a_star_does_not_cross_a_dot():
    assert paths("model.layers.*.output") == [f"model.layers.{i}.output" for i in range(12)]


def test_the_order_is_that_of_a_forward_pass_and_nothing_comes_twice():
    mixed = paths("blocks.{3,1}.hook_resid_post", "model.layers.1.output", "model.layers.1.*", "blocks.0.*")
    assert mixed == [
        f"model.layers.{place}" for place in ("0.input", "0.output", "1.input", "1.output", "3.output")
    ]
    assert paths() == []


@pytest.mark.parametrize(
    ("pattern", "named", "near"),
    [
        ("blocks.{10..12}.hook_resid_post", "blocks.12.hook_resid_post", "blocks.1"),
        ("blocks.*.hook_resid_pots", "blocks.*.hook_resid_pots", "hook_resid_post"),
        ("model.layers.99.output", "model.layers.99.output", "model.layers.9.output"),
        ("model.layers.*.gate.output", "model.layers.*.gate.output", ".mlp.gate.output"),
    ],
)
def test_what_selects_nothing_is_named_beside_near_names(pattern, named, near):
    with pytest.raises(UsageError) as caught:
        paths("blocks.0.hook_resid_pre", pattern)
    message = str(caught.value)
    assert repr(named) in message
    assert near in message.split("nearest are")[1]
    assert "\n" not in message


@pytest.mark.parametrize(
    "pattern",
    ["blocks.{4..2}.x", "blocks.{1,2.x", "blocks.1}.x", "a.{1,,2}", "a.{}", "{0..99999}.x", "{0..9}" * 9],
)  # fmt: skip
def test_malformed_braces_are_refused_in_one_line(pattern):
    with pytest.raises(UsageError) as caught:
        resolve_all([pattern], HOOKPOINTS)
    assert "\n" not in str(caught.value)


def test_braces_are_written_out_in_order():
    assert expand_braces("a.{0..2}.{x,y}") == ["a.0.x", "a.0.y", "a.1.x", "a.1.y", "a.2.x", "a.2.y"]
    assert expand_braces("plain.name") == ["plain.name"]


def test_letters_with_a_meaning_in_regular_expressions_are_plain():
    odd = [Hookpoint("a.b+(c).output", None, 1), Hookpoint("aXbb(c).output", None, 1)]
    assert resolve_all(["a.b+(c).*"], odd) == (odd[0],)
    assert resolve("a.b+(c).output", odd) == odd[0]


def test_a_model_without_hookpoints_says_so():
    with pytest.raises(UsageError, match="none at all"):
        resolve_all(["x"], [])
