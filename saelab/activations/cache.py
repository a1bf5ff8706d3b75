"""Write an activation store: text through a model, several hookpoints in one forward pass.

1. Read and pack the text; compare the request with what the folder was begun with.
2. For every shard that is not there yet: run its batches, write one file for each hookpoint.
3. Write tokens and documents, gather statistics, write the manifest.

A shard is a fixed range of batches and a batch depends on its number alone, so a cache that was
interrupted anywhere is completed by the same call, to the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saelab.activations import layout
from saelab.activations.harvest import Harvester
from saelab.activations.request import describe_request, require_same_request
from saelab.activations.spec import CacheConfig
from saelab.activations.store import Store
from saelab.activations.writer import StoreWriter
from saelab.errors import DamagedFileError, SaelabError, UsageError
from saelab.interrupts import StopRequest
from saelab.lm.hooks import resolve
from saelab.lm.load import LanguageModel, load_model
from saelab.storage.files import WRITING_SUFFIX, remove_leftovers
from saelab.storage.lock import LOCK_NAME, locked
from saelab.storage.manifest import MANIFEST_NAME, check_file, read_manifest
from saelab.text.documents import Document
from saelab.text.load import load_documents
from saelab.text.packing import KeepRule, TokenSequences, pack


def cache_activations(
    config: CacheConfig,
    out: Path | str,
    *,
    progress: bool = True,
    stop: StopRequest | None = None,
    lm: LanguageModel | None = None,
) -> Store:
    """Cache activations, or go on with it, or return the store if it is finished.

    Args:
        config: What to cache.
        out: The store's folder.
        progress: Show progress on standard error.
        stop: When asked to stop, the shard at hand is finished first.
        lm: The model that `config.model` names, if it is loaded already.

    Raises:
        UsageError: A hookpoint is unknown, the context is longer than the model's, or the folder
            belongs to another configuration.
        SaelabError: The disk is full, an activation is not finite or does not fit the dtype, or the
            folder is in use.
        Interrupted: A stop was asked for; the same call goes on.
    """
    out = Path(out)
    lm = lm or load_model(config.model)
    hookpoints = tuple(dict.fromkeys(resolve(name, lm.hookpoints) for name in config.at))
    if config.context > lm.context:
        raise UsageError(
            f"cache: context is {config.context}, {lm.identity.name} reads at most {lm.context} tokens"
        )
    documents = load_documents(config.text)
    request = describe_request(config, lm, hookpoints, documents)
    store = _finished(out, request)
    if store is not None:
        return store
    with locked(out, "caching"):
        _require_own_folder(out, request)
        remove_leftovers(out, "*", "hooks/*/*", "statistics/*")
        sequences = _pack(documents, lm, config)
        writer = StoreWriter(config, out, Harvester(lm, hookpoints, sequences, config))
        missing = writer.begin(request)
        writer.write_shards(missing, stop or StopRequest(), quiet=not progress)
        return writer.finish(request["inputs"]["text_hash"])


def _finished(out: Path, request: dict[str, Any]) -> Store | None:
    """Return the store if it is complete; None if something is missing (the caller rebuilds it)."""
    if not (out / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(out, "store")
    if not (out / layout.CONFIG).exists():
        raise UsageError(f"caching: {out} is a store that was not cached from a model; choose another folder")
    require_same_request(out, request, environment=False)
    try:
        for name in manifest.files:
            check_file(out, name, manifest, content=False)
    except DamagedFileError:
        return None
    return Store.open(out)


def _require_own_folder(out: Path, request: dict[str, Any]) -> None:
    """Refuse a folder that holds anything but the beginnings of the same store."""
    if (out / layout.CONFIG).exists():
        require_same_request(out, request, environment=True)
    elif any(not _is_ours_before_config(entry) for entry in out.iterdir()):
        raise UsageError(f"caching: {out} is not empty and is no unfinished store; choose a new folder")


def _is_ours_before_config(entry: Path) -> bool:
    return entry.name in (LOCK_NAME, layout.CONFIG + WRITING_SUFFIX)


def _pack(documents: list[Document], lm: LanguageModel, config: CacheConfig) -> TokenSequences:
    rule = KeepRule(mask_bos=config.mask_bos, mask_first_positions=config.mask_first_positions)
    sequences = pack(
        documents,
        lm.tokenizer,
        context=config.context,
        packing=config.packing,
        max_kept=config.tokens,
        keep_rule=rule,
    )
    if not sequences.keep.any():
        raise SaelabError(
            f"cache: none of the {len(sequences.tokens):,} tokens is kept; "
            f"mask fewer first positions than {config.mask_first_positions}, or give longer documents"
        )
    return sequences
