"""A store of somebody's own activations: tensors without tokens and without a language model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from saelab.activations import layout
from saelab.activations.facts import StoredHook, StoreFacts
from saelab.activations.finish import finish_store
from saelab.activations.rounding import round_to
from saelab.activations.spec import StoredDtype
from saelab.activations.store import Store
from saelab.errors import SaelabError, UsageError
from saelab.lm.hooks import Hookpoint, slug
from saelab.storage.files import require_free_space
from saelab.storage.lock import LOCK_NAME, locked
from saelab.storage.tensors import write_tensors
from saelab.text.documents import split_of
from saelab.text.packing import DocumentTable
from saelab_kernels.shapes import Float, Tensor

SHARD_ROWS = 131_072
# So many blocks that about 5 % of them are a fair share, each long enough to keep neighbours together.
BLOCKS = 400
MAX_BLOCK_ROWS = 4096


def store_tensors(
    path: Path, x: Float[Tensor, "rows d_in"], hook_name: str, heldout_share: float, dtype: StoredDtype
) -> Store:
    """Write activations as a store; see `Store.from_tensors`."""
    if x.dim() != 2 or not x.is_floating_point() or 0 in x.shape:
        raise UsageError(
            f"from_tensors: x is {x.dtype} {tuple(x.shape)}; it must be floating [rows, d_in] and not empty"
        )
    if not hook_name:
        raise UsageError("from_tensors: hook_name is empty")
    _require_finite(x)
    with locked(path, "from_tensors"):
        if any(entry.name != LOCK_NAME for entry in path.iterdir()):
            raise SaelabError(f"from_tensors: {path} is not empty; choose a new folder")
        require_free_space(path, x.numel() * 4 + len(x) * 9, "from_tensors")
        hook = StoredHook(
            module_path=hook_name,
            alias=None,
            slug=slug(Hookpoint(hook_name, None, x.shape[1])),
            d_in=x.shape[1],
            dtype=dtype,
            n_rows=len(x),
            has_gradients=False,
        )
        shards = _write_shards(path, x, hook)
        facts = StoreFacts(
            hooks=(hook,),
            shards=shards,
            n_tokens=len(x),
            n_token_rows=0,
            bos_token_id=-1,
            has_loss=False,
            statistics={},
            model=None,
            model_spec=None,
            provenance={"made_from": "tensors", "heldout_share": heldout_share},
            notes=(),
        )
        return finish_store(path, facts, np.ones(len(x), dtype=np.bool_), _blocks(len(x), heldout_share), [])


def _require_finite(x: Tensor) -> None:
    for start in range(0, len(x), SHARD_ROWS):
        bad = (~torch.isfinite(x[start : start + SHARD_ROWS]).all(dim=1)).nonzero()
        if len(bad):
            raise SaelabError(
                f"from_tensors: {len(bad):,} of the rows from {start:,} on hold NaN or infinite values, "
                f"the first is row {start + int(bad[0]):,}"
            )


def _write_shards(path: Path, x: Tensor, hook: StoredHook) -> tuple[int, ...]:
    sizes = []
    for shard, start in enumerate(range(0, len(x), SHARD_ROWS)):
        rows = x[start : start + SHARD_ROWS].detach().cpu()
        tensors = {
            "activations": round_to(rows, hook.dtype, "activations"),
            "token_index": torch.arange(start, start + len(rows)),
        }
        write_tensors(path / layout.shard_name(hook.slug, shard), tensors)
        sizes.append(len(rows))
    return tuple(sizes)


def _blocks(n_rows: int, heldout_share: float) -> DocumentTable:
    block_rows = max(1, min(MAX_BLOCK_ROWS, n_rows // BLOCKS))
    starts = np.arange(0, n_rows, block_rows, dtype=np.int64)
    ids = tuple(f"block-{number:06d}" for number in range(len(starts)))
    return DocumentTable(
        ids=ids,
        starts=starts,
        lengths=np.diff(starts, append=n_rows),
        sources=("tensors",) * len(starts),
        heldout=np.array([split_of(name, heldout_share) == "heldout" for name in ids]),
    )
