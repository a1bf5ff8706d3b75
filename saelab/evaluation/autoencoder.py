"""What an evaluation needs of an SAE, and how it is run so that no result depends on the batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from saelab.activations.store import Store, StoredHook
from saelab.errors import UsageError
from saelab.evaluation.places import Places, require_hooks
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

    def encode(
        self, x: Float[Tensor, "tokens d_in"], gradients: Float[Tensor, "tokens d_out"] | None = None
    ) -> SparseCode:
        """Return the active features of each token; gradients are given to a g-SAE alone."""
        ...

    def reconstruct(
        self, x: Float[Tensor, "tokens d_in"], gradients: Float[Tensor, "tokens d_out"] | None = None
    ) -> Reconstruction:
        """Encode and decode."""
        ...


class Form(NamedTuple):
    """An SAE in one of its inference forms; each is measured by itself."""

    sae: Autoencoder
    uses_gradients: bool = False
    """Whether features are ranked by the gradients of the model's loss too (g-SAE)."""


def require_fit(
    sae: Autoencoder, store: Store, hook: StoredHook | None = None, *, allow_model_mismatch: bool = False
) -> ModelMismatch | None:
    """Refuse an SAE that does not belong to these activations, before any work.

    Args:
        sae: The SAE.
        store: It must hold all that the SAE reads and reconstructs.
        hook: The one hookpoint that is going to be read; None for whatever the SAE reads.
        allow_model_mismatch: Accept another model that fits.

    Returns:
        The mismatch where they are those of another model that fits and that is allowed.

    Raises:
        UsageError: It reads another hookpoint, the store lacks one, or it is of another width or model.
    """
    config = sae.config
    if hook is not None and config.input_hooks != (hook.module_path,):
        raise UsageError(
            f"evaluate: the SAE reads {', '.join(config.input_hooks)}, not {hook.module_path}; "
            "name the hookpoint that it was trained at"
        )
    widths = {stored.module_path: stored.d_in for stored in store.hooks}
    require_hooks(Places.of_sae(config), widths, what="the SAE", where=store.path)
    return require_same_model(
        config,
        store.model_identity,
        widths,
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


def reconstruct_tile(
    sae: Autoencoder,
    x: Float[Tensor, "rows d_in"],
    tile: int,
    gradients: Float[Tensor, "rows d_out"] | None = None,
) -> Reconstruction:
    """Encode and decode at most ``tile`` rows, filled up as in `encode_tile`."""
    if gradients is None:
        x_hat, code = sae.reconstruct(_filled_up(x, tile))
    else:
        x_hat, code = sae.reconstruct(_filled_up(x, tile), _filled_up(gradients, tile))
    return Reconstruction(x_hat[: x.shape[0]], code.slice_rows(0, x.shape[0]))


def reconstruct_rows(
    form: Form, x: Float[Tensor, "rows d_in"], gradients: Float[Tensor, "rows d_out"] | None, tile: int
) -> Float[Tensor, "rows d_out"]:
    """Reconstruct any number of rows, tile by tile, on the SAE's device."""
    device = form.sae.W_dec.device
    ready = x.to(device, torch.float32)
    ranking = None if gradients is None or not form.uses_gradients else gradients.to(device, torch.float32)
    pieces = [
        reconstruct_tile(form.sae, ready[piece], tile, None if ranking is None else ranking[piece]).x_hat
        for piece in tiles(len(ready), tile)
    ]
    return torch.cat(pieces) if pieces else ready.new_zeros(0, form.sae.config.d_out)


def _filled_up(x: Float[Tensor, "rows d"], tile: int) -> Float[Tensor, "tile d"]:
    if x.shape[0] > tile:
        raise ValueError(f"a tile of {tile} rows was given {x.shape[0]}")
    return torch.cat([x, x.new_zeros(tile - x.shape[0], x.shape[1])])
