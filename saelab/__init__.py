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
    from saelab.api import (
        build_index,
        cache,
        cache_inputs,
        compare,
        encode,
        evaluate,
        evaluate_many,
        export,
        find,
        hooks,
        import_sae,
        live,
        load,
        open_index,
        open_store,
        report,
        show,
        train,
        train_grid,
    )
    from saelab.errors import Interrupted, SaelabError, UsageError
    from saelab.features.queries.filters import FeatureFilter
    from saelab.lm.load import LanguageModel, load_model
    from saelab.lm.modules import iter_activations
    from saelab.lm.spec import ModelSpec
    from saelab.text.spec import TextSpec
    from saelab.training.grid import Grid
    from saelab.training.recipes.topk import TopK

_HOMES = {
    "FeatureFilter": "saelab.features.queries.filters",
    "Grid": "saelab.training.grid",
    "Interrupted": "saelab.errors",
    "LanguageModel": "saelab.lm.load",
    "ModelSpec": "saelab.lm.spec",
    "SaelabError": "saelab.errors",
    "Store": "saelab.activations.store",
    "TextSpec": "saelab.text.spec",
    "TopK": "saelab.training.recipes.topk",
    "UsageError": "saelab.errors",
    "build_index": "saelab.api",
    "cache": "saelab.api",
    "compare": "saelab.api",
    "cache_inputs": "saelab.api",
    "encode": "saelab.api",
    "evaluate": "saelab.api",
    "evaluate_many": "saelab.api",
    "export": "saelab.api",
    "find": "saelab.api",
    "hooks": "saelab.api",
    "import_sae": "saelab.api",
    "iter_activations": "saelab.lm.modules",
    "live": "saelab.api",
    "load": "saelab.api",
    "load_model": "saelab.lm.load",
    "open_index": "saelab.api",
    "open_store": "saelab.api",
    "report": "saelab.api",
    "show": "saelab.api",
    "train": "saelab.api",
    "train_grid": "saelab.api",
}

__all__ = [
    "FeatureFilter",
    "Grid",
    "Interrupted",
    "LanguageModel",
    "ModelSpec",
    "SaelabError",
    "Store",
    "TextSpec",
    "TopK",
    "UsageError",
    "build_index",
    "cache",
    "cache_inputs",
    "compare",
    "encode",
    "evaluate",
    "evaluate_many",
    "export",
    "find",
    "hooks",
    "import_sae",
    "iter_activations",
    "live",
    "load",
    "load_model",
    "open_index",
    "open_store",
    "report",
    "show",
    "train",
    "train_grid",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'saelab' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
