import json

import pytest
import torch

from saelab_kernels.bench import main, make_steps


def test_the_two_steps_that_are_timed_compute_the_same_gradients():
    sparse, dense = make_steps(d_in=16, d_sae=64, k=4, tokens=100, backend="torch")
    for ours, theirs in zip(sparse(), dense(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_benchmark_prints_one_json_line(capsys):
    main(["--d-in", "8", "--d-sae", "32", "--k", "2", "--tokens", "64", "--rounds", "1"])
    report = json.loads(capsys.readouterr().out)
    assert report["dense_over_sparse"] == pytest.approx(
        report["cpu_ms"]["dense step"] / report["cpu_ms"]["sparse step"], rel=0.05
    )
