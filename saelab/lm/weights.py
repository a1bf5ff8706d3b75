"""Read a model folder's weights and tokenizer into memory, completely or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from saelab.errors import SaelabError
from saelab.lm.architecture import model_class, read_config
from saelab.lm.source import ModelFiles, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def load_weights(
    files: ModelFiles, dtype: torch.dtype | str, device: torch.device, device_map: str | None
) -> PreTrainedModel:
    """Load a folder's model.

    Args:
        files: Where it is.
        dtype: Number format of the weights; ``auto`` is the saved one.
        device: Where to put it, unless there is a map.
        device_map: How accelerate spreads it over devices.

    Raises:
        SaelabError: A file is damaged or of a kind that transformers does not know, weights are
            missing, or accelerate is.
    """
    options: dict[str, Any] = {} if device_map is None else {"device_map": device_map}
    if device_map is not None:
        _require_accelerate(device_map)
    try:
        loaded: Any = model_class(read_config(files.folder)).from_pretrained(
            files.folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except SaelabError:
        raise
    # Damaged or foreign files can fail anywhere inside the library, with any type.
    except Exception as error:
        raise SaelabError(f"cannot load the model {files.name}: {first_line(error)}") from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would go on with random ones
        raise SaelabError(
            f"cannot load the model {files.name}: it lacks {len(missing)} weights, as {missing[0]}"
        )
    return model if device_map is not None else model.to(device)


def _require_accelerate(device_map: str) -> None:
    try:
        import accelerate  # noqa: F401 - transformers uses it
    except ImportError as error:
        raise SaelabError(
            f"device_map {device_map} needs the package accelerate ({first_line(error)}): "
            "run `pip install accelerate`"
        ) from error


def load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerFast:
    """Load a folder's tokenizer.

    Raises:
        SaelabError: There is none, it is damaged, or it has no fast version.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            files.folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # as above
        raise SaelabError(f"cannot load the tokenizer of {files.name}: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise SaelabError(
            f"the tokenizer of {files.name} has no fast version (tokenizer.json), which saelab needs"
        )
    return tokenizer
