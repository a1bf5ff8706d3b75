"""Hookpoints: the places of a model where activations are read and written, under both spellings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from saelab.errors import SaelabError, UsageError
from saelab.lm.families import transformer_lens_names
from saelab.lm.sites import Visit, attach
from saelab.lm.source import first_line, locate
from saelab.lm.spec import ModelSpec
from saelab.storage.manifest import digest_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Two rows, so that what is the same for every row (position embeddings, rotary tables) is told
# apart from activations by its shape.
_PROBE_SHAPE = (2, 3)
_FILE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Hookpoint:
    """A place in a model."""

    module_path: str
    """Canonical name: the module's path and its side, for example ``model.layers.2.output``."""
    alias: str | None
    """TransformerLens name, for example ``blocks.2.hook_resid_post``, where there is one."""
    d_in: int
    """Width of the activations there."""


def list_hookpoints(spec: ModelSpec) -> list[Hookpoint]:
    """List a model's hookpoints in the order in which a forward pass reaches them, without loading weights.

    The model is built from its configuration on the meta device, where tensors have shapes and no
    data, and one forward pass records what each module returns.

    Raises:
        SaelabError: There is no such model, or it cannot be built or run in this way.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from saelab.lm.quiet import quiet_transformers

    files = locate(spec, weights=False)
    try:
        with quiet_transformers(), torch.device("meta"):
            config = AutoConfig.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            return record_hookpoints(model.eval())
    # A stranger's configuration can fail anywhere inside the library, with any type.
    except Exception as error:
        raise SaelabError(f"cannot list the hookpoints of {spec.name}: {first_line(error)}") from error


def record_hookpoints(model: PreTrainedModel) -> list[Hookpoint]:
    """List the hookpoints of a model by running it once on a few tokens (on the meta device: on shapes).

    A hookpoint is the output of a module that runs once a forward pass and returns a float tensor
    `[rows, length, d]`, alone or as the first element of a tuple; and those inputs that have a
    TransformerLens name. The unembedding is left out: logits are not activations.
    """
    aliases = transformer_lens_names(model.config.model_type, model.config.num_hidden_layers)
    unembedding = model.get_output_embeddings()
    paths = [f"{name}.output" for name, module in model.named_modules() if name and module is not unembedding]
    paths += [path for path in aliases if path.endswith(".input")]
    widths: dict[str, list[int | None]] = {}

    def recorder(path: str) -> Visit:
        def record(x: torch.Tensor) -> None:
            is_activation = x.is_floating_point() and x.dim() == 3 and x.shape[:2] == _PROBE_SHAPE
            widths.setdefault(path, []).append(x.shape[2] if is_activation else None)

        return record

    handles = [attach(model, path, recorder(path)) for path in paths]
    try:
        with torch.no_grad():
            # With a cache transformers skips a look at the positions' values, which have none on meta.
            model(input_ids=torch.zeros(_PROBE_SHAPE, dtype=torch.int64, device=model.device), use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    return [
        Hookpoint(path, aliases.get(path), calls[0])
        for path, calls in widths.items()
        if len(calls) == 1 and calls[0] is not None
    ]


def resolve(name: str, hookpoints: Iterable[Hookpoint]) -> Hookpoint:
    """Find a hookpoint by either spelling.

    Raises:
        UsageError: There is none; the message offers the nearest names.
    """
    by_name: dict[str, Hookpoint] = {}
    for hookpoint in hookpoints:
        by_name[hookpoint.module_path] = hookpoint
        if hookpoint.alias is not None:
            by_name[hookpoint.alias] = hookpoint
    if name in by_name:
        return by_name[name]
    nearest = ", ".join(difflib.get_close_matches(name, by_name, n=3, cutoff=0.0))
    raise UsageError(
        f"the model has no hookpoint {name!r}; the nearest are {nearest}; `saelab hooks MODEL` lists all"
    )


def slug(hookpoint: Hookpoint) -> str:
    """Return a name for files and folders: the module path, made safe where it is not already."""
    path = hookpoint.module_path
    if _FILE_NAME.fullmatch(path):
        return path
    # The digest keeps two names apart that differ only in what was replaced.
    safe = re.sub(r"[^\w.-]", "_", path, flags=re.ASCII).lstrip(".-")
    return f"{safe or 'hook'}-{digest_of(path.encode())[:8]}"
