"""Next-token losses and KL divergence from final hidden states, without ever holding all logits.

Logits are made tile by tile over rows and vocabulary and reduced at once (online log-sum-exp:
Milakov and Gimelshein 2018, arXiv 1805.02867, the recurrence is the paper's), so the memory is one
tile whatever the vocabulary. Row tiles have one fixed height, the last one padded, so that the
loss of a token does not depend on how many others it is computed with.

Logits and exponentials are float32, sums over tiles float64 where the device has it; units are nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from saelab.lm.unembedding import Unembedding
from saelab_kernels.shapes import Float, Int, Tensor

ROW_TILE = 512
VOCABULARY_TILE = 4096


def next_token_losses(
    hidden: Float[Tensor, "n d"],
    unembedding: Unembedding,
    targets: Int[Tensor, " n"],
    *,
    row_tile: int = ROW_TILE,
    vocabulary_tile: int = VOCABULARY_TILE,
) -> Float[Tensor, " n"]:
    """Return the cross entropy of each target token.

    Args:
        hidden: What enters the unembedding, any float dtype.
        unembedding: The map to logits.
        targets: Token ids to predict, on the device of ``hidden``.
        row_tile: Rows at a time.
        vocabulary_tile: Tokens of the vocabulary at a time.

    Returns:
        Float32 nats.

    Raises:
        ValueError: A target is no token of the vocabulary.
    """
    _check_targets(targets, unembedding)

    def losses(rows: Tensor, tokens: Tensor) -> list[Tensor]:
        return [_scan(rows, unembedding, tokens, vocabulary_tile).cross_entropy()]

    return _over_row_tiles(losses, row_tile, hidden, targets)[0]


def losses_and_kl(
    clean_hidden: Float[Tensor, "n d"],
    other_hidden: Float[Tensor, "n d"],
    unembedding: Unembedding,
    targets: Int[Tensor, " n"],
    *,
    row_tile: int = ROW_TILE,
    vocabulary_tile: int = VOCABULARY_TILE,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return the cross entropies of two variants of the hidden states and KL(clean || other).

    With logits `a` (clean) and `b`, and p = softmax(a):
    KL = sum_v p_v (a_v - b_v) - logsumexp(a) + logsumexp(b); the difference of the last two is formed
    from the running maxima and the ratio of the sums, so that close variants lose no digits
    (derived). It is exactly 0 for equal inputs.

    Args:
        clean_hidden: Hidden states of the unchanged model.
        other_hidden: Those of the changed one.
        unembedding: The map to logits.
        targets: Token ids to predict.
        row_tile: Rows at a time.
        vocabulary_tile: Tokens of the vocabulary at a time.

    Returns:
        ``(ce_clean, ce_other, kl)`` in float32 nats.

    Raises:
        ValueError: A target is no token of the vocabulary.
    """
    _check_targets(targets, unembedding)

    def losses(clean_rows: Tensor, other_rows: Tensor, tokens: Tensor) -> list[Tensor]:
        clean, other, gap = _Running(tokens), _Running(tokens), _accumulator(tokens)
        for start, stop in _spans(len(unembedding.weight), vocabulary_tile):
            a, b = unembedding.logits(clean_rows, start, stop), unembedding.logits(other_rows, start, stop)
            shrink, powers = clean.add(a, start)
            other.add(b, start)
            gap = gap * shrink + a.sub_(b).mul_(powers).sum(1)
        kl = gap / clean.total + (other.largest - clean.largest) + torch.log(other.total / clean.total)
        # No divergence is negative; rounding can leave one that is, by about 1e-7.
        return [clean.cross_entropy(), other.cross_entropy(), kl.clamp_min(0).float()]

    ce_clean, ce_other, kl = _over_row_tiles(losses, row_tile, clean_hidden, other_hidden, targets)
    return ce_clean, ce_other, kl


def loss_gradient(
    hidden: Float[Tensor, "n d"],
    unembedding: Unembedding,
    targets: Int[Tensor, " n"],
    *,
    row_tile: int = ROW_TILE,
    vocabulary_tile: int = VOCABULARY_TILE,
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n d"]]:
    """Return the cross entropies and the gradient of their sum with respect to the hidden states.

    A second pass over the vocabulary sums `(softmax(z) - onehot(target)) dz/dhidden`, with
    `dz = 1 - (z / soft_cap)^2` through a soft cap (derived).

    Returns:
        Float32 losses in nats, and float32 gradients.

    Raises:
        ValueError: A target is no token of the vocabulary.
    """
    _check_targets(targets, unembedding)

    def losses(rows: Tensor, tokens: Tensor) -> list[Tensor]:
        scan = _scan(rows, unembedding, tokens, vocabulary_tile)
        gradient = torch.zeros(rows.shape, dtype=torch.float32, device=rows.device)
        for start, stop in _spans(len(unembedding.weight), vocabulary_tile):
            logits = unembedding.logits(rows, start, stop)
            slope = torch.sub(logits, scan.largest[:, None]).exp_().div_(scan.total[:, None])
            slope -= (torch.arange(start, stop, device=tokens.device) == tokens[:, None]).float()
            if unembedding.soft_cap is not None:
                slope *= 1 - (logits / unembedding.soft_cap) ** 2
            gradient += slope @ unembedding.weight[start:stop].float()
        return [scan.cross_entropy(), gradient]

    ce, gradient = _over_row_tiles(losses, row_tile, hidden, targets)
    return ce, gradient


def sampled_tokens(
    hidden: Float[Tensor, "n d"],
    unembedding: Unembedding,
    uniform: Float[Tensor, " n"],
    *,
    row_tile: int = ROW_TILE,
    vocabulary_tile: int = VOCABULARY_TILE,
) -> Int[Tensor, " n"]:
    """Draw a token from the model's prediction at each row: the first at which the distribution function exceeds u.

    Args:
        hidden: What enters the unembedding, any float dtype.
        unembedding: The map to logits.
        uniform: u in [0, 1) of each row, float64 on the device of ``hidden`` (float32 where it has no other).
        row_tile: Rows at a time.
        vocabulary_tile: Tokens of the vocabulary at a time.

    Returns:
        Token ids, int64; the same for the same u, but that rounding may decide otherwise at a bound between tokens.
    """

    def draw(rows: Tensor, u: Tensor) -> list[Tensor]:
        tokens = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        scan = _scan(rows, unembedding, tokens, vocabulary_tile)
        # The last millionth is left out, so that rounding of the total never leads to the end of the vocabulary.
        wanted = (u.to(scan.total.dtype) * (1 - 1e-6) * scan.total)[:, None]
        below = torch.zeros_like(scan.total)
        for start, stop in _spans(len(unembedding.weight), vocabulary_tile):
            powers = torch.sub(unembedding.logits(rows, start, stop), scan.largest[:, None]).exp_()
            reached = below[:, None] + powers.to(below.dtype).cumsum(1)
            tokens += (reached <= wanted).sum(1)
            below = reached[:, -1]
        return [tokens.clamp_max(len(unembedding.weight) - 1)]

    return _over_row_tiles(draw, row_tile, hidden, uniform)[0]


class _Running:
    """Online log-sum-exp of logits that arrive tile by tile, and the logit of each row's target."""

    def __init__(self, targets: Int[Tensor, " n"]) -> None:
        self.targets = targets
        self.largest = torch.full(targets.shape, -torch.inf, device=targets.device)
        self.total = _accumulator(targets)
        self.target_logit = torch.zeros(targets.shape, device=targets.device)

    def add(self, logits: Float[Tensor, "n width"], start: int) -> tuple[Tensor, Tensor]:
        """Take in the logits from token ``start`` on.

        Returns:
            The factor by which earlier sums shrink, `[n]`, and `exp(logits - largest) [n, width]`.
        """
        largest = torch.maximum(self.largest, logits.amax(1))
        shrink = torch.exp(self.largest - largest)
        powers = torch.sub(logits, largest[:, None]).exp_()
        self.largest, self.total = largest, self.total * shrink + powers.sum(1)
        column = self.targets - start
        is_here = (column >= 0) & (column < logits.shape[1])
        found = logits.gather(1, column.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        self.target_logit = torch.where(is_here, found, self.target_logit)
        return shrink, powers

    def cross_entropy(self) -> Float[Tensor, " n"]:
        """Return `logsumexp(logits) - logit of the target`."""
        return ((self.largest - self.target_logit) + torch.log(self.total)).float()


def _accumulator(targets: Tensor) -> Tensor:
    # One number a row costs nothing, and in float64 many small tiles add up like few large ones.
    dtype = torch.float32 if targets.device.type == "mps" else torch.float64
    return torch.zeros(targets.shape, dtype=dtype, device=targets.device)


def _scan(rows: Tensor, unembedding: Unembedding, targets: Tensor, vocabulary_tile: int) -> _Running:
    running = _Running(targets)
    for start, stop in _spans(len(unembedding.weight), vocabulary_tile):
        running.add(unembedding.logits(rows, start, stop), start)
    return running


def _spans(total: int, width: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, width):
        yield start, min(start + width, total)


@torch.no_grad()
def _over_row_tiles(compute: Callable[..., list[Tensor]], height: int, *inputs: Tensor) -> list[Tensor]:
    """Apply a function to tiles of exactly ``height`` rows and join the results of the real rows."""
    n_rows, parts = len(inputs[0]), []
    for start in range(0, max(n_rows, 1), height):
        tile = [x[start : start + height] for x in inputs]
        count = len(tile[0])
        padded = [torch.cat([x, x.new_zeros(height - count, *x.shape[1:])]) for x in tile]
        parts.append([result[:count] for result in compute(*padded)])
    return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]


def _check_targets(targets: Tensor, unembedding: Unembedding) -> None:
    size = len(unembedding.weight)
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < size:
        found = f"{int(targets.min())} to {int(targets.max())}"
        raise ValueError(
            f"losses: targets are {found}, the vocabulary has {size} tokens; leave the others out"
        )
