"""LoRA adapters: read with the optional package peft and merged into the weights they were made for."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from saelab.errors import DamagedFileError, SaelabError
from saelab.lm.quiet import quiet_transformers
from saelab.lm.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ModelFiles, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def require_peft() -> Any:
    """Return the package peft.

    Raises:
        SaelabError: It is not installed; the message says how to.
    """
    try:
        import peft
    except ImportError as error:
        raise SaelabError(
            f"a LoRA adapter needs the package peft ({first_line(error)}): "
            "run `pip install 'saelab[adapters]'`"
        ) from error
    return peft


def merge_adapter(model: PreTrainedModel, files: ModelFiles) -> PreTrainedModel:
    """Merge a LoRA adapter into a model's weights.

    Args:
        model: The base model; its weights are changed.
        files: The adapter, as PEFT saved it.

    Returns:
        The model, with the modules that it had before.

    Raises:
        SaelabError: The adapter is not a LoRA, is damaged, or was made for another model.
    """
    peft = require_peft()
    kind = _kind_of(files)
    if kind != "LORA":
        raise SaelabError(f"the adapter {files.name} is of type {kind}; saelab merges LORA adapters only")
    try:
        with (
            quiet_transformers(),
            warnings.catch_warnings(),
            safe_open(files.folder / ADAPTER_WEIGHTS, "pt") as file,
        ):
            warnings.simplefilter("ignore")  # what matters of it is checked below
            saved = set(file.keys())
            wrapped = peft.PeftModel.from_pretrained(model, str(files.folder))
            expected = set(peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    except (OSError, SafetensorError) as error:
        raise DamagedFileError(f"cannot read the adapter {files.name}: {first_line(error)}") from error
    # Adapters of other models fail anywhere inside the library, with any type.
    except Exception as error:
        raise SaelabError(f"the adapter {files.name} does not fit the model: {first_line(error)}") from error
    # peft would go on with random weights in place of missing ones, and drop what it has no place for.
    if saved != expected:
        odd = sorted(saved ^ expected)
        raise SaelabError(
            f"the adapter {files.name} does not fit the model: {len(odd)} weights are missing or have no place, "
            f"as {odd[0]}"
        )
    return wrapped.merge_and_unload(safe_merge=True)


def _kind_of(files: ModelFiles) -> str:
    try:
        return str(json.loads((files.folder / ADAPTER_CONFIG).read_text())["peft_type"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{files.folder / ADAPTER_CONFIG} does not describe an adapter") from error
