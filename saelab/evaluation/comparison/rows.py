"""From a run and its record to its row of the table."""

from __future__ import annotations

from typing import Any

from saelab.errors import DamagedFileError
from saelab.evaluation.comparison.settings import Setting, name_of
from saelab.evaluation.comparison.step_time import step_time
from saelab.evaluation.comparison.table import TableRow
from saelab.evaluation.loss_recovered import LossMetrics
from saelab.evaluation.reconstruction import ReconstructionMetrics
from saelab.fields import read_fields
from saelab.sae.files import load_sae_config, sae_identity
from saelab.sae.zipf import ZipfFit
from saelab.training.run import SAE, Run

_RECONSTRUCTION = tuple(ReconstructionMetrics.__dataclass_fields__)
_LOSS = tuple(LossMetrics.__dataclass_fields__)


def read_metrics(record: Any, where: str) -> tuple[ReconstructionMetrics, LossMetrics]:
    """Read the metrics of a record strictly.

    Raises:
        DamagedFileError: It is no table, or a metric is missing or no number.
    """
    if not isinstance(record, dict):
        raise DamagedFileError(f"{where} is not a table of fields")
    reconstruction = {name: record[name] for name in _RECONSTRUCTION if name in record}
    loss = {name: record[name] for name in _LOSS if name in record}
    return (
        read_fields(ReconstructionMetrics, reconstruction, where, DamagedFileError),
        read_fields(LossMetrics, loss, where, DamagedFileError),
    )


def make_row(
    run: Run, setting: Setting, record: dict[str, Any], zipf: ZipfFit | None, partnered: float | None
) -> TableRow:
    """Return the row of one run.

    Args:
        run: The run.
        setting: Where it belongs.
        record: Its evaluation.
        zipf: The curve of its densities.
        partnered: Share of partnered features over the seeds of its setting.

    Raises:
        DamagedFileError: The record lacks a metric.
    """
    sae, trained, time = load_sae_config(run.path / SAE), run.trained, step_time(run)
    reconstruction, loss = read_metrics(record, f"the evaluation of {run.path}")
    k = sae.inference.get("k") if trained is None else getattr(trained.recipe, "k", None)
    return TableRow(
        run=str(run.path),
        recipe=name_of(run.description),
        front=setting.front,
        setting=setting.setting,
        k=None if k is None else float(k),
        width=sae.d_sae,
        seed=None if trained is None else trained.seed,
        lr=None if trained is None else trained.lr,
        tokens=None if trained is None else trained.tokens,
        batch=None if trained is None else trained.batch,
        hook=", ".join(sae.output_hooks),
        input_hook=", ".join(sae.input_hooks),
        model=sae.model_name,
        l0=reconstruction.l0,
        fvu=reconstruction.fvu,
        explained_variance=reconstruction.explained_variance,
        mse=reconstruction.mse,
        cosine=reconstruction.cosine,
        ce_clean=loss.ce_clean,
        ce_spliced=loss.ce_spliced,
        ce_zero_ablation=loss.ce_zero_ablation,
        ce_mean_ablation=loss.ce_mean_ablation,
        ce_recovered_zero=loss.ce_recovered_zero,
        ce_recovered_mean=loss.ce_recovered_mean,
        kl=loss.kl,
        dead_fraction=reconstruction.dead_fraction,
        dense_fraction=reconstruction.dense_fraction,
        zipf_exponent=None if zipf is None else zipf.exponent,
        partnered_share=partnered,
        seconds_per_step=None if time is None else time.seconds_per_step,
        tokens_per_second=None if time is None else time.tokens_per_second,
        saes_in_pass=None if time is None else time.saes_in_pass,
        n_tokens=reconstruction.n_tokens,
        n_predictions=loss.n_predictions,
        tokens_hash=str(record["tokens_hash"]),
        sae_identity=sae_identity(run.path / SAE),
    )
