"""Which model it was: a hash over configuration and weights, so that equal names cannot deceive."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.errors import DamagedFileError, SaelabError
from saelab.storage.files import read_json
from saelab.storage.manifest import digest_of, digest_of_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# What transformers writes into a config about itself; it does not change what the model computes.
_VOLATILE = {"_name_or_path", "transformers_version"}


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """A loaded model as it is recorded beside everything made from it."""

    hash: str
    """128-bit blake2b over the configuration and the content of the weight files: what decides equality."""
    name: str
    """``embedded``, the folder's own name, or the hub name; for people."""
    revision: str | None
    """Commit of a hub model."""
    dtype: str
    """Number format that the weights were loaded in, for example ``float32``."""
    attention: str
    """Attention implementation, for example ``sdpa``."""
    tokenizer_hash: str
    """128-bit blake2b over what the tokenizer does with text."""

    def to_json(self) -> dict[str, str | None]:
        """Return the record as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Any) -> ModelIdentity:
        """Read a record back.

        Raises:
            DamagedFileError: A field is missing, unknown, or not text.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(raw, dict) or set(raw) != names:
            raise DamagedFileError(
                f"a model identity has the fields {', '.join(sorted(names))}; found {raw!r}"
            )
        wrong = [
            n
            for n in sorted(names)
            if not isinstance(raw[n], str) and not (n == "revision" and raw[n] is None)
        ]
        if wrong:
            raise DamagedFileError(f"the model identity's {wrong[0]} is {raw[wrong[0]]!r}, not text")
        return cls(**raw)


def hash_model(folder: Path) -> str:
    """Hash a model folder's configuration and the content of its weight files.

    Args:
        folder: Hugging Face layout; every ``*.safetensors`` file directly in it counts, in the
            order of the names. Two models that differ in one weight differ in this hash.

    Raises:
        SaelabError: There are no safetensors weights, or a file cannot be read.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise DamagedFileError(f"{folder / 'config.json'} is not a model configuration")
    weight_files = sorted(folder.glob("*.safetensors"))
    if not weight_files:
        raise SaelabError(
            f"{folder} has no *.safetensors weights; other formats are not read, convert them first"
        )
    stable = {key: value for key, value in config.items() if key not in _VOLATILE}
    return digest_of(
        json.dumps([stable, [digest_of_file(path) for path in weight_files]], sort_keys=True).encode()
    )


def hash_tokenizer(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hash what decides the token ids of a text: vocabulary, rules and the special tokens' ids.

    Truncation and padding are left out: they are settings of a call that transformers keeps in the
    tokenizer, and would make the hash depend on what was encoded before.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules.pop("truncation", None)
    rules.pop("padding", None)
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    return digest_of(json.dumps([rules, special], sort_keys=True).encode())
