"""Where in a module's call the activations are: the one tensor that is read, and replaced, at a hookpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import nn
from torch.utils.hooks import RemovableHandle

from saelab_kernels.shapes import Float, Tensor

Side = Literal["input", "output"]
Visit = Callable[[Float[Tensor, "rows length d"]], Float[Tensor, "rows length d"] | None]


def attach(model: nn.Module, module_path: str, visit: Visit) -> RemovableHandle:
    """Call a function with the tensor at a place in every forward pass, until the handle is removed.

    Args:
        model: The model itself.
        module_path: ``model.layers.2.output`` or ``model.layers.2.input``: a module's name and a side.
        visit: Receives the tensor; what it returns replaces it, None leaves it. It is not called
            where the place holds no tensor.

    Raises:
        AttributeError: The model has no such module.
    """
    name, _, side = module_path.rpartition(".")
    module = model.get_submodule(name)
    if side == "input":
        return module.register_forward_pre_hook(_input_hook(visit), with_kwargs=True)
    return module.register_forward_hook(_output_hook(visit))


def _input_hook(visit: Visit) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if args and isinstance(args[0], Tensor):
            new = visit(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        hidden = kwargs.get("hidden_states")
        if not isinstance(hidden, Tensor):
            return None
        new = visit(hidden)
        return None if new is None else (args, kwargs | {"hidden_states": new})

    return hook


def _output_hook(visit: Visit) -> Callable[..., Any]:
    def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, Tensor):
            return visit(output)
        # Attention modules return (output, weights): the first element is what goes on.
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            new = visit(output[0])
            return None if new is None else (new, *output[1:])
        return None

    return hook
