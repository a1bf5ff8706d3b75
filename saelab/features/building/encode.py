"""The first step of an index: the codes of all kept tokens on disk, shard by shard.

A shard is a function of the SAE and of its stretch of the corpus alone: codes are made in tiles of fixed height, so
that an interrupted build goes on with the shards that are there and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from saelab.errors import DamagedFileError, Interrupted
from saelab.evaluation.autoencoder import Autoencoder, encode_tile
from saelab.features.building.corpus import Corpus, Stretch
from saelab.features.codes import CodeShard, read_shard, shard_name, write_shard
from saelab.interrupts import StopRequest
from saelab.progress import Progress
from saelab_kernels.code import SparseCode
from saelab_kernels.shapes import Float, Tensor

TILE = 1024
"""Tokens that the SAE sees at once."""
SHARD_TOKENS = 262_144
"""Kept tokens of a shard, but for"""
SHARD_PAIRS = 2**24
"""dense codes, of which a shard holds about so many pairs."""


def tokens_per_shard(sae: Autoencoder, corpus: Corpus) -> int:
    """Return how many kept tokens a shard holds: fewer where codes are dense, going by the corpus's first tile."""
    x, _ = next(corpus.activations(corpus.stretches(TILE)[0]))
    l0 = float(encode_tile(sae, x[:TILE].to(sae.W_dec.device, torch.float32), TILE).l0().float().mean())
    return max(TILE, min(SHARD_TOKENS, int(SHARD_PAIRS / max(l0, 1.0)) // TILE * TILE))


def write_codes(
    sae: Autoencoder,
    corpus: Corpus,
    stretches: list[Stretch],
    folder: Path,
    stop: StopRequest,
    *,
    quiet: bool = False,
) -> None:
    """Write the shards that are not there yet.

    Raises:
        Interrupted: A stop was asked for; the shards that are there are kept.
    """
    missing = [number for number, one in enumerate(stretches) if not _is_there(folder, number, one, sae)]
    done = corpus.n_kept - sum(stretches[number].last_row - stretches[number].first_row for number in missing)
    with Progress("encoding", corpus.n_kept, "tokens", done=done, quiet=quiet) as progress:
        for number in missing:
            shard = _encode(sae, corpus, stretches[number], stop, progress.advance)
            write_shard(folder / shard_name(number), shard)


def _is_there(folder: Path, number: int, stretch: Stretch, sae: Autoencoder) -> bool:
    path = folder / shard_name(number)
    if not path.exists():
        return False
    try:
        tokens = read_shard(path, sae.config.d_sae).token_index
    except DamagedFileError:
        return False
    return len(tokens) == stretch.last_row - stretch.first_row


def _encode(
    sae: Autoencoder, corpus: Corpus, stretch: Stretch, stop: StopRequest, advance: Callable[[int], None]
) -> CodeShard:
    codes, positions = [], []
    for x, token_index in corpus.activations(stretch):
        codes += encoded(sae, x, stop)
        positions.append(token_index)
        advance(len(token_index))
    return CodeShard(token_index=torch.cat(positions), code=SparseCode.cat(codes).ragged())


def encoded(sae: Autoencoder, x: Float[Tensor, "rows d_in"], stop: StopRequest) -> list[SparseCode]:
    """Return the codes of any number of rows, tile by tile.

    Raises:
        Interrupted: A stop was asked for.
    """
    ready, found = x.to(sae.W_dec.device, torch.float32), []
    for start in range(0, len(ready), TILE):
        if stop.requested:
            raise Interrupted("stopped while encoding; the same command goes on with what is there")
        found.append(in_order(encode_tile(sae, ready[start : start + TILE], TILE)))
    return found


def in_order(code: SparseCode) -> SparseCode:
    """Return the active pairs of a code, ragged, in host memory, columns ascending within a row."""
    flat = code.ragged()
    values, columns, rows = flat.values.float().cpu(), flat.columns.cpu(), flat.row_ids().cpu()
    active = values > 0
    values, columns, rows = values[active], columns[active], rows[active]
    order = (rows * code.d_sae + columns).argsort()
    offsets = torch.zeros(code.n_rows + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(rows, minlength=code.n_rows), 0, out=offsets[1:])
    return SparseCode(values[order], columns[order], code.d_sae, offsets)
