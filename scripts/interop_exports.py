"""Export runs of ours, and write down what the other tools compute from the files that they are given."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# The tools are not in the environment that is checked.
from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saelab.interop.answers import Answers
from saelab.interop.formats import writer
from saelab.interop.importing import import_run
from saelab.interop.read import read_foreign
from saelab.interop.writing import ExportRequest

EXPORTS = (
    ("saelens-standard", "saelens"),
    ("saelens-topk-rescaled", "saelens"),
    ("saelens-topk-free-norms", "saelens"),
    ("saelens-topk-constant-norm", "saelens"),
    ("saelens-standard-layer-norm", "saelens"),
    ("saelens-jumprelu", "saelens"),
    ("gemma-scope", "saelens"),
    ("openai-topk", "saelens"),
    ("saelens-gated", "saelens"),
    ("saelens-transcoder", "saelens"),
    ("saelens-skip-transcoder", "saelens"),
    ("saelens-jumprelu-transcoder", "saelens"),
    ("saelens-jumprelu-skip-transcoder", "saelens"),
    ("saelens-topk-rescaled", "sparsify"),
    ("sparsify-topk", "sparsify"),
    ("sparsify-skip-transcoder", "sparsify"),
    ("saelens-standard", "dictionary-learning"),
    ("saelens-standard-no-input-bias", "dictionary-learning"),
    ("saelens-topk-rescaled", "dictionary-learning"),
    ("saelens-jumprelu", "dictionary-learning"),
    ("saelens-gated", "dictionary-learning"),
)
"""Which case is imported and to which format it is exported."""


def export_all(out: Path, record: Callable[..., None]) -> None:
    """Write every export, with what the tool computes from it."""
    import make_interop_fixtures as fixtures
    from sae_lens import SAE
    from sparsify import SparseCoder

    for case, to in EXPORTS:
        folder = out / "exports" / f"{case}-to-{to}"
        with tempfile.TemporaryDirectory() as place:
            run = import_run(read_case(out / case), Path(place) / "run").run
            made = writer(to).write(ExportRequest(run=run, out=folder / "sae"))
        about: dict[str, Any] = {"case": case, "to": to}
        if to == "saelens":
            fixtures.saelens_record(folder, SAE.load_from_disk(folder / "sae"), **about)
        elif to == "sparsify":
            inside = made.files[0].parent
            fixtures.sparsify_record(folder, SparseCoder.load_from_disk(inside), **about)
        else:
            fixtures.dictionary_record(folder, folder / "sae", **about)


def read_case(folder: Path):
    """Read a case as its `about.json` says."""
    import json

    about = json.loads((folder / "about.json").read_text())
    target = "blocks.2.hook_mlp_out" if "transcoder" in folder.name else None
    return read_foreign(
        folder / about["sae"],
        answers=Answers(at="blocks.2.hook_resid_post", target_at=target, **about["options"]),
        allow_pickle=about.get("allow_pickle", False),
    )
