"""Shape annotations: jaxtyping's where it is installed, else stand-ins that mean the plain tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:

        class _Shape:
            """`Float[Tensor, "rows d_in"]` without jaxtyping: the annotation is the tensor type."""

            def __class_getitem__(cls, item):
                return item[0]

        Bool = Float = Int = _Shape

__all__ = ["Bool", "Float", "Int", "Tensor"]
