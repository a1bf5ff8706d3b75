"""Print the table of docs/formats.md: how far what is read and written here is from what the tools compute.

    python scripts/interop_table.py tests/interop/fixtures

Differences are the largest over all tokens; activations are compared as lengths, the unit that every tool means.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from saelab.interop.read import load_foreign, read_foreign
from saelab.storage.tensors import read_tensors


def main(fixtures: Path) -> None:
    """Print one line for each case and each export."""
    print("| case | made and computed by | format | activations | reconstruction |")
    print("|---|---|---|---|---|")
    for folder in sorted(path.parent for path in fixtures.glob("*/about.json")):
        print(row(folder, folder.name))
    for folder in sorted(path.parent for path in fixtures.glob("exports/*/about.json")):
        print(row(folder, folder.name.replace("-to-", " exported to ")))


def row(folder: Path, name: str) -> str:
    """Return the line of one case."""
    about = json.loads((folder / "about.json").read_text())
    place = folder / about["sae"]
    if about.get("to") == "sparsify":
        place = next(place.iterdir())
    found = read_foreign(place, allow_pickle=True)
    sae, expected = load_foreign(found), read_tensors(folder / "expected.safetensors")
    x_hat, code = sae.reconstruct(expected["x"])
    lengths = code.dense() * sae.W_dec.norm(dim=1)
    features = float((lengths - expected["features"] * expected["length"]).abs().max())
    error = float((x_hat - expected["x_hat"]).abs().max())
    return f"| {name} | {about['made_by']} | {found.format} | {features:.1e} | {error:.1e} |"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
