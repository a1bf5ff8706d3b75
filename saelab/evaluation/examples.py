"""Where a feature is active: its strongest contexts, and their text for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from saelab.activations.store import Store, StoredHook
from saelab.errors import UsageError
from saelab.evaluation.autoencoder import Autoencoder, encode_tile, require_fit, tiles
from saelab.evaluation.tokens import choose_tokens
from saelab.text.documents import Split
from saelab_kernels.shapes import Float, Int, Tensor

TILE = 1024
"""Tokens that the SAE sees at once."""


@dataclass(frozen=True)
class Context:
    """A feature's activation on a token, with the tokens around it."""

    activation: float
    """The activation on the token in question."""
    token_index: int
    """Position of that token in the store's tokens."""
    tokens: tuple[int, ...]
    """Ids of the tokens around it, of the same sequence."""
    activations: tuple[float, ...]
    """The feature's activation on each of them; 0 on masked ones."""
    active: int
    """Which of ``tokens`` is the token in question."""


@dataclass(frozen=True)
class FeatureExamples:
    """The strongest contexts of one feature."""

    feature: int
    """Index of the feature."""
    density: float
    """Share of the tokens seen on which it was active."""
    contexts: tuple[Context, ...]
    """At most one for each sequence, strongest first."""


class Firings(NamedTuple):
    """Every (feature, token) pair with a positive activation, by feature, then by token."""

    features: Int[Tensor, " pairs"]
    """Feature of each pair, int64, ascending."""
    token_index: Int[Tensor, " pairs"]
    """Position in the store's tokens, int64, ascending within a feature."""
    values: Float[Tensor, " pairs"]
    """Activations, float32."""
    n_tokens: int
    """Kept tokens that were seen."""


def top_contexts(
    sae: Autoencoder,
    store: Store,
    hook: StoredHook,
    *,
    features: Sequence[int],
    per_feature: int = 8,
    context_tokens: int = 24,
    max_rows: int = 65_536,
    split: Split = "heldout",
) -> list[FeatureExamples]:
    """Return the strongest contexts of some features, in the order asked for.

    Args:
        sae: The SAE.
        store: Its activations, with tokens.
        hook: Where the SAE reads.
        features: Which features.
        per_feature: Contexts for each; at most one comes from any sequence, ties go to earlier text.
        context_tokens: Tokens of a context: three quarters before the active one, the rest after.
        max_rows: Kept tokens to look through at most, in whole sequences.
        split: Which documents to look through.

    Raises:
        UsageError: The store has no tokens, the SAE does not fit it, or there is no such feature.
    """
    d_sae = sae.config.d_sae
    if wrong := [feature for feature in features if not 0 <= feature < d_sae]:
        raise UsageError(f"examples: there is no feature {wrong[0]}; this SAE has 0 to {d_sae - 1}")
    firings = find_firings(sae, store, hook, max_rows=max_rows, split=split, only=features)
    return [
        _examples_of(store, firings, feature, per_feature=per_feature, context_tokens=context_tokens)
        for feature in features
    ]


def find_firings(
    sae: Autoencoder,
    store: Store,
    hook: StoredHook,
    *,
    max_rows: int,
    split: Split = "heldout",
    only: Sequence[int] | None = None,
) -> Firings:
    """Encode the first tokens of a split and return every firing, or those of some features only.

    Memory is proportional to the pairs that are returned.

    Raises:
        UsageError: The store has no tokens, or the SAE does not fit it.
    """
    if not store.has_tokens:
        raise UsageError(f"examples: {store.path} has no tokens to show; cache activations of a text")
    require_fit(sae, store, hook)
    wanted = torch.zeros(sae.config.d_sae, dtype=torch.bool)
    wanted[slice(None) if only is None else torch.tensor(only, dtype=torch.int64)] = True
    n_tokens = choose_tokens(store, hook, max_rows, split).n_tokens
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for piece in tiles(n_tokens, TILE):
        rows = store.rows(hook, split, piece.start, piece.stop)
        flat = encode_tile(sae, rows.x.to(sae.W_dec.device, torch.float32), TILE).ragged()
        columns, values, row_ids = (part.cpu() for part in (flat.columns, flat.values, flat.row_ids()))
        here = (values > 0) & wanted[columns.long()]
        found.append((columns[here].long(), rows.token_index[row_ids[here]], values[here].float()))
    if not found:
        empty = torch.zeros(0, dtype=torch.int64)
        return Firings(empty, empty, torch.zeros(0), 0)
    features, token_index, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = features.argsort(stable=True)
    return Firings(features[order], token_index[order], values[order], n_tokens)


def render_text(examples: Sequence[FeatureExamples], decode_token: Callable[[int], str]) -> str:
    """Return the contexts as lines for a terminal.

    The active token stands in «guillemets», a newline is shown as ⏎, and any other character that
    could move the cursor or change the terminal is shown as its code.

    Args:
        examples: What to show.
        decode_token: Gives the text of a token id.
    """
    lines = []
    for example in examples:
        lines.append(f"feature {example.feature}  active on {example.density:.3%} of tokens")
        lines.extend(
            f"  {context.activation:8.2f}  {_line(context, decode_token)}" for context in example.contexts
        )
        if not example.contexts:
            lines.append("  never active on these tokens")
    return "\n".join(lines)


def _examples_of(
    store: Store, firings: Firings, feature: int, *, per_feature: int, context_tokens: int
) -> FeatureExamples:
    start, stop = torch.searchsorted(firings.features, torch.tensor([feature, feature + 1])).tolist()
    token_index, values = firings.token_index[start:stop], firings.values[start:stop]
    row_starts = torch.from_numpy(store.row_starts[:].astype("int64"))
    rows = torch.searchsorted(row_starts, token_index, right=True) - 1
    chosen: dict[int, int] = {}
    for pair in values.argsort(descending=True, stable=True).tolist():
        if len(chosen) == per_feature:
            break
        chosen.setdefault(int(rows[pair]), pair)
    activation_of = dict(zip(token_index.tolist(), values.tolist(), strict=True))
    contexts = []
    for row, pair in chosen.items():
        at = int(token_index[pair])
        first = max(int(row_starts[row]), at - context_tokens * 3 // 4)
        last = min(int(row_starts[row + 1]), first + context_tokens)
        contexts.append(
            Context(
                activation=float(values[pair]),
                token_index=at,
                tokens=tuple(int(token) for token in store.tokens[first:last]),
                activations=tuple(activation_of.get(index, 0.0) for index in range(first, last)),
                active=at - first,
            )
        )
    return FeatureExamples(feature, (stop - start) / max(firings.n_tokens, 1), tuple(contexts))


def _line(context: Context, decode_token: Callable[[int], str]) -> str:
    texts = [_visible(decode_token(token)) for token in context.tokens]
    texts[context.active] = f"«{texts[context.active]}»"
    return "".join(texts)


def _visible(text: str) -> str:
    shown = text.replace("\r\n", "⏎").replace("\n", "⏎")
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in shown
    )
