"""Read an activation store: rows of any hookpoint by split, tokens, documents, statistics.

Nothing is believed unseen: the manifest is checked when the store is opened, each file's size when
it is first read. `saelab verify` also compares checksums.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from saelab.activations import layout
from saelab.activations.facts import StoredHook, StoreFacts, find_hook
from saelab.activations.history import earlier_identities, identity_of
from saelab.activations.row_map import RowMap
from saelab.activations.rows import Rows
from saelab.activations.shards import ShardReader
from saelab.activations.spec import StoredDtype
from saelab.activations.statistics import HookStatistics
from saelab.errors import DamagedFileError, SaelabError, UsageError
from saelab.lm.identity import ModelIdentity
from saelab.lm.spec import ModelSpec
from saelab.storage.manifest import Manifest, check_file, read_manifest
from saelab.storage.tensors import read_tensors
from saelab.text.documents import HELDOUT_SHARE, Split
from saelab.text.packing import TokenSequences
from saelab_kernels.shapes import Float, Tensor

if TYPE_CHECKING:
    import pyarrow

    from saelab.activations.own import OwnBatch


class Store:
    """A finished activation store; get one with `Store.open` or `Store.from_tensors`.

    Reading is safe from several threads.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._facts = StoreFacts.from_content(manifest.content, path)
        self._shards = ShardReader(path, manifest, self._facts)

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """Open a finished store.

        Raises:
            DamagedFileError: It was never finished, or its manifest is not sound.
        """
        path = Path(path)
        return cls(path, read_manifest(path, "store"))

    @staticmethod
    def from_tensors(
        path: Path | str,
        x: Float[Tensor, "rows d_in"],
        *,
        hook_name: str = "custom",
        heldout_share: float = HELDOUT_SHARE,
        dtype: StoredDtype = "bfloat16",
    ) -> Store:
        """Make a store of your own activations: no tokens, no model, blocks of rows as documents.

        Args:
            path: A new folder.
            x: Activations in their natural order; neighbours go to the same split.
            hook_name: What to call where they come from.
            heldout_share: Share of the blocks that is held out.
            dtype: Number format on disk.

        Raises:
            SaelabError: The folder is not empty, a value is not finite or does not fit the dtype.
        """
        from saelab.activations.own import store_tensors

        return store_tensors(Path(path), x, hook_name, heldout_share, dtype)

    @staticmethod
    def from_file(
        path: Path | str,
        file: Path | str,
        *,
        at: Sequence[str] = (),
        heldout_share: float = HELDOUT_SHARE,
        dtype: StoredDtype = "bfloat16",
    ) -> Store:
        """Make a store of a file of activations, shard by shard: it may be larger than memory.

        Args:
            path: A new folder.
            file: A ``.npy`` file with one floating array [rows, d_in], or a ``.safetensors`` file: each
                floating tensor [rows, d_in] is a hookpoint, and whole numbers [rows] named ``document``
                tell which rows belong together and go to the same split.
            at: Names of the tensors to take (all, where none is given); for ``.npy`` what to call the array.
            heldout_share: Share of the documents, or of blocks of rows, that is held out.
            dtype: Number format on disk.

        Raises:
            DamagedFileError: The file is not what its name says.
            SaelabError: The folder is not empty, a value is not finite or does not fit the dtype.
        """
        from saelab.activations.own_files import store_file

        return store_file(Path(path), Path(file), at, heldout_share, dtype)

    @staticmethod
    def from_batches(
        path: Path | str,
        batches: Iterable[OwnBatch],
        *,
        heldout_share: float = HELDOUT_SHARE,
        dtype: StoredDtype = "bfloat16",
        model: ModelIdentity | None = None,
    ) -> Store:
        """Make a store of activations that come batch by batch, for example from a model that reads images.

        Args:
            path: A new folder.
            batches: Each with the activations by name, and the example that each row belongs to.
            heldout_share: Share of the examples that is held out; all rows of one are in the same split.
            dtype: Number format on disk.
            model: What made them, if that is known.

        Raises:
            SaelabError: The folder is not empty, a value is not finite or does not fit the dtype.
        """
        from saelab.activations.own import store_batches

        return store_batches(Path(path), batches, heldout_share, dtype, model=model)

    @cached_property
    def identity(self) -> str:
        """Digest of what the store holds: equal data have equal identities, wherever they were made."""
        return identity_of(self.manifest)

    @property
    def extended_from(self) -> tuple[str, ...]:
        """Identities that the store had before it was extended by more tokens, oldest first."""
        return earlier_identities(self.path)

    @property
    def hooks(self) -> tuple[StoredHook, ...]:
        """The hookpoints whose activations are stored."""
        return self._facts.hooks

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the content, for example that the text ended early."""
        return self._facts.notes

    def hook(self, name: str | StoredHook | None = None) -> StoredHook:
        """Find a hookpoint by either spelling; None means the only one.

        Raises:
            UsageError: There is none of that name, or several and no name was given.
        """
        return find_hook(self.hooks, name.module_path if isinstance(name, StoredHook) else name, self.path)

    def statistics(self, hook: str | StoredHook | None = None) -> HookStatistics:
        """Return the statistics of a hookpoint's training rows."""
        hook = self.hook(hook)
        name = layout.statistics_name(hook.slug)
        check_file(self.path, name, self.manifest)
        mean = read_tensors(self.path / name).get("mean")
        if mean is None or mean.shape != (hook.d_in,):
            raise DamagedFileError(f"{self.path / name} holds no mean of {hook.d_in} values")
        return HookStatistics.from_parts(self._facts.statistics.get(hook.slug), mean)

    def n_rows(self, hook: str | StoredHook | None, split: Split | None) -> int:
        """Return how many rows a hookpoint has in a split; in both for None."""
        self.hook(hook)
        return self.row_map.count(split)

    def rows(self, hook: str | StoredHook | None, split: Split | None, start: int, stop: int) -> Rows:
        """Read rows `start` to `stop` of a split (of both for None) in document order, as float32, with gradients
        if stored.

        Raises:
            UsageError: The split has fewer rows.
            DamagedFileError: A shard is missing, cut or unreadable; the message says how to rebuild it.
        """
        hook = self.hook(hook)
        found = self.stored_rows(hook, split, start, stop, with_gradients=hook.has_gradients)
        gradients = None if found.gradients is None else found.gradients.float()
        return Rows(x=found.x.float(), token_index=found.token_index, gradients=gradients)

    def stored_rows(
        self, hook: StoredHook, split: Split | None, start: int, stop: int, *, with_gradients: bool
    ) -> Rows:
        """Like `rows`, in the stored dtype."""
        count = self.row_map.count(split)
        if not 0 <= start <= stop <= count:
            raise UsageError(
                f"{self.path}: rows {start:,} to {stop:,} of {split or 'all'}, which has {count:,}"
            )
        pieces = self.row_map.pieces(split, start, stop)

        def read(tensor: str, empty: torch.Tensor) -> torch.Tensor:
            found = [part for piece in pieces for part in self._shards.read(hook, tensor, *piece)]
            return found[0] if len(found) == 1 else torch.cat(found) if found else empty

        no_rows = torch.empty(0, hook.d_in, dtype=getattr(torch, hook.dtype))
        return Rows(
            x=read("activations", no_rows),
            token_index=read("token_index", torch.empty(0, dtype=torch.int64)),
            gradients=read("gradients", no_rows) if with_gradients else None,
        )

    @cached_property
    def tokens(self) -> NDArray[np.int32]:
        """The whole token stream, mapped from its file."""
        self._require_tokens()
        return layout.map_array(self._sized(layout.TOKENS), "<i4", self._facts.n_tokens)

    @cached_property
    def row_starts(self) -> NDArray[np.int64]:
        """Where each row of tokens starts, and at the end the number of tokens."""
        self._require_tokens()
        starts = layout.map_array(self._sized(layout.ROWS), "<i8", self._facts.n_token_rows + 1)
        if starts[0] != 0 or starts[-1] != self._facts.n_tokens or (np.diff(starts) <= 0).any():
            raise DamagedFileError(f"{self.path / layout.ROWS}: the rows do not follow one another")
        return starts

    @cached_property
    def keep(self) -> NDArray[np.bool_]:
        """Whether each token has an activation row."""
        return layout.read_bits(self._sized(layout.KEEP), self._facts.n_tokens)

    @cached_property
    def roles(self) -> NDArray[np.uint8] | None:
        """Role of every token of conversations, a code of `saelab.text.chat.ROLES`, + 128 where special, else None."""
        if layout.ROLES not in self.manifest.files:
            return None
        return layout.read_roles(self._sized(layout.ROLES), self._facts.n_tokens)

    @property
    def provenance(self) -> dict[str, Any]:
        """How the activations were made, as the manifest has it."""
        return self._facts.provenance

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that conversations were rendered with."""
        template = self._facts.provenance.get("chat_template")
        return template if isinstance(template, str) else None

    @property
    def label_seed(self) -> int | None:
        """Seed of the labels that the model drew itself for the gradients; None where they are the true next tokens."""
        seed = self._facts.provenance.get("gradient_seed")
        return seed if isinstance(seed, int) else None

    @cached_property
    def documents(self) -> pyarrow.Table:
        """The documents: id, start, length, source, split, and whatever columns were kept."""
        return layout.read_documents(self._sized(layout.DOCUMENTS))

    @cached_property
    def losses(self) -> NDArray[np.float32] | None:
        """Next-token loss of every token in nats (NaN at the last token of a row), if stored."""
        if not self._facts.has_loss:
            return None
        return layout.map_array(self._sized(layout.LOSS), "<f4", self._facts.n_tokens)

    @cached_property
    def sequences(self) -> TokenSequences:
        """Tokens, rows, kept tokens and documents together, as they were packed."""
        self._require_tokens()
        table = layout.document_table(self.documents, self._facts.n_tokens, self.path / layout.DOCUMENTS)
        return TokenSequences(
            tokens=self.tokens,
            row_starts=self.row_starts,
            keep=self.keep,
            documents=table,
            bos_token_id=self._facts.bos_token_id,
            roles=self.roles,
            chat_template=self.chat_template,
        )

    @cached_property
    def row_map(self) -> RowMap:
        """Which rows belong to which split."""
        path = self.path / layout.DOCUMENTS
        found = RowMap(self.keep, layout.document_table(self.documents, self._facts.n_tokens, path))
        if found.n_rows != self._shards.n_rows:
            raise DamagedFileError(
                f"{self.path / layout.KEEP} keeps {found.n_rows:,} tokens, "
                f"the shards hold {self._shards.n_rows:,}"
            )
        return found

    def sequence_rows(self, split: Split) -> NDArray[np.int64]:
        """Return the indices of the rows of tokens that belong to a split."""
        return self.sequences.rows_of_split(split)

    def split_of_token(self, position: int) -> Split:
        """Return the split of the document that a token position belongs to."""
        starts = self.documents["start"].to_numpy()
        return self.documents["split"][int(np.searchsorted(starts, position, side="right")) - 1].as_py()

    @property
    def has_tokens(self) -> bool:
        """Whether the store was made by a model from text, and not from somebody's own activations."""
        return self._facts.n_token_rows > 0

    @property
    def tokenizer_hash(self) -> str | None:
        """Hash of the tokenizer that made the tokens."""
        return None if self._facts.model is None else self._facts.model.tokenizer_hash

    @property
    def model_identity(self) -> ModelIdentity | None:
        """Which model made the activations."""
        return self._facts.model

    def model_spec(self) -> ModelSpec | None:
        """Return how the model was loaded when the store was made."""
        return self._facts.model_spec

    def close(self) -> None:
        """Close the shards that are open; they are opened again when they are needed."""
        self._shards.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sized(self, name: str) -> Path:
        if name not in self.manifest.files:
            raise DamagedFileError(f"{self.path}: the manifest lists no {name}")
        check_file(self.path, name, self.manifest, content=False)
        return self.path / name

    def _require_tokens(self) -> None:
        if not self.has_tokens:
            raise SaelabError(f"{self.path} was made from tensors: it has no tokens and no language model")
