"""The largest one-to-one matching of a bipartite graph, exact, in one bit of memory for each possible pair."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray


def maximum_matching(
    pairs: NDArray[np.uint8], n_right: int, start: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Match as many left members to right ones as can be, each once, along allowed pairs only.

    Augmenting paths by breadth-first search from every free left member (Berge 1957: a matching
    without such a path is a largest one). What a search without success has reached is left out of all later ones,
    since no augmenting path leads through it; so all failures together look at each member once.

    Args:
        pairs: Allowed pairs as packed bits, uint8 ``[n_left, ceil(n_right / 8)]`` (``np.packbits`` of the rows).
        n_right: Right members.
        start: A matching to begin with, int64 ``[n_left]``: the right member of each left one, -1 for none.

    Returns:
        int64 ``[n_left]``, the right member of each left one; -1 where it has none.
    """
    right_of = np.full(len(pairs), -1, dtype=np.int64) if start is None else start.copy()
    left_of = np.full(n_right, -1, dtype=np.int64)
    matched = np.flatnonzero(right_of >= 0)
    left_of[right_of[matched]] = matched
    open_bits = np.full(pairs.shape[1], 255, dtype=np.uint8)
    for root in np.flatnonzero(right_of < 0).tolist():
        seen = open_bits.copy()
        if not _augment(pairs, root, right_of, left_of, seen):
            open_bits = seen
    return right_of


def _augment(
    pairs: NDArray[np.uint8],
    root: int,
    right_of: NDArray[np.int64],
    left_of: NDArray[np.int64],
    open_bits: NDArray[np.uint8],
) -> bool:
    """Match one more left member if a path allows it; the bits of right members that were reached are cleared."""
    reached_from: dict[int, int] = {}
    queue = deque([root])
    while queue:
        left = queue.popleft()
        new = np.flatnonzero(np.unpackbits(pairs[left] & open_bits, count=len(left_of)))
        open_bits &= ~pairs[left]
        reached_from |= dict.fromkeys(new.tolist(), left)
        free = new[left_of[new] < 0]
        if len(free):
            _flip(int(free[0]), reached_from, right_of, left_of)
            return True
        queue.extend(left_of[new].tolist())
    return False


def _flip(
    right: int, reached_from: dict[int, int], right_of: NDArray[np.int64], left_of: NDArray[np.int64]
) -> None:
    while right >= 0:
        left = reached_from[right]
        before = int(right_of[left])  # -1 at the root, where the path ends
        right_of[left], left_of[right] = right, left
        right = before
