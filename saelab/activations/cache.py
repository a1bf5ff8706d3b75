"""Write an activation store: text through a model, several hookpoints in one forward pass.

1. Read and pack the text; compare the request with what the folder was begun with.
2. Alone in the folder: write down the request. What a larger or a damaged store holds of it, stays.
3. Together with others who were given the same command: write shards, each by one process.
4. Alone again: compare shards with their checksums, write tokens and documents, gather statistics,
   write the manifest. Whoever comes later finds the finished store.

A shard is a fixed range of batches and a batch depends on its number alone, so a cache that was
interrupted anywhere is completed by the same call, to the same bytes, by any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from saelab.activations import layout
from saelab.activations.harvest import Harvester
from saelab.activations.packed import pack_rows, require_context
from saelab.activations.plan import plan_cache, require_memory
from saelab.activations.request import (
    ReadText,
    Request,
    compare_requests,
    describe_request,
    documents_read,
    read_again,
    require_same_environment,
    require_same_text,
    with_text,
)
from saelab.activations.spec import CacheConfig
from saelab.activations.store import Store
from saelab.activations.unfinished import UNFINISHED
from saelab.activations.writer import StoreWriter
from saelab.errors import DamagedFileError, SaelabError, UsageError
from saelab.interrupts import StopRequest
from saelab.lm.hooks import resolve_all
from saelab.lm.load import LanguageModel, load_model
from saelab.storage.files import WRITING_SUFFIX
from saelab.storage.lock import LOCK_NAME, FolderLock
from saelab.storage.manifest import MANIFEST_NAME, check_file, read_manifest
from saelab.text.documents import Document
from saelab.text.load import iter_documents
from saelab.text.packing import TokenSequences


def cache_activations(
    config: CacheConfig,
    out: Path | str,
    *,
    progress: bool = True,
    stop: StopRequest | None = None,
    lm: LanguageModel | None = None,
    documents: Iterable[Document] | None = None,
) -> Store:
    """Cache activations, go on with it, help others with it, extend the store, or return it if it is finished.

    Args:
        config: What to cache.
        out: The store's folder. A store of fewer tokens that is there is extended: its identity changes,
            `Store.extended_from` tells the earlier ones.
        progress: Show progress on standard error.
        stop: When asked to stop, this process ends within a batch, or within seconds at the end of a shard.
        lm: The model that `config.model` names, if it is loaded already.
        documents: Read these, some of those of `config.text`, into a new folder that nobody goes on with.

    Raises:
        UsageError: A hookpoint is unknown, the context is longer than the model's, or the folder
            belongs to another configuration or to a larger store.
        SaelabError: Memory or disk do not suffice, an activation is not finite or does not fit the
            dtype, or the folder is in use for something else.
        Interrupted: A stop was asked for; the same call goes on.
    """
    config, out, stop = config.resolved(), Path(out), stop or StopRequest()
    if lm is None:
        _require_memory(config)
        lm = load_model(config.model)
    hookpoints = resolve_all(config.at, lm.hookpoints)
    require_context(config, lm)
    request = describe_request(config, lm, hookpoints)
    if _is_finished(out, request) and not (out / UNFINISHED).exists():
        require_same_text(out, read_again(config.text, out))
        return Store.open(out)
    text = ReadText(iter_documents(config.text) if documents is None else documents, mark=documents_read(out))
    sequences = _pack(text, lm, config)
    request = with_text(request, text)
    harvester = Harvester(lm, hookpoints, sequences, config)
    writer = StoreWriter(config, out, text, harvester, stop, quiet=not progress)
    with FolderLock(out, "cache") as lock:
        return _write_together(lock, writer, request)


def _require_memory(config: CacheConfig) -> None:
    try:
        plan = plan_cache(config)
    except UsageError:
        raise
    except SaelabError:
        return  # the configuration alone does not tell; loading says what is wrong, if anything is
    require_memory(config, plan)


def _write_together(lock: FolderLock, writer: StoreWriter, request: Request) -> Store:
    """Do what is left of a store, perhaps with other processes; each change of the lock lets others in between."""
    out = lock.folder
    while True:
        if lock.try_alone():
            if _is_finished(out, request):
                require_same_text(out, writer.text)
                writer.unfinished.remove()
                return Store.open(out)
            writer.begin(request, grows=_require_continuable(out, request, writer.text))
        if not lock.try_together() or not _is_begun(out, request, writer.text):
            lock.release()
            writer.wait()
            continue
        writer.write_shards()
        while not lock.try_alone():
            writer.wait()
        if not (out / MANIFEST_NAME).exists() and (store := writer.finish()) is not None:
            return store


def _is_finished(out: Path, request: Request) -> bool:
    """Whether the store is complete; False where it is to be written, extended, or something of it is missing."""
    if not (out / MANIFEST_NAME).exists():
        _require_own_folder(out)
        if (out / layout.CONFIG).exists():
            compare_requests(out, request)
        return False
    manifest = read_manifest(out, "store")
    if not (out / layout.CONFIG).exists():
        raise UsageError(f"cache: {out} is a store that was not cached from a model; choose another folder")
    if compare_requests(out, request):
        return False
    try:
        for name in manifest.files:
            check_file(out, name, manifest, content=False)
    except DamagedFileError:
        return False
    return True


def _require_own_folder(out: Path) -> None:
    """Refuse a folder that holds anything but the beginnings of a store."""
    ours = (LOCK_NAME, layout.CONFIG + WRITING_SUFFIX)
    is_begun = (out / layout.CONFIG).exists()
    if out.is_dir() and not is_begun and any(entry.name not in ours for entry in out.iterdir()):
        raise UsageError(f"cache: {out} is not empty and is no unfinished store; choose a new folder")


def _require_continuable(out: Path, request: Request, text: ReadText) -> bool:
    """Refuse a folder that was begun with something else; tells whether the store grows."""
    _require_own_folder(out)
    if not (out / layout.CONFIG).exists():
        return False
    grows = compare_requests(out, request)
    require_same_text(out, text)
    require_same_environment(out, request)
    return grows


def _is_begun(out: Path, request: Request, text: ReadText) -> bool:
    """Whether others are writing just this store; False where they ended meanwhile."""
    if (out / MANIFEST_NAME).exists() or not (out / layout.CONFIG).exists():
        return False
    if compare_requests(out, request):
        raise SaelabError(
            f"cache: another process writes a smaller store to {out}; "
            "when it has ended, the same command extends that store"
        )
    require_same_text(out, text)
    require_same_environment(out, request)
    return True


def _pack(text: ReadText, lm: LanguageModel, config: CacheConfig) -> TokenSequences:
    sequences = pack_rows(config, lm, text, config.tokens, cut=True)
    text.end()
    if not sequences.keep.any():
        raise SaelabError(
            f"cache: none of the {len(sequences.tokens):,} tokens is kept; "
            f"mask fewer first positions than {config.mask_first_positions}, or give longer documents"
        )
    return sequences
