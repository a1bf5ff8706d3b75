"""Feature indexes in Python: build, extend, open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.activations.store import Store
from saelab.evaluation.run_list import open_run
from saelab.features.indexing import HowToIndex, IndexSource, index_runs
from saelab.features.spec import IndexConfig
from saelab.lm.load import LanguageModel
from saelab.quantities import parse_count
from saelab.text.spec import TextSpec
from saelab.training.run import Run

if TYPE_CHECKING:
    from saelab.features.index import FeatureIndex


def build_index(
    run: Run | Path | str,
    *,
    tokens: int | str | None = None,
    store: Store | None = None,
    text: str | TextSpec | None = None,
    lm: LanguageModel | None = None,
    config: IndexConfig | None = None,
    **options: Any,
) -> FeatureIndex:
    """Index the features of a finished run, or open the index if it is there.

    Args:
        run: A run or its folder.
        tokens: Kept tokens to index at most; of a store all, of a text 1,000,000 where not given.
        store: Index all documents of this store instead of the run's own.
        text: Index this text, through the run's own model.
        lm: That model, if it is loaded already.
        config: What is kept of every feature; its ``tokens`` are those above.
        options: Further fields of `HowToIndex`, for example ``name``, ``parts``, ``keep_codes``, ``out`` or ``quiet``.

    Raises:
        UsageError: Run, store and text do not belong together, or an index of that name was made otherwise.
    """
    run = run if isinstance(run, Run) else open_run(run)
    source = IndexSource(store=store, text=TextSpec(source=text) if isinstance(text, str) else text)
    config = replace(config or IndexConfig(), tokens=0 if tokens is None else parse_count(tokens))
    how = HowToIndex(config=config, **options)
    index_runs([run], source, how, lm=lm)
    return open_index(run, how.name, out=how.out)


def open_index(run: Run | Path | str, name: str = "main", *, out: Path | str | None = None) -> FeatureIndex:
    """Open an index of a run, or the folder of an index.

    Args:
        run: A run, its folder, or the folder of an index.
        name: Which index of the run.
        out: The overlay folder that it was kept in, where it was one.

    Raises:
        UsageError: There is none.
        DamagedFileError: It was never finished, or is damaged.
    """
    from saelab.features import index

    path = run.path if isinstance(run, Run) else Path(run)
    return index.open_index(path, name, out=None if out is None else Path(out))
