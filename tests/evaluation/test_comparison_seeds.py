"""Dictionaries of several seeds, with known partners."""

import pytest
import torch

from saelab.evaluation.comparison.seeds import Dictionary, seed_consistency


def dictionary(rows, alive=None):
    return Dictionary(rows, torch.ones(len(rows), dtype=torch.bool) if alive is None else torch.tensor(alive))


def test_the_same_features_in_another_order_are_all_found():
    eye = torch.eye(6)
    found = seed_consistency("a", [dictionary(eye), dictionary(3 * eye.flip(0))])
    assert (found.partnered_share, found.low, found.high, found.n_seeds) == (1.0, 1.0, 1.0, 2)
    assert found.share_above == (1.0,) * len(found.cosines)
    assert (found.cosines[0], found.cosines[-1]) == (0.0, 1.0)


def test_half_of_the_features_shared_among_three_seeds():
    eye = torch.eye(8)
    first, second, third = eye[:4], torch.cat([eye[:2], eye[4:6]]), torch.cat([eye[:2], eye[6:]])
    found = seed_consistency("a", [dictionary(one) for one in (first, second, third)])
    assert found.partnered_share == 0.5
    assert found.share_above[0] == 1.0, "orthogonal directions have cosine 0"
    assert set(found.share_above[1:]) == {0.5}


def test_the_curve_falls_where_the_cosine_is():
    angle = torch.tensor(0.6)
    a, b = torch.eye(2)[:1], torch.stack([angle, (1 - angle**2).sqrt()])[None]
    found = seed_consistency("a", [dictionary(a), dictionary(b)])
    shares = dict(zip(found.cosines, found.share_above, strict=True))
    assert (shares[0.58], shares[0.62]) == (1.0, 0.0)
    assert found.partnered_share == 0.0


def test_dead_features_are_left_out():
    eye = torch.eye(4)
    a = dictionary(eye, [True, True, False, False])
    b = dictionary(torch.cat([eye[:2], -eye[:2]]), [True, True, False, False])
    assert seed_consistency("a", [a, b]).partnered_share == 1.0
    nothing = dictionary(eye, [False] * 4)
    assert seed_consistency("a", [a, nothing]).partnered_share == 0.0


def test_the_share_is_over_ordered_pairs():
    eye = torch.eye(4)
    found = seed_consistency("a", [dictionary(eye), dictionary(eye[:1])])
    assert (found.low, found.high, found.partnered_share) == (0.25, 1.0, pytest.approx(0.625))


def test_one_seed_has_nothing_to_agree_with():
    assert seed_consistency("a", [dictionary(torch.eye(3))]) is None
