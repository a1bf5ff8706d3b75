"""Write the parts of an activation store, each as a whole file, in an order that can be resumed anywhere."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saelab.activations import layout
from saelab.activations.facts import StoredHook, StoreFacts
from saelab.activations.finish import finish_store
from saelab.activations.harvest import Harvester
from saelab.activations.plan import bytes_of_rows, bytes_of_tokens
from saelab.activations.shards import check_shard
from saelab.activations.spec import CacheConfig
from saelab.activations.store import Store
from saelab.errors import DamagedFileError, Interrupted
from saelab.interrupts import StopRequest
from saelab.lm.hooks import Hookpoint, slug
from saelab.progress import Progress
from saelab.storage.files import require_free_space, write_json
from saelab.storage.manifest import MANIFEST_NAME
from saelab.storage.tensors import TensorFile, read_tensors, write_tensors
from saelab.text.packing import TokenSequences

GRADIENT_DEFINITION = (
    "gradient of the summed next-token losses (nats) of the predictions that count, "
    "with respect to the activation"
)


@dataclass(frozen=True)
class StoreWriter:
    """Writes one store; every method leaves whole files behind."""

    config: CacheConfig
    out: Path
    harvester: Harvester

    @property
    def hookpoints(self) -> tuple[Hookpoint, ...]:
        return self.harvester.hookpoints

    @property
    def sequences(self) -> TokenSequences:
        return self.harvester.sequences

    @property
    def n_shards(self) -> int:
        return -(-self.harvester.n_batches // self.config.batches_per_shard)

    def begin(self, request: dict[str, Any]) -> list[int]:
        """Check that the disk has room, write down what is asked for, and return the shards to write.

        Raises:
            SaelabError: There is too little space.
        """
        missing = [shard for shard in range(self.n_shards) if not self._is_written(shard)]
        n_rows = sum(self._n_kept(shard) for shard in missing)
        needed = bytes_of_rows(self.config, self.hookpoints, n_rows)
        needed += bytes_of_tokens(self.config, len(self.sequences.tokens))
        require_free_space(self.out, needed, "caching")
        # Only now: a store that is being rebuilt is not complete until it has a manifest again.
        (self.out / MANIFEST_NAME).unlink(missing_ok=True)
        write_json(self.out / layout.CONFIG, request)
        return missing

    def write_shards(self, missing: list[int], stop: StopRequest, quiet: bool) -> None:
        """Write the shards that are not there yet.

        Raises:
            Interrupted: A stop was asked for.
        """
        total = int(self.sequences.keep.sum())
        done = total - sum(self._n_kept(shard) for shard in missing)
        with Progress("caching", total, "tokens", done=done, quiet=quiet) as bar:
            for shard in missing:
                if stop.requested:
                    raise Interrupted(
                        f"caching: stopped after {done:,} of {total:,} rows; run the same command to go on"
                    )
                self._write_shard(shard, bar)
                done += self._n_kept(shard)

    def finish(self, text_hash: str) -> Store:
        """Write everything but the shards, the manifest last."""
        out, sequences = self.out, self.sequences
        layout.write_array(out / layout.TOKENS, sequences.tokens)
        layout.write_array(out / layout.ROWS, sequences.row_starts)
        names = [layout.CONFIG, layout.TOKENS, layout.ROWS]
        if self.config.stores_loss:
            self._join_losses()
            names.append(layout.LOSS)
        token_index = [self._token_index(shard) for shard in range(self.n_shards)]
        keep = np.zeros(len(sequences.tokens), dtype=np.bool_)
        keep[np.concatenate(token_index)] = True
        facts = self._facts([len(index) for index in token_index], text_hash)
        return finish_store(out, facts, keep, sequences.documents, names)

    def _batches_of(self, shard: int) -> range:
        first = shard * self.config.batches_per_shard
        return range(first, min(first + self.config.batches_per_shard, self.harvester.n_batches))

    def _tokens_of(self, shard: int) -> slice:
        batches = self._batches_of(shard)
        return slice(self.harvester.tokens_of(batches[0]).start, self.harvester.tokens_of(batches[-1]).stop)

    def _kept_of(self, shard: int) -> NDArray[np.int64]:
        """Positions of the shard's tokens that are kept, as far as packing decides."""
        stretch = self._tokens_of(shard)
        return np.flatnonzero(self.sequences.keep[stretch]) + stretch.start

    def _n_kept(self, shard: int) -> int:
        return int(self.sequences.keep[self._tokens_of(shard)].sum())

    def _shard_path(self, hookpoint: Hookpoint, shard: int) -> Path:
        return self.out / layout.shard_name(slug(hookpoint), shard)

    def _is_written(self, shard: int) -> bool:
        try:
            first, *others = [self._tokens_written(hookpoint, shard) for hookpoint in self.hookpoints]
            return all(np.array_equal(first, other) for other in others) and self._losses_are_written(shard)
        except DamagedFileError:
            return False

    def _tokens_written(self, hookpoint: Hookpoint, shard: int) -> NDArray[np.int64]:
        """Return the token positions in a shard that is there; anything unexpected is damage."""
        with TensorFile(self._shard_path(hookpoint, shard)) as file:
            found, expected = file.read("token_index").numpy(), self._kept_of(shard)
            if self.config.mask_norm_ratio is not None:
                expected = expected[np.isin(expected, found)]
            if not np.array_equal(found, expected):
                raise DamagedFileError(f"{file.path} holds other tokens than this text gives")
            check_shard(file, hookpoint.d_in, self.config.dtype, self.config.gradients, len(found))
            return found

    def _losses_are_written(self, shard: int) -> bool:
        if not self.config.stores_loss:
            return True
        if self._losses_are_joined():
            return True
        stretch = self._tokens_of(shard)
        with TensorFile(self.out / layout.loss_part_name(shard)) as file:
            return file.shape("losses") == (stretch.stop - stretch.start,)

    def _write_shard(self, shard: int, bar: Progress) -> None:
        buffers = _ShardBuffers(self, self._n_kept(shard))
        losses = []
        for batch in self._batches_of(shard):
            harvest = self.harvester.harvest(batch)
            buffers.add(harvest.token_index, harvest.activations, harvest.gradients)
            if harvest.losses is not None:
                losses.append(harvest.losses)
            bar.advance(len(harvest.token_index))
        if losses:
            write_tensors(self.out / layout.loss_part_name(shard), {"losses": torch.cat(losses)})
        for hookpoint in self.hookpoints:
            write_tensors(self._shard_path(hookpoint, shard), buffers.tensors(hookpoint))

    def _join_losses(self) -> None:
        if not self._losses_are_joined():
            paths = [self.out / layout.loss_part_name(shard) for shard in range(self.n_shards)]
            losses = torch.cat([read_tensors(path)["losses"] for path in paths])
            layout.write_array(self.out / layout.LOSS, losses.numpy())
        shutil.rmtree(self.out / layout.LOSS_PARTS, ignore_errors=True)

    def _losses_are_joined(self) -> bool:
        whole = self.out / layout.LOSS
        return whole.is_file() and whole.stat().st_size == len(self.sequences.tokens) * 4

    def _token_index(self, shard: int) -> NDArray[np.int64]:
        with TensorFile(self._shard_path(self.hookpoints[0], shard)) as file:
            return file.read("token_index").numpy()

    def _facts(self, shards: list[int], text_hash: str) -> StoreFacts:
        config, lm, n_rows = self.config, self.harvester.lm, sum(shards)
        hooks = tuple(
            StoredHook(
                module_path=hookpoint.module_path,
                alias=hookpoint.alias,
                slug=slug(hookpoint),
                d_in=hookpoint.d_in,
                dtype=config.dtype,
                n_rows=n_rows,
                has_gradients=config.gradients,
            )
            for hookpoint in self.hookpoints
        )
        masked = int(self.sequences.keep.sum()) - n_rows
        return StoreFacts(
            hooks=hooks,
            shards=tuple(shards),
            n_tokens=len(self.sequences.tokens),
            n_token_rows=self.sequences.n_rows,
            bos_token_id=self.sequences.bos_token_id,
            has_loss=config.stores_loss,
            statistics={},
            model=lm.identity,
            model_spec=config.model,
            provenance=self._provenance(text_hash, masked),
            notes=self._notes(n_rows, masked),
        )

    def _provenance(self, text_hash: str, masked_by_norm: int) -> dict[str, Any]:
        config = self.config
        return {
            "made_from": "text",
            "text": asdict(config.text) | {"hash": text_hash},
            "packing": config.packing,
            "context": config.context,
            "chat_template": None,
            "mask_bos": config.mask_bos,
            "mask_first_positions": config.mask_first_positions,
            "mask_norm_ratio": config.mask_norm_ratio,
            "norm_limits": {hp.module_path: limit for hp, limit in self.harvester.norm_limits.items()},
            "masked_by_norm": masked_by_norm,
            "gradients": GRADIENT_DEFINITION if config.gradients else None,
        }

    def _notes(self, n_rows: int, masked: int) -> tuple[str, ...]:
        notes = []
        if n_rows + masked < self.config.tokens:
            notes.append(f"the text ended after {n_rows + masked:,} of {self.config.tokens:,} rows")
        if masked:
            notes.append(f"{masked:,} tokens were left out because of their norm")
        return tuple(notes)


class _ShardBuffers:
    """Preallocated rows of one shard, for every hookpoint."""

    def __init__(self, writer: StoreWriter, capacity: int) -> None:
        dtype = getattr(torch, writer.config.dtype)

        def empty() -> dict[Hookpoint, torch.Tensor]:
            return {hp: torch.empty(capacity, hp.d_in, dtype=dtype) for hp in writer.hookpoints}

        self._activations = empty()
        self._gradients = empty() if writer.config.gradients else {}
        self._token_index = torch.empty(capacity, dtype=torch.int64)
        self._filled = 0

    def add(
        self,
        token_index: torch.Tensor,
        activations: dict[Hookpoint, torch.Tensor],
        gradients: dict[Hookpoint, torch.Tensor],
    ) -> None:
        place = slice(self._filled, self._filled + len(token_index))
        self._token_index[place] = token_index
        for buffers, found in ((self._activations, activations), (self._gradients, gradients)):
            for hookpoint, buffer in buffers.items():
                buffer[place] = found[hookpoint]
        self._filled = place.stop

    def tensors(self, hookpoint: Hookpoint) -> dict[str, torch.Tensor]:
        rows = slice(0, self._filled)
        tensors = {"activations": self._activations[hookpoint][rows], "token_index": self._token_index[rows]}
        if self._gradients:
            tensors["gradients"] = self._gradients[hookpoint][rows]
        return tensors
