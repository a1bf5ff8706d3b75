"""Every family with TransformerLens names is compared with TransformerLens itself, in reading and in editing."""

from pathlib import Path

import pytest
import torch
from lm_helpers import tiny_config

from saelab.lm.bridge import to_bridge
from saelab.lm.load import LanguageModel
from saelab.lm.run import capture, edited

FAMILIES = [
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2",
    "gpt_neox", "gpt_neox-serial", "bert",
]  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, llama_folder: Path):
    from transformers import AutoTokenizer

    from saelab.lm.architecture import model_class

    torch.manual_seed(11)
    config = tiny_config(request.param)
    model = model_class(config)(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases that are all alike would hide a mistake
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    config.architectures = [type(model).__name__]
    lm = LanguageModel.from_module(model, AutoTokenizer.from_pretrained(llama_folder), name=request.param)
    return lm, to_bridge(lm), torch.randint(1, 100, (2, 7))


def named(lm):
    return [hookpoint for hookpoint in lm.hookpoints if hookpoint.alias]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_names_mean_what_transformer_lens_means_by_them(family):
    lm, bridge, ids = family
    ours = capture(lm, ids, named(lm))
    with torch.no_grad():
        _, cache = bridge.run_with_cache(ids)
    assert {f"blocks.1.hook_resid_{side}" for side in ("pre", "post")} <= {h.alias for h in named(lm)}
    for hookpoint in named(lm):
        assert ours[hookpoint].std() > 1e-3
        close(ours[hookpoint], cache[hookpoint.alias].reshape(*ids.shape, hookpoint.d_in))


def test_an_edit_means_the_same_in_both(family):
    lm, bridge, ids = family
    with torch.no_grad():
        clean = lm.module(input_ids=ids).logits
    for hookpoint in named(lm):

        def edit(x, *, hook=None):
            return torch.sin(3 * x)  # norms undo what is linear

        with torch.no_grad(), edited(lm, {hookpoint: edit}):
            ours = lm.module(input_ids=ids).logits
        with torch.no_grad():
            theirs = bridge.run_with_hooks(ids, fwd_hooks=[(hookpoint.alias, edit)])
        effect = float((ours - clean).abs().max())
        assert effect > 1e-3 * clean.abs().max()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3 * effect)


def test_residuals_are_the_hidden_states_of_transformers(family):
    lm, _, ids = family
    names = {hookpoint.alias: hookpoint for hookpoint in named(lm)}
    posts = [names[f"blocks.{layer}.hook_resid_post"] for layer in range(lm.n_layers)]
    seen = capture(lm, ids, [*posts, names["blocks.0.hook_resid_pre"]])
    with torch.no_grad():
        states = lm.module(input_ids=ids, output_hidden_states=True).hidden_states
    assert torch.equal(seen[names["blocks.0.hook_resid_pre"]], states[0])
    for place, state in zip(posts[:-1], states[1:-1], strict=True):
        assert torch.equal(seen[place], state)
    # transformers' last state is after the final norm, except in models that have none there.
    assert torch.equal(seen[posts[-1]], states[-1]) == ("ln_final.hook_out" not in names)


def test_all_of_them_but_bert_read_from_left_to_right(family):
    lm, *_ = family
    assert lm.causal == ("bert" not in lm.identity.name)
    assert (lm.unembedding is None) == (not lm.causal)
