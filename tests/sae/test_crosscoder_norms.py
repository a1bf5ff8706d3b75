"""How features are divided between sources, against numbers made by hand."""

import pytest
import torch

from saelab.errors import UsageError
from saelab.sae.crosscoder_norms import decoder_cosines, relative_norms, source_norms

# A source of width 2, and one of width 2; a feature of A alone, a shared one, one of B alone, one at an angle, none.
W_DEC = torch.tensor(
    [
        [3.0, 4.0, 0.0, 0.0],
        [0.6, 0.8, 0.6, 0.8],
        [0.0, 0.0, 0.0, 2.0],
        [1.0, 0.0, 0.0, 3.0],
        [0.0, 0.0, 0.0, 0.0],
    ]
)


def test_norms_and_shares_are_those_of_each_part():
    norms = source_norms(W_DEC, (2, 2))
    torch.testing.assert_close(
        norms, torch.tensor([[5.0, 0.0], [1.0, 1.0], [0.0, 2.0], [1.0, 3.0], [0.0, 0.0]])
    )
    shares = relative_norms(norms)[:, 0]
    torch.testing.assert_close(shares[:4], torch.tensor([1.0, 0.5, 0.0, 0.25]))
    assert shares[4].isnan()


def test_sources_are_compared_in_their_own_units():
    # B's activations are three times as large: in its own units the feature writes as much as in A.
    norms = source_norms(W_DEC[3:4], (2, 2), scales=(1.0, 1 / 3))
    torch.testing.assert_close(relative_norms(norms), torch.tensor([[0.5, 0.5]]))
    with pytest.raises(UsageError, match="2 sources and 1 scales"):
        source_norms(W_DEC, (2, 2), scales=(1.0,))


def test_cosines_are_those_of_the_two_rows():
    cosines = decoder_cosines(W_DEC, (2, 2))
    torch.testing.assert_close(cosines[[1, 3]], torch.tensor([1.0, 0.0]))
    assert cosines[[0, 2, 4]].isnan().all()
    torch.testing.assert_close(
        decoder_cosines(-W_DEC[1:2] * torch.tensor([1, 1, -1, -1]), (2, 2)), -torch.ones(1)
    )
    with pytest.raises(UsageError, match="widths 1 and 3, there is no angle"):
        decoder_cosines(W_DEC, (1, 3))
    with pytest.raises(UsageError, match=r"widths \[2, 1\] do not make up the decoder's 4"):
        decoder_cosines(W_DEC, (2, 1))
