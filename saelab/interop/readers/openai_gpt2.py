"""OpenAI's SAEs of GPT-2 small (2024): one `.pt` (a pickle of weights) for each layer below a location's folder.

Format and mathematics from the published code; nothing is installable that could be compared with. That code
normalises each token by its mean and standard deviation exactly where the activation is TopK.
"""

from __future__ import annotations

import re

from saelab.errors import DamagedFileError, UsageError
from saelab.interop.foreign import ForeignSAE, Keep, Place, Scaling
from saelab.interop.locations import Location
from saelab.interop.reading import Reading
from saelab.interop.weights import Weights
from saelab_kernels.shapes import Tensor

_PLACE = re.compile(
    r"/(mlp_post_act|resid_delta_mlp|resid_delta_attn|resid_post_attn|resid_post_mlp)[^/]*/.*?(\d+)\.pt$"
)
_SITES = {
    "mlp_post_act": "mlp.hook_post",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_post_mlp": "hook_resid_post",
}
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
MODEL = "gpt2-small"


def recognises(location: Location) -> bool:
    """Whether a place looks like such a file."""
    return len(location.ending(".pt")) == 1 and "ae.pt" not in location.names


def read(reading: Reading) -> ForeignSAE:
    """Read an SAE.

    Raises:
        UsageError: Reading `.pt` was not allowed, or its activation has no equal here.
        DamagedFileError: The file is not sound, or holds something else.
    """
    name = reading.location.ending(".pt")[0]
    table = reading.pickled(name)
    where = reading.location.file(name)
    kind, state = table.pop("activation", "ReLU"), table.pop("activation_state_dict", {})
    if strange := sorted(key for key, value in table.items() if not isinstance(value, Tensor)):
        raise DamagedFileError(f"{where}: {', '.join(strange)} are no tensors")
    weights = Weights(table, where)
    W_enc = weights.take("encoder.weight", None, None).T
    d_in, d_sae = W_enc.shape
    W_dec, b_dec = weights.take("decoder.weight", d_in, d_sae).T, weights.take("pre_bias", d_in)
    b_enc = weights.take("latent_bias", d_sae)
    weights.drop(_STATISTICS)
    weights.require_nothing_left()
    return ForeignSAE(
        architecture=str(kind),
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        keep=_keep(kind, state, f"{where}"),
        apply_b_dec_to_input=True,
        scaling=Scaling("layer_norm") if kind == "TopK" else Scaling(),
        place=_place(f"{reading.location.address.removesuffix(name).rstrip('/')}/{name}"),
        recipe="topk" if kind == "TopK" else "relu",
        notes=(
            "its model was loaded without centring the weights that write (center_writing_weights=False)",
        ),
    )


def _keep(kind: object, state: object, where: str) -> Keep:
    if kind == "ReLU":
        return Keep("relu")
    if kind != "TopK":
        raise UsageError(f"{where}: the activation {kind!r} cannot be imported; ReLU and TopK can")
    k = state.get("k") if isinstance(state, dict) else None
    after = state.get("postact_fn") if isinstance(state, dict) else None
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise DamagedFileError(f"{where}: activation_state_dict does not say k")
    if after != "ReLU":
        raise UsageError(f"{where}: top-k is followed by {after!r}, which can keep activations below 0")
    return Keep("topk", k=k)


def _place(address: str) -> Place:
    found = _PLACE.search(address)
    return Place(hook=f"blocks.{found[2]}.{_SITES[found[1]]}" if found else None, model=MODEL)
