"""Where in a module's call the activations are: the one tensor that is read, and replaced, at a hookpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from saelab_kernels.shapes import Float, Tensor

Side = Literal["input", "output"]
Visit = Callable[[Float[Tensor, "... d"]], Float[Tensor, "... d"] | None]


class Stop(Exception):
    """Ends a forward pass whose remaining part is not needed."""


def read(
    model: nn.Module, module_paths: Iterable[str], forward: Callable[[], object]
) -> dict[str, Float[Tensor, "... d"]]:
    """Run a forward pass and return copies of the tensors at some places, stopping after the last of them.

    Args:
        model: The model.
        module_paths: As in `attach`.
        forward: Runs the model.

    Returns:
        The places that were reached, each with an ordinary tensor that autograd may save later, on
        the device of its module. A copy cannot be changed by what the model does to its own tensor
        afterwards.
    """
    wanted, seen = list(dict.fromkeys(module_paths)), {}

    def keep(path: str, x: Tensor) -> None:
        with torch.inference_mode(False):
            seen[path] = x.clone()
        if len(seen) == len(wanted):
            raise Stop

    if not wanted:
        return {}
    with torch.inference_mode(), ExitStack() as stack, suppress(Stop):
        for path in wanted:
            stack.callback(attach(model, path, partial(keep, path)).remove)
        forward()
    return seen


def attach(model: nn.Module, module_path: str, visit: Visit) -> RemovableHandle:
    """Call a function with the tensor at a place in every forward pass, until the handle is removed.

    Args:
        model: The model itself.
        module_path: ``model.layers.2.output`` or ``model.layers.2.input``: a module's name and a side.
            An input is the first positional argument, else the argument ``hidden_states``, else the
            only float tensor among the named ones; an output is the tensor, or the first of a tuple.
        visit: Receives the tensor; what it returns replaces it, None leaves it. It is not called
            where the place holds no tensor.

    Raises:
        AttributeError: The model has no such module.
    """
    name, _, side = module_path.rpartition(".")
    module = model.get_submodule(name)
    if side == "input":
        return module.register_forward_pre_hook(partial(_on_input, visit), with_kwargs=True)
    return module.register_forward_hook(partial(_on_output, visit))


def _on_input(
    visit: Visit, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any] | None:
    if args:
        new = visit(args[0]) if isinstance(args[0], Tensor) else None
        return None if new is None else ((new, *args[1:]), kwargs)
    name = _main_argument(kwargs)
    new = None if name is None else visit(kwargs[name])
    return None if new is None else (args, kwargs | {name: new})


def _main_argument(kwargs: dict[str, Any]) -> str | None:
    if isinstance(kwargs.get("hidden_states"), Tensor):
        return "hidden_states"
    floats = [name for name, x in kwargs.items() if isinstance(x, Tensor) and x.is_floating_point()]
    return floats[0] if len(floats) == 1 else None


def _on_output(visit: Visit, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, Tensor):
        return visit(output)
    # Attention modules return (output, weights): the first element is what goes on.
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        new = visit(output[0])
        return None if new is None else (new, *output[1:])
    return None
