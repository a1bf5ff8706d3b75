"""Which features a report shows: concentrated ones, in turn on, after and before a token."""

from saelab.features.records import FeatureRow
from saelab.features.telling import telling_features


def row(feature, density=0.01, n_fires=100, top=(None, None), before=(None, None), after=(None, None)):
    plain = dict.fromkeys(FeatureRow.__dataclass_fields__) | {"feature": feature, "density": density}
    plain |= {
        "n_fires": n_fires,
        "n_documents": 1,
        "decoder_norm": 1.0,
        "encoder_bias": 0.0,
        "flags": 0,
        "name": "",
    }
    plain |= {"top_token": top[0], "top_token_share": top[1]}
    plain |= {"previous_token": before[0], "previous_token_share": before[1]}
    plain |= {"next_token": after[0], "next_token_share": after[1]}
    return FeatureRow(**plain)


def test_in_turn_and_each_token_once():
    rows = [
        row(0, top=(5, 0.9)),
        row(1, top=(5, 0.95)),
        row(2, top=(6, 0.3), before=(5, 0.8)),
        row(3, after=(5, 0.5)),
        row(4, top=(7, 0.9)),
    ]
    assert telling_features(rows, 4) == [1, 2, 3, 4]
    assert telling_features(rows, 2) == [1, 2]
    assert telling_features(rows, 9) == [1, 2, 3, 4]  # 0 is on the same token as 1


def test_rare_and_dense_ones_do_not_qualify():
    rows = [
        row(0, density=0.1, top=(1, 1.0)),
        row(1, density=1e-5, top=(2, 1.0)),
        row(2, n_fires=7, top=(3, 1.0)),
    ]
    assert telling_features(rows, 3) == [] == telling_features([], 3)


def test_ties_are_in_index_order():
    assert telling_features([row(9, top=(1, 0.5)), row(3, top=(2, 0.5))], 2) == [3, 9]
