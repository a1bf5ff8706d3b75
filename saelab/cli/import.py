"""`saelab import PATH --out RUN`: another tool's SAE as a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from saelab.cli.model_options import ModelOptions
from saelab.cli.options import Common, Count, Result
from saelab.cli.text_options import TextOptions
from saelab.errors import UsageError
from saelab.interop.answers import ActivationName, Answers, NormalisationName
from saelab.interop.formats import READERS
from saelab.lm.spec import ModelSpec

if TYPE_CHECKING:
    from saelab.interop.importing import Imported


@dataclass(frozen=True, kw_only=True)
class Options(TextOptions, ModelOptions, Common):
    """Import an SAE of SAELens, sparsify, dictionary_learning, Gemma Scope, Llama Scope or OpenAI as a run.

    The format is found from the files. What they do not say and what decides about results is asked for, never
    guessed; the options that answer are the ones from --activation on.
    """

    path: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="PATH")]]
    """A folder, a file, or ``hf://owner/name[@revision]/folder``."""
    out: Path
    """Folder of the run."""
    format: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Format of the files, where they may be of several."""
    model: str | None = None
    """The model that it belongs to, recorded with its hash: embedded, a folder, or a hub name."""
    text: str | None = None
    """Measure on this text how often and how strongly each feature fires; needs --model."""
    tokens: Count = 200_000
    """Tokens of the text at most."""
    allow_pickle: bool = False
    """Read .pt files, which can hold programs: as weights alone, nothing in them is run."""
    at: str | None = None
    """Hookpoint that it reads, in either spelling."""
    target_at: str | None = None
    """Hookpoint that it reconstructs, for a transcoder."""
    activation: ActivationName | None = None
    """What happens to pre-activations."""
    k: int | None = None
    """Features that topk keeps for a token."""
    b_dec_on_input: Literal["yes", "no"] | None = None
    """Whether the encoder sees x - b_dec."""
    normalisation: NormalisationName | None = None
    """How each token was scaled before the encoder."""
    scale: float | None = None
    """Number that activations were multiplied by before the encoder."""
    rows: Literal["inputs", "features"] | None = None
    """What the rows of a square encoder matrix stand for."""

    def answers(self) -> Answers:
        """Return what the options say of the SAE."""
        return Answers(
            activation=self.activation,
            k=self.k,
            b_dec_on_input=None if self.b_dec_on_input is None else self.b_dec_on_input == "yes",
            normalisation=self.normalisation,
            scale=self.scale,
            rows=self.rows,
            at=self.at,
            target_at=self.target_at,
        )


def run(options: Options) -> Result:
    """Run the command."""
    spec = options.model_spec(options.model or "")
    if options.model is None and spec != ModelSpec(name="", device=options.device):
        raise UsageError("--revision, --model-dtype, --device-map and --adapter go with --model")
    if options.format is not None and options.format not in READERS:
        raise UsageError(f"the format {options.format!r} cannot be read; known are {', '.join(READERS)}")
    text = None if options.text is None else options.text_spec(options.text)
    if text is None and options.text_spec("stdlib") != TextOptions().text_spec("stdlib"):
        raise UsageError("--subset, --split, --column and the other options of a text go with --text")
    from saelab.api.interop import measurement
    from saelab.interop.importing import import_run
    from saelab.interop.read import read_foreign
    from saelab.lm.load import load_model

    found = read_foreign(
        options.path, format=options.format, answers=options.answers(), allow_pickle=options.allow_pickle
    )
    lm = None if options.model is None else load_model(spec)
    made = import_run(found, options.out, lm, measurement(found, lm, text, options.tokens))
    config = made.sae.config
    data = {
        "run": str(made.run.path),
        "format": found.format,
        "architecture": found.foreign.architecture,
        "source": found.location.address,
        "revision": found.location.revision,
        "d_in": config.d_in,
        "d_out": config.d_out,
        "d_sae": config.d_sae,
        "input_hooks": list(config.input_hooks),
        "output_hooks": list(config.output_hooks),
        "inference": config.inference,
        "units": config.units,
        "model": config.model_name,
        "model_identity": config.model_identity,
        "notes": list(made.notes),
    }
    return Result(data, _describe(made, data))


def _describe(made: Imported, data: dict) -> str:
    rows = {
        "from": f"{data['format']} ({data['architecture']}), {data['source']}",
        "features": f"{data['d_sae']:,} of width {data['d_in']}",
        "reads": ", ".join(data["input_hooks"]),
        "reconstructs": ", ".join(data["output_hooks"]),
        "keeps": " ".join(f"{key}={value}" for key, value in data["inference"].items()),
        "an activation is": data["units"],
        "model": f"{data['model']} ({data['model_identity'] or 'no hash'})",
    }
    lines = [str(made.run.path), *(f"  {label:<16} {value}" for label, value in rows.items())]
    return "\n".join([*lines, *(f"  note: {note}" for note in data["notes"])])
