"""The evaluations that a comparison needs: taken from records that are there, measured where there is none.

Nothing is written into the runs: what is measured is kept in an overlay inside the comparison's own folder,
where the next comparison finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saelab.errors import DamagedFileError
from saelab.evaluation.comparison.common import Common
from saelab.evaluation.comparison.rows import read_metrics
from saelab.evaluation.origin import same_origin
from saelab.evaluation.records import evaluations_folder
from saelab.evaluation.sources import Tokens
from saelab.evaluation.spec import EvaluationConfig
from saelab.sae.files import sae_identity
from saelab.storage.files import read_json
from saelab.storage.manifest import MANIFEST_NAME, check_file, read_manifest
from saelab.training.run import SAE, Run

Record = dict[str, Any]
Evaluate = Callable[[Sequence[Run], Tokens], Sequence[Record]]


def records_of(
    runs: Sequence[Run], common: Common, config: EvaluationConfig, overlay: Path, evaluate: Evaluate
) -> list[Record]:
    """Return the record of each run, in their order.

    Args:
        runs: Finished runs.
        common: The tokens.
        config: How much is evaluated; a record of another configuration is not taken.
        overlay: Where records of earlier comparisons are looked for, beside the runs' own.
        evaluate: Measures the runs that have no record.
    """
    found: dict[int, Record] = {}
    for tokens, members in common.members.items():
        wanted = {"tokens_hash": common.digest, "config": asdict(config)}
        missing = []
        for index in members:
            record = known_record(runs[index], wanted, tokens, overlay)
            if record is None:
                missing.append(index)
            else:
                found[index] = record
        if missing:
            measured = evaluate([runs[index] for index in missing], tokens)
            found |= dict(zip(missing, measured, strict=True))
    return [found[index] for index in range(len(runs))]


def known_record(run: Run, wanted: dict[str, Any], tokens: Tokens, overlay: Path) -> Record | None:
    """Return a record of this SAE on these tokens, evaluated in the same way; damaged ones are passed over."""
    wanted = wanted | {"sae_identity": sae_identity(run.path / SAE)}
    for folder in (evaluations_folder(run), evaluations_folder(run, overlay)):
        for record in _sound_records(folder):
            source = record.get("source")
            if all(record.get(key) == value for key, value in wanted.items()) and (
                isinstance(source, dict) and same_origin(source, tokens.origin.to_json())
            ):
                return record
    return None


def _sound_records(folder: Path) -> list[Record]:
    if not (folder / MANIFEST_NAME).exists():
        return []
    found = []
    try:
        manifest = read_manifest(folder, "evaluations")
    except DamagedFileError:
        return []
    for name in sorted(manifest.files):
        try:
            check_file(folder, name, manifest)
            record = read_json(folder / name)
            read_metrics(record, str(folder / name))
        except DamagedFileError:
            continue
        found.append(record)
    return found
