"""Weights without a configuration: a safetensors file with the four tensors, and answers to everything else."""

from __future__ import annotations

from saelab.errors import DamagedFileError
from saelab.interop.answers import question
from saelab.interop.foreign import ForeignSAE, Keep, Place
from saelab.interop.locations import Location
from saelab.interop.readers.saelens import answered_scaling
from saelab.interop.reading import Reading
from saelab.interop.weights import Weights
from saelab_kernels.shapes import Tensor

_NAMES = {
    "W_enc": ("W_enc", "w_enc", "encoder.weight"),
    "b_enc": ("b_enc", "encoder.bias"),
    "W_dec": ("W_dec", "w_dec", "decoder.weight"),
    "b_dec": ("b_dec", "decoder.bias"),
}


def recognises(location: Location) -> bool:
    """Whether a place holds one safetensors file and no configuration."""
    return len(location.ending(".safetensors")) == 1 and not location.ending(".json")


def read(reading: Reading) -> ForeignSAE:
    """Read weights whose meaning the user tells.

    Raises:
        UsageError: Something that decides what they compute was not told.
        DamagedFileError: The file is not sound, or holds no such weights.
    """
    name = reading.location.ending(".safetensors")[0]
    weights, answers = reading.weights(name), reading.answers
    names = {ours: _found(weights, theirs) for ours, theirs in _NAMES.items()}
    b_enc, b_dec = weights.take(names["b_enc"], None), weights.take(names["b_dec"], None)
    d_in, d_sae = len(b_dec), len(b_enc)
    W_enc = _matrix(weights, names["W_enc"], d_in, d_sae, answers.rows)
    W_dec = _matrix(weights, names["W_dec"], d_sae, d_in, answers.rows)
    keep = _keep(reading, weights, d_sae)
    if answers.b_dec_on_input is None:
        what = "nothing says whether b_dec is subtracted from the input"
        raise question(weights.where, what, "--b-dec-on-input yes or no")
    if answers.normalisation is None and answers.scale is None:
        what = "nothing says how activations were normalised"
        raise question(weights.where, what, "--normalisation none (or layer_norm, unit_norm) or --scale")
    weights.require_nothing_left()
    return ForeignSAE(
        architecture=keep.kind,
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        keep=keep,
        apply_b_dec_to_input=answers.b_dec_on_input,
        scaling=answered_scaling(reading, d_in),
        place=Place(),
        recipe={"threshold": "jumprelu"}.get(keep.kind, keep.kind),
    )


def _matrix(weights: Weights, name: str, n_from: int, n_to: int, rows: str | None) -> Tensor:
    """Return a matrix as ``[n_from, n_to]``; how a square one lies must be told."""
    if n_from == n_to and rows is None:
        what = f"its matrices are square ({n_from} x {n_to}), so that their orientation cannot be told"
        raise question(
            weights.where, what, "--rows inputs (W_enc is d_in x d_sae) or --rows features (d_sae x d_in)"
        )
    if weights.shape(name) == (n_to, n_from) and (n_from != n_to or rows == "features"):
        return weights.take(name, n_to, n_from).T
    return weights.take(name, n_from, n_to)


def _found(weights: Weights, names: tuple[str, ...]) -> str:
    there = [name for name in names if name in weights.names]
    if len(there) != 1:
        raise DamagedFileError(
            f"{weights.where} needs one of {', '.join(names)}; it has {', '.join(sorted(weights.names)) or 'nothing'}"
        )
    return there[0]


def _keep(reading: Reading, weights: Weights, d_sae: int) -> Keep:
    match reading.answers.activation:
        case "relu":
            return Keep("relu")
        case "jumprelu":
            return Keep("threshold", theta=weights.take("threshold", d_sae))
        case "topk" if reading.answers.k is not None:
            return Keep("topk", k=reading.answers.k)
        case "topk":
            raise question(weights.where, "nothing says how many features topk keeps", "--k")
    raise question(weights.where, "nothing says the activation", "--activation relu, topk or jumprelu")
