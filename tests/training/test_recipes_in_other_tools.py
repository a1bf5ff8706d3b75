"""What every recipe trains goes out to other tools and comes in again as the same map, or is refused."""

import pytest
import torch
from memory_source import MemorySource
from test_every_recipe import run, small_config

from saelab.errors import UsageError
from saelab.interop.answers import Answers
from saelab.interop.formats import WRITERS, writer
from saelab.interop.importing import import_run
from saelab.interop.read import read_foreign
from saelab.interop.writing import ExportRequest
from saelab.training.recipes import RECIPES

EVERYWHERE = {"topk", "gradient"}
THRESHOLDS = {
    *("batch-topk", "mutual-choice", "feature-choice", "matryoshka", "jumprelu", "gated", "relu", "p-anneal"),
}
BIAS_ADAPTATION = {"bias-adaptation", "group-bias-adaptation"}
"""They scale each token to norm 1."""
TAKEN = {
    "saelens": EVERYWHERE | THRESHOLDS | BIAS_ADAPTATION,
    "sparsify": EVERYWHERE | {"transcoder", "skip-transcoder"},
    "dictionary-learning": EVERYWHERE | THRESHOLDS,
}
"""Which recipes each format has a place for: SAELens has no transcoders that keep the k largest."""


@pytest.fixture(scope="module")
def source():
    return MemorySource(d_out=16)  # sparsify has transcoders of one width alone


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_out_and_in(name, source, tmp_path):
    trained = run(small_config(name, source), source, tmp_path / "run")
    sae = trained.sae()
    x = torch.randn(60, sae.config.d_in, generator=torch.Generator().manual_seed(1)) + sae.b_dec.mean()
    x_hat, code = sae.reconstruct(x)
    for to in WRITERS:
        out = tmp_path / to
        request = ExportRequest(run=trained, out=out)
        if name not in TAKEN[to]:
            with pytest.raises(UsageError, match="export: "):
                writer(to).write(request)
            assert not out.exists()
            continue
        made = writer(to).write(request)
        answers = Answers(at=sae.config.input_hooks[0], target_at=sae.config.output_hooks[0])
        answers = answers if "transcoder" in name else Answers(at=sae.config.input_hooks[0])
        found = read_foreign(made.files[0].parent, answers=answers, allow_pickle=True)
        again = import_run(found, tmp_path / f"again-{to}").run.sae()
        x_again, code_again = again.reconstruct(x)
        torch.testing.assert_close(x_again, x_hat, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(code_again.dense(), code.dense(), atol=1e-5, rtol=1e-5)
        assert (again.config.input_hooks, again.config.output_hooks) == (
            sae.config.input_hooks,
            sae.config.output_hooks,
        )
