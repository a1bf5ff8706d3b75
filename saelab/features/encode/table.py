"""Codes of a text as a Parquet file: a row a token, or a row a document in which features exceed a value."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from saelab.errors import Interrupted, UsageError
from saelab.evaluation.sources import Shared
from saelab.features.codes import CodeShard
from saelab.features.encode.stream import EncodedPiece, TextEncoder
from saelab.features.find.result import require_new
from saelab.features.tables import write_table
from saelab.interrupts import StopRequest
from saelab.lm.load import LanguageModel
from saelab.progress import Progress
from saelab.storage.files import WRITING_SUFFIX
from saelab.text.spec import TextSpec
from saelab.text.vocabulary import JOINED, Vocabulary
from saelab.training.run import Run

GROUP = 16_384
SNIPPET = 16
"""Tokens shown on either side of a document's largest value."""
_TOKEN = [
    ("document", pa.string()),
    ("position", pa.uint32()),
    ("token_id", pa.uint32()),
    ("token", pa.string()),
]
CODES_SCHEMA = pa.schema([*_TOKEN, ("features", pa.list_(pa.uint32())), ("values", pa.list_(pa.float32()))])
DOCUMENTS_SCHEMA = pa.schema(
    [
        ("document", pa.string()),
        ("source", pa.string()),
        ("feature", pa.uint32()),  # the one with the largest value
        ("max", pa.float32()),
        ("position", pa.uint32()),
        ("snippet", pa.string()),
    ]
)


def encode_text(
    run: Run,
    text: TextSpec,
    out: Path | str,
    *,
    features: Sequence[int] = (),
    above: float | None = None,
    tokens: int = 0,
    lm: LanguageModel | None = None,
    device: str = "auto",
    stop: StopRequest | None = None,
    quiet: bool = False,
) -> int:
    """Write the codes of a text; see `saelab.api.finding.encode`. Returns the rows written."""
    out, stop = Path(out), stop or StopRequest()
    require_new(out, (".parquet",), "encode")
    with Shared(lm, device) as shared:
        encoder = TextEncoder(run, text, shared, stop)
        _check(features, above, encoder.sae.config.d_sae)
        table = _Table(encoder, list(features), above)
        with Progress("encoding", tokens or None, "tokens", quiet=quiet) as progress:
            try:
                write_table(out, table.batches(tokens, progress), table.schema, GROUP)
            except BaseException as error:
                with contextlib.suppress(OSError):
                    out.with_name(out.name + WRITING_SUFFIX).unlink(missing_ok=True)
                if isinstance(error, Interrupted):
                    raise Interrupted(f"encode: stopped; {out} was not written") from error
                raise
    return table.n_rows


def _check(features: Sequence[int], above: float | None, d_sae: int) -> None:
    for feature in features:
        if not 0 <= feature < d_sae:
            raise UsageError(f"encode: there is no feature {feature}; features go from 0 to {d_sae - 1:,}")
    if len(set(features)) < len(features):
        raise UsageError("encode: a feature is named twice")
    if above is not None and not features:
        raise UsageError("encode: --above needs --features: which ones should exceed it")
    if above is not None and not 0 <= above < float("inf"):
        raise UsageError(f"encode: above is {above}, it must be a number from 0 on")


class _Table:
    def __init__(self, encoder: TextEncoder, features: list[int], above: float | None) -> None:
        self._encoder, self._features, self._above = encoder, features, above
        self._vocabulary = Vocabulary.of_tokenizer(encoder.lm.tokenizer)
        self.n_rows = 0
        chosen = [*_TOKEN, *((f"feature_{one}", pa.float32()) for one in features)]
        columns = pa.schema(chosen) if features else CODES_SCHEMA
        self.schema = columns if above is None else DOCUMENTS_SCHEMA

    def batches(self, tokens: int, progress: Progress) -> Iterator[pa.RecordBatch]:
        is_empty = True
        for piece in self._encoder.pieces(tokens):
            is_empty = False
            best: dict[int, tuple[float, int, int]] = {}
            for shard in piece.shards:
                progress.advance(len(shard.token_index))
                if self._above is not None:
                    self._note_best(piece, shard, best)
                    continue
                self.n_rows += len(shard.token_index)
                yield self._tokens(piece, shard)
            if best:
                self.n_rows += len(best)
                yield self._documents(piece, best)
        if is_empty:
            raise UsageError(f"encode: {self._encoder.config.text.source} holds no document with tokens")

    def _tokens(self, piece: EncodedPiece, shard: CodeShard) -> pa.RecordBatch:
        corpus, at = piece.corpus, shard.token_index.numpy()
        document = corpus.document_of(at)
        ids = corpus.tokens[at]
        columns = [
            pa.array([corpus.documents.ids[one] for one in document.tolist()], pa.string()),
            pa.array((at - corpus.documents.starts[document]).astype(np.uint32)),
            pa.array(ids.astype(np.uint32)),
            pa.array([self._vocabulary.text(one) for one in ids.tolist()], pa.string()),
        ]
        if self._features:
            columns += [pa.array(one) for one in self._dense(shard).T]
        else:
            assert shard.code.offsets is not None
            offsets = pa.array(shard.code.offsets.numpy().astype(np.int32))
            columns += [
                pa.ListArray.from_arrays(offsets, pa.array(shard.code.columns.numpy().astype(np.uint32))),
                pa.ListArray.from_arrays(offsets, pa.array(shard.code.values.numpy())),
            ]
        return pa.record_batch(columns, schema=self.schema)

    def _dense(self, shard: CodeShard) -> np.ndarray:
        """Return the chosen features of every token ``[tokens, features]``."""
        place = torch.full((shard.code.d_sae,), -1, dtype=torch.int64)
        place[self._features] = torch.arange(len(self._features))
        column = place[shard.code.columns.long()]
        found = torch.zeros(shard.code.n_rows, len(self._features))
        inside = column >= 0
        found[shard.code.row_ids()[inside], column[inside]] = shard.code.values[inside]
        return found.numpy()

    def _note_best(
        self, piece: EncodedPiece, shard: CodeShard, best: dict[int, tuple[float, int, int]]
    ) -> None:
        assert self._above is not None
        values = self._dense(shard)
        strongest, feature = values.max(axis=1), values.argmax(axis=1)
        at = shard.token_index.numpy()
        document = piece.corpus.document_of(at)
        for row in np.flatnonzero(strongest > self._above).tolist():
            number = int(document[row])
            if number not in best or strongest[row] > best[number][0]:
                best[number] = (float(strongest[row]), int(at[row]), self._features[int(feature[row])])

    def _documents(self, piece: EncodedPiece, best: dict[int, tuple[float, int, int]]) -> pa.RecordBatch:
        table, rows = piece.corpus.documents, []
        for number, (value, at, feature) in sorted(best.items()):
            start = int(table.starts[number])
            stop = start + int(table.lengths[number])
            ids = piece.corpus.tokens[max(start, at - SNIPPET) : min(stop, at + SNIPPET + 1)].tolist()
            shown = self._vocabulary.display([i for i in ids if not self._vocabulary.is_special(i)])
            rows.append(
                {
                    "document": table.ids[number],
                    "source": table.sources[number],
                    "feature": feature,
                    "max": value,
                    "position": at - start,
                    "snippet": "".join(shown).replace(JOINED, ""),
                }
            )
        return pa.RecordBatch.from_pylist(rows, DOCUMENTS_SCHEMA)
