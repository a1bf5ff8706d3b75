import json
from pathlib import Path

import pytest

from saelab.errors import SaelabError, UsageError
from saelab.lm.hooks import Hookpoint, resolve, slug
from saelab.lm.load import LanguageModel
from saelab.lm.probe import list_hookpoints
from saelab.lm.spec import ModelSpec

LAYERS = {"llama": "model.layers", "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}


def family(lm: LanguageModel) -> str:
    return lm.hf.config.model_type


def shape_of(folder: Path) -> dict:
    config = json.loads((folder / "config.json").read_text())
    shared = ("hidden", "intermediate", "num_", "vocab", "max_pos")
    return {key: value for key, value in config.items() if key.startswith(shared)}


def test_both_spellings_resolve_to_the_same_hookpoint(lm):
    path = f"{LAYERS[family(lm)]}.2.output"
    hookpoint = resolve("blocks.2.hook_resid_post", lm.hookpoints)
    assert hookpoint == resolve(path, lm.hookpoints) == Hookpoint(path, "blocks.2.hook_resid_post", 24)


def test_listing_without_weights_equals_the_loaded_model(lm):
    assert list_hookpoints(lm.spec) == list(lm.hookpoints)


def test_listing_reads_no_weights(folders, tmp_path):
    for name, folder in folders.items():
        bare = tmp_path / name
        bare.mkdir()
        (bare / "config.json").write_bytes((folder / "config.json").read_bytes())
        assert list_hookpoints(ModelSpec(name=str(bare))) == list_hookpoints(ModelSpec(name=str(folder)))


def test_every_transformer_lens_name_has_its_width(lm):
    widths = {hookpoint.alias: hookpoint.d_in for hookpoint in lm.hookpoints if hookpoint.alias}
    mlp = {"llama": 40, "gpt2": 96, "gpt_neox": 40}[family(lm)]
    expected = {"hook_embed": 24, "ln_final.hook_out": 24}
    for layer in range(3):
        expected |= {
            f"blocks.{layer}.hook_{place}": 24 for place in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        }
        expected |= {f"blocks.{layer}.attn.hook_z": 24, f"blocks.{layer}.mlp.hook_post": mlp}
    assert widths == expected


def test_only_activations_are_listed(lm):
    paths = {hookpoint.module_path for hookpoint in lm.hookpoints}
    assert len(paths) == len(lm.hookpoints)
    not_activations = {
        "lm_head.output",
        "embed_out.output",
        "transformer.wpe.output",
        "model.rotary_emb.output",
        "model.output",
    }
    assert not paths & not_activations
    layer = LAYERS[family(lm)]
    unnamed = {
        "llama": f"{layer}.0.mlp.gate_proj.output",
        "gpt2": f"{layer}.0.ln_2.output",
        "gpt_neox": f"{layer}.0.mlp.input",
    }[family(lm)]
    assert resolve(unnamed, lm.hookpoints).alias is None


def test_hookpoints_come_in_the_order_of_a_forward_pass(lm):
    aliases = [hookpoint.alias for hookpoint in lm.hookpoints if hookpoint.alias]
    first_block = ["resid_pre", "attn.hook_z", "attn_out", "mlp.hook_post", "mlp_out", "resid_post"]
    found = [next(p for p in first_block if alias.endswith(p)) for alias in aliases if ".0." in alias]
    assert found == first_block
    assert aliases[0] == "hook_embed"
    assert aliases[-1] == "ln_final.hook_out"


@pytest.mark.parametrize("wrong", ["blocks.9.hook_resid_post", "model.layers.2", "blocks.1.resid_post"])
def test_an_unknown_name_offers_near_ones_in_one_line(lm, wrong):
    with pytest.raises(UsageError) as caught:
        resolve(wrong, lm.hookpoints)
    message = str(caught.value)
    assert repr(wrong) in message
    assert "nearest" in message
    assert "\n" not in message


def test_slugs_are_safe_and_distinct():
    def slug_of(path: str) -> str:
        return slug(Hookpoint(path, None, 1))

    assert slug_of("model.layers.2.output") == "model.layers.2.output"
    hostile = ["../x", "a/b", "a b", "ä", "ö", "", "..", "-rf"]
    slugs = [slug_of(path) for path in hostile]
    assert len(set(slugs)) == len(hostile)
    for name in slugs:
        assert Path(name).name == name
        assert name.isascii()
        assert name[0].isalnum() or name[0] == "_"


def test_a_config_that_is_no_language_model_gives_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(SaelabError, match="cannot list the hookpoints") as caught:
        list_hookpoints(ModelSpec(name=str(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "qwen3"])
def test_relatives_of_llama_have_all_its_names(llama_folder, tmp_path, model_type):
    config = shape_of(llama_folder)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    expected = {h.module_path: h.alias for h in list_hookpoints(ModelSpec(name=str(llama_folder))) if h.alias}
    assert {
        h.module_path: h.alias for h in list_hookpoints(ModelSpec(name=str(tmp_path))) if h.alias
    } == expected


def test_models_of_other_families_are_used_by_module_paths(llama_folder, tmp_path):
    config = shape_of(llama_folder)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "olmo2"}))
    hookpoints = list_hookpoints(ModelSpec(name=str(tmp_path)))
    assert resolve("model.layers.2.output", hookpoints).d_in == 24
    assert {hookpoint.alias for hookpoint in hookpoints} == {None}
