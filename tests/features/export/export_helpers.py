"""An index whose manifest names its model and hookpoint, with a token that databases cannot keep."""

from dataclasses import replace
from pathlib import Path

from index_helpers import D_SAE, TOKENS, Known, make_run, write_index

from saelab.features.export.options import IndexExportOptions
from saelab.sae.files import sae_identity

QUIET = IndexExportOptions(batch=16, quiet=True)


def run_to_export(folder: Path, known: Known, model: str = "Org/Small-2B") -> Path:
    """Write a run with an index of `known` in a folder."""
    run = make_run(folder / "run")
    sae = {
        "identity": sae_identity(run / "sae"),
        "d_sae": D_SAE,
        "input_hooks": ["model.layers.3.output"],
        "hook_aliases": ["blocks.3.hook_resid_post"],
    }
    content = known.content | {"sae": sae, "model": {"name": model}}
    write_index(run / "indexes" / "main", replace(known, content=content), run / "sae")
    return run


def text_of(token: int) -> str:
    return TOKENS[token][1]
