"""How families of models spell the places that TransformerLens has names for.

A place is listed only where reading and editing mean the same in both spellings; every family here
is compared with TransformerLens's own bridge in the tests. `hook_resid_mid` is missing: in these
models it is no module's own input or output (what enters the second norm is also added around it,
and editing one copy would leave the other). Gemma 2 and 3 normalise a block's outputs before they
add them, and the names mean what is added. BERT normalises after adding, so that nothing is
`hook_attn_out` in the sense of the others. Models of other types are used by module paths.
"""

from __future__ import annotations

_LLAMA = {
    "hook_embed": "model.embed_tokens.output",
    "blocks.{layer}.hook_resid_pre": "model.layers.{layer}.input",
    "blocks.{layer}.attn.hook_z": "model.layers.{layer}.self_attn.o_proj.input",
    "blocks.{layer}.hook_attn_out": "model.layers.{layer}.self_attn.output",
    "blocks.{layer}.mlp.hook_post": "model.layers.{layer}.mlp.down_proj.input",
    "blocks.{layer}.hook_mlp_out": "model.layers.{layer}.mlp.output",
    "blocks.{layer}.hook_resid_post": "model.layers.{layer}.output",
    "ln_final.hook_out": "model.norm.output",
}
_GEMMA2 = _LLAMA | {
    "blocks.{layer}.hook_attn_out": "model.layers.{layer}.post_attention_layernorm.output",
    "blocks.{layer}.hook_mlp_out": "model.layers.{layer}.post_feedforward_layernorm.output",
}
_PHI = _LLAMA | {
    "blocks.{layer}.attn.hook_z": "model.layers.{layer}.self_attn.dense.input",
    "blocks.{layer}.mlp.hook_post": "model.layers.{layer}.mlp.fc2.input",
    "ln_final.hook_out": "model.final_layernorm.output",
}
_GPT2 = {
    "hook_embed": "transformer.wte.output",
    "blocks.{layer}.hook_resid_pre": "transformer.h.{layer}.input",
    "blocks.{layer}.attn.hook_z": "transformer.h.{layer}.attn.c_proj.input",
    "blocks.{layer}.hook_attn_out": "transformer.h.{layer}.attn.output",
    "blocks.{layer}.mlp.hook_post": "transformer.h.{layer}.mlp.c_proj.input",
    "blocks.{layer}.hook_mlp_out": "transformer.h.{layer}.mlp.output",
    "blocks.{layer}.hook_resid_post": "transformer.h.{layer}.output",
    "ln_final.hook_out": "transformer.ln_f.output",
}
_GPT_NEOX = {
    "hook_embed": "gpt_neox.embed_in.output",
    "blocks.{layer}.hook_resid_pre": "gpt_neox.layers.{layer}.input",
    "blocks.{layer}.attn.hook_z": "gpt_neox.layers.{layer}.attention.dense.input",
    "blocks.{layer}.hook_attn_out": "gpt_neox.layers.{layer}.attention.output",
    "blocks.{layer}.mlp.hook_post": "gpt_neox.layers.{layer}.mlp.dense_4h_to_h.input",
    "blocks.{layer}.hook_mlp_out": "gpt_neox.layers.{layer}.mlp.output",
    "blocks.{layer}.hook_resid_post": "gpt_neox.layers.{layer}.output",
    "ln_final.hook_out": "gpt_neox.final_layer_norm.output",
}
_BERT = {
    "hook_embed": "bert.embeddings.output",
    "blocks.{layer}.hook_resid_pre": "bert.encoder.layer.{layer}.input",
    "blocks.{layer}.attn.hook_z": "bert.encoder.layer.{layer}.attention.output.dense.input",
    "blocks.{layer}.mlp.hook_post": "bert.encoder.layer.{layer}.output.dense.input",
    "blocks.{layer}.hook_mlp_out": "bert.encoder.layer.{layer}.output.dense.output",
    "blocks.{layer}.hook_resid_post": "bert.encoder.layer.{layer}.output",
}
_FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "phi3": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "phi": _PHI,
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "bert": _BERT,
}


def transformer_lens_names(model_type: str, n_layers: int) -> dict[str, str]:
    """Return the TransformerLens name of each module path that has one.

    Args:
        model_type: The configuration's ``model_type``, for example ``llama``.
        n_layers: Number of blocks.

    Returns:
        From ``model.layers.2.output`` to ``blocks.2.hook_resid_post``, and so on; empty for a
        family that is not known here.
    """
    names: dict[str, str] = {}
    for alias, path in _FAMILIES.get(model_type, {}).items():
        layers = range(n_layers) if "{layer}" in alias else range(1)
        names |= {path.format(layer=layer): alias.format(layer=layer) for layer in layers}
    return names
