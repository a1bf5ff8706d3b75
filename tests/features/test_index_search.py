"""Features by a token's text, by a direction, and by their labels."""

from pathlib import Path

import pytest
import torch
from index_helpers import D_IN, D_SAE, TOKENS, as_stored, make_known, make_run, write_index

from saelab.errors import DamagedFileError, UsageError
from saelab.features.index import FeatureIndex, open_index
from saelab.features.queries import nearest
from saelab.features.queries.filters import FeatureFilter
from saelab.features.schema import DETAIL, LOGIT_INVERSE
from saelab.sae.files import load_sae


def best(pairs):
    """Return each feature's best (value, token), largest value first; ties by token, then by feature."""
    found = {}
    for feature, token, value in pairs:
        if feature not in found or (-value, token) < (-found[feature][0], found[feature][1]):
            found[feature] = (value, token)
    return sorted(
        ((feature, token, value) for feature, (value, token) in found.items()), key=lambda x: (-x[2], x[0])
    )


@pytest.mark.parametrize(
    ("text", "contains", "tokens"),
    [
        ("import", False, (1, 2)),
        (" import", False, (1,)),
        ("import", True, (1, 2, 11)),
        ("\n", False, (8,)),
        ("\ufffd", False, (6, 7)),
        ("<b>&\"'", False, (10,)),
        ("%", True, ()),
        ("nothing like that", False, ()),
    ],
)
def test_tokens_lead_to_the_features_of_the_tables(index, known, text, contains, tokens):
    found = index.search_token(text, contains=contains)
    assert found.tokens == tokens
    logits = [as_stored(LOGIT_INVERSE, row) for row in known.tables[LOGIT_INVERSE]]
    promoting = best((r["feature"], r["token"], r["logit"]) for r in logits if r["token"] in tokens)
    assert [(one.row.feature, one.token, one.logit) for one in found.promoters] == promoting
    lists = [as_stored(DETAIL, row) for row in known.tables[DETAIL]]
    fires = {
        (r["feature"], token): n
        for r in lists
        for token, n in zip(r["tokens"], r["token_fires"], strict=True)
    }
    active = best(
        (r["feature"], token, share)
        for r in lists
        for token, share in zip(r["tokens"], r["token_shares"], strict=True)
        if token in tokens
    )
    assert [(one.row.feature, one.token, one.share) for one in found.active_on] == active
    assert [one.n_fires for one in found.active_on] == [fires[f, token] for f, token, _ in active]
    assert all(one.row == index.row(one.row.feature) for one in (*found.promoters, *found.active_on))
    shorter = index.search_token(text, contains=contains, limit=2)
    assert shorter.promoters == found.promoters[:2] and shorter.active_on == found.active_on[:2]


def test_texts_that_cannot_be_searched_are_refused(index):
    for text, message in (("", "give the text"), ("\udc00", "not valid Unicode"), ("x" * 2000, "2,000")):
        with pytest.raises(UsageError, match=message):
            index.search_token(text)
    with pytest.raises(UsageError, match="limit is -1"):
        index.search_token("import", limit=-1)


@pytest.mark.parametrize("block", [3, 8_192])
def test_nearest_features_are_those_of_the_whole_matrix(index, run_with_index, monkeypatch, block):
    monkeypatch.setattr(nearest, "BLOCK", block)
    W_dec = load_sae(run_with_index / "sae").W_dec.detach()
    vector = torch.randn(D_IN, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.cosine_similarity(W_dec.double(), 1000 * vector.double()[None])
    found = index.nearest(1000 * vector, limit=6)
    assert [one.row.feature for one in found] == expected.argsort(descending=True)[:6].tolist()
    assert [one.cosine for one in found] == pytest.approx(expected.sort(descending=True).values[:6].tolist())
    itself = index.nearest(W_dec[11], limit=1)[0]
    assert itself.row == index.row(11) and itself.cosine == pytest.approx(1)


def test_vectors_without_a_direction_are_refused(index):
    for vector, message in (
        (torch.zeros(D_IN), "has no direction"),
        (torch.full((D_IN,), torch.nan), "has no direction"),
        (torch.ones(D_IN + 1), f"has {D_IN + 1} values, decoder rows have {D_IN}"),
    ):
        with pytest.raises(UsageError, match=message):
            index.nearest(vector)


def test_an_index_away_from_its_run_has_no_directions(known, run_with_index, tmp_path):
    place = write_index(tmp_path / "alone", known, run_with_index / "sae")
    with (
        FeatureIndex.open(place) as alone,
        pytest.raises(UsageError, match=r"open it with open_index\(RUN\)"),
    ):
        alone.nearest(torch.ones(D_IN))


def test_damaged_weights_are_named(known, tmp_path):
    run = make_run(tmp_path / "run")
    write_index(run / "indexes" / "main", known, run / "sae")
    with open_index(run) as index:
        weights: Path = run / "sae" / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(DamagedFileError, match=r"weights\.safetensors"):
            index.nearest(torch.ones(D_IN))


def test_labels_are_shown_searched_and_counted(known, run_with_index):
    with open_index(run_with_index) as index:
        assert index.labels == {}
        index.use_labels({2: "imports <b>", 9: "Ünïcode"})
        assert index.labels == {2: "imports <b>", 9: "Ünïcode"}
        assert index.row(2).label == "imports <b>" and index.row(2).shown_name == "imports <b>"
        assert [r.feature for r in index.features(FeatureFilter(text="ÜNÏ")).rows] == [9]
        assert [r.feature for r in index.features(FeatureFilter(has_label=True)).rows] == [2, 9]
        assert index.features(FeatureFilter(has_label=False)).total == D_SAE - 2
        assert index.feature(1).names[2] == "imports <b>"
        assert index.features(sort="label", limit=2).rows[0].feature == 2
        index.use_labels({3: "other"})
        assert index.row(2).label is None and index.row(3).label == "other"
        with pytest.raises(UsageError, match="there is no feature 40"):
            index.use_labels({40: "nobody"})
        assert index.labels == {3: "other"}


def test_without_an_unembedding_nothing_promotes(tmp_path):
    run = make_run(tmp_path / "run")
    known = make_known()
    known.has_logits = False
    write_index(run / "indexes" / "main", known, run / "sae")
    with open_index(run) as index:
        found = index.search_token(TOKENS[1][1].strip())
        assert found.promoters == () and found.active_on
        with pytest.raises(UsageError, match="which tokens features promote: none: there is no model"):
            index.features(FeatureFilter(promotes=(1,)))
