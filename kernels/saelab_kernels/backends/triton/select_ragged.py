"""From slots of rows to ragged codes: what the rules other than `PerToken` end with.

Where the number of pairs is not known in advance these rules read it from the device, once or twice a call, and
return exact codes. While a CUDA graph is captured nothing is read: the codes then have spare capacity, `count` and
`overflow` on the device.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl

from saelab_kernels.backends.triton.select_lists import staying
from saelab_kernels.backends.triton.tiles import launch_options
from saelab_kernels.code import SparseCode
from saelab_kernels.request import SelectRequest
from saelab_kernels.shapes import Float, Int, Tensor


def capturing(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being captured, so that nothing may be read from the device."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def running_sums(widths: Int[Tensor, " n"]) -> Int[Tensor, " n_plus_one"]:
    """int64 sums of what is before each entry, and of all."""
    out = torch.zeros(widths.shape[0] + 1, dtype=torch.int64, device=widths.device)
    torch.cumsum(widths, dim=0, out=out[1:])
    return out


def global_columns(request: SelectRequest, local: Int[Tensor, " nnz"]) -> Int[Tensor, " nnz"]:
    """int32 feature numbers of ranked columns."""
    if request.columns is None or request.n_columns == 0:
        return local
    return request.columns.index_select(0, local).to(torch.int32)


def ragged_code(
    request: SelectRequest,
    z: Float[Tensor, " capacity"],
    local: Int[Tensor, " capacity"],
    offsets: Int[Tensor, " rows_plus_one"],
    overflow: Tensor | None,
) -> SparseCode:
    """A code; exact without `overflow`, with spare capacity otherwise. Unused entries have value 0 and a column."""
    columns, d_sae = global_columns(request, local), request.W_enc.shape[1]
    values = z.to(request.x.dtype)
    if overflow is None:
        return SparseCode(values, columns, d_sae, offsets)
    offsets = offsets.clamp_max(values.shape[0])
    return SparseCode(values, columns, d_sae, offsets, offsets[-1], overflow)


@triton.jit
@no_type_check
def copy_rows_kernel(
    key, z, column, out_z, out_column, starts, counts, cut, ties, width, BLOCK: tl.constexpr
):
    """One program a row of slots: the first `counts` entries to the outputs from `starts` on.

    With keys: those above `cut` and the first `ties` that equal it, wherever they stand.
    """
    row = tl.program_id(0).to(tl.int64)
    to = tl.load(starts + row)
    n = width
    if key is None:
        n = tl.minimum(tl.load(counts + row), width)
    else:
        t = tl.load(cut)
        room = tl.load(ties + row)
        equals = tl.full((), 0, tl.int32)
    for start in range(0, n, BLOCK):
        place = start + tl.arange(0, BLOCK)
        stays = place < n
        if key is not None:
            keys = tl.load(key + row * width + place, mask=stays, other=0)
            stays, equals = staying(keys, stays & (keys > 0), t, room, equals)
        at = to + tl.cumsum(stays.to(tl.int32), 0) - 1
        tl.store(out_z + at, tl.load(z + row * width + place, mask=stays, other=0), mask=stays)
        tl.store(out_column + at, tl.load(column + row * width + place, mask=stays, other=0), mask=stays)
        to += tl.sum(stays.to(tl.int32), axis=0)


def copy_rows(
    slots: tuple[Tensor | None, Float[Tensor, "rows width"], Int[Tensor, "rows width"]],
    out: tuple[Float[Tensor, " capacity"], Int[Tensor, " capacity"]],
    starts: Int[Tensor, " rows"],
    counts: Int[Tensor, " rows"] | None,
    quota: tuple[Int[Tensor, ""], Int[Tensor, " rows"]] | None,
    block: int,
) -> None:
    """Moves what is kept of `slots` (keys or None, z, columns) to flat outputs: by `counts`, or by keys and `quota`."""
    rows, width = slots[1].shape
    if rows and width:
        cut, ties = (None, None) if quota is None else quota
        copy_rows_kernel[(rows,)](
            *slots, *out, starts, counts, cut, ties, width, BLOCK=block, **launch_options()
        )
