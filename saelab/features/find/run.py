"""Find features of a run: sets of its indexed corpus from the code shards, sets of files through its model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from saelab.errors import UsageError
from saelab.evaluation.sources import Shared
from saelab.features.find.corpus_units import units_of_index
from saelab.features.find.file_units import units_of_files
from saelab.features.find.rank import rank_features
from saelab.features.find.result import Found
from saelab.features.find.spec import FindConfig, TextSet, read_set
from saelab.features.find.watch import Watch
from saelab.features.index import FeatureIndex, open_index
from saelab.features.schema import INDEXES
from saelab.interrupts import StopRequest
from saelab.lm.load import LanguageModel
from saelab.sae.files import load_sae_config
from saelab.training.run import SAE, Run


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
    quiet: bool = False,
) -> Found:
    """Return the features that separate two sets best; see `saelab.find`.

    Raises:
        UsageError: A set cannot be read or is too small, or the index has no codes.
        Interrupted: A stop was asked for.
    """
    config, first = config or FindConfig(), read_set(positive)
    config.check()
    second, stop = None if negative is None else read_set(negative), stop or StopRequest()
    kinds = _checked_kinds(first, second, config)
    if second is not None and second.kind == "file":
        opened = open_index(run.path, index, out=out) if _has_index(run, index, out) else None
        paths = (first.what, second.what)
        how = {"column": column, "index": opened, "seed": config.seed, "stop": stop, "quiet": quiet}
        with Shared(lm, device) as shared:
            found = units_of_files(run, paths, shared=shared, **how)
        shards, units, n_from_corpus = found.shards, found.units, found.n_from_corpus
        d_sae, n_tokens = load_sae_config(run.path / SAE).d_sae, None
    else:
        opened = open_index(run.path, index, out=out)
        opened.codes()  # says at once where there are none
        units = units_of_index(opened, first, second, config, Watch(stop=stop))
        shards, n_from_corpus = opened.codes, 0
        d_sae, n_tokens = opened.d_sae, opened.n_tokens
    ranking = rank_features(shards, units, d_sae, config, Watch(n_tokens, stop, quiet=quiet))
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
        n_from_corpus=n_from_corpus,
        n_compared=ranking.n_compared,
        null_auroc_95=ranking.null_auroc_95,
    )


def _checked_kinds(first: TextSet, second: TextSet | None, config: FindConfig) -> set[str]:
    """Return the kinds of the sets, after refusing what cannot be compared."""
    if first == second:
        raise UsageError(f"find: both sets are {first.shown!r}; give two that differ")
    kinds = {one.kind for one in (first, second) if one is not None}
    if "file" not in kinds:
        return kinds
    if second is None or kinds != {"file"}:
        raise UsageError(
            "find: a file is compared with a file: give both --positive and --negative as files, or both as re: or "
            "column: over the indexed corpus"
        )
    if config.unit not in (None, "document"):
        raise UsageError("find: texts of files are compared whole; --unit is for re: and column:")
    return kinds


def _has_index(run: Run, name: str, out: Path | None) -> bool:
    return out is not None or (run.path / INDEXES / name / "manifest.json").exists()


def _name(index: FeatureIndex | None, feature: int) -> str:
    return "" if index is None else index.row(feature).shown_name
