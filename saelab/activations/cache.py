"""Write an activation store: text through a model, several hookpoints in one forward pass.

1. Read and pack the text; compare the request with what the folder was begun with.
2. For every shard that is not there yet: run its batches, write one file for each hookpoint.
3. Write tokens and documents, gather statistics, write the manifest.

A shard is a fixed range of batches and a batch depends on its number alone, so a cache that was
interrupted anywhere is completed by the same call, to the same bytes.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saelab.activations import layout
from saelab.activations.facts import StoredHook, StoreFacts
from saelab.activations.finish import finish_store
from saelab.activations.harvest import Harvester
from saelab.activations.plan import bytes_of_rows, bytes_of_tokens
from saelab.activations.request import describe_request, require_same_request
from saelab.activations.shards import check_shard
from saelab.activations.spec import CacheConfig
from saelab.activations.store import Store
from saelab.errors import DamagedFileError, Interrupted, SaelabError, UsageError
from saelab.interrupts import StopRequest
from saelab.lm.hooks import Hookpoint, resolve, slug
from saelab.lm.load import LanguageModel, load_model
from saelab.progress import Progress
from saelab.storage.files import remove_leftovers, require_free_space, write_json
from saelab.storage.lock import LOCK_NAME, locked
from saelab.storage.manifest import MANIFEST_NAME, check_file, read_manifest
from saelab.storage.tensors import TensorFile, read_tensors, write_tensors
from saelab.text.documents import Document
from saelab.text.load import load_documents
from saelab.text.packing import KeepRule, TokenSequences, pack

GRADIENT_DEFINITION = (
    "gradient of the summed next-token losses (nats) of the predictions that count, with respect to the activation"
)


def cache_activations(
    config: CacheConfig,
    out: Path | str,
    *,
    progress: bool = True,
    stop: StopRequest | None = None,
    lm: LanguageModel | None = None,
) -> Store:
    """Cache activations, or go on with it, or return the store if it is finished.

    Args:
        config: What to cache.
        out: The store's folder.
        progress: Show progress on standard error.
        stop: When asked to stop, the shard at hand is finished first.
        lm: The model that `config.model` names, if it is loaded already.

    Raises:
        UsageError: A hookpoint is unknown, the context is longer than the model's, or the folder
            belongs to another configuration.
        SaelabError: The disk is full, an activation is not finite or does not fit the dtype, or the
            folder is in use.
        Interrupted: A stop was asked for; the same call goes on.
    """
    out = Path(out)
    lm = lm or load_model(config.model)
    hookpoints = tuple(dict.fromkeys(resolve(name, lm.hookpoints) for name in config.at))
    if config.context > lm.context:
        raise UsageError(f"cache: context is {config.context}, {lm.identity.name} reads at most {lm.context} tokens")
    documents = load_documents(config.text)
    request = describe_request(config, lm, hookpoints, documents)
    store = _finished(out, request)
    if store is not None:
        return store
    with locked(out, "caching"):
        remove_leftovers(out)
        sequences = _pack(documents, lm, config)
        writer = _Writer(config, out, Harvester(lm, hookpoints, sequences, config))
        writer.begin(request)
        writer.write_shards(stop or StopRequest(), quiet=not progress)
        return writer.finish(request["inputs"]["text_hash"])


def _finished(out: Path, request: dict[str, Any]) -> Store | None:
    """Return the store if it is complete; None if something is missing (the caller rebuilds it)."""
    if not (out / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(out, "store")
    if not (out / layout.CONFIG).exists():
        raise UsageError(f"caching: {out} is a store that was not cached from a model; choose another folder")
    require_same_request(out, request, environment=False)
    try:
        for name in manifest.files:
            check_file(out, name, manifest, content=False)
    except DamagedFileError:
        return None
    return Store.open(out)


def _pack(documents: list[Document], lm: LanguageModel, config: CacheConfig) -> TokenSequences:
    rule = KeepRule(mask_bos=config.mask_bos, mask_first_positions=config.mask_first_positions)
    sequences = pack(
        documents,
        lm.tokenizer,
        context=config.context,
        packing=config.packing,
        max_kept=config.tokens,
        keep_rule=rule,
    )
    if not sequences.keep.any():
        raise SaelabError(
            f"cache: none of the {len(sequences.tokens):,} tokens is kept; "
            f"mask fewer first positions than {config.mask_first_positions}, or give longer documents"
        )
    return sequences


@dataclass(frozen=True)
class _Writer:
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

    def begin(self, request: dict[str, Any]) -> None:
        """Write what is asked for, or check that it is the same; nothing else may lie in the folder."""
        if (self.out / layout.CONFIG).exists():
            require_same_request(self.out, request, environment=True)
        elif any(entry.name != LOCK_NAME for entry in self.out.iterdir()):
            raise UsageError(f"caching: {self.out} is not empty and is no unfinished store; choose a new folder")
        missing = sum(self._keep_of(shard).sum() for shard in range(self.n_shards) if not self._is_written(shard))
        needed = bytes_of_rows(self.config, self.hookpoints, int(missing))
        needed += bytes_of_tokens(self.config, len(self.sequences.tokens))
        require_free_space(self.out, needed, "caching")
        # Only now: a store that is being rebuilt is not complete until it has a manifest again.
        (self.out / MANIFEST_NAME).unlink(missing_ok=True)
        write_json(self.out / layout.CONFIG, request)

    def write_shards(self, stop: StopRequest, quiet: bool) -> None:
        """Write the shards that are not there yet.

        Raises:
            Interrupted: A stop was asked for.
        """
        kept = [int(self._keep_of(shard).sum()) for shard in range(self.n_shards)]
        written = [self._is_written(shard) for shard in range(self.n_shards)]
        done = sum(n for n, there in zip(kept, written, strict=True) if there)
        with Progress("caching", sum(kept), "tokens", done=done, quiet=quiet) as bar:
            for shard in range(self.n_shards):
                if written[shard]:
                    continue
                if stop.requested:
                    raise Interrupted(
                        f"caching: stopped after {done:,} of {sum(kept):,} rows; run the same command to go on"
                    )
                self._write_shard(shard, bar)
                done += kept[shard]

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
        return slice(
            self.harvester.tokens_of(batches[0]).start, self.harvester.tokens_of(batches[-1]).stop
        )

    def _keep_of(self, shard: int) -> np.ndarray:
        return self.sequences.keep[self._tokens_of(shard)]

    def _shard_path(self, hookpoint: Hookpoint, shard: int) -> Path:
        return self.out / layout.shard_name(slug(hookpoint), shard)

    def _is_written(self, shard: int) -> bool:
        try:
            sizes = {self._rows_written(hookpoint, shard) for hookpoint in self.hookpoints}
            return len(sizes) == 1 and self._losses_are_written(shard)
        except DamagedFileError:
            return False

    def _rows_written(self, hookpoint: Hookpoint, shard: int) -> int:
        with TensorFile(self._shard_path(hookpoint, shard)) as file:
            n_rows = file.shape("token_index")[0]
            expected = int(self._keep_of(shard).sum())
            if n_rows > expected or (self.config.mask_norm_ratio is None and n_rows < expected):
                raise DamagedFileError(f"{file.path} has {n_rows:,} rows, expected {expected:,}")
            check_shard(file, hookpoint.d_in, self.config.dtype, self.config.gradients, n_rows)
            return n_rows

    def _losses_are_written(self, shard: int) -> bool:
        if not self.config.stores_loss:
            return True
        whole = self.out / layout.LOSS
        if whole.is_file() and whole.stat().st_size == len(self.sequences.tokens) * 4:
            return True
        stretch = self._tokens_of(shard)
        with TensorFile(self.out / layout.loss_part_name(shard)) as file:
            return file.shape("losses") == (stretch.stop - stretch.start,)

    def _write_shard(self, shard: int, bar: Progress) -> None:
        buffers = _ShardBuffers(self, int(self._keep_of(shard).sum()))
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
        parts = self.out / layout.LOSS_PARTS
        whole = self.out / layout.LOSS
        if parts.exists() and not whole.exists():
            paths = [self.out / layout.loss_part_name(shard) for shard in range(self.n_shards)]
            layout.write_array(whole, torch.cat([read_tensors(path)["losses"] for path in paths]).numpy())
        shutil.rmtree(parts, ignore_errors=True)

    def _token_index(self, shard: int) -> np.ndarray:
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

    def __init__(self, writer: _Writer, capacity: int) -> None:
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
