"""A finished run on disk: what it was told, what it was trained on or where it was imported from, and its SAE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.activations.spec import LiveConfig, live_config_from_json
from saelab.activations.statistics import HookStatistics
from saelab.errors import DamagedFileError, UsageError
from saelab.sae.autoencoder import SparseAutoencoder
from saelab.sae.files import load_sae
from saelab.storage.files import read_json
from saelab.storage.manifest import check_file, read_manifest
from saelab.storage.tensors import read_tensors
from saelab.training.config import TrainConfig, train_config_from_json
from saelab.training.imported import IMPORTED, ImportedConfig, imported_config_from_json

CONFIG, SAE, ACTIVATIONS = "config.json", "sae", "activations.safetensors"
CHECKPOINTS, LENGTHS, GROUP = "checkpoints", "lengths", "group.json"


@dataclass(frozen=True)
class Run:
    """A finished run on disk."""

    path: Path
    trained: TrainConfig | None
    """How it was trained; None for an SAE that was imported."""
    store_path: Path | None
    """The store that it was trained on; None where it was trained live."""
    live: LiveConfig | None
    """The model, text and packing that it was trained on live; None where it was trained on a store."""
    aligned_paths: tuple[Path, ...] = ()
    """Further stores of the same tokens, beside ``store_path`` (crosscoders of several models)."""
    imported: ImportedConfig | None = None
    """Where it came from; None for an SAE that was trained here."""

    @property
    def config(self) -> TrainConfig:
        """How it was trained.

        Raises:
            UsageError: It was imported, so that nobody here knows.
        """
        if self.trained is None:
            raise UsageError(f"{self.path} was imported: how it was trained, and on what, is not known here")
        return self.trained

    @property
    def description(self) -> TrainConfig | ImportedConfig:
        """How it was trained, or where it was imported from."""
        return self.config if self.imported is None else self.imported

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Open a finished run.

        Raises:
            DamagedFileError: It is not a run, or was never finished.
            UsageError: Its configuration is one that cannot work.
        """
        path = Path(path)
        content = read_manifest(path, "run").content
        if IMPORTED in content:
            raw = read_json(path / CONFIG)
            return cls(path, None, None, None, imported=imported_config_from_json(raw, str(path / CONFIG)))
        config = read_config(path)
        config.check()
        if "live" in content:
            live = live_config_from_json(content["live"], f"{path}: its manifest")
            return cls(path, config, None, live)
        first = _store_path(path, content.get("store"))
        others = content.get("aligned_stores", [])
        if not isinstance(others, list):
            raise DamagedFileError(f"{path}: its manifest names the aligned stores {others!r}")
        return cls(path, config, first, None, tuple(_store_path(path, name) for name in others))

    def sae(self) -> SparseAutoencoder:
        """Load the trained SAE."""
        return load_sae(self.path / SAE)

    def activation_statistics(self, hook: str | None = None) -> HookStatistics:
        """Return the statistics of the activations that it was trained on, as they were at its start.

        Args:
            hook: Module path of one of its hookpoints; the one that it reads where not given.

        Raises:
            DamagedFileError: They are missing or damaged.
        """
        hook = hook or self.config.hook
        manifest = read_manifest(self.path, "run")
        check_file(self.path, ACTIVATIONS, manifest)
        mean = read_tensors(self.path / ACTIVATIONS).get(f"mean.{hook}")
        scalars = manifest.content.get("statistics")
        if mean is None or mean.dim() != 1 or not isinstance(scalars, dict):
            raise DamagedFileError(f"{self.path / ACTIVATIONS} holds no mean of {hook}")
        return HookStatistics.from_parts(scalars.get(hook), mean)


def read_config(folder: Path) -> TrainConfig:
    """Read the configuration of the run in a folder, finished or not.

    Raises:
        DamagedFileError: There is none, or it is not JSON.
        UsageError: It is not that of a run, or a field is unknown, missing or mistyped.
    """
    raw = read_json(folder / CONFIG)
    if isinstance(raw, dict) and IMPORTED in raw:
        raise UsageError(
            f"{folder} holds an imported SAE, which is no run to go on with; choose another folder"
        )
    if not isinstance(raw, dict) or "recipe" not in raw:
        raise UsageError(f"{folder} holds a {CONFIG} that is not that of a run; choose another folder")
    return train_config_from_json(raw, str(folder / CONFIG))


def _store_path(path: Path, name: Any) -> Path:
    if not isinstance(name, str):
        raise DamagedFileError(f"{path}: its manifest does not name a store")
    try:
        return (path / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have
        raise DamagedFileError(f"{path}: its manifest names the store {name!r}: {error}") from error
