"""`saelab ls [FOLDER]`: what is here, how large, and from what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from saelab.cli.options import Common, Result
from saelab.errors import DamagedFileError
from saelab.quantities import format_bytes


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """List the stores and runs in a folder."""

    folder: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FOLDER")]] = Path("runs")
    """Where to look, subfolders included."""


def run(options: Options) -> Result:
    """Run the command."""
    from saelab.storage.files import read_json
    from saelab.storage.inspect import list_folders

    entries: list[dict[str, Any]] = []
    for folder in list_folders(options.folder):
        entry = {
            "path": str(folder.path),
            "kind": folder.kind,
            "bytes": folder.n_bytes,
            "content": folder.content,
        }
        if folder.kind in ("run", "unfinished"):
            try:
                entry["config"] = read_json(folder.path / "config.json")
                entry["about"] = _about_run(entry["config"])
            except (DamagedFileError, KeyError, TypeError, AttributeError) as error:
                entry |= {"kind": "damaged", "about": f"its config.json cannot be read: {error}"}
        else:
            entry["about"] = _about(folder.kind, folder.content)
        entries.append(entry)
    lines = [f"{e['kind']:<10} {format_bytes(e['bytes']):>10}  {e['path']}  {e['about']}" for e in entries]
    return Result(
        {"folder": str(options.folder), "entries": entries}, "\n".join(lines) or "nothing of saelab here"
    )


def _about_run(config: dict[str, Any]) -> str:
    if (found := config.get("imported")) is not None:
        what = f"{found['format']} {found['architecture']}"
        return f"imported ({what}), {found['width']:,} features at {found['hook']}, from {found['source']}"
    options = ", ".join(f"{name}={value}" for name, value in config["recipe"].items() if name != "name")
    return f"{config['recipe']['name']} ({options}), {config['width']:,} features at {config['hook']}"


def _about(kind: str, content: dict[str, Any]) -> str:
    if kind == "store":
        hooks = ", ".join(hook["alias"] or hook["module_path"] for hook in content["hooks"])
        model = content.get("model") or {}
        return f"{model.get('name', 'own activations')} at {hooks}"
    return str(content.get("problem", ""))
