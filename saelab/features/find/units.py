"""Units: what is told apart, with label and half, as arrays over the tokens of a corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saelab.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Units:
    """Labelled units; those of one document are in one half."""

    of_token: NDArray[np.int64]
    """Number of the unit of each token position of the corpus, -1 where it is in none ``[n_tokens]``."""
    positive: NDArray[np.bool_]
    """Label of each unit ``[n]``."""
    document: NDArray[np.int64]
    """Document of each unit, ascending ``[n]``."""
    size: NDArray[np.int64]
    """Kept tokens of each unit, at least 1 ``[n]``."""
    heldout: NDArray[np.bool_]
    """Whether each unit is in the half that is reported ``[n]``."""
    n_in_both: int = 0
    """Units that were in both sets, and are left out."""


def label_units(
    of_token: NDArray[np.int64],
    keep: NDArray[np.bool_],
    document: NDArray[np.int64],
    positive: NDArray[np.bool_],
    negative: NDArray[np.bool_],
    keys: Sequence[str],
    seed: int,
) -> Units:
    """Keep the units that are in one set and have a kept token, and halve their documents.

    Args:
        of_token: Unit of each token, -1 for none.
        keep: Whether a token has codes.
        document: Document of each unit.
        positive: Whether a unit is in the first set.
        negative: Whether it is in the second.
        keys: Stable name of each document; documents of one name are in one half.
        seed: Decides the halves.

    Raises:
        UsageError: A half has no unit of a set.
    """
    both = positive & negative
    size = np.bincount(of_token[keep & (of_token >= 0)], minlength=len(document))
    wanted = (positive ^ negative) & (size > 0)
    number = np.where(wanted, np.cumsum(wanted) - 1, -1)
    kept_of_token = np.where((of_token >= 0) & keep, number[of_token], -1)
    labels, documents = positive[wanted], document[wanted]
    heldout = _halves(documents, labels, keys, seed)[documents]
    for half, name in ((~heldout, "selection"), (heldout, "held-out")):
        for label, which in ((True, "positive"), (False, "negative")):
            if not (half & (labels == label)).any():
                raise UsageError(
                    f"find: the {name} half has no {which} unit ({int(labels.sum()):,} positive and "
                    f"{int((~labels).sum()):,} negative units in {len(np.unique(documents)):,} documents, "
                    f"{int((both & (size > 0)).sum()):,} in both sets left out); "
                    "each set needs units in at least 2 documents"
                )
    return Units(
        of_token=kept_of_token,
        positive=labels,
        document=documents,
        size=size[wanted],
        heldout=heldout,
        n_in_both=int((both & (size > 0)).sum()),
    )


def _halves(
    documents: NDArray[np.int64], labels: NDArray[np.bool_], keys: Sequence[str], seed: int
) -> NDArray[np.bool_]:
    """Deal documents out to the halves in the order of a hash: those with positives, with both, and others apart."""
    has = np.zeros((len(keys), 2), dtype=np.bool_)
    has[documents, labels.astype(np.int64)] = True
    kinds: dict[str, int] = {}
    for number in np.unique(documents):
        name = str(keys[int(number)])
        kinds[name] = kinds.get(name, 0) | int(has[number, 0]) | 2 * int(has[number, 1])
    heldout: dict[str, bool] = {}
    for kind in (1, 2, 3):
        names = sorted((name for name, one in kinds.items() if one == kind), key=lambda n: _digest(n, seed))
        heldout |= {name: bool(place % 2) for place, name in enumerate(names)}
    return np.array([heldout.get(name, False) for name in keys], dtype=np.bool_)


def _digest(name: str, seed: int) -> bytes:
    return hashlib.blake2b(
        name.encode(errors="surrogatepass"), digest_size=8, key=seed.to_bytes(8, "little")
    ).digest()
