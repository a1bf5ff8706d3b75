"""What runs must have in common to be compared: what they reconstruct, and the tokens that they are measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saelab.errors import UsageError
from saelab.evaluation.origin import Origin
from saelab.evaluation.sources import Shared, Tokens, TokenSource, open_tokens, tokens_for
from saelab.evaluation.tokens import choose_tokens
from saelab.lm.load import LanguageModel
from saelab.sae.config import SAEConfig
from saelab.sae.files import load_sae_config
from saelab.training.run import SAE, Run


@dataclass(frozen=True)
class Common:
    """The tokens of a comparison: the same for every run, wherever each run's activations on them come from."""

    members: dict[Tokens, list[int]]
    """Where they come from, with the numbers of the runs that are measured there."""
    digest: str
    """Their digest, as evaluations record it."""

    @property
    def origin(self) -> Origin:
        """Where they come from, for the record; that of the first run."""
        return next(iter(self.members)).origin


def without_repeats(runs: Sequence[Run]) -> list[Run]:
    """Return each run once, in the order in which they first come: a group may be given beside its members."""
    return list({run.path.resolve(): run for run in runs}.values())


def require_one_target(runs: Sequence[Run]) -> SAEConfig:
    """Refuse runs that reconstruct different things: their metrics would not be about the same.

    Returns:
        The configuration of the first SAE.

    Raises:
        UsageError: They reconstruct other hookpoints, other widths or other models' activations.
    """
    configs = [load_sae_config(run.path / SAE) for run in runs]
    first = configs[0]
    for run, config in zip(runs, configs, strict=True):
        if _target(config) == _target(first):
            continue
        raise UsageError(
            f"compare: {runs[0].path} reconstructs {_told(first)}, but {run.path} reconstructs {_told(config)}; "
            "compare runs of one target"
        )
    return first


def common_tokens(
    runs: Sequence[Run], target: SAEConfig, source: TokenSource, n_tokens: int, shared: Shared
) -> Common:
    """Find the tokens that all runs are measured on.

    Where nothing is asked for, they are the held-out documents of the runs' own store or text, which must be one.
    With a text, what each run was trained on is left out, and what remains must be the same for all.

    Raises:
        UsageError: The runs have no tokens in common; the message names two and what to give.
    """
    members: dict[Tokens, list[int]] = {}
    for index, run in enumerate(runs):
        members.setdefault(tokens_for(run, source, n_tokens, shared), []).append(index)
    if source == TokenSource():
        origins = {tokens.origin: runs[numbers[0]].path for tokens, numbers in members.items()}
        if len(origins) > 1:
            one, other = list(origins.values())[:2]
            raise UsageError(
                f"compare: {one} and {other} were trained on different activations, so each has held-out documents "
                "of its own; name the tokens to compare on with --store or --text"
            )
    digests = {
        digest_of(tokens, target, n_tokens, shared): runs[numbers[0]].path
        for tokens, numbers in members.items()
    }
    if len(digests) > 1:
        one, other = list(digests.values())[:2]
        raise UsageError(
            f"compare: without what each was trained on, {one} and {other} would be measured on different tokens; "
            "give a store that neither was trained on with --store"
        )
    return Common(members, next(iter(digests)))


def digest_of(tokens: Tokens, target: SAEConfig, n_tokens: int, shared: Shared) -> str:
    """Return the digest of the tokens that an evaluation would choose; a text is read and cached for that."""
    with open_tokens(tokens, shared, harvest_model(tokens, shared), quiet=True) as (store, _):
        return choose_tokens(store, store.hook(target.output_hooks[0]), n_tokens).digest


def harvest_model(tokens: Tokens, shared: Shared) -> LanguageModel | None:
    """Return the model that reads a text; None for a store, which has been read."""
    return None if tokens.harvest is None else shared.model(tokens.harvest.model)


def _target(config: SAEConfig) -> tuple[tuple[str, ...], int, str]:
    return config.output_hooks, config.d_out, config.model_identity


def _told(config: SAEConfig) -> str:
    model = f" of model {config.model_name} ({config.model_identity[:12]})" if config.model_name else ""
    return f"{', '.join(config.output_hooks)} (width {config.d_out}){model}"
