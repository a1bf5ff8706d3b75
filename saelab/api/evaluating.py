"""Evaluating in Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.activations.store import Store
from saelab.errors import UsageError
from saelab.evaluation.run_list import expand_runs, open_run
from saelab.evaluation.runs import HowToEvaluate, evaluate_runs
from saelab.evaluation.sources import TokenSource, text_to_evaluate
from saelab.evaluation.spec import EvaluationConfig
from saelab.lm.load import LanguageModel
from saelab.lm.spec import ModelSpec
from saelab.quantities import parse_count
from saelab.text.spec import TextSpec
from saelab.training.run import Run

if TYPE_CHECKING:
    from saelab.evaluation.evaluate import Evaluation


def evaluate(
    run: Run | Path | str,
    *,
    tokens: int | str = "65536",
    store: Store | None = None,
    text: str | TextSpec | None = None,
    model: str | ModelSpec | None = None,
    lm: LanguageModel | None = None,
    **options: Any,
) -> Evaluation:
    """Evaluate one finished run and keep the record in it; see `evaluate_many`."""
    if not isinstance(run, Run | Path | str):
        raise UsageError("evaluate takes one run; evaluate_many takes several")
    run = run if isinstance(run, Run) else open_run(run)
    return evaluate_many([run], tokens=tokens, store=store, text=text, model=model, lm=lm, **options)[0]


def evaluate_many(
    runs: Sequence[Run | Path | str] | Run | Path | str,
    *,
    tokens: int | str = "65536",
    store: Store | None = None,
    text: str | TextSpec | None = None,
    model: str | ModelSpec | None = None,
    lm: LanguageModel | None = None,
    **options: Any,
) -> list[Evaluation]:
    """Evaluate finished runs, those at one hookpoint on one clean pass of the model, and keep their records.

    Args:
        runs: Runs, their folders, or groups, which stand for their finished members; one of them or several.
        tokens: Held-out tokens to evaluate at most.
        store: Evaluate on the held-out documents of this store instead of each run's own.
        text: Evaluate on this text instead.
        model: Evaluate on this model instead; it needs ``allow_model_mismatch``.
        lm: The model of the tokens, if it is loaded already.
        options: Further fields of `HowToEvaluate`, for example ``name``, ``out`` or ``quiet``.

    Raises:
        UsageError: Runs, store, text and model do not belong together; nothing was started.
    """
    runs = [runs] if isinstance(runs, Run | Path | str) else runs
    opened = [one for run in runs for one in ([run] if isinstance(run, Run) else expand_runs([run]).runs)]
    source = TokenSource(
        store=store,
        text=text_to_evaluate(text) if isinstance(text, str) else text,
        model=ModelSpec(name=model) if isinstance(model, str) else model,
    )
    how = HowToEvaluate(config=EvaluationConfig(tokens=parse_count(tokens)), **options)
    return evaluate_runs(opened, source, how, lm=lm)
