"""Dead features: one policy for every recipe. A feature fired on a token when its value is > 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saelab.sae.autoencoder import SAEParameters
from saelab.training.config import DeadFeatures
from saelab.training.recipes.moments import AuxFeatures
from saelab_kernels.code import SparseCode
from saelab_kernels.rules import PerToken
from saelab_kernels.select import encode_select
from saelab_kernels.shapes import Bool, Float, Int, Tensor


@dataclass
class DeadFeatureTracker:
    """Counts, for each feature, the tokens since it last fired."""

    tokens_since_fired: Int[Tensor, " d_sae"]
    after_tokens: int

    @classmethod
    def new(cls, d_sae: int, policy: DeadFeatures, tokens: int, device: torch.device) -> DeadFeatureTracker:
        """Start with every feature alive; the window scales with the run's ``tokens``."""
        after = max(policy.min_tokens, round(policy.share_of_run * tokens))
        return cls(torch.zeros(d_sae, dtype=torch.int64, device=device), after)

    @property
    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Which features have not fired for the whole window."""
        return self.tokens_since_fired >= self.after_tokens

    def observe(self, code: SparseCode) -> None:
        """Count a batch."""
        fired = code.firing_counts() > 0
        self.tokens_since_fired += code.n_rows
        self.tokens_since_fired.masked_fill_(fired, 0)


def aux_features(
    x: Float[Tensor, "tokens d_in"], params: SAEParameters, dead: Bool[Tensor, " d_sae"], aux_k: int
) -> AuxFeatures | None:
    """Return the dead features with the ``aux_k`` largest of each token, or None where no feature is dead.

    The work is that of the dead features alone.
    """
    features = dead.nonzero().squeeze(1)
    if len(features) == 0:
        return None
    W_enc = params.W_enc.t().index_select(0, features).t()
    rule = PerToken(min(aux_k, len(features)))
    code = encode_select(x, W_enc, params.b_enc[features], rule, sort=False).code
    return AuxFeatures(features, params.W_dec.index_select(0, features), code)
