"""Which language model to load and how: plain data, free of torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from saelab.storage.places import whole_path

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]

IN_PYTHON = "module:"
"""Begins the names of models that were not loaded but handed over as modules."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A language model by name, and how to hold it in memory."""

    name: str = "embedded"
    """``embedded``, a local folder in the Hugging Face layout, or a name on the hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; local models have none."""
    device: str = "auto"
    """Where the model runs; ``auto`` takes cuda, then mps, then cpu."""
    dtype: Dtype = "auto"
    """Number format of the weights; ``auto`` is float32 on the CPU and the saved one elsewhere."""
    device_map: DeviceMap | None = None
    """How accelerate spreads the model over devices; then ``device`` stays ``auto``. None: one device."""
    adapter: str | None = None
    """Folder or hub name of a LoRA adapter (PEFT), merged into the weights when the model is loaded."""

    def resolved(self) -> ModelSpec:
        """Return the same model with absolute paths for what is local, so that it can be recorded.

        ``embedded``, modules, hub names, and whatever is not there stay as they are.
        """
        is_built_in = self.name == "embedded" or self.name.startswith(IN_PYTHON)
        return replace(
            self,
            name=self.name if is_built_in else _whole(self.name),
            adapter=None if self.adapter is None else _whole(self.adapter),
        )


def _whole(name: str) -> str:
    return whole_path(name) if name and Path(name).expanduser().is_dir() else name
