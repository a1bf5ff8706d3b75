"""A comparison made up of numbers, to draw."""

import math

from saelab.evaluation.comparison.pareto import common_l0, fronts_of
from saelab.evaluation.comparison.profile import DensityCurve
from saelab.evaluation.comparison.result import ComparedRun, Comparison
from saelab.evaluation.comparison.seeds import SeedConsistency
from saelab.evaluation.comparison.table import METRICS, TableRow, columns
from saelab.sae.zipf import ZipfFit

EVIL = '<b onclick="x">&amp;</b><script>alert(1)</script>'


def made_row(recipe="topk", k=8, seed=0, **changes):
    """Return a row whose metrics follow from k and the seed."""
    plain = dict.fromkeys(columns())
    plain |= dict.fromkeys(("run", "hook", "input_hook", "model", "tokens_hash", "sae_identity"), "name")
    plain |= {"recipe": recipe, "front": recipe, "setting": f"{recipe}, k={k}", "k": float(k), "seed": seed}
    plain |= {"width": 64, "lr": 0.01, "tokens": 100, "batch": 10, "n_tokens": 20, "n_predictions": 18}
    plain |= {"l0": k + 0.5 * seed, "fvu": 1 / k + 0.01 * seed, "kl": 2 / k, "dead_fraction": 0.01 * seed}
    plain |= {"dense_fraction": 0.02, "ce_recovered_zero": 1 - 1 / k, "ce_recovered_mean": 1 - 2 / k}
    return TableRow(**plain | {"seconds_per_step": 0.02 + 0.01 * seed} | changes)


def made_run(row, **changes):
    """Return a run with a curve of each kind."""
    k = int(row.k)
    plain = {
        "row": row,
        "active_histogram": (0,) * k + (20,),
        "density": DensityCurve(
            ranks=(1, 2, 4), densities=(0.4, 0.2, 0.1), zipf=ZipfFit(1.0, 0.0, math.log(0.4))
        ),
        "fvu_by_difficulty": tuple(row.fvu * (1 + 0.1 * number) for number in range(10)),
        "warnings": (),
    }
    return ComparedRun(**plain | changes)


def made_comparison(recipes=("topk", "other"), ks=(8, 16, 32), seeds=(0, 1), **changes):
    """Return a comparison of every combination."""
    rows = [made_row(recipe, k, seed) for recipe in recipes for k in ks for seed in seeds]
    values = [(row.front, row.setting, {name: getattr(row, name) for name in METRICS}) for row in rows]
    fronts = fronts_of(values, METRICS)
    at = common_l0(fronts)
    plain = {
        "runs": tuple(made_run(row) for row in rows),
        "fronts": fronts,
        "common_l0": at,
        "at_common_l0": {front.label: {"fvu": 0.25, "kl": None} for front in fronts},
        "consistency": (
            SeedConsistency(
                setting=rows[0].setting,
                n_seeds=3,
                partnered_share=0.5,
                low=0.25,
                high=0.75,
                cosines=(0.0, 0.5, 1.0),
                share_above=(1.0, 0.75, 0.0),
            ),
        ),
        "difficulty": tuple(0.1 * 2**number for number in range(10)),
        "hook": "layers.0",
        "source": {"kind": "own"},
        "tokens_hash": "abc",
        "n_tokens": 20,
        "left_out": (),
    }
    return Comparison(**plain | changes)
