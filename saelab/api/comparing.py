"""Comparing runs in Python: the table, the figures and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saelab.activations.store import Store
from saelab.errors import UsageError
from saelab.evaluation.comparison.compare import HowToCompare, compare_runs
from saelab.evaluation.comparison.folder import comparison_folder, write_comparison
from saelab.evaluation.comparison.result import Comparison
from saelab.evaluation.run_list import RunList, expand_runs
from saelab.evaluation.sources import TokenSource, text_to_evaluate
from saelab.evaluation.spec import EvaluationConfig
from saelab.lm.load import LanguageModel
from saelab.quantities import parse_count
from saelab.text.spec import TextSpec
from saelab.training.run import GROUP, Run


def compare(
    runs: Run | Path | str | Sequence[Run | Path | str],
    *,
    out: Path | str | None = None,
    tokens: int | str = "65536",
    store: Store | None = None,
    text: str | TextSpec | None = None,
    lm: LanguageModel | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> Comparison:
    """Compare finished runs on the same tokens, and write table, data and page into a folder.

    Evaluations that the runs already have on these tokens are taken; others are made and kept in the folder, so that
    nothing is written into the runs.

    Args:
        runs: Runs, their folders, or groups, which stand for their finished members.
        out: A new folder, or one with an earlier comparison, which is replaced; ``GROUP/comparison`` where one
            group is given.
        tokens: Held-out tokens to evaluate at most.
        store: Compare on the held-out documents of this store instead of the runs' own.
        text: Compare on this text instead.
        lm: The model of the tokens, if it is loaded already.
        device: Where models are loaded.
        quiet: Show no progress.

    Raises:
        UsageError: The runs have no target or no tokens in common, or the folder is something else's.
    """
    from saelab.viz.comparison import comparison_page  # plotly, which training alone does without

    given = [runs] if isinstance(runs, Run | Path | str) else list(runs)
    folder = comparison_place(given, out)
    found = _expand(given)
    source = TokenSource(store=store, text=text_to_evaluate(text) if isinstance(text, str) else text)
    how = HowToCompare(
        out=folder, config=EvaluationConfig(tokens=parse_count(tokens)), device=device, quiet=quiet
    )
    with comparison_folder(folder):
        comparison = compare_runs(found.runs, source, how=how, lm=lm, left_out=found.left_out)
        write_comparison(folder, comparison, comparison_page(comparison))
    return comparison


def comparison_place(given: Sequence[Run | Path | str], out: Path | str | None) -> Path:
    """Return the folder of a comparison.

    Raises:
        UsageError: None was given, and there is not just one group.
    """
    if out is not None:
        return Path(out)
    if len(given) == 1 and not isinstance(given[0], Run) and (Path(given[0]) / GROUP).exists():
        return Path(given[0]) / "comparison"
    raise UsageError("say with --out where the comparison goes; only a single group has a place for it")


def _expand(given: Sequence[Run | Path | str]) -> RunList:
    parts = [RunList((one,), ()) if isinstance(one, Run) else expand_runs([one]) for one in given]
    if not parts:
        raise UsageError("give at least one run folder")
    return RunList(
        tuple(run for part in parts for run in part.runs),
        tuple(reason for part in parts for reason in part.left_out),
    )
