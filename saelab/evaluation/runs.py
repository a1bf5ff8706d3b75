"""Evaluate a run folder: find its store and model, and keep the record beside the SAE."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from saelab.activations.cache import cache_activations
from saelab.activations.request import saved_config
from saelab.activations.store import Store
from saelab.errors import DamagedFileError, UsageError
from saelab.evaluation.evaluate import Evaluation, evaluate
from saelab.evaluation.spec import EvaluationConfig
from saelab.lm.load import LanguageModel, load_model
from saelab.sae.files import sae_identity
from saelab.storage.files import remove_leftovers, write_json
from saelab.storage.lock import locked
from saelab.storage.manifest import MANIFEST_NAME, read_manifest, write_manifest
from saelab.text.documents import HELDOUT_SHARE
from saelab.text.spec import TextSpec
from saelab.training.run import SAE, Run

EVALUATIONS = "evaluations"


def store_of(run: Run) -> Store:
    """Open the store that a run was trained on.

    Raises:
        UsageError: The run's own store is not where it was, or is not the same any more.
    """
    if not run.store_path.exists():
        raise UsageError(f"the store of {run.path} is not at {run.store_path} any more; give it with --store")
    store = Store.open(run.store_path)
    if store.identity != run.config.store_identity:
        raise UsageError(
            f"{run.store_path} is not the store that {run.path} was trained on; give one with --store"
        )
    return store


def model_of(store: Store, given: LanguageModel | None = None) -> LanguageModel | None:
    """Load the language model of a store; None for activations that have none."""
    if given is not None:
        return given
    spec = store.model_spec()
    return None if spec is None else load_model(spec)


def evaluate_run(
    run: Run,
    *,
    store: Store | None = None,
    text: str | None = None,
    config: EvaluationConfig | None = None,
    lm: LanguageModel | None = None,
    name: str = "heldout",
    quiet: bool = False,
) -> Evaluation:
    """Evaluate a run and write ``RUN/evaluations/NAME.json``.

    Args:
        run: A finished run.
        store: Evaluate on the held-out documents of this store instead of the run's own.
        text: Evaluate on a text source instead: held-out documents of ``stdlib``, all of a file.
        config: How much is evaluated.
        lm: The store's model, if it is loaded already.
        name: Name of the record.
        quiet: Show no progress.

    Raises:
        UsageError: Store, text and run do not belong together.
    """
    if store is not None and text is not None:
        raise UsageError("give --store or --text, not both")
    if not name.replace("-", "").replace("_", "").isalnum() or f"{name}.json" == MANIFEST_NAME:
        raise UsageError(f"{name!r} cannot name a record; use letters, digits, - and _")
    config, sae = config or EvaluationConfig(), run.sae()
    if text is None:
        store = store or store_of(run)
        evaluation = evaluate(
            sae, store, run.config.hook, model_of(store, lm), config=config, progress=not quiet
        )
    else:
        home = store_of(run)
        mean = home.statistics(run.config.hook).mean  # of training tokens, which the text has none of
        with _text_store(run, home, text, config.tokens, lm, quiet) as other:
            model = model_of(other, lm)
            evaluation = evaluate(
                sae, other, run.config.hook, model, mean=mean, config=config, progress=not quiet
            )
    _write(run, name, evaluation)
    return evaluation


@contextmanager
def _text_store(
    run: Run, home: Store, text: str, tokens: int, lm: LanguageModel | None, quiet: bool
) -> Iterator[Store]:
    """Cache a text for the time of one evaluation, as the run's own store was cached."""
    if not home.has_tokens:
        raise UsageError(f"{home.path} holds activations without a model: a text cannot be evaluated")
    share = HELDOUT_SHARE if text.startswith("stdlib") else 1.0
    config = replace(
        saved_config(home.path),
        text=TextSpec(source=text, heldout_share=share, only_heldout=True),
        at=(run.config.hook,),
        tokens=tokens,
        loss=False,
        gradients=False,
    )
    with tempfile.TemporaryDirectory(prefix="saelab-") as folder:
        yield cache_activations(config, Path(folder) / "store", progress=not quiet, lm=lm)


def _write(run: Run, name: str, evaluation: Evaluation) -> None:
    """Add one record; entries of other records stay as they are, so that damage to them stays visible."""
    folder, file = run.path / EVALUATIONS, f"{name}.json"
    record = evaluation.to_json() | {"sae_identity": sae_identity(run.path / SAE)}
    content = {"run": run.path.name}
    with locked(folder, "evaluate"):
        remove_leftovers(folder)
        known = {}
        if (folder / MANIFEST_NAME).exists():
            known = {k: v for k, v in read_manifest(folder, "evaluations").files.items() if k != file}
            write_manifest(folder, "evaluations", [], content, known)
        write_json(folder / file, record)
        write_manifest(folder, "evaluations", [file], content, known)


def open_run(path: Path | str) -> Run:
    """Open a run, with a message that helps where the path is something else."""
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path} does not exist; saelab ls shows what is here")
    try:
        return Run.open(path)
    except DamagedFileError as error:
        if (path / "config.json").exists() and not (path / "manifest.json").exists():
            raise UsageError(f"{path} is a run that is not finished; run its train command again") from error
        raise
