"""The small language model that is shipped inside the package, so that everything works offline."""

from __future__ import annotations

from pathlib import Path

from saelab.errors import SaelabError

_FOLDER = Path(__file__).parent / "model"
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def model_folder() -> Path:
    """Return the folder of the embedded model, in the Hugging Face layout.

    Raises:
        SaelabError: The installation lacks one of its files.
    """
    missing = [name for name in _FILES if not (_FOLDER / name).is_file()]
    if missing:
        raise SaelabError(
            f"the embedded model is incomplete: {_FOLDER} lacks {', '.join(missing)}; "
            "install saelab again, or name another model"
        )
    return _FOLDER
