"""The same bytes whatever happens: other sizes of groups and tiles, interruptions, crashes, more tokens, more parts."""

import os
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from build_helpers import SMALL, data_files

from saelab.errors import Interrupted, UsageError
from saelab.features import schema
from saelab.features.building import by_feature, corpus, encode
from saelab.features.indexing import HowToIndex, IndexSource, add_parts, index_runs
from saelab.interrupts import StopRequest
from saelab.storage.inspect import verify_folder


class Crash(BaseException):
    """The process dies here."""


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(encode, "SHARD_TOKENS", 3 * encode.TILE)


@pytest.fixture(scope="module")
def expected(world, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "SHARD_TOKENS", 3 * encode.TILE)
        how = HowToIndex(config=SMALL, out=tmp_path_factory.mktemp("expected"), quiet=True)
        (place,) = index_runs([world.run], how=how, lm=world.lm)
    assert len(list((place / schema.CODES).iterdir())) > 3
    return data_files(place)


def tables(files):
    return {name: content for name, content in files.items() if name.endswith(".parquet")}


def test_sizes_of_groups_and_shards_change_no_table(build, built, expected, tmp_path, monkeypatch):
    assert tables(data_files(built)) == tables(expected)
    monkeypatch.setattr(by_feature, "GROUP_PAIRS", 700)
    monkeypatch.setattr(by_feature, "GROUP_FEATURES", 9)
    monkeypatch.setattr(corpus.StoreCorpus, "READ_ROWS", 1000)
    assert tables(data_files(build(tmp_path))) == tables(expected)


def test_an_interrupted_build_goes_on(build, expected, tmp_path, small_shards):
    class AfterSome(StopRequest):
        def __init__(self, left):
            super().__init__()
            self.left = left

        @property
        def requested(self):
            self.left -= 1
            return self.left < 0

    stops, left = 0, 3
    while True:
        try:
            place = build(tmp_path, stop=AfterSome(left))
            break
        except Interrupted:
            stops, left = stops + 1, left + 29
    assert stops > 3
    assert data_files(place) == expected


def test_crashes_at_renames_are_made_good_by_the_same_call(
    build, expected, tmp_path, monkeypatch, small_shards
):
    real, calls = os.replace, [0]

    def crashing(number):
        def call(*args):
            calls[0] += 1
            if calls[0] == number:
                raise Crash
            return real(*args)

        return call

    out, number = tmp_path / "crashes", 1
    while True:
        calls[0] = 0
        monkeypatch.setattr("saelab.storage.files.os.replace", crashing(number))
        try:
            place = build(out)
            break
        except Crash:
            number += 1  # the next process gets further than the last
            assert number < 30
    monkeypatch.setattr("saelab.storage.files.os.replace", real)
    assert data_files(place) == expected
    assert not verify_folder(place).problems
    assert [entry.name for entry in place.parent.iterdir() if entry.name != ".lock"] == ["main"]


def test_a_finished_index_is_left_alone_and_another_one_refused(build, built, tmp_path):
    before = data_files(built)
    times = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    out = built.parents[2]
    assert build(out) == built
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*")} == times
    with pytest.raises(UsageError, match=r"config\.seed 0 there, 1 now.*--name"):
        build(out, replace(SMALL, seed=1))
    assert data_files(built) == before
    assert build(out, replace(SMALL, seed=1), name="other").name == "other"


def test_more_tokens_extend_an_index_to_the_same_bytes(build, expected, tmp_path, small_shards, monkeypatch):
    place = build(tmp_path, replace(SMALL, tokens=8_000))
    assert pq.read_table(place / schema.FEATURES)["n_fires"].to_numpy().sum() < 8 * 8_001
    encoded = []
    real = encode.encode_tile
    monkeypatch.setattr(encode, "encode_tile", lambda *args: encoded.append(1) or real(*args))
    assert build(tmp_path, SMALL) == place
    assert data_files(place) == expected
    assert 0 < len(encoded) < 16  # tiles of the whole text alone; two shards of four tiles were taken over
    with pytest.raises(UsageError, match=r"config\.tokens"):
        build(tmp_path, replace(SMALL, tokens=8_000))


def test_parts_are_added_to_the_same_bytes(world, build, expected, tmp_path, small_shards):
    place = build(tmp_path, parts=())
    assert pq.read_table(place / schema.FEATURES)["max_decoder_cosine"].null_count == 96
    how = HowToIndex(out=tmp_path, quiet=True)
    added = add_parts(world.run, ["neighbors"], how=how, lm=world.lm)
    added = add_parts(world.run, ["coactivation"], how=how, lm=world.lm)
    assert added == place
    files = data_files(place)
    assert {name: files[name] for name in tables(files)} == tables(expected)
    assert add_parts(world.run, ["coactivation"], how=how, lm=world.lm) == place
    with pytest.raises(UsageError, match="there is no index"):
        add_parts(world.run, ["neighbors"], how=replace(how, name="none"), lm=world.lm)


def test_codes_are_dropped_where_they_are_not_wanted(build, expected, tmp_path):
    place = build(tmp_path, keep_codes=False)
    assert not (place / schema.CODES).exists()
    assert tables(data_files(place)) == tables(expected)


def test_a_text_is_indexed_as_its_store_would_be(world, build, built, tmp_path):
    from saelab.activations.request import saved_config

    text = saved_config(world.store.path).text
    how = HowToIndex(config=replace(SMALL, tokens=12_000), out=tmp_path, quiet=True)
    (place,) = index_runs([world.run], IndexSource(text=text), how, lm=world.lm)
    assert tables(data_files(place)) == tables(data_files(built))


def test_near_misses_lie_just_below_what_is_kept(world, build, tmp_path, dense):
    place = build(tmp_path, parts=("near-miss",))
    sae = world.run.sae()
    rows = pq.read_table(place / schema.NEAR_MISS).to_pylist()
    assert rows and {row["kind"] for row in rows} == {schema.NEAR}
    value_at = {int(position): i for i, position in enumerate(dense.positions)}
    x = world.store.rows(None, None, 0, len(dense.positions)).x
    pre = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    for row in rows:
        token = value_at[row["token_index"]]
        assert dense.values[token, row["feature"]] == 0
        rank = int((pre[token] > pre[token, row["feature"]] + 1e-4).sum())
        assert 8 <= rank < 10  # k = 8, and a quarter more
        assert row["activation"] == pytest.approx(float(pre[token, row["feature"]]), abs=1e-3)
