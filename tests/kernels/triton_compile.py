"""Compiles, for a Hopper GPU that need not be there, exactly the kernels that some calls would launch.

A kernel that is right in Triton's interpreter may still not compile. Use, in a process without TRITON_INTERPRET:

    from triton_compile import compile_all, recorded_launches

    with recorded_launches() as launches:
        triton_select(request)          # on CPU tensors; kernels are noted, not run, outputs are garbage
    compile_all(launches)               # raises what the compiler says; returns the number of kernels

Works for code whose launches do not depend on what the kernels compute. Needs no driver: Triton's package has the
assembler. Each combination of argument types and constants is compiled once. As at a real launch, whole numbers that
are 1 are constants; alignment is not promised, so what is compiled may be slower code than what runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bool: "i1",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}
_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")


@dataclass(frozen=True)
class Launch:
    """One kernel with the types of its arguments, its constants, and its options."""

    kernel: JITFunction
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, int], ...]


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Notes launches instead of running them; each distinct one once."""
    launches: list[Launch] = []

    def note(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
        given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        signature, constants = {}, {}
        for parameter in kernel.params:
            name = parameter.name
            value = given.get(name, parameter.default)
            if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
                signature[name], constants[name] = "constexpr", value
            else:
                signature[name] = _type_of(value)
        launch = Launch(
            kernel, tuple(signature.items()), tuple(constants.items()), tuple(sorted(options.items()))
        )
        if launch not in launches:
            launches.append(launch)

    with mock.patch.object(JITFunction, "run", note):
        yield launches


def compile_all(launches: list[Launch], capability: int = 90) -> int:
    """Compiles every launch to machine code; returns how many there were.

    Raises:
        ValueError: nothing was recorded.
        triton.CompilationError, RuntimeError: a kernel does not compile.
    """
    if not launches:
        raise ValueError("compile_all: no launch was recorded")
    for launch in launches:
        source = ASTSource(launch.kernel, dict(launch.signature), constexprs=dict(launch.constants))
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options=dict(launch.options))
        if not compiled.asm["cubin"]:
            raise RuntimeError(f"compile_all: no machine code for {launch.kernel.__name__}")
    return len(launches)


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + _TYPES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    raise TypeError(f"triton_compile: cannot pass {value!r} to a kernel")
