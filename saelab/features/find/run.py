"""Find features of a run: sets of its indexed corpus from the code shards, sets of files through its model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saelab.errors import UsageError
from saelab.evaluation.sources import Shared
from saelab.features.codes import CodeShard
from saelab.features.encode.stream import TextEncoder
from saelab.features.find.corpus_units import units_of_index
from saelab.features.find.rank import rank_features
from saelab.features.find.result import Found
from saelab.features.find.spec import FindConfig, read_set
from saelab.features.find.units import Units, label_units
from saelab.features.index import FeatureIndex, open_index
from saelab.features.schema import INDEXES
from saelab.interrupts import StopRequest
from saelab.lm.load import LanguageModel
from saelab.text.documents import Document
from saelab.text.load import iter_documents
from saelab.text.spec import TextSpec
from saelab.training.run import Run


def find_features(
    run: Run,
    positive: str,
    negative: str | None = None,
    config: FindConfig | None = None,
    *,
    index: str = "main",
    out: Path | None = None,
    column: str = "text",
    lm: LanguageModel | None = None,
    device: str = "auto",
    stop: StopRequest | None = None,
) -> Found:
    """Return the features that separate two sets best; see `saelab.find`.

    Raises:
        UsageError: A set cannot be read or is too small, or the index has no codes.
        Interrupted: A stop was asked for.
    """
    config, first = config or FindConfig(), read_set(positive)
    config.check()
    second = None if negative is None else read_set(negative)
    kinds = {one.kind for one in (first, second) if one is not None}
    if "file" in kinds:
        if second is None or kinds != {"file"}:
            raise UsageError(
                "find: a file is compared with a file: give both --positive and --negative as files"
            )
        if config.unit not in (None, "document"):
            raise UsageError("find: texts of files are compared whole; --unit is for re: and column:")
        with Shared(lm, device) as shared:
            paths = (first.what, second.what)
            shards, units, d_sae = _encode_sets(run, paths, column, config, shared, stop or StopRequest())
        opened = open_index(run.path, index, out=out) if _has_index(run, index, out) else None
    else:
        opened = open_index(run.path, index, out=out)
        opened.codes()  # says at once where there are none
        units, d_sae, shards = units_of_index(opened, first, second, config), opened.d_sae, None
    ranking = rank_features(opened.codes if shards is None else lambda: shards, units, d_sae, config)  # type: ignore
    held = units.heldout
    unit = config.unit or ("line" if "regex" in kinds else "document")
    return Found(
        features=tuple(replace(one, name=_name(opened, one.feature)) for one in ranking.features),
        run=str(run.path),
        positive=positive,
        negative=negative or "the rest",
        unit=unit,
        pool=config.pool,
        n_positive=int((held & units.positive).sum()),
        n_negative=int((held & ~units.positive).sum()),
        n_documents=len(np.unique(units.document[held])),
        n_in_both=units.n_in_both,
        n_compared=ranking.n_compared,
        null_auroc_95=ranking.null_auroc_95,
    )


def _has_index(run: Run, name: str, out: Path | None) -> bool:
    return out is not None or (run.path / INDEXES / name / "manifest.json").exists()


def _name(index: FeatureIndex | None, feature: int) -> str:
    return "" if index is None else index.row(feature).shown_name


def _texts(text: TextSpec) -> Iterator[Document]:
    """Yield the texts of a file; of a .txt file every line with something in it is one."""
    for document in iter_documents(text):
        if not text.source.endswith(".txt"):
            yield document
            continue
        for number, line in enumerate(document.text.splitlines()):
            if line.strip():
                yield replace(document, id=f"{document.id}:{number}", text=line)


def _encode_sets(
    run: Run, paths: Sequence[str], column: str, config: FindConfig, shared: Shared, stop: StopRequest
) -> tuple[list[CodeShard], Units, int]:
    """Encode the texts of two files; what is kept of them are codes."""
    shards: list[CodeShard] = []
    keeps: list[NDArray[np.bool_]] = []
    owners: list[NDArray[np.int64]] = []
    keys: list[str] = []
    labels: list[bool] = []
    n_tokens, d_sae = 0, 0
    for path, label in zip(paths, (True, False), strict=True):
        if not Path(path).expanduser().is_file():
            raise UsageError(f"find: {path} is no file; sets are files, re:REGEX or column:NAME=VALUE")
        encoder = TextEncoder(run, TextSpec(source=path, column=column), shared, stop)
        d_sae = encoder.sae.config.d_sae
        for piece in encoder.pieces(documents=_texts(encoder.config.text)):
            corpus = piece.corpus
            shards += [
                CodeShard(token_index=one.token_index + n_tokens, code=one.code) for one in piece.shards
            ]
            owners.append(corpus.document_of(np.arange(corpus.n_tokens)) + len(keys))
            keeps.append(np.asarray(corpus.keep))
            bounds = np.append(corpus.documents.starts, corpus.n_tokens).tolist()
            keys += [
                hashlib.blake2b(corpus.tokens[a:b].tobytes(), digest_size=16).hexdigest()
                for a, b in pairwise(bounds)
            ]
            labels += [label] * (len(keys) - len(labels))
            n_tokens += corpus.n_tokens
    if not keys:
        raise UsageError("find: the files hold no text")
    positive = np.array(labels, dtype=np.bool_)
    document = np.arange(len(keys), dtype=np.int64)
    of_token, keep = np.concatenate(owners), np.concatenate(keeps)
    return shards, label_units(of_token, keep, document, positive, ~positive, keys, config.seed), d_sae
