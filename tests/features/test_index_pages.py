"""Pages of features against the same conditions asked of every row in Python."""

import math
from dataclasses import fields

import pytest
from index_helpers import D_SAE, as_stored

from saelab.errors import UsageError
from saelab.features.queries.filters import FeatureFilter
from saelab.features.queries.pages import Sort
from saelab.features.schema import DEAD, DENSE, DETAIL, FEATURES, LOGIT_INVERSE, ONE_TOKEN


def stored(known):
    return [as_stored(FEATURES, row) for row in known.tables[FEATURES]]


def promoters(known, tokens):
    return {row["feature"] for row in known.tables[LOGIT_INVERSE] if row["token"] in tokens}


def active_on(known, tokens):
    return {row["feature"] for row in known.tables[DETAIL] if set(row["tokens"]) & set(tokens)}


CASES = {
    "nothing": (FeatureFilter(), lambda k, r: True),
    "density": (FeatureFilter(min_density=0.1, max_density=0.2), lambda k, r: 0.1 <= r["density"] <= 0.2),
    "max_act": (
        FeatureFilter(min_max_act=4.5, max_max_act=4.9),
        lambda k, r: r["max_act"] is not None and 4.5 <= r["max_act"] <= 4.9,
    ),
    "alive": (FeatureFilter(alive=True), lambda k, r: r["n_fires"] > 0),
    "dead": (FeatureFilter(alive=False), lambda k, r: r["n_fires"] == 0),
    "dense": (FeatureFilter(dense=True), lambda k, r: bool(r["flags"] & DENSE)),
    "not dense": (FeatureFilter(dense=False), lambda k, r: not r["flags"] & DENSE),
    "flags": (
        FeatureFilter(flags=DENSE | ONE_TOKEN),
        lambda k, r: r["flags"] & (DENSE | ONE_TOKEN) == DENSE | ONE_TOKEN,
    ),
    "without": (
        FeatureFilter(without_flags=DEAD | ONE_TOKEN),
        lambda k, r: not r["flags"] & (DEAD | ONE_TOKEN),
    ),
    "contradiction": (FeatureFilter(alive=True, flags=DEAD), lambda k, r: False),
    "text": (FeatureFilter(text="IMPORT"), lambda k, r: "import" in r["name"].lower()),
    "wildcards are plain": (FeatureFilter(text="%_'"), lambda k, r: "%_'" in r["name"]),
    "no match": (FeatureFilter(text="') OR true --"), lambda k, r: False),
    "labelled": (FeatureFilter(has_label=True), lambda k, r: False),
    "unlabelled": (FeatureFilter(has_label=False), lambda k, r: True),
    "promotes": (FeatureFilter(promotes=(1, 2)), lambda k, r: r["feature"] in promoters(k, (1, 2))),
    "active on": (FeatureFilter(active_on=(4, 9)), lambda k, r: r["feature"] in active_on(k, (4, 9))),
    "cosine": (FeatureFilter(min_max_decoder_cosine=0.5), lambda k, r: r["max_decoder_cosine"] >= 0.5),
    "some": (FeatureFilter(features=(0, 39, 7)), lambda k, r: r["feature"] in (0, 7, 39)),
    "none": (FeatureFilter(features=()), lambda k, r: False),
    "together": (
        FeatureFilter(alive=True, min_density=0.15, active_on=(1, 2, 3), text="on"),
        lambda k, r: r["n_fires"] > 0 and r["density"] >= 0.15 and r["feature"] in active_on(k, (1, 2, 3)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_filters_find_what_python_finds(index, known, case):
    where, condition = CASES[case]
    page = index.features(where, limit=D_SAE)
    expected = [row["feature"] for row in stored(known) if condition(known, row)]
    assert [row.feature for row in page.rows] == expected
    assert page.total == len(expected)


def test_the_cases_name_every_field():
    defaults = FeatureFilter()
    used = {
        field.name
        for where, _ in CASES.values()
        for field in fields(where)
        if getattr(where, field.name) != getattr(defaults, field.name)
    }
    assert used == {field.name for field in fields(FeatureFilter)}


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("column", list(Sort))
def test_sorting_puts_undefined_numbers_last_and_ties_in_order(index, known, column, descending):
    rows = [row | {"label": None} for row in stored(known)]
    defined = [row for row in rows if row[column.value] is not None]
    # Texts are ordered by their bytes, and Python's sort is stable in both directions.
    defined.sort(
        key=lambda r: r[column.value].encode() if isinstance(r[column.value], str) else r[column.value],
        reverse=descending,
    )
    undefined = [row for row in rows if row[column.value] is None]
    found = index.features(sort=column.value, descending=descending, limit=D_SAE)
    assert [row.feature for row in found.rows] == [row["feature"] for row in (*defined, *undefined)]


def test_pages_cover_everything_once(index, known):
    whole = index.features(sort="max_act", descending=True, limit=D_SAE).rows
    pages = [
        index.features(sort="max_act", descending=True, limit=7, offset=start) for start in range(0, D_SAE, 7)
    ]
    assert tuple(row for page in pages for row in page.rows) == whole
    assert {page.total for page in pages} == {D_SAE}
    assert index.features(limit=5, offset=1000).rows == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sort": "density; DROP TABLE numbers"},
            "cannot sort by 'density; DROP TABLE numbers'; choose one of",
        ),
        ({"sort": "random()"}, "cannot sort by"),
        ({"sort": "flags"}, "cannot sort by"),
        ({"limit": -1}, "limit is -1"),
        ({"limit": 10_001}, "limit is 10,001"),
        ({"offset": -1}, "offset is -1"),
        ({"where": FeatureFilter(min_density=math.nan)}, "min_density is nan"),
        ({"where": FeatureFilter(max_max_act=math.inf)}, "max_max_act is inf"),
        ({"where": FeatureFilter(flags=16)}, "flags is 16"),
        ({"where": FeatureFilter(features=(40,))}, "there is no feature 40; features go from 0 to 39"),
        ({"where": FeatureFilter(features=(-1,))}, "features holds -1"),
        ({"where": FeatureFilter(promotes=(12,))}, "there is no token id 12; ids go from 0 to 11"),
        ({"where": FeatureFilter(active_on=(2**40,))}, "active_on holds 1099511627776"),
        ({"where": FeatureFilter(text="\ud800")}, "not valid Unicode"),
        ({"where": FeatureFilter(text="x" * 1001)}, "1,001 characters"),
    ],
)
def test_what_cannot_be_asked_is_refused(index, options, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(").replace(")", r"\)")):
        index.features(**options)


def test_values_are_never_part_of_the_query():
    condition, parameters = FeatureFilter(text="'; DROP TABLE numbers; --", features=(1, 2)).to_sql()
    assert "DROP" not in condition and condition.count("?") == len(parameters)
