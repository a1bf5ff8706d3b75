"""`saelab index RUN...`: what every feature does; `saelab index add RUN PART` adds a table to an index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from saelab.cli.options import Common, Count, Result
from saelab.cli.text_options import TextOptions
from saelab.errors import UsageError
from saelab.features.spec import DEFAULT_PARTS, PARTS, IndexConfig, Mode, Part

if TYPE_CHECKING:
    from saelab.features.indexing import HowToIndex, IndexSource

ADD = "add"


@dataclass(frozen=True, kw_only=True)
class Options(TextOptions, Common):
    """Build the feature index of runs: where each feature is active, how strongly, what it promotes, what is near it.

    `saelab index RUN...` builds, goes on with an interrupted build, or extends an index by more tokens.
    `saelab index add RUN PART...` adds tables to an index that is there.
    """

    runs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN...")]]
    """Run folders and groups; or `add`, one run, and the parts to add: neighbors, coactivation, near-miss."""
    store: Path | None = None
    """Index all documents of this store instead of the run's own."""
    text: str | None = None
    """Index this text, through each run's own model."""
    tokens: Count = 0
    """Kept tokens to index at most, in whole rows; of a store all, of a text 1M where not given."""
    name: str = "main"
    """Name of the index, in each run's folder indexes."""
    parts: tuple[Part, ...] = DEFAULT_PARTS
    """Further tables: nearest decoder directions, features active together, places just below the threshold."""
    mode: Mode = "exact"
    """`exact` keeps all codes on disk while it works; `streaming` keeps a bounded state, for 100M tokens and more."""
    top: int = IndexConfig.top
    """Strongest examples of a feature."""
    seed: int = IndexConfig.seed
    """Decides which examples are drawn."""
    keep_codes: bool | None = None
    """Keep every (token, feature) pair, for `find` and for parts that are added later; by default up to 10 GB."""
    out: Path | None = None
    """Keep the indexes in this folder instead, by the identity of the SAE: for runs that are read-only."""
    device: str = "auto"
    """Where the model and the SAE run."""


def run(options: Options) -> Result:
    """Run the command."""
    from saelab.evaluation.run_list import expand_runs
    from saelab.features.indexing import add_parts, index_runs
    from saelab.interrupts import stop_on_signals

    with stop_on_signals() as stop:
        if options.runs[0] == ADD:
            found = expand_runs(options.runs[1:2])
            places = [
                add_parts(one, _parts(options), _source(options), _how(options), stop=stop)
                for one in found.runs
            ]
        else:
            found = expand_runs([Path(one) for one in options.runs])
            places = index_runs(found.runs, _source(options), _how(options), stop=stop)
    records = [_describe(place) for place in places]
    text = "\n".join(_line(record) for record in records)
    text += "".join(f"\nwarning: {reason}" for reason in found.left_out)
    if len(records) == 1 and not found.left_out:
        return Result(records[0], text)
    return Result({"runs": records, "left_out": list(found.left_out)}, text)


def _parts(options: Options) -> list[Part]:
    known: dict[str, Part] = {part: part for part in PARTS}
    asked = options.runs[2:]
    unknown = [part for part in asked if part not in known]
    if unknown or not asked:
        wrong = f"{unknown[0]!r} is no part" if unknown else "name at least one part"
        raise UsageError(f"{wrong}; there are {', '.join(PARTS)}: saelab index add RUN PART...")
    return [known[part] for part in asked]


def _source(options: Options) -> IndexSource:
    from saelab.activations.store import Store
    from saelab.features.indexing import IndexSource

    text = None
    if options.text is not None:
        text = options.text_spec(options.text)
    elif options.text_spec("stdlib") != TextOptions().text_spec("stdlib"):
        raise UsageError("--subset, --split, --column and the other options of a text go with --text")
    return IndexSource(store=None if options.store is None else Store.open(options.store), text=text)


def _how(options: Options) -> HowToIndex:
    from saelab.features.indexing import HowToIndex

    return HowToIndex(
        config=IndexConfig(tokens=options.tokens, mode=options.mode, top=options.top, seed=options.seed),
        parts=options.parts,
        name=options.name,
        keep_codes=options.keep_codes,
        out=options.out,
        device=options.device,
    )


def _describe(place: Path) -> dict[str, Any]:
    from saelab.storage.manifest import read_manifest

    manifest = read_manifest(place, "index")
    content = manifest.content
    return {
        "index": str(place),
        "n_features": content["sae"]["d_sae"],
        "n_alive": content["n_alive"],
        "n_tokens": content["corpus"]["n_kept"],
        "n_documents": content["corpus"]["n_documents"],
        "parts": content["parts"],
        "has_codes": content["has_codes"],
        "approximate": content.get("approximate", []),
        "bytes": sum(facts["bytes"] for facts in manifest.files.values()),
    }


def _line(record: dict[str, Any]) -> str:
    from saelab.quantities import format_bytes

    parts = ", ".join([*record["parts"], *(["codes"] if record["has_codes"] else [])])
    sampled = ", ".join(record["approximate"])
    return (
        f"{record['index']}: {record['n_features']:,} features ({record['n_alive']:,} alive) over "
        f"{record['n_tokens']:,} tokens of {record['n_documents']:,} documents, {format_bytes(record['bytes'])}; "
        f"{parts}" + (f"\n  estimated from samples: {sampled}" if sampled else "")
    )
