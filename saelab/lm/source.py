"""Where a model's files are: inside the package, in a local folder, or downloaded from the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from saelab.errors import SaelabError, UsageError
from saelab.lm.embedded import model_folder
from saelab.lm.spec import IN_PYTHON, ModelSpec
from saelab.storage.places import why_not_there

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_CONFIG = "config.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Top-level files only: pickled weights and copies in other formats are neither read nor downloaded.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_HUB_IGNORED = ["*/*", "consolidated*"]


@dataclass(frozen=True)
class ModelFiles:
    """A model's (or an adapter's) files on this machine."""

    folder: Path
    """Folder with the configuration, safetensors weights and the tokenizer."""
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
        UsageError: There is no such folder or hub model, it holds no model, or a revision was given for a
            local one.
        SaelabError: The hub does not hand the model out.
    """
    if spec.name.startswith(IN_PYTHON):
        raise SaelabError(
            f"{spec.name} was a module in Python, which no name can load; make its LanguageModel again with "
            "LanguageModel.from_module and hand that over"
        )
    if not spec.name.strip():
        raise UsageError("the name of the model is empty; give `embedded`, a model folder, or a hub name")
    folder = Path(spec.name).expanduser()
    is_embedded = spec.name == "embedded"
    if not is_embedded and not folder.is_dir():
        return _from_hub(spec, weights)
    if spec.revision is not None:
        raise UsageError(f"{spec.name} is a local model: it has no revision {spec.revision!r}; leave it out")
    if is_embedded:
        return ModelFiles(model_folder(), "embedded", None)
    _require_model(folder, str(folder))
    return ModelFiles(folder, folder.resolve().name, None)


def locate_adapter(name: str, *, weights: bool = True) -> ModelFiles:
    """Find a LoRA adapter's files; the network is used for hub names only.

    Args:
        name: A local folder as PEFT writes it, or a name on the hub.
        weights: With False only its configuration is downloaded.

    Raises:
        UsageError: There is no such folder or hub adapter, or it holds none.
        SaelabError: The hub does not hand the adapter out.
    """
    if not name.strip():
        raise UsageError("the name of the adapter is empty; give a folder or a hub name, or leave it out")
    folder, commit = Path(name).expanduser(), None
    is_local = folder.is_dir()
    if not is_local:
        wanted = [ADAPTER_CONFIG, ADAPTER_WEIGHTS] if weights else [ADAPTER_CONFIG]
        folder = _download(name, None, wanted, "adapter")
        commit = folder.name
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UsageError(f"{name} is not a LoRA adapter: it has no {ADAPTER_CONFIG}")
    return ModelFiles(folder, folder.resolve().name if is_local else name, commit)


def _from_hub(spec: ModelSpec, weights: bool) -> ModelFiles:
    folder = _download(spec.name, spec.revision, _HUB_FILES if weights else [_CONFIG], "model")
    _require_model(folder, f"the hub's {spec.name}")
    return ModelFiles(folder, spec.name, folder.name)


def _require_model(folder: Path, shown: str) -> None:
    has_config, is_adapter = (folder / _CONFIG).is_file(), (folder / ADAPTER_CONFIG).is_file()
    if is_adapter:  # transformers would load it on the quiet
        what = "a model and an adapter in one folder" if has_config else "an adapter, not a model"
        raise UsageError(f"{shown} is {what}: name its base model, and the adapter's own folder as adapter")
    if not has_config:
        raise UsageError(f"{shown} is not a model folder: it has no {_CONFIG}")


def _download(name: str, revision: str | None, wanted: list[str], what: str) -> Path:
    """Download files of a repository on the hub and return the folder of its snapshot."""
    if reason := why_not_there(name, f"{what} folder"):
        raise UsageError(reason)
    if not _HUB_NAME.fullmatch(name):
        raise UsageError(f"there is no {what} folder {name}, and the hub has no such names")
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        snapshot = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=wanted, ignore_patterns=_HUB_IGNORED
        )
    except GatedRepoError as error:
        raise SaelabError(
            f"the hub's {what} {name} is gated: accept the conditions on its page, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"there is no folder {name}, and no {what} of that name on the hub that this machine may read"
        ) from error
    except RevisionNotFoundError as error:
        raise UsageError(f"the hub's {what} {name} has no revision {revision!r}") from error
    # The hub's client, its HTTP library and the file system raise unrelated types, all with the same remedy.
    except Exception as error:
        raise SaelabError(
            f"there is no folder {name}, and the hub did not deliver {'an' if what == 'adapter' else 'a'} {what} "
            f"of that name ({first_line(error)}); check the network, or name a local folder"
            f"{'' if what == 'adapter' else ' or `embedded`'}"
        ) from error
    return Path(snapshot)


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, or its type where it has none, for a one-line error."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__
