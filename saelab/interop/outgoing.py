"""An SAE of ours as other tools can hold it: a selection that they have, and the input bias where they want it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from saelab.errors import UsageError
from saelab.sae.autoencoder import SparseAutoencoder
from saelab.sae.config import SAEConfig
from saelab.sae.files import load_sae
from saelab.training.run import SAE, Run
from saelab_kernels.rules import PerToken, Threshold
from saelab_kernels.shapes import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """The parts of an SAE that other tools know. In the SAE's own units; exact."""

    config: SAEConfig
    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    W_skip: Float[Tensor, "d_in d_out"] | None
    keep: Literal["relu", "topk", "threshold"]
    k: int | None
    """For ``topk``."""
    theta: Float[Tensor, " d_sae"] | None
    """For ``threshold``: one for each feature."""
    subtracts_b_dec: bool
    """Whether the encoder sees ``x - b_dec``."""

    @property
    def is_transcoder(self) -> bool:
        """Whether it reconstructs another place than it reads."""
        return self.config.input_hooks != self.config.output_hooks

    @property
    def hook(self) -> str:
        """What it reads: the TransformerLens name where there is one."""
        return self.config.hook_aliases[0] or self.config.input_hooks[0]

    def with_input_bias(self, subtracted: bool) -> Outgoing:
        """Return the same map with ``b_dec`` subtracted from the input, or not (derived).

        `(x - b_dec) W + b = x W + (b - b_dec W)`, in float64.

        Raises:
            UsageError: The decoder bias is of another place than the input.
        """
        if subtracted == self.subtracts_b_dec:
            return self
        if self.is_transcoder and subtracted:
            raise UsageError("export: the bias of a transcoder's target cannot be subtracted from its input")
        sign = 1.0 if subtracted else -1.0
        b_enc = (self.b_enc.double() + sign * self.b_dec.double() @ self.W_enc.double()).float()
        return replace(self, b_enc=b_enc, subtracts_b_dec=subtracted)

    def gate_bias(self) -> Float[Tensor, " d_sae"]:
        """Return the bias of a gate that opens above the threshold: `z > theta` is `x W + (b - theta) > 0`."""
        assert self.theta is not None
        return (self.b_enc.double() - self.theta.double()).float()


def outgoing(run: Run, to: str) -> Outgoing:
    """Load a run's SAE for export.

    Args:
        run: The run.
        to: The format, for messages.

    Raises:
        UsageError: It reads or reconstructs several hookpoints, or keeps features in a way that no other tool has.
    """
    sae = load_sae(run.path / SAE)
    config = sae.config
    if len(config.input_hooks) > 1 or len(config.output_hooks) > 1:
        raise UsageError(
            f"export: {run.path} reads or reconstructs several hookpoints ({', '.join(config.input_hooks)}); "
            f"{to} has SAEs of one"
        )
    keep, k, theta = _selection(sae, run, to)
    return Outgoing(
        config=config,
        W_enc=sae.W_enc.detach(),
        b_enc=sae.b_enc.detach(),
        W_dec=sae.W_dec.detach(),
        b_dec=sae.b_dec.detach(),
        W_skip=sae.W_skip,
        keep=keep,
        k=k,
        theta=theta,
        subtracts_b_dec=config.apply_b_dec_to_input,
    )


def notes_of(parts: Outgoing) -> tuple[str, ...]:
    """Say what another tool will not know of the SAE."""
    found = []
    if parts.config.attribution is not None:
        found.append(
            "its ranking by gradients (g-SAE) is left out: features are ranked by their activations alone"
        )
    return tuple(found)


def require_plain_scale(parts: Outgoing, to: str) -> None:
    """Refuse an SAE that scales each token, for formats that have none of that.

    Raises:
        UsageError: It does.
    """
    kind = parts.config.input_normalisation.kind
    if kind != "none":
        raise UsageError(f"export: this SAE scales each token ({kind}), which {to} cannot say; saelens can")


def _selection(
    sae: SparseAutoencoder, run: Run, to: str
) -> tuple[Literal["relu", "topk", "threshold"], int | None, Tensor | None]:
    if isinstance(sae.rule, PerToken):
        return "topk", sae.rule.k, None
    if not isinstance(sae.rule, Threshold) or sae.theta is None:
        raise UsageError(f"export: {run.path} keeps features by {sae.config.inference}, which {to} has not")
    theta = sae.theta.expand(sae.config.d_sae).contiguous()
    if not bool((theta > 0).any()):  # only what is above 0 is kept anyway
        return "relu", None, None
    return "threshold", None, theta
