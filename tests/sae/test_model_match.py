"""An SAE on a model: its own, another one that fits and is allowed, or a refusal that says what differs."""

import json
from dataclasses import dataclass, replace

import pytest

from saelab.errors import UsageError
from saelab.sae.config import Normalisation, SAEConfig
from saelab.sae.model_match import require_same_model

HOOK = "model.layers.3.output"
CONFIG = SAEConfig(
    recipe="topk",
    d_in=8,
    d_out=8,
    d_sae=16,
    input_hooks=(HOOK,),
    input_widths=(8,),
    output_hooks=(HOOK,),
    output_widths=(8,),
    hook_aliases=(),
    input_normalisation=Normalisation(),
    target_normalisation=Normalisation(),
    apply_b_dec_to_input=True,
    has_skip=False,
    attribution=None,
    inference={"name": "per_token", "k": 2},
    units="",
    model_identity="aaa",
    model_name="base",
    tokenizer_hash="ttt",
    source_identity="",
)


@dataclass(frozen=True)
class Model:
    hash: str = "aaa"
    name: str = "base"
    tokenizer_hash: str = "ttt"


TUNED = Model(hash="bbb", name="tuned")


def match(model, widths=None, config=CONFIG, allow=False):
    return require_same_model(
        config, model, {HOOK: 8} if widths is None else widths, doing="evaluate", allow_mismatch=allow
    )


@pytest.mark.parametrize("allow", [False, True])
def test_the_same_model_is_no_mismatch_whatever_its_name(allow):
    assert match(Model(name="renamed"), allow=allow) is None


def test_activations_without_a_model_fit_an_sae_without_one():
    assert match(None, config=replace(CONFIG, model_identity="", model_name="", tokenizer_hash="")) is None


def test_another_model_that_fits_is_refused_with_the_option_that_allows_it():
    with pytest.raises(UsageError) as refused:
        match(TUNED)
    assert str(refused.value) == (
        "evaluate: the SAE was trained on model base (aaa), here is model tuned (bbb); give the SAE's own model, or "
        "use it here all the same with --allow-model-mismatch (tokenizer, width and hookpoint fit)"
    )


def test_another_model_that_fits_is_recorded_where_it_is_allowed():
    mismatch = match(TUNED, allow=True)
    assert mismatch is not None
    assert json.loads(json.dumps(mismatch.to_json())) == {
        "sae_model": "base",
        "sae_model_identity": "aaa",
        "model": "tuned",
        "model_identity": "bbb",
    }
    assert mismatch.warning() == (
        "the SAE was trained on model base (aaa) and is used on model tuned (bbb), another model"
    )


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize(
    ("model", "widths", "words"),
    [
        (replace(TUNED, tokenizer_hash="uuu"), {HOOK: 8}, "its tokenizer is ttt, here it is uuu"),
        (TUNED, {HOOK: 9}, f"its width at {HOOK} is 8, here it is 9"),
        (TUNED, {"model.layers.4.output": 8}, f"no hookpoint {HOOK} but model.layers.4.output"),
        (TUNED, {}, f"no hookpoint {HOOK}"),
        (None, {HOOK: 8}, "here is activations without a model"),
    ],
)
def test_what_cannot_work_is_refused_whether_allowed_or_not(model, widths, words, allow):
    with pytest.raises(UsageError, match=words) as refused:
        match(model, widths, allow=allow)
    assert "give the SAE's own model" in str(refused.value)
    assert "--allow-model-mismatch" not in str(refused.value)


def test_every_difference_is_named_at_once():
    with pytest.raises(
        UsageError, match=r"width .* is 8, here it is 9; its tokenizer is ttt, here it is uuu"
    ):
        match(replace(TUNED, tokenizer_hash="uuu"), {HOOK: 9})


@pytest.mark.parametrize("allow", [False, True])
def test_the_own_model_with_another_width_or_tokenizer_is_refused_too(allow):
    with pytest.raises(UsageError, match=r"does not fit: its width at .* is 8, here it is 9; use the hook"):
        match(Model(), {HOOK: 9}, allow=allow)
    with pytest.raises(UsageError, match="does not fit: its tokenizer is ttt, here it is uuu"):
        match(Model(tokenizer_hash="uuu"), allow=allow)


def test_an_sae_that_does_not_know_its_tokenizer_fits_its_own_model_alone():
    config = replace(CONFIG, tokenizer_hash="")
    assert match(Model(), config=config) is None
    with pytest.raises(UsageError, match="its tokenizer is none, here it is ttt"):
        match(TUNED, config=config, allow=True)


def test_input_and_output_are_both_compared():
    config = replace(CONFIG, output_hooks=("model.layers.5.output",), output_widths=(6,), d_out=6)
    widths = {HOOK: 8, "model.layers.5.output": 6}
    assert match(Model(), widths, config=config) is None
    with pytest.raises(UsageError, match=r"its width at model\.layers\.5\.output is 6, here it is 7"):
        match(Model(), widths | {"model.layers.5.output": 7}, config=config)


def test_each_of_several_hookpoints_has_its_own_width():
    hooks, widths = (HOOK, "model.layers.5.output"), (8, 6)
    joined = replace(
        CONFIG,
        input_hooks=hooks,
        input_widths=widths,
        output_hooks=hooks,
        output_widths=widths,
        d_in=14,
        d_out=14,
    )
    assert match(Model(), dict(zip(hooks, widths, strict=True)), config=joined) is None
    with pytest.raises(UsageError, match=r"its width at model\.layers\.5\.output is 6, here it is 8"):
        match(Model(), {HOOK: 8, "model.layers.5.output": 8}, config=joined)
