"""Every table of an index against brute force on the dense matrix of activations."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from build_helpers import SMALL

from saelab.features import schema
from saelab.features.building.examples import HASH_TOKENS


@pytest.fixture(scope="module")
def tables(built):
    def read(name):
        return pq.read_table(built / name).to_pylist()

    return read


@pytest.fixture(scope="module")
def examples(tables):
    found = {}
    for row in tables(schema.EXAMPLES):
        found.setdefault((row["feature"], row["kind"]), []).append(row)
    return found


def test_schemas_are_the_written_ones(built):
    for name, wanted in {
        schema.FEATURES: schema.FEATURES_SCHEMA,
        schema.DETAIL: schema.DETAIL_SCHEMA,
        schema.EXAMPLES: schema.EXAMPLES_SCHEMA,
        schema.LOGIT_INVERSE: schema.LOGIT_INVERSE_SCHEMA,
        schema.NEIGHBORS: schema.NEIGHBORS_SCHEMA,
        schema.COACTIVATION: schema.COACTIVATION_SCHEMA,
        schema.VOCABULARY: schema.VOCABULARY_SCHEMA,
    }.items():
        assert pq.read_schema(built / name).equals(wanted), name


def test_numbers_of_every_feature(dense, tables):
    rows = tables(schema.FEATURES)
    assert [row["feature"] for row in rows] == list(range(dense.values.shape[1]))
    for row in rows:
        column = dense.values[:, row["feature"]]
        active = column[column > 0].astype(np.float64)
        assert row["n_fires"] == len(active)
        assert row["density"] == len(active) / len(column)
        if not len(active):
            assert row["flags"] == schema.DEAD
            assert row["max_act"] is row["mean_active"] is row["p50"] is row["top_token"] is None
            continue
        where = dense.positions[column > 0]
        assert row["n_documents"] == len({dense.document(position) for position in where})
        assert row["max_act"] == column.max()
        expected = {
            "mean_active": active.mean(),
            "std_active": active.std(),
            "p50": np.quantile(active, 0.5),
            "p90": np.quantile(active, 0.9),
            "p99": np.quantile(active, 0.99),
        }
        if len(active) > 1:
            z = (active - active.mean()) / active.std()
            expected |= {"skew": (z**3).mean(), "kurtosis": (z**4).mean() - 3}
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
        mass = np.bincount(dense.tokens[where], weights=active)
        assert row["top_token"] == mass.argmax()
        assert row["top_token_share"] == pytest.approx(mass.max() / active.sum(), rel=1e-6)
        firsts = first_kept(dense)
        share = active[np.isin(where, firsts)].sum() / active.sum()
        assert row["first_position_share"] == pytest.approx(share, rel=1e-6)
        assert bool(row["flags"] & schema.DENSE) == (row["density"] > 0.1)


def test_neighboring_tokens_stay_within_their_row(dense, tables):
    for row in tables(schema.FEATURES):
        column = dense.values[:, row["feature"]]
        where = dense.positions[column > 0]
        for name, step in (("previous_token", -1), ("next_token", 1)):
            mass: dict[int, float] = {}
            for position in where:
                first, last = dense.span(position)
                if first <= position + step < last:
                    token = int(dense.tokens[position + step])
                    value = float(column[dense.positions == position][0])
                    mass[token] = mass.get(token, 0.0) + value
            if not mass:
                assert row[name] is None
                continue
            best = max(mass.values())
            assert mass[row[name]] == pytest.approx(best, rel=1e-9)
            total = float(column.astype(np.float64).sum())
            assert row[f"{name}_share"] == pytest.approx(best / total, rel=1e-5)


def test_histograms_and_intervals_count_every_activation(dense, tables):
    for row in tables(schema.DETAIL):
        active = dense.values[:, row["feature"]]
        active = active[active > 0]
        assert sum(row["log_histogram_counts"]) == len(active)
        if not len(active):
            assert row["histogram_edges"] == row["interval_edges"] == []
            continue
        for kind, bins in (("histogram", SMALL.histogram_bins), ("interval", SMALL.intervals)):
            edges = np.array(row[f"{kind}_edges"], dtype=np.float32)
            assert len(edges) == bins + 1 and edges[0] == 0 and edges[-1] == active.max()
            counts, _ = np.histogram(active, edges)
            assert row[f"{kind}_counts"] == counts.tolist()
        for value in active[:5]:
            half_octave = int(np.floor(2 * np.log2(float(value)))) + 32
            assert row["log_histogram_counts"][half_octave] > 0


def test_token_lists(dense, tables):
    for row in tables(schema.DETAIL):
        column = dense.values[:, row["feature"]].astype(np.float64)
        where = column > 0
        tokens = dense.tokens[dense.positions[where]]
        mass = np.bincount(tokens, weights=column[where]) if len(tokens) else np.zeros(1)
        fires = np.bincount(tokens) if len(tokens) else np.zeros(1)
        wanted = sorted(np.flatnonzero(mass), key=lambda token: (-mass[token], token))[:20]
        assert row["tokens"] == wanted
        assert row["token_fires"] == [fires[token] for token in wanted]
        assert row["token_shares"] == pytest.approx(
            [mass[token] / column.sum() for token in wanted], rel=1e-6
        )


def test_top_examples_are_the_strongest_of_each_document(dense, examples):
    for feature in range(dense.values.shape[1]):
        column = dense.values[:, feature]
        order = [i for i in np.argsort(-column, kind="stable") if column[i] > 0]
        documents, surroundings, wanted = set(), set(), []
        for i in order:
            document = dense.document(dense.positions[i])
            if document in documents:
                continue
            documents.add(document)
            around = tokens_around(dense, dense.positions[i])
            if around in surroundings:
                continue
            surroundings.add(around)
            wanted.append((dense.positions[i], column[i]))
        found = examples.get((feature, schema.TOP), [])
        assert [(row["token_index"], row["activation"]) for row in found] == wanted[: SMALL.top]
        assert [row["rank"] for row in found] == list(range(len(found)))


def test_examples_of_intervals_come_from_them(dense, tables, examples):
    details = {row["feature"]: row for row in tables(schema.DETAIL)}
    for feature in range(dense.values.shape[1]):
        counts, edges = details[feature]["interval_counts"], details[feature]["interval_edges"]
        rows = examples.get((feature, schema.INTERVAL), [])
        for number, count in enumerate(counts):
            inside = [row for row in rows if row["bin"] == number]
            assert len(inside) == min(count, SMALL.per_interval)
            assert len({row["token_index"] for row in inside}) == len(inside)
            for row in inside:
                assert edges[number] <= row["activation"] <= edges[number + 1]
                assert row["activation"] < edges[number + 1] or number == len(counts) - 1


def test_random_and_non_active_examples(dense, examples):
    value_at = {int(position): i for i, position in enumerate(dense.positions)}
    for feature in range(dense.values.shape[1]):
        column = dense.values[:, feature]
        n_fires = int((column > 0).sum())
        random = examples.get((feature, schema.RANDOM), [])
        assert len(random) == min(n_fires, SMALL.random)
        for row in random:
            assert row["activation"] == column[value_at[row["token_index"]]] > 0
        if n_fires:
            token = dense.tokens[examples[feature, schema.TOP][0]["token_index"]]
            same = [i for i, position in enumerate(dense.positions) if dense.tokens[position] == token]
            silent = [i for i in same if column[i] == 0]
            found = examples.get((feature, schema.NON_ACTIVE), [])
            assert len(found) == min(len(silent), SMALL.non_active)
            for row in found:
                assert row["activation"] == 0 and value_at[row["token_index"]] in silent


def test_windows_hold_every_activation_around_a_peak(dense, examples):
    value_at = {int(position): i for i, position in enumerate(dense.positions)}
    for (feature, _), rows in examples.items():
        column = dense.values[:, feature]
        for row in rows:
            peak = row["token_index"]
            first, last = dense.span(peak)
            wanted = {}
            for position in range(max(first, peak - SMALL.window), min(last, peak + SMALL.window + 1)):
                value = column[value_at[position]] if position in value_at else 0
                if value > 0:
                    wanted[position - peak] = value
            assert dict(zip(row["offsets"], row["activations"], strict=True)) == wanted
            assert row["document"] == dense.document(peak)


def test_the_window_hash_is_that_of_the_tokens_around(dense, examples):
    by_tokens, by_hash = {}, {}
    for rows in examples.values():
        for row in rows:
            around = tokens_around(dense, row["token_index"])
            by_tokens.setdefault(around, set()).add(row["window_hash"])
            by_hash.setdefault(row["window_hash"], set()).add(around)
    assert all(len(found) == 1 for found in (*by_tokens.values(), *by_hash.values()))


def tokens_around(dense, position):
    first, last = dense.span(position)
    span = range(position - HASH_TOKENS, position + HASH_TOKENS + 1)
    return tuple(int(dense.tokens[p]) if first <= p < last else -1 for p in span)


def first_kept(dense):
    rows = np.searchsorted(dense.row_starts, dense.positions, side="right")
    _, first = np.unique(rows, return_index=True)
    return dense.positions[first]
