"""An index built in two passes is the exact one, but for what comes from samples that are too small."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from build_helpers import SMALL, data_files

from saelab.errors import Interrupted, UsageError
from saelab.features import schema
from saelab.features.building import encode, examples
from saelab.features.indexing import HowToIndex, IndexSource, index_runs
from saelab.features.streaming import batches, collection, occurrences, passes, smallest, survey
from saelab.features.streaming.describe import FROM_SAMPLE
from saelab.interrupts import StopRequest
from saelab.storage.manifest import read_manifest

STREAMING = replace(SMALL, mode="streaming")
MOMENTS = ("mean_active", "std_active", "skew", "kurtosis", "first_position_share")
TABLES = (
    schema.FEATURES,
    schema.DETAIL,
    schema.EXAMPLES,
    schema.LOGIT_INVERSE,
    schema.NEIGHBORS,
    schema.COACTIVATION,
    schema.VOCABULARY,
)


@pytest.fixture
def small(monkeypatch):
    """Several stretches of several batches, saved each time, and buffers that are sorted again and again."""
    monkeypatch.setattr(encode, "SHARD_TOKENS", 3 * encode.TILE)
    monkeypatch.setattr(batches, "BATCH", 700)
    monkeypatch.setattr(smallest, "BUFFER", 1_000)
    monkeypatch.setattr(smallest, "SHARE", 0.01)
    monkeypatch.setattr(passes, "SAVE_SECONDS", 0)


@pytest.fixture
def all_in_sample(monkeypatch):
    monkeypatch.setattr(survey, "MOST", 20_000)


def rows(place, name):
    return pq.read_table(place / name).to_pydict()


def assert_equal(found, wanted, but=()):
    """Every table column by column, sums to rounding and everything else exactly."""
    for name in TABLES:
        ours, theirs = rows(found, name), rows(wanted, name)
        assert ours.keys() == theirs.keys()
        for column in ours:
            full = f"{name.removesuffix('.parquet')}.{column}"
            if full in but:
                continue
            if name == schema.FEATURES and column in MOMENTS:
                for a, b in zip(ours[column], theirs[column], strict=True):
                    assert a == (None if b is None else pytest.approx(b, rel=1e-5, abs=1e-5)), full
            else:
                assert ours[column] == theirs[column], full


def test_everything_is_equal_where_the_samples_hold_all_firings(build, built, tmp_path, all_in_sample):
    place = build(tmp_path, STREAMING)
    assert_equal(place, built)
    content = read_manifest(place, "index").content
    assert content["approximate"] == [] and content["has_codes"] is False
    assert read_manifest(built, "index").content["approximate"] == []
    assert content["n_alive"] == read_manifest(built, "index").content["n_alive"]
    assert not (place / schema.CODES).exists() and not (place / "work").exists()


def test_small_buffers_and_batches_give_the_same_tables(build, tmp_path, small, all_in_sample, built):
    sorts = []
    real = smallest.Smallest._sort
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smallest.Smallest, "_sort", lambda self: sorts.append(1) or real(self))
        place = build(tmp_path, STREAMING)
    assert len(sorts) > 60  # of five pools, about every other time that something is added
    assert_equal(place, built)


def test_only_what_is_named_comes_from_samples(build, built, tmp_path, dense, small):
    n_fires = (dense.values > 0).sum(0)
    assert n_fires.max() > survey.MOST
    place = build(tmp_path, STREAMING)
    approximate = read_manifest(place, "index").content["approximate"]
    assert approximate == list(FROM_SAMPLE)
    assert_equal(place, built, but=approximate)  # co-activation and examples among them
    ours, exact = rows(place, schema.FEATURES), rows(built, schema.FEATURES)
    for feature, n in enumerate(n_fires):
        for share, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99")):
            if n <= survey.MOST:
                assert ours[name][feature] == exact[name][feature]
                continue
            active = dense.values[:, feature]
            below = (active[active > 0] <= ours[name][feature]).mean()
            assert abs(below - share) < 5 * np.sqrt(share * (1 - share) / survey.MOST)
        if n > survey.MOST:
            # Shares of a sample of 512, whose activations are not much alike.
            assert ours["top_token_share"][feature] == pytest.approx(
                exact["top_token_share"][feature], abs=0.15
            )
            share = ours["flags"][feature] & ~schema.ONE_TOKEN
            assert share == exact["flags"][feature] & ~schema.ONE_TOKEN
    fires = rows(place, schema.DETAIL)["token_fires"]
    assert all(sum(found) <= 1.05 * n for found, n in zip(fires, n_fires, strict=True))


def test_only_some_occurrences_of_a_frequent_token_are_looked_through(build, tmp_path, small, monkeypatch):
    monkeypatch.setattr(examples, "CANDIDATES", 23)
    monkeypatch.setattr(occurrences, "CANDIDATES", 23)
    monkeypatch.setattr(occurrences, "PAIRS", 7)
    exact = build(tmp_path / "exact", parts=())
    streamed = build(tmp_path / "streamed", STREAMING, parts=())
    for column, wanted in rows(exact, schema.EXAMPLES).items():
        assert rows(streamed, schema.EXAMPLES)[column] == wanted


def test_too_few_candidates_for_top_examples_are_named(build, tmp_path, monkeypatch, all_in_sample):
    monkeypatch.setattr(examples, "HASH_TOKENS", 0)  # examples on the same token show the same
    few = replace(SMALL, top=2)
    exact = build(tmp_path / "exact", few, parts=())
    enough = build(tmp_path / "enough", replace(few, mode="streaming"), parts=())
    monkeypatch.setattr(survey, "CANDIDATES", 1)
    place = build(tmp_path / "few", replace(few, mode="streaming"), parts=())

    def top(place):
        table = pq.read_table(place / schema.EXAMPLES)
        return [row for row in table.to_pylist() if row["kind"] == schema.TOP]

    assert top(enough) == top(exact) != top(place)
    assert read_manifest(enough, "index").content["approximate"] == []
    assert read_manifest(place, "index").content["approximate"] == ["examples.top"]


def test_the_state_stays_under_its_bound(build, tmp_path, small, monkeypatch):
    sizes = []

    def watch(kind):
        real = kind.add

        def add(self, *args):
            real(self, *args)
            sizes.extend((state.n_bytes, state.bound) for state in self.states.values())

        monkeypatch.setattr(kind, "add", add)

    watch(survey.Survey)
    watch(collection.Collection)
    config = replace(STREAMING, top=2, intervals=2, per_interval=2, random=2, non_active=2, window=2)
    monkeypatch.setattr(survey, "MOST", 40)
    build(tmp_path, config)
    assert len(sizes) > 9 * 15
    assert all(size <= bound for size, bound in sizes)
    assert sum(size > 0.5 * bound for size, bound in sizes) > 9 * 5  # the bound is no idle one


def test_a_smaller_sample_says_so_of_companions(build, tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "MOST", 40)
    place = build(tmp_path, STREAMING)
    assert "coactivation.p_other" in read_manifest(place, "index").content["approximate"]
    assert max(rows(place, schema.COACTIVATION)["n_sampled"]) == 40


def test_an_interrupted_build_ends_with_the_same_bytes(build, tmp_path, small):
    class AfterSome(StopRequest):
        def __init__(self, left):
            super().__init__()
            self.left = left

        @property
        def requested(self):
            self.left -= 1
            return self.left < 0

    expected = data_files(build(tmp_path / "whole", STREAMING))
    stops, left = 0, 3
    while True:
        try:
            place = build(tmp_path / "stopped", STREAMING, stop=AfterSome(left))
            break
        except Interrupted:
            stops, left = stops + 1, left + 17
    assert stops > 3
    assert data_files(place) == expected


def test_a_crash_at_any_saving_is_made_good(build, tmp_path, small, monkeypatch):
    class Crash(BaseException):
        """The process dies here."""

    expected = data_files(build(tmp_path / "whole", STREAMING))
    real, calls, number, crashes = passes.save, [0], 0, 0
    for after in (False, True):
        number = 1
        while True:
            calls[0] = 0

            def saving(*args, after=after, number=number):
                calls[0] += 1
                if after:
                    real(*args)
                if calls[0] == number:
                    raise Crash
                if not after:
                    real(*args)

            monkeypatch.setattr(passes, "save", saving)
            try:
                place = build(tmp_path / f"crashed-{after}", STREAMING)
                break
            except Crash:
                crashes, number = crashes + 1, number + 1 if not after else 1
        assert data_files(place) == expected
    assert crashes > 8


def test_a_state_that_is_damaged_is_begun_again(build, tmp_path, small, monkeypatch):
    expected = data_files(build(tmp_path / "whole", STREAMING))

    def damaged(path, states, done):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not a tensor file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(passes, "save", damaged)
        build(tmp_path / "again", STREAMING)
    assert data_files(build(tmp_path / "again", STREAMING)) == expected


def test_a_text_is_streamed_as_its_store_would_be(world, build, tmp_path, small):
    from saelab.activations.request import saved_config

    text = saved_config(world.store.path).text
    how = HowToIndex(config=replace(STREAMING, tokens=12_000), out=tmp_path / "text", quiet=True)
    (place,) = index_runs([world.run], IndexSource(text=text), how, lm=world.lm)
    store = build(tmp_path / "store", STREAMING)
    assert_equal(place, store)


def test_a_part_is_added_to_the_same_bytes(build, tmp_path, small):
    expected = data_files(build(tmp_path / "whole", STREAMING))
    build(tmp_path / "parts", STREAMING, parts=())
    place = build(tmp_path / "parts", STREAMING)
    found = data_files(place)
    assert {name: found[name] for name in TABLES} == {name: expected[name] for name in TABLES}
    assert json.loads(found["manifest.json"])["content"]["parts"] == ["coactivation", "neighbors"]


def test_what_needs_all_codes_is_refused(build, tmp_path):
    with pytest.raises(UsageError, match=r"near-miss needs all codes.*--mode exact"):
        build(tmp_path, STREAMING, parts=("near-miss",))
    with pytest.raises(UsageError, match="keeps no codes"):
        build(tmp_path, STREAMING, keep_codes=True)
    assert not list(tmp_path.iterdir())
