"""How families of models spell the places that TransformerLens has names for.

A place is listed only where reading and editing mean the same in both spellings. So
`hook_resid_mid` is missing: in these models it is no module's own input or output (what enters the
second norm is also added around it, and editing one copy would leave the other). Models of other
types are used by module paths; giving their names to modules that differ in substance (Gemma 2
normalises a block's outputs before it adds them) would be wrong silently.
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
_FAMILIES = {"llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "gpt2": _GPT2}


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
