"""`saelab hooks MODEL`: where activations can be read, in both spellings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from saelab.cli.model_options import ModelOptions
from saelab.cli.options import Common, Result

if TYPE_CHECKING:
    from saelab.lm.hooks import Hookpoint


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions, Common):
    """List the hookpoints of a model, without loading its weights."""

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL")]] = "embedded"
    """``embedded``, a folder in the Hugging Face layout, or a hub name."""
    match: tuple[str, ...] = ()
    """Only these, in either spelling: ``'blocks.*.hook_resid_post'``, ``'model.layers.{4..8}.**'``."""


def run(options: Options) -> Result:
    """Run the command."""
    from saelab.lm.hooks import resolve_all
    from saelab.lm.probe import list_hookpoints

    points: Sequence[Hookpoint] = list_hookpoints(options.model_spec(options.model))
    if options.match:
        points = resolve_all(options.match, points)
    data = {"model": options.model, "hookpoints": [asdict(point) for point in points]}
    return Result(data, describe_hookpoints(points, is_selection=bool(options.match)))


def describe_hookpoints(points: Sequence[Hookpoint], *, is_selection: bool) -> str:
    """Return a table for a terminal.

    Args:
        points: Hookpoints.
        is_selection: They were asked for; otherwise the inputs of modules, most of which are the
            output of another one, are only counted unless they have a name of TransformerLens.
    """
    shown = [
        point for point in points if is_selection or point.alias or not point.module_path.endswith(".input")
    ]
    width = max((len(point.alias or "") for point in shown), default=0)
    width = max(width, len("TransformerLens name"))
    lines = [f"{'TransformerLens name':<{width}}  {'d_in':>6}  module path"]
    lines += [f"{point.alias or '':<{width}}  {point.d_in:>6}  {point.module_path}" for point in shown]
    if hidden := len(points) - len(shown):
        lines.append(f"and {hidden} inputs of modules: --match '**.input' shows them")
    return "\n".join(lines)
