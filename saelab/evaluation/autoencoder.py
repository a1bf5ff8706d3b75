"""What an evaluation needs of an SAE, and how it is run so that no result depends on the batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch

from saelab.activations.store import Store, StoredHook
from saelab.errors import UsageError
from saelab.sae.autoencoder import Reconstruction
from saelab.sae.config import SAEConfig
from saelab.sae.model_match import ModelMismatch, require_same_model
from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Float, Tensor


@runtime_checkable
class Autoencoder(Protocol):
    """An SAE over raw activations, as `saelab.sae.autoencoder.SparseAutoencoder` is one."""

    @property
    def config(self) -> SAEConfig:
        """What the SAE is."""
        ...

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_out"]:
        """Decoder; the SAE computes on its device."""
        ...

    def encode(self, x: Float[Tensor, "tokens d_in"]) -> SparseCode:
        """Return the active features of each token."""
        ...

    def reconstruct(self, x: Float[Tensor, "tokens d_in"]) -> Reconstruction:
        """Encode and decode."""
        ...


def require_fit(
    sae: Autoencoder, store: Store, hook: StoredHook, *, allow_model_mismatch: bool = False
) -> ModelMismatch | None:
    """Refuse an SAE that does not belong to these activations, before any work.

    Returns:
        The mismatch where they are those of another model that fits and that is allowed.

    Raises:
        UsageError: It reads another hookpoint, another width or another model's activations, or
            reconstructs something else than what it reads.
    """
    config = sae.config
    if config.input_hooks != (hook.module_path,):
        raise UsageError(
            f"evaluate: the SAE reads {', '.join(config.input_hooks)}, not {hook.module_path}; "
            "name the hookpoint that it was trained at"
        )
    if config.output_hooks != config.input_hooks:
        raise UsageError(
            f"evaluate: the SAE reconstructs {', '.join(config.output_hooks)} from {hook.module_path}; "
            "only SAEs that reconstruct their own input can be evaluated"
        )
    return require_same_model(
        config,
        store.model_identity,
        {hook.module_path: hook.d_in},
        doing=f"evaluate: {store.path}",
        allow_mismatch=allow_model_mismatch,
    )


def model_hash(store: Store) -> str:
    """Return the hash of the model that made a store's activations; empty for activations without one."""
    return "" if store.model_identity is None else store.model_identity.hash


def tiles(n_rows: int, tile: int) -> Iterator[slice]:
    """Yield the pieces of at most ``tile`` rows that ``n_rows`` rows fall into, in order."""
    for start in range(0, n_rows, tile):
        yield slice(start, min(start + tile, n_rows))


def encode_tile(sae: Autoencoder, x: Float[Tensor, "rows d_in"], tile: int) -> SparseCode:
    """Encode at most ``tile`` rows, filled up with zero rows to exactly ``tile``.

    A matrix product rounds a row differently in another number of rows; a fixed height makes the
    result of a token the same bits whatever it is evaluated with.
    """
    return sae.encode(_filled_up(x, tile)).slice_rows(0, x.shape[0])


def reconstruct_tile(sae: Autoencoder, x: Float[Tensor, "rows d_in"], tile: int) -> Reconstruction:
    """Encode and decode at most ``tile`` rows, filled up as in `encode_tile`."""
    x_hat, code = sae.reconstruct(_filled_up(x, tile))
    return Reconstruction(x_hat[: x.shape[0]], code.slice_rows(0, x.shape[0]))


def _filled_up(x: Float[Tensor, "rows d"], tile: int) -> Float[Tensor, "tile d"]:
    if x.shape[0] > tile:
        raise ValueError(f"a tile of {tile} rows was given {x.shape[0]}")
    return torch.cat([x, x.new_zeros(tile - x.shape[0], x.shape[1])])
