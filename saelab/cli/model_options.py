"""The options that say how a language model is loaded, the same in every command."""

from __future__ import annotations

from dataclasses import dataclass

from saelab.lm.spec import DeviceMap, Dtype, ModelSpec


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Mixed into a command's options; the model's name stays a positional of the command."""

    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    device: str = "auto"
    """Device of the language model: auto, cuda, cuda:1, mps or cpu."""
    model_dtype: Dtype = "auto"
    """Number format of the model's weights; auto is float32 on the CPU and the saved one elsewhere."""
    device_map: DeviceMap | None = None
    """Spread the model over several devices (needs accelerate)."""
    adapter: str | None = None
    """LoRA adapter, a folder or a hub name, merged into the weights (needs peft)."""

    def model_spec(self, name: str) -> ModelSpec:
        """Return the model of that name with these options."""
        return ModelSpec(
            name=name,
            revision=self.revision,
            device=self.device,
            dtype=self.model_dtype,
            device_map=self.device_map,
            adapter=self.adapter,
        )
