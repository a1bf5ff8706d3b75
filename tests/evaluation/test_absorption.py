import pytest
import torch

from saelab.evaluation.synthetic.absorption import AbsorptionAccumulator
from saelab_kernels.code import SparseCode

# Parents 0 and 1; children 2 and 3 of parent 0, 4 and 5 of parent 1. Latent i stands for feature i.
PARENTS = torch.tensor([0, 0, 1, 1])
ROWS = torch.tensor(
    [
        [1, 0, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0],
    ]
).float()


def absorbed(fired, partners=(0, 1, 2, 3, 4, 5)):
    found = AbsorptionAccumulator(torch.tensor(partners), PARENTS)
    for start in (0, 2, 3):  # in pieces of any size
        stop = {0: 2, 2: 3, 3: 6}[start]
        found.update(ROWS[start:stop], SparseCode.from_dense(fired[start:stop]))
    return found.result()


def test_a_perfect_code_absorbs_nothing():
    assert absorbed(ROWS) == 0


def test_a_latent_that_is_silent_beside_every_child_is_absorbed():
    fired = ROWS.clone()
    fired[[1, 2], 0] = 0
    fired[4, 1] = 0
    assert absorbed(fired) == 1


def test_half_of_one_parent():
    fired = ROWS.clone()
    fired[1, 0] = 0  # beside one of two children: 1/2; the other parent: 0
    assert absorbed(fired) == pytest.approx(0.25)


def test_what_is_missed_alone_too_is_no_absorption():
    fired = torch.zeros_like(ROWS)
    assert absorbed(fired) == 0


def test_parents_without_a_latent_do_not_count():
    fired = ROWS.clone()
    fired[[1, 2], 0] = 0
    assert absorbed(fired, (0, -1, 2, 3, 4, 5)) == 1
    assert absorbed(fired, (-1, -1, 2, 3, 4, 5)) is None
