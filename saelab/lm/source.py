"""Where a model's files are: inside the package, in a local folder, or downloaded from the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from saelab.errors import SaelabError, UsageError
from saelab.lm.embedded import model_folder
from saelab.lm.spec import ModelSpec

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_CONFIG = "config.json"
# Top-level files only: pickled weights and copies in other formats are neither read nor downloaded.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_HUB_IGNORED = ["*/*", "consolidated*"]


@dataclass(frozen=True)
class ModelFiles:
    """A model's files on this machine."""

    folder: Path
    """Folder with ``config.json``, safetensors weights and the tokenizer."""
    name: str
    """``embedded``, the folder's own name (not its path), or the hub name."""
    revision: str | None
    """Commit that a hub model was resolved to; None for local ones."""


def locate(spec: ModelSpec, *, weights: bool = True) -> ModelFiles:
    """Find a model's files; the network is used for hub names only.

    Args:
        spec: Which model.
        weights: With False only the configuration of a hub model is downloaded.

    Raises:
        UsageError: A revision was given for a local model.
        SaelabError: There is no such folder, or the hub does not hand the model out.
    """
    folder = Path(spec.name).expanduser()
    is_embedded = spec.name == "embedded"
    if not is_embedded and not folder.is_dir():
        return _from_hub(spec, weights)
    if spec.revision is not None:
        raise UsageError(f"{spec.name} is a local model: it has no revision {spec.revision!r}; leave it out")
    if is_embedded:
        return ModelFiles(model_folder(), "embedded", None)
    if not (folder / _CONFIG).is_file():
        raise SaelabError(f"{folder} is not a model folder: it has no {_CONFIG}")
    return ModelFiles(folder, folder.resolve().name, None)


def _from_hub(spec: ModelSpec, weights: bool) -> ModelFiles:
    if not _HUB_NAME.fullmatch(spec.name):
        raise SaelabError(f"there is no model folder {spec.name}")
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    name = spec.name
    try:
        snapshot = huggingface_hub.snapshot_download(
            name,
            revision=spec.revision,
            allow_patterns=_HUB_FILES if weights else [_CONFIG],
            ignore_patterns=_HUB_IGNORED,
        )
    except GatedRepoError as error:
        raise SaelabError(
            f"the hub's model {name} is gated: accept the conditions on its page, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise SaelabError(
            f"there is no folder {name}, and no model of that name on the hub that this machine may read"
        ) from error
    except RevisionNotFoundError as error:
        raise SaelabError(f"the hub's model {name} has no revision {spec.revision!r}") from error
    # The hub's client, its HTTP library and the file system raise unrelated types, all with the same remedy.
    except Exception as error:
        raise SaelabError(
            f"there is no folder {name}, and the hub did not deliver a model of that name "
            f"({first_line(error)}); check the network, or name a local folder or `embedded`"
        ) from error
    folder = Path(snapshot)
    if not (folder / _CONFIG).is_file():
        raise SaelabError(f"the hub's {name} is not a language model: it has no {_CONFIG}")
    return ModelFiles(folder, name, folder.name)


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, or its type where it has none, for a one-line error."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__
