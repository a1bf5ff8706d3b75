"""What is asked of an index, compared with what is there: finished, to be extended, or something else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from saelab.activations import layout
from saelab.errors import UsageError
from saelab.features.building.corpus import Corpus
from saelab.features.building.folder import REQUEST, IndexFolder, different
from saelab.features.codes import shard_name
from saelab.features.schema import (
    COACTIVATION,
    CODES,
    DETAIL,
    EXAMPLES,
    LOGIT_INVERSE,
    NEAR_MISS,
    NEIGHBORS,
)
from saelab.storage.files import link_or_copy, read_json
from saelab.storage.manifest import MANIFEST_NAME, check_file, read_manifest


def is_finished(folder: IndexFolder, request: dict[str, Any], earlier: Sequence[str]) -> bool:
    """Whether the index is there; False where it is to be built, or extended by more tokens or parts.

    Args:
        folder: Where it is.
        request: What is asked for.
        earlier: Identities that the store had before it was extended.

    Raises:
        UsageError: One of that name was made otherwise.
    """
    if not (folder.place / MANIFEST_NAME).exists():
        return False
    manifest = read_manifest(folder.place, "index")
    check_file(folder.place, REQUEST, manifest)
    found = read_json(folder.place / REQUEST)
    if set(request["parts"]) <= set(manifest.content.get("parts", [])):
        request = request | {"parts": found["parts"]}
    grown = _grown(found, request, earlier)
    if differences := different(grown, request):
        raise UsageError(
            f"index: {folder.place} was made otherwise ({', '.join(differences)}); "
            "give this one another name with --name, or remove that folder"
        )
    return found == request


def _grown(found: dict[str, Any], request: dict[str, Any], earlier: Sequence[str]) -> dict[str, Any]:
    """Return the request of an index that is there, with what may grow as it is asked for now."""
    had, wanted = found["config"]["tokens"], request["config"]["tokens"]
    longer = had != 0 and (wanted == 0 or wanted > had)
    more_parts = set(found["parts"]) < set(request["parts"])
    grown = found | {"parts": request["parts"] if more_parts else found["parts"]}
    if longer:
        grown |= {"config": found["config"] | {"tokens": wanted}}
    if found["corpus"].get("store_identity") in earlier:
        grown |= {"corpus": request["corpus"]}
    return grown


def take_over(folder: IndexFolder, corpus: Corpus, request: dict[str, Any]) -> None:
    """Link what an index of the same SAE and text has already: all shards but the last of a smaller one, and tables."""
    old = folder.place
    if not (old / MANIFEST_NAME).exists() or (folder.building / CODES).exists():
        return
    manifest = read_manifest(old, "index")
    if manifest.content.get("sae", {}).get("identity") != request["sae_identity"]:
        return
    n_tokens = manifest.files[layout.TOKENS]["bytes"] // 4
    tokens = layout.map_array(old / layout.TOKENS, "<i4", n_tokens)
    # The last token of a text that was cut may have been masked there.
    if n_tokens > corpus.n_tokens or not np.array_equal(tokens, corpus.tokens[:n_tokens]):
        return
    whole = sorted(name for name in manifest.files if name.startswith(f"{CODES}/"))
    if n_tokens < corpus.n_tokens:
        whole = whole[:-1]
    for number, name in enumerate(whole):
        check_file(old, name, manifest)
        link_or_copy(old / name, folder.building / CODES / shard_name(number))
    if (
        manifest.content.get("config") == request["config"]
    ):  # only parts are added: everything else stays as it is
        for name in manifest.files.keys() & {
            DETAIL,
            EXAMPLES,
            LOGIT_INVERSE,
            NEIGHBORS,
            COACTIVATION,
            NEAR_MISS,
        }:
            check_file(old, name, manifest)
            link_or_copy(old / name, folder.building / name)
