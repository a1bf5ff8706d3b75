"""What is known of an SAE that somebody else trained: the `config.json` of an imported run. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from saelab.errors import DamagedFileError
from saelab.fields import read_fields

IMPORTED = "imported"
"""The one key of an imported run's `config.json`; a trained run has its configuration there."""


@dataclass(frozen=True, kw_only=True)
class ImportedConfig:
    """Where an imported SAE came from. How it was trained is not recorded here: we cannot know it."""

    format: str
    """Whose format it was, for example ``saelens``."""
    architecture: str
    """What that format calls this kind of SAE."""
    source: str
    """Where it was: an absolute path, or an address of the hub."""
    revision: str | None
    """Commit of the hub's repository; null for local files."""
    files: dict[str, str]
    """Digest of each file that was read, by its name there."""
    width: int
    """Number of features, d_sae."""
    hook: str
    """Where it reads activations; the module path where that is known."""
    hook_given: str | None
    """What its own files call that place; null where they are silent."""
    model_given: str | None
    """What its own files call the language model; null where they are silent."""
    model: str | None
    """The model that whoever imported it named and that was looked at: ``embedded``, a folder or a hub name."""
    model_revision: str | None
    """Branch, tag or commit of that model."""
    adapter: str | None
    """LoRA adapter of that model."""
    context: int | None
    """Tokens in a row of the text that it was trained on, as its own files say."""
    measured_on: str | None
    """Text that the statistics of its features were measured on; null where they were not."""
    measured_tokens: int | None
    """Tokens of that text at most."""
    told: dict[str, Any]
    """What whoever imported it answered where the files are silent."""
    notes: tuple[str, ...]
    """What of the original was left behind or is doubtful, one sentence each."""

    def to_json(self) -> dict[str, Any]:
        """Return the file's content as plain JSON values."""
        return {IMPORTED: asdict(self)}


def imported_config_from_json(raw: Any, where: str) -> ImportedConfig:
    """Read an imported run's configuration strictly.

    Raises:
        DamagedFileError: Naming the field and the file ``where`` it stands.
    """
    if not isinstance(raw, dict) or set(raw) != {IMPORTED}:
        raise DamagedFileError(f"{where} is not the configuration of an imported run")
    return read_fields(ImportedConfig, raw[IMPORTED], where, DamagedFileError)
