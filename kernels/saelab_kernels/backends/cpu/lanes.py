"""Two instructions that numba cannot say: comparing 64 numbers at once, and the place of the lowest set bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic as numba_intrinsic

LANES = 64
"""Numbers that are compared at once; bits of the mask that comes out."""
_VECTOR = 16
"""Numbers in a register of the widest processors; narrower ones split it."""
_INDEX = ir.IntType(32)

intrinsic = cast(Callable[[Callable[..., Any]], Callable[..., Any]], numba_intrinsic)
"""numba calls the function with types and the code builder; loops call the result with the arguments that are left."""


@intrinsic
def above_mask(typingctx: Any, row: Any, offsets: Any, start: Any, first: Any, limit: Any) -> Any:
    """Bit j is set unless `row[start + j] + offsets[first + j] <= limit`; so NaN counts as above.

    Args:
        row, offsets: contiguous one-dimensional arrays of one floating point dtype.
        start, first: where the 64 numbers begin in each.
        limit: a number of the same dtype, or an array of them: then the one at `first + j` counts.
    """
    limit_type = limit if isinstance(limit, types.Array) else row.dtype
    signature = types.uint64(row, offsets, types.intp, types.intp, limit_type)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        load = _loader(context, builder, row.dtype)
        one = None if isinstance(limit, types.Array) else _spread(builder, load.vector, args[4])
        mask = ir.Constant(ir.IntType(64), 0)
        for part in range(0, LANES, _VECTOR):
            limits = load(limit, args[4], args[3], part) if one is None else one
            numbers = builder.fadd(load(row, args[0], args[2], part), load(offsets, args[1], args[3], part))
            mask = _add_bits(builder, mask, builder.fcmp_unordered(">", numbers, limits), part)
        return mask

    return signature, codegen


@intrinsic
def above_mask_bf16(
    typingctx: Any, row: Any, offsets: Any, norms: Any, start: Any, first: Any, error: Any, limit: Any
) -> Any:
    """Bit j is set unless `row[start + j] + offsets[first + j] + error * norms[first + j] <= limit`.

    Args:
        row: the uint16 bits of bfloat16 numbers.
        offsets, norms: float32.
        start, first: where the 64 numbers begin in `row`, and in `offsets` and `norms`.
        error, limit: float32 numbers.
    """
    signature = types.uint64(row, offsets, norms, types.intp, types.intp, offsets.dtype, offsets.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        load, load_bits = _loader(context, builder, offsets.dtype), _loader(context, builder, row.dtype)
        limits, errors = _spread(builder, load.vector, args[6]), _spread(builder, load.vector, args[5])
        wide = ir.VectorType(ir.IntType(32), _VECTOR)
        upper_half = ir.Constant(wide, [16] * _VECTOR)
        mask = ir.Constant(ir.IntType(64), 0)
        for part in range(0, LANES, _VECTOR):
            bits = builder.shl(builder.zext(load_bits(row, args[0], args[3], part), wide), upper_half)
            numbers = builder.fadd(builder.bitcast(bits, load.vector), load(offsets, args[1], args[4], part))
            numbers = builder.fadd(numbers, builder.fmul(errors, load(norms, args[2], args[4], part)))
            mask = _add_bits(builder, mask, builder.fcmp_unordered(">", numbers, limits), part)
        return mask

    return signature, codegen


@intrinsic
def lowest_bit(typingctx: Any, mask: Any) -> Any:
    """Place of the lowest set bit of a uint64 that is not 0."""
    signature = types.intp(types.uint64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return signature, codegen


@intrinsic
def float_of_bits(typingctx: Any, bits: Any) -> Any:
    """The float32 number of the lower 32 bits of an integer."""
    signature = types.float32(types.uint32)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return signature, codegen


class _loader:
    """Loads 16 numbers of an array, aligned as its numbers are."""

    def __init__(self, context: Any, builder: Any, dtype: Any) -> None:
        self.context, self.builder = context, builder
        self.vector = ir.VectorType(context.get_value_type(dtype), _VECTOR)
        self.bytes = dtype.bitwidth // 8

    def __call__(self, array_type: Any, array: Any, index: Any, part: int) -> Any:
        data = self.context.make_array(array_type)(self.context, self.builder, array).data
        place = self.builder.gep(data, [self.builder.add(index, ir.Constant(index.type, part))])
        loaded = self.builder.load(self.builder.bitcast(place, self.vector.as_pointer()))
        loaded.align = self.bytes
        return loaded


def _spread(builder: Any, vector: ir.VectorType, number: Any) -> Any:
    """A vector of one number."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(_INDEX, 0))
    zeros = ir.Constant(ir.VectorType(_INDEX, vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def _add_bits(builder: Any, mask: Any, comparison: Any, part: int) -> Any:
    """`mask` with the bits of a comparison of lanes from `part` on."""
    bits = builder.zext(builder.bitcast(comparison, ir.IntType(_VECTOR)), mask.type)
    return builder.or_(mask, builder.shl(bits, ir.Constant(mask.type, part)))
