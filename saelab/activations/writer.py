"""Write an activation store, perhaps together with other processes, in an order that can be resumed anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from saelab.activations import layout
from saelab.activations.facts import StoredHook, StoreFacts
from saelab.activations.finish import finish_store
from saelab.activations.harvest import Harvester
from saelab.activations.history import remember_identity
from saelab.activations.plan import require_disk
from saelab.activations.request import ReadText, Request, on_any_device
from saelab.activations.shard_writer import ShardWriter
from saelab.activations.spec import CacheConfig, GradientLabels
from saelab.activations.store import Store
from saelab.activations.unfinished import UNFINISHED, Unfinished
from saelab.errors import Interrupted
from saelab.interrupts import StopRequest
from saelab.lm.hooks import slug
from saelab.progress import Progress
from saelab.storage.files import remove_leftovers, write_json
from saelab.storage.manifest import MANIFEST_NAME
from saelab.text.packing import TokenSequences

GRADIENT_DEFINITION: dict[GradientLabels, str] = {
    "true": "gradient of the summed next-token losses (nats) of the predictions that count, with respect to the "
    "activation; the labels are the tokens that follow, so that it tells what comes next",
    "sampled": "gradient of the summed losses (nats) of the predictions that count, with respect to the activation; "
    "the labels are sampled from the model's own predictions, by token position and gradient_seed",
}
LEFTOVERS = ("*", "hooks/*/*", "statistics/*", f"{UNFINISHED}/*")
"""Where files may lie that an interrupted writer left."""
POLL_SECONDS = 0.2
"""How long to wait before looking again at what other writers have done."""


class StoreWriter:
    """Writes one store; every method leaves whole files behind.

    Args:
        config: What to cache.
        out: The store's folder.
        text: The documents that were read for it.
        harvester: Runs the model on the text's batches.
        stop: When asked to stop, shards are ended as `ShardWriter.write` says.
        quiet: Show no progress.
    """

    def __init__(
        self,
        config: CacheConfig,
        out: Path,
        text: ReadText,
        harvester: Harvester,
        stop: StopRequest,
        quiet: bool,
    ) -> None:
        self.config, self.out, self.text, self.harvester = config, out, text, harvester
        self.stop, self.quiet = stop, quiet
        self.unfinished = Unfinished(out)
        self.shards = ShardWriter(config, out, harvester, self.unfinished)

    @property
    def sequences(self) -> TokenSequences:
        return self.harvester.sequences

    def begin(self, request: Request, grows: bool) -> None:
        """Check that the disk has room and write down what is asked for; nobody else may be writing.

        A finished store becomes an unfinished one. Whatever of it holds for the request is kept.

        Raises:
            SaelabError: There is too little space.
        """
        remove_leftovers(self.out, *LEFTOVERS)
        rows, total = sum(map(self.shards.n_kept, self._missing())), int(self.sequences.keep.sum())
        require_disk(
            self.config,
            self.harvester.hookpoints,
            self.out,
            rows=rows,
            rows_there=total - rows,
            tokens=len(self.sequences.tokens),
        )
        if grows and (self.out / MANIFEST_NAME).exists():
            remember_identity(self.out, Store.open(self.out).identity)
        self.unfinished.reopen()
        write_json(self.out / layout.CONFIG, request)

    def write_shards(self) -> None:
        """Write the shards that are not there and that no other process is writing, until all are there.

        A shard whose writer died is written by whoever finds it next.

        Raises:
            Interrupted: A stop was asked for.
        """
        left = self._missing()
        total = int(self.sequences.keep.sum())
        done = total - sum(map(self.shards.n_kept, left))
        with Progress("caching", total, "tokens", done=done, quiet=self.quiet) as bar:
            while left:
                if not self._write_one(left, bar) and left:
                    bar.note("waiting for another writer")
                    self.wait()

    def wait(self) -> None:
        """Wait a little for other writers.

        Raises:
            Interrupted: A stop was asked for.
        """
        self._end_if_asked("while waiting for other writers")
        time.sleep(POLL_SECONDS)

    def finish(self) -> Store | None:
        """Write everything but the shards, the manifest last; nobody else may be writing.

        All shards are read and compared with the checksums of when they were written. A damaged one
        is removed.

        Returns:
            The store; None where shards are to be written first.

        Raises:
            Interrupted: A stop was asked for.
        """
        if self._missing():
            return None
        remove_leftovers(self.out, *LEFTOVERS)
        shards, sequences = range(len(self.shards)), self.sequences
        n_reads = len(shards) * (1 + len(self.harvester.hookpoints))
        with Progress("finishing", n_reads, "parts", quiet=self.quiet) as bar:

            def after_part() -> None:
                self._end_if_asked("while finishing")
                bar.advance(1)

            if self._remove_damaged(bar, after_part):
                return None
            layout.write_array(self.out / layout.TOKENS, sequences.tokens)
            layout.write_array(self.out / layout.ROWS, sequences.row_starts)
            names = [layout.CONFIG, layout.TOKENS, layout.ROWS]
            if sequences.roles is not None:
                layout.write_array(self.out / layout.ROLES, sequences.roles)
                names.append(layout.ROLES)
            if self.config.stores_loss:
                parts = [self.unfinished.losses(shard, self.shards.tokens_of(shard)) for shard in shards]
                layout.write_array(self.out / layout.LOSS, np.concatenate(parts))
                names.append(layout.LOSS)
            token_index = [self.shards.token_index(shard) for shard in shards]
            keep = np.zeros(len(sequences.tokens), dtype=np.bool_)
            keep[np.concatenate(token_index)] = True
            facts = self._facts([len(index) for index in token_index])
            known = {
                name: self.unfinished.described(shard)[name]
                for shard in shards
                for name in self.shards.shard_names(shard)
            }
            store = finish_store(self.out, facts, keep, sequences.documents, names, known, after_part)
        self.unfinished.remove()
        return store

    def _missing(self) -> list[int]:
        return [shard for shard in range(len(self.shards)) if not self.shards.is_written(shard)]

    def _write_one(self, left: list[int], bar: Progress) -> bool:
        """Write the first shard that is free, and take those that are there off the list; False where none was free."""
        for shard in list(left):
            with self.unfinished.claim(shard) as is_mine:
                if not is_mine:
                    continue
                is_there = self.shards.is_written(shard)
                if is_there:  # by another writer, since we looked
                    bar.advance(self.shards.n_kept(shard))
                elif self.stop.requested or not self.shards.write(shard, bar, self.stop):
                    total = int(self.sequences.keep.sum())
                    done = total - sum(map(self.shards.n_kept, left))
                    self._end_if_asked(f"after {done:,} of {total:,} rows")
                left.remove(shard)
                if not is_there:
                    return True
        return False

    def _end_if_asked(self, when: str) -> None:
        if self.stop.requested:
            raise Interrupted(f"cache: stopped {when}; run the same command to go on")

    def _remove_damaged(self, bar: Progress, after_part: Callable[[], None]) -> bool:
        found_some = False
        for shard in range(len(self.shards)):
            if damaged := self.shards.damaged(shard):
                bar.say(f"cache: {self.out / damaged[0]} was damaged since it was written; it is made again")
                self.shards.drop(shard)
                found_some = True
            after_part()
        return found_some

    def _facts(self, shards: list[int]) -> StoreFacts:
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
            for hookpoint in self.harvester.hookpoints
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
            model_spec=on_any_device(config.model),
            provenance=self._provenance(masked),
            notes=self._notes(n_rows, masked),
        )

    def _provenance(self, masked_by_norm: int) -> dict[str, Any]:
        config = self.config
        sampled = config.gradients and config.gradient_labels == "sampled"
        return {
            "made_from": "text",
            "text": asdict(config.text) | self.text.to_json(),
            "packing": config.packing,
            "context": config.context,
            "chat_template": self.sequences.chat_template,
            "mask_bos": config.mask_bos,
            "mask_first_positions": config.mask_first_positions,
            "mask_norm_ratio": config.mask_norm_ratio,
            "norm_limits": {hp.module_path: limit for hp, limit in self.harvester.norm_limits.items()},
            "masked_by_norm": masked_by_norm,
            "gradients": GRADIENT_DEFINITION[config.gradient_labels] if config.gradients else None,
            "gradient_labels": config.gradient_labels if config.gradients else None,
            "gradient_seed": config.gradient_seed if sampled else None,
        }

    def _notes(self, n_rows: int, masked: int) -> tuple[str, ...]:
        notes = [*self.sequences.notes]
        if n_rows + masked < self.config.tokens:
            notes.append(f"the text ended after {n_rows + masked:,} of {self.config.tokens:,} rows")
        if masked:
            notes.append(f"{masked:,} tokens were left out because of their norm")
        return tuple(notes)
