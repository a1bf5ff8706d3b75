"""The content of an index's manifest: where everything in it came from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

from saelab.features.building.corpus import Corpus
from saelab.features.building.logits import LogitLens
from saelab.features.spec import IndexConfig
from saelab.lm.identity import ModelIdentity
from saelab.lm.spec import ModelSpec
from saelab.sae.files import load_sae_config, sae_identity
from saelab.training.run import SAE, Run


@dataclass(frozen=True)
class Origin:
    """Where the activations came from."""

    provenance: dict[str, Any]
    """Text, packing and masks."""
    notes: tuple[str, ...]
    """What a user should know about the text."""
    store_identity: str | None
    """Of the store; None where the model read the text for the index."""
    model: ModelIdentity | None
    spec: ModelSpec | None


def describe_index(
    run: Run, corpus: Corpus, config: IndexConfig, origin: Origin, lens: LogitLens | str
) -> dict[str, Any]:
    """Return the content, but for what the build finds out."""
    sae = load_sae_config(run.path / SAE)
    identity, model, spec = sae_identity(run.path / SAE), origin.model, origin.spec
    text = str(origin.provenance.get("text", {}).get("source", "activations"))
    hook = (sae.hook_aliases or sae.input_hooks)[0]
    kept = (
        "recipe",
        "d_in",
        "d_out",
        "d_sae",
        "inference",
        "units",
        "input_hooks",
        "output_hooks",
        "hook_aliases",
    )
    documents = corpus.documents
    return {
        "config": config.to_json(),
        "sae": {"identity": identity, "run": run.path.name} | {name: sae.to_json()[name] for name in kept},
        "model": None if model is None else model.to_json(),
        "model_spec": None if spec is None else asdict(replace(spec, device="auto")),
        "tokenizer_hash": None if model is None else model.tokenizer_hash,
        "corpus": {
            "source": text,
            "store_identity": origin.store_identity,
            "n_tokens": corpus.n_tokens,
            "n_kept": corpus.n_kept,
            "n_rows": len(corpus.row_starts) - 1,
            "n_documents": len(documents.ids),
            "n_heldout_documents": int(documents.heldout.sum()),
            "tokens_digest": corpus.digest,
            "provenance": origin.provenance,
            "notes": list(origin.notes),
        },
        "logits": "direct effect of decoder rows through the final norm's gain, centred over the vocabulary"
        if isinstance(lens, LogitLens)
        else f"none: {lens}",
        "source": f"{run.path.name} ({sae.recipe}, {sae.d_sae:,} features) at {hook} of "
        f"{'no model' if model is None else model.name}; {corpus.n_kept:,} tokens of {text}",
        "saelab_version": version("saelab"),
    }
