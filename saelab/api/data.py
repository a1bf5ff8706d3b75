"""Activations in Python: to disk, or live."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from saelab.activations.live import LiveSource
from saelab.activations.own import OwnBatch
from saelab.activations.spec import CacheConfig, LiveConfig
from saelab.activations.store import Store
from saelab.errors import UsageError
from saelab.interrupts import stop_on_signals
from saelab.lm.hooks import Hookpoint, resolve_all
from saelab.lm.load import LanguageModel, module_identity
from saelab.lm.modules import Batch, ModuleActivations, iter_activations
from saelab.lm.probe import list_hookpoints
from saelab.lm.spec import ModelSpec
from saelab.quantities import parse_count
from saelab.text.spec import TextSpec


def cache(
    model: str | Path | ModelSpec | LanguageModel,
    text: str | Path | TextSpec,
    *,
    at: str | Sequence[str],
    tokens: int | str,
    out: Path | str,
    quiet: bool = False,
    **options: Any,
) -> Store:
    """Write a model's activations on a text to disk, or finish an interrupted store.

    Args:
        model: ``embedded``, a folder, a hub name, a full specification, or a model that is loaded.
        text: ``stdlib``, a file, a data set on the hub, or a full specification.
        at: One or several hookpoints, in either spelling, patterns too.
        tokens: Activations to keep of each hookpoint; ``200k`` and ``1M`` are understood.
        out: Folder of the store.
        quiet: Show no progress.
        options: Further fields of `CacheConfig`, for example ``context`` or ``gradients``.

    Raises:
        UsageError: A name or value is wrong; nothing was started.
        Interrupted: Ctrl-C; the same call goes on.
    """
    from saelab.activations.cache import cache_activations

    lm = model if isinstance(model, LanguageModel) else None
    config = CacheConfig(
        model=_model_spec(model),
        text=_text_spec(text),
        at=(at,) if isinstance(at, str) else tuple(at),
        tokens=parse_count(tokens),
        **options,
    )
    with stop_on_signals() as stop:
        return cache_activations(config, Path(out), progress=not quiet, stop=stop, lm=lm)


def cache_inputs(
    module: nn.Module,
    batches: Iterable[Batch],
    *,
    at: str | Sequence[str],
    out: Path | str,
    name: str = "module",
    keep: Callable[[ModuleActivations], Tensor] | None = None,
    channel_dim: int = -1,
    **options: Any,
) -> Store:
    """Write the activations of a module that reads no tokens, such as a vision transformer, to disk.

    Args:
        module: In evaluation mode.
        batches: Its inputs; see `iter_activations`.
        at: One or several places by module path, for example ``encoder.layers.2.output``.
        out: Folder of the store.
        name: What to call the module.
        keep: Given a batch of activations, returns which rows to keep, bool ``[n]``: the first position of
            each example, say, with ``lambda found: found.position == 0``.
        channel_dim: Dimension of the activations that holds the channels.
        options: Further arguments of `Store.from_batches`.
    """
    places = (at,) if isinstance(at, str) else tuple(at)

    def rows() -> Iterator[OwnBatch]:
        for found in iter_activations(module, batches, at=places, channel_dim=channel_dim):
            kept = found if keep is None else found.keep(keep(found))
            yield OwnBatch({hp.module_path: x for hp, x in kept.activations.items()}, kept.example)

    return Store.from_batches(Path(out), rows(), model=module_identity(module, name), **options)


def open_store(path: Path | str) -> Store:
    """Open a finished activation store."""
    return Store.open(path)


def live(
    model: str | Path | ModelSpec | LanguageModel,
    text: str | Path | TextSpec,
    *,
    at: str | Sequence[str],
    **options: Any,
) -> LiveSource:
    """Open a model and a text as a source that `train` reads while it trains, with nothing on the disk.

    Args:
        model: ``embedded``, a folder, a hub name, a full specification, or a model that is loaded.
        text: ``stdlib``, a file, a data set on the hub, or a full specification.
        at: One or several hookpoints, in either spelling, patterns too.
        options: Further fields of `LiveConfig`, for example ``context`` or ``pool_rows``.
    """
    lm = model if isinstance(model, LanguageModel) else None
    config = LiveConfig(
        model=_model_spec(model),
        text=_text_spec(text),
        at=(at,) if isinstance(at, str) else tuple(at),
        **options,
    )
    return LiveSource(config, lm)


def hooks(
    model: str | Path | ModelSpec | LanguageModel, *, match: str | Sequence[str] = ()
) -> list[Hookpoint]:
    """List where a model's activations can be read, in the order of a forward pass, without loading weights.

    Args:
        model: ``embedded``, a folder, a hub name, a full specification, or a model that is loaded.
        match: Only these, in either spelling, patterns too.

    Raises:
        UsageError: There is no such model, or no such hookpoint.
    """
    spec = _model_spec(model)
    found = model.hookpoints if isinstance(model, LanguageModel) else list_hookpoints(spec)
    wanted = (match,) if isinstance(match, str) else tuple(match)
    return list(resolve_all(wanted, found) if wanted else found)


def _model_spec(model: str | Path | ModelSpec | LanguageModel) -> ModelSpec:
    if isinstance(model, LanguageModel):
        return model.spec
    if isinstance(model, nn.Module):
        raise UsageError(
            f"a {type(model).__name__} is a bare module: wrap it with saelab.LanguageModel.from_module(module, "
            "tokenizer, name=...), and hand that over"
        )
    if not isinstance(model, str | Path | ModelSpec):
        raise UsageError(
            f"a model is a name, a ModelSpec or a LanguageModel, not {type(model).__name__} {model!r}"
        )
    return model if isinstance(model, ModelSpec) else ModelSpec(name=str(model))


def _text_spec(text: str | Path | TextSpec) -> TextSpec:
    return text if isinstance(text, TextSpec) else TextSpec(source=str(text))
