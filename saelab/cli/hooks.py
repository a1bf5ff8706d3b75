"""`saelab hooks MODEL`: where activations can be read, in both spellings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from saelab.cli.options import Common, Result
from saelab.lm.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """List the hookpoints of a model, without loading its weights."""

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MODEL")]] = "embedded"
    """``embedded``, a folder in the Hugging Face layout, or a hub name."""


def run(options: Options) -> Result:
    """Run the command."""
    from saelab.lm.hooks import list_hookpoints

    points = list_hookpoints(ModelSpec(name=options.model))
    width = max(len(point.alias or "") for point in points)
    lines = [f"{point.alias or '':<{width}}  {point.d_in:>6}  {point.module_path}" for point in points]
    header = f"{'TransformerLens name':<{width}}  {'d_in':>6}  module path"
    return Result(
        {"model": options.model, "hookpoints": [asdict(point) for point in points]},
        "\n".join([header, *lines]),
    )
