"""What a store was asked for: written first, compared before anything is continued or returned.

The configuration and the inputs decide what a store holds; the environment (versions, threads, kind
of device) decides its last bits, so an unfinished store is only continued in the same one.

A store can be asked for more tokens than it was begun with: then it is extended. Nothing else may
differ, and the text that it was made from must still be there as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from saelab.activations.layout import CONFIG
from saelab.activations.spec import CacheConfig
from saelab.errors import DamagedFileError, SaelabError, UsageError
from saelab.fields import differences, read_fields
from saelab.lm.hooks import Hookpoint
from saelab.lm.load import LanguageModel
from saelab.lm.spec import ModelSpec
from saelab.storage.files import read_json
from saelab.storage.manifest import digest_of_file
from saelab.text.documents import Document, TextHash
from saelab.text.load import iter_documents
from saelab.text.spec import TextSpec

# Pinned by the hashes of what was read, and written down so that it can be read again: another spelling
# of a path, a copy elsewhere, or another way to load the same weights makes no other store.
_PINNED_OF_TEXT = ("source", "subset", "split", "revision", "streaming", "chat_template")
_NAMES_OF_MODEL = ("name", "revision", "adapter")

Request = dict[str, Any]
"""A request as JSON values: ``config``, ``inputs`` (model, text) and ``environment``."""


class ReadText:
    """The documents of a text on their way to the packer, counted and hashed as they pass.

    Args:
        documents: Where they come from; read once.
        mark: After how many documents the hash is taken down, as an earlier request had it.
    """

    def __init__(self, documents: Iterable[Document], mark: int = 0) -> None:
        self._documents, self._mark, self._hash = iter(documents), mark, TextHash()
        self._n_read = 0
        self._hash_at: dict[int, str] = {}
        self.n_documents = 0
        """Documents that were needed; known after `end`."""

    def __iter__(self) -> Iterator[Document]:
        for document in self._documents:
            self._hash.add(document)
            self._n_read += 1
            if self._n_read == self._mark:
                self._hash_at[self._mark] = self._hash.hexdigest()
            yield document

    def end(self) -> None:
        """What was read so far is what was needed; read on to the mark, which may lie behind it."""
        self.n_documents = self._n_read
        self._hash_at[self.n_documents] = self._hash.hexdigest()
        while self._n_read < self._mark and next(iter(self), None) is not None:
            pass

    def hash_after(self, n_documents: int) -> str | None:
        """Return the hash of the first documents; None where that was not taken down, or the text has fewer."""
        return self._hash_at.get(n_documents)

    def to_json(self) -> dict[str, Any]:
        """Return how many documents were needed, and their hash."""
        return {"documents": self.n_documents, "hash": self._hash_at[self.n_documents]}


def describe_request(config: CacheConfig, lm: LanguageModel, hookpoints: Sequence[Hookpoint]) -> Request:
    """Return a request without its text, which is not read yet; see `with_text`.

    Hookpoints stand there by canonical names, so that both spellings are the same, and no number of
    a device, so that writers on several devices of a kind share one store.
    """
    config = replace(
        config,
        at=tuple(hookpoint.module_path for hookpoint in hookpoints),
        model=on_any_device(config.model),
    )
    template = config.text.chat_template
    device = torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else lm.device.type
    request = {
        "config": asdict(config),
        "inputs": {
            "model": lm.identity.to_json(),
            "chat_template": None if template is None else digest_of_file(Path(template)),
        },
        "environment": {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": device},
    }
    return json.loads(json.dumps(request))


def with_text(request: Request, text: ReadText) -> Request:
    """Return a request with the text that was read for it: the documents up to the last one that was needed."""
    return request | {"inputs": request["inputs"] | {"text": text.to_json()}}


def on_any_device(spec: ModelSpec) -> ModelSpec:
    """Return how a model is loaded without the number of its device, which differs between writers of one store."""
    return replace(spec, device=spec.device.partition(":")[0])


def saved_config(folder: Path) -> CacheConfig:
    """Return the configuration that a store was made with.

    Raises:
        DamagedFileError: The folder has none that this version understands.
    """
    return read_fields(CacheConfig, _read(folder).get("config"), str(folder / CONFIG), DamagedFileError)


def documents_read(folder: Path) -> int:
    """Return how many documents of its text a store was made from; 0 where nothing was begun."""
    if not (folder / CONFIG).exists():
        return 0
    count = _text_of(_read(folder)).get("documents")
    return count if isinstance(count, int) else 0


def compare_requests(folder: Path, request: Request) -> bool:
    """Compare a store's request with a new one, but for the text.

    Returns:
        Whether the new one asks for more tokens.

    Raises:
        UsageError: Another configuration, other inputs, or fewer tokens; the message shows what differs.
    """
    found = _read(folder)
    # The names make a difference in the hash readable.
    with_names = _model_of(found).get("hash") != _model_of(request).get("hash")
    if differing := differences(_content(found, with_names), _content(request, with_names)):
        raise UsageError(
            f"cache: {folder} was made with another configuration ({'; '.join(differing)}); "
            "choose another folder, or repeat the earlier command"
        )
    there, wanted = _tokens(found, folder), request["config"]["tokens"]
    if wanted < there:
        raise UsageError(
            f"cache: {folder} was made with {there:,} tokens and cannot shrink to {wanted:,}; choose another "
            f"folder, or ask for {there:,} or more"
        )
    return wanted > there


def require_same_text(folder: Path, text: ReadText) -> None:
    """Compare the text that a store was made from with the one that was just read for it.

    Raises:
        UsageError: Its first documents are others.
    """
    there, count = _text_of(_read(folder)), documents_read(folder)
    if (found := text.hash_after(count)) != there.get("hash"):
        raise UsageError(
            f"cache: {folder} was made from another text: its first {count:,} documents (hash {there.get('hash')}) "
            f"are not those of this one ({found}); choose another folder"
        )


def read_again(spec: TextSpec, folder: Path) -> ReadText:
    """Read those documents of a text from which a store was made, without packing them."""
    text = ReadText(iter_documents(spec), mark=documents_read(folder))
    text.end()
    return text


def require_same_environment(folder: Path, request: Request) -> None:
    """Refuse to go on with a store in another environment.

    Raises:
        SaelabError: Naming what is different.
    """
    if changed := differences(_read(folder).get("environment"), request["environment"]):
        raise SaelabError(
            f"cache: {folder} was begun in another environment ({'; '.join(changed)}), "
            "where the last bits differ; go on in the same one (threads: OMP_NUM_THREADS), "
            "or delete the folder and start again"
        )


def _read(folder: Path) -> dict[str, Any]:
    found = read_json(folder / CONFIG)
    if not isinstance(found, dict):
        raise DamagedFileError(f"{folder / CONFIG} does not describe a cache")
    return found


def _content(request: Request, with_names: bool) -> dict[str, Any]:
    """What must be equal: all but the number of tokens, how much text was read for them, and what hashes pin."""
    config, inputs = _table(request.get("config")), _table(request.get("inputs"))
    model = _model_of(request)
    return {
        "config": _without(config, "tokens", "model")
        | {"text": _without(_table(config.get("text")), *_PINNED_OF_TEXT)},
        "inputs": _without(inputs, "text")
        | {"model": model if with_names else _without(model, *_NAMES_OF_MODEL)},
    }


def _model_of(request: Request) -> dict[str, Any]:
    return _table(_table(request.get("inputs")).get("model"))


def _table(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _without(table: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name not in names}


def _tokens(found: dict[str, Any], folder: Path) -> int:
    tokens = found["config"].get("tokens")
    if not isinstance(tokens, int):
        raise DamagedFileError(f"{folder / CONFIG}: tokens is {tokens!r}, not a number")
    return tokens


def _text_of(found: dict[str, Any]) -> dict[str, Any]:
    return _table(_table(found.get("inputs")).get("text"))
