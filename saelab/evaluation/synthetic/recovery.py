"""How many planted directions a dictionary contains."""

from __future__ import annotations

from saelab_kernels.shapes import Float, Tensor


def feature_recovery(
    W_dec: Float[Tensor, "d_sae d_in"], directions: Float[Tensor, "n_features d_in"], threshold: float = 0.9
) -> float:
    """Return the feature recovery rate: the share of planted directions that some decoder row points along.

    A direction counts when its best cosine with a decoder row reaches ``threshold``; one row may
    serve several directions. Rows of zero length serve none. Norms do not matter, signs do.
    """
    return (_cosines(W_dec, directions).amax(1) >= threshold).double().mean().item()


def matched_recovery(
    W_dec: Float[Tensor, "d_sae d_in"], directions: Float[Tensor, "n_features d_in"], threshold: float = 0.9
) -> float:
    """Return the share of planted directions in a one-to-one matching with decoder rows.

    The matching is greedy: the pair with the largest cosine first, then the largest among the rows
    and directions that are left. An optimal matching can only be larger; the two differ only where
    a row is near several directions. Ties go to the lower direction, then to the lower row.
    """
    cosines = _cosines(W_dec, directions)
    n_matched = 0
    for _ in range(min(cosines.shape)):
        best = int(cosines.argmax())
        direction, row = divmod(best, cosines.shape[1])
        if not cosines[direction, row] >= threshold:
            break
        n_matched += 1
        cosines[direction, :] = cosines[:, row] = -2.0
    return n_matched / directions.shape[0]


def _cosines(
    W_dec: Float[Tensor, "d_sae d_in"], directions: Float[Tensor, "n_features d_in"]
) -> Float[Tensor, "n_features d_sae"]:
    rows, targets = W_dec.detach().cpu().double(), directions.cpu().double()
    lengths = targets.norm(dim=1)[:, None] * rows.norm(dim=1)[None, :]
    return (targets @ rows.T / lengths.clamp_min(1e-300)).where(lengths > 0, -2.0)
