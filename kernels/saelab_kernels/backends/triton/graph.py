"""A training step recorded once in a CUDA graph and then replayed: one launch instead of some dozens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

from saelab_kernels.shapes import Tensor

Outputs = TypeVar("Outputs")


class CapturedStep(Generic[Outputs]):
    """Calls `step` on inputs of fixed shapes by replaying what it did on the GPU once.

    `step` must do the same launches whatever the numbers are: no branch on them and no wait for the device
    (`.item()`, `bool(tensor)`, `nonzero`). Selection with `PerToken`, `decode_error` and `SparseAdam.step` do so
    on backend "triton". What changes from step to step, a learning rate too, is a tensor among the inputs; other
    tensors that `step` reads (weights, moments) must keep their memory.

    Args:
        step: Takes the inputs, returns tensors in any arrangement, or None.
        examples: Inputs by which it is recorded; later ones have their shapes, dtypes and device.
        state: All tensors that `step` changes in place. It runs for real before it is recorded, so that kernels
            are compiled; afterwards these tensors are as they were.
        warm_up: How often it runs so.
    """

    def __init__(
        self,
        step: Callable[..., Outputs],
        examples: Sequence[Tensor],
        state: Sequence[Tensor],
        warm_up: int = 2,
    ) -> None:
        if not examples or not all(example.is_cuda for example in examples):
            raise ValueError("CapturedStep: needs at least one example input, all on a CUDA device")
        self._inputs = [example.clone() for example in examples]
        with torch.cuda.device(examples[0].device):
            saved = [tensor.clone() for tensor in state]
            aside, here = torch.cuda.Stream(), torch.cuda.current_stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                for _ in range(warm_up):
                    step(*self._inputs)
            here.wait_stream(aside)
            for tensor, old in zip(state, saved, strict=True):
                tensor.copy_(old)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = step(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Outputs:
        """One step. The next one overwrites the outputs.

        Raises:
            ValueError: The inputs' number or shapes are not those of the examples.
        """
        given, recorded = [tuple(t.shape) for t in inputs], [tuple(t.shape) for t in self._inputs]
        if given != recorded:
            raise ValueError(f"CapturedStep: inputs of shapes {given}; it was recorded with {recorded}")
        for recorded_input, tensor in zip(self._inputs, inputs, strict=True):
            recorded_input.copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._outputs
