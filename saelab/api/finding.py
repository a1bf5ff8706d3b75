"""Finding features and encoding text in Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.evaluation.run_list import open_run
from saelab.features.encode.table import encode_text
from saelab.features.find.run import find_features
from saelab.features.find.spec import FindConfig
from saelab.quantities import parse_count
from saelab.text.spec import TextSpec
from saelab.training.run import Run

if TYPE_CHECKING:
    from saelab.features.find.result import Found


def find(
    run: Run | Path | str,
    *,
    positive: str,
    negative: str | None = None,
    config: FindConfig | None = None,
    **options: Any,
) -> Found:
    """Return the features that separate two sets of texts.

    Args:
        run: A finished run.
        positive: A file of texts, ``re:REGEX`` or ``column:NAME=VALUE`` over the run's indexed corpus.
        negative: The same; None for the rest of the corpus.
        config: Units, pooling, how many candidates.
        options: Further arguments of `find_features`, for example ``index``, ``column`` or ``lm``.

    Raises:
        UsageError: A set cannot be read or is too small, or the index has no codes.
    """
    run = run if isinstance(run, Run) else open_run(run)
    return find_features(run, positive, negative, config, **options)


def encode(
    run: Run | Path | str,
    text: str | TextSpec,
    *,
    out: Path | str,
    features: Sequence[int] = (),
    above: float | None = None,
    tokens: int | str = 0,
    **options: Any,
) -> Path:
    """Write what an SAE gives on a text as a Parquet file, a row a kept token.

    Args:
        run: A finished run; its own model reads the text, each document by itself.
        text: A source of text.
        out: The file; it must not be there.
        features: Write these as columns ``feature_I`` instead of lists of all active features.
        above: Write a row for each document in which one of ``features`` exceeds this instead.
        tokens: Kept tokens at most; 0 for all.
        options: Further arguments of `encode_text`, for example ``lm`` or ``quiet``.

    Raises:
        UsageError: The file is there, a feature is not, or the text holds no token.
        Interrupted: A stop was asked for; no file was written.
    """
    run = run if isinstance(run, Run) else open_run(run)
    spec = TextSpec(source=text) if isinstance(text, str) else text
    count = 0 if tokens == 0 else parse_count(tokens)
    encode_text(run, spec, out, features=features, above=above, tokens=count, **options)
    return Path(out)
