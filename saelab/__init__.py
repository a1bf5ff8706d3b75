"""saelab: a sparse autoencoder interpretability workbench.

    store = saelab.cache("embedded", "stdlib", at="blocks.2.hook_resid_post", tokens="1M", out="runs/store")
    run = saelab.train(store, "topk", width="x16", tokens="3M", out="runs/topk")
    print(saelab.evaluate(run).to_json())

Names are loaded when they are first used, so that ``import saelab`` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saelab.activations.store import Store
    from saelab.api import cache, evaluate, load, open_store, train
    from saelab.errors import Interrupted, SaelabError, UsageError
    from saelab.lm.load import load_model
    from saelab.training.recipes.topk import TopK

_HOMES = {
    "Interrupted": "saelab.errors",
    "SaelabError": "saelab.errors",
    "Store": "saelab.activations.store",
    "TopK": "saelab.training.recipes.topk",
    "UsageError": "saelab.errors",
    "cache": "saelab.api",
    "evaluate": "saelab.api",
    "load": "saelab.api",
    "load_model": "saelab.lm.load",
    "open_store": "saelab.api",
    "train": "saelab.api",
}

__all__ = [
    "Interrupted",
    "SaelabError",
    "Store",
    "TopK",
    "UsageError",
    "cache",
    "evaluate",
    "load",
    "load_model",
    "open_store",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'saelab' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
