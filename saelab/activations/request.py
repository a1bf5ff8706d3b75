"""What a store was asked for: written first, compared before anything is continued or returned.

The configuration and the inputs decide what a store holds; the environment (versions, threads,
device) decides its last bits, so an unfinished store is only continued in the same one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
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
from saelab.storage.files import read_json
from saelab.text.documents import Document
from saelab.text.load import text_hash

_CONTENT = ("config", "inputs")


def describe_request(
    config: CacheConfig, lm: LanguageModel, hookpoints: Sequence[Hookpoint], documents: Iterable[Document]
) -> dict[str, Any]:
    """Return the request as JSON; hookpoints by canonical names, so that both spellings are the same."""
    config = replace(config, at=tuple(hookpoint.module_path for hookpoint in hookpoints))
    request = {
        "config": asdict(config),
        "inputs": {"model": lm.identity.to_json(), "text_hash": text_hash(documents)},
        "environment": {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": str(lm.device),
        },
    }
    return json.loads(json.dumps(request))


def saved_config(folder: Path) -> CacheConfig:
    """Return the configuration that a store was made with.

    Raises:
        DamagedFileError: The folder has none that this version understands.
    """
    raw = read_json(folder / CONFIG)
    if not isinstance(raw, dict):
        raise DamagedFileError(f"{folder / CONFIG} does not describe a cache")
    return read_fields(CacheConfig, raw.get("config"), str(folder / CONFIG), DamagedFileError)


def require_same_request(out: Path, request: dict[str, Any], *, environment: bool) -> None:
    """Compare a store's request with a new one.

    Args:
        out: A folder with a `config.json`.
        request: The new request.
        environment: Also compare the environment.

    Raises:
        UsageError: Another configuration or other inputs; the differing keys are shown.
        SaelabError: Another environment.
    """
    found = read_json(out / CONFIG)
    if not isinstance(found, dict):
        raise DamagedFileError(f"{out / CONFIG} does not describe a cache")
    differing = [line for part in _CONTENT for line in differences(found.get(part), request[part])]
    if differing:
        raise UsageError(
            f"caching: {out} was made with another configuration ({'; '.join(differing)}); "
            "choose another folder, or repeat the earlier command"
        )
    if environment and (changed := differences(found.get("environment"), request["environment"])):
        raise SaelabError(
            f"caching: {out} was begun in another environment ({'; '.join(changed)}), "
            "where the last bits differ; go on in the same one (threads: OMP_NUM_THREADS), "
            "or delete the folder and start again"
        )
