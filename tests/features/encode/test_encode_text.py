"""What `encode` writes is what the SAE gives, token for token, and what an index of the same text holds."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from text_world_helpers import HOOK, LONG

from saelab import api
from saelab.activations.store import Store
from saelab.errors import Interrupted, UsageError
from saelab.features.encode import stream
from saelab.features.encode.table import encode_text
from saelab.features.index import open_index
from saelab.interrupts import StopRequest
from saelab.text.spec import TextSpec
from saelab.text.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def table(text_world, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoded") / "codes.parquet"
    api.encode(text_world.run, text_world.text, out=out, lm=text_world.lm, quiet=True)
    return pq.read_table(out)


@pytest.fixture(scope="module")
def dense(table):
    found = np.zeros((len(table), 96), dtype=np.float32)
    for row, (features, values) in enumerate(
        zip(table["features"].to_pylist(), table["values"].to_pylist(), strict=True)
    ):
        assert features == sorted(set(features)) and all(value > 0 for value in values)
        found[row, features] = values
    return found


def test_values_are_the_sae_s_own_bit_for_bit(text_world, table, dense):
    store = Store.open(text_world.run.store_path)
    rows = store.rows(HOOK, None, 0, store.n_rows(HOOK, None))
    wanted = text_world.run.sae().encode(rows.x).dense()
    assert len(table) == len(wanted)
    assert torch.equal(torch.from_numpy(dense), wanted)
    assert table["token_id"].to_numpy().tolist() == store.tokens[rows.token_index.numpy()].tolist()


def test_values_are_those_of_an_index_of_the_same_text(text_world, table):
    index = open_index(text_world.run.path)
    shards = list(index.codes())
    columns = np.concatenate([shard.code.columns.numpy() for shard in shards])
    values = np.concatenate([shard.code.values.numpy() for shard in shards])
    assert table["features"].combine_chunks().values.to_numpy().tolist() == columns.tolist()
    assert table["values"].combine_chunks().values.to_numpy().tobytes() == values.tobytes()
    at = np.concatenate([shard.token_index.numpy() for shard in shards])
    names, starts = index.documents["id"].to_pylist(), index.documents["start"].to_numpy()
    document = np.searchsorted(starts, at, side="right") - 1
    assert table["document"].to_pylist() == [names[one] for one in document]
    assert table["position"].to_numpy().tolist() == (at - starts[document]).tolist()


def test_groups_of_documents_change_nothing_but_how_much_is_read_at_once(
    text_world, table, dense, tmp_path, monkeypatch
):
    monkeypatch.setattr(stream, "DOCUMENTS", 5)
    out = api.encode(
        text_world.run, text_world.text, out=tmp_path / "x.parquet", lm=text_world.lm, quiet=True
    )
    again = pq.read_table(out)
    for column in ("document", "position", "token_id", "token"):
        assert again[column].equals(table[column])
    found = np.zeros_like(dense)
    for row, one in enumerate(again.select(["features", "values"]).to_pylist()):
        found[row, one["features"]] = one["values"]
    # A matrix product of another height may round otherwise.
    np.testing.assert_allclose(found, dense, rtol=1e-4, atol=1e-4)


def test_chosen_features_are_columns_in_the_order_asked_for(text_world, table, dense, tmp_path):
    busy = np.argsort(-(dense > 0).sum(axis=0))[:3].tolist()
    order = (busy[1], busy[0], busy[2])
    out = api.encode(
        text_world.run,
        text_world.text,
        out=tmp_path / "x.parquet",
        features=order,
        lm=text_world.lm,
        quiet=True,
    )
    found = pq.read_table(out)
    shared = ["document", "position", "token_id", "token"]
    assert found.column_names == shared + [f"feature_{one}" for one in order]
    assert found.select(shared).equals(table.select(shared))
    for one in order:
        assert found[f"feature_{one}"].to_numpy().tobytes() == dense[:, one].tobytes()


def test_documents_above_a_value_are_those_of_brute_force(text_world, table, dense, tmp_path):
    features = np.argsort(-(dense > 0).sum(axis=0))[3:6].tolist()
    names = np.array(table["document"].to_pylist())
    largest = [dense[np.ix_(names == one, features)].max() for one in np.unique(names)]
    above = float(np.median(largest))
    out = api.encode(
        text_world.run,
        text_world.text,
        out=tmp_path / "x.parquet",
        features=features,
        above=above,
        lm=text_world.lm,
        quiet=True,
    )
    places, wanted = table["position"].to_numpy(), []
    for name in [one["id"] for one in text_world.documents]:
        own = np.flatnonzero(names == name)
        values = dense[np.ix_(own, features)]
        if values.max() > above:
            row, column = np.unravel_index(values.argmax(), values.shape)
            wanted.append((name, features[column], float(values.max()), int(places[own[row]])))
    rows = pq.read_table(out).to_pylist()
    assert 0 < len(wanted) < len(text_world.documents)
    assert [(r["document"], r["feature"], r["max"], r["position"]) for r in rows] == wanted
    texts = {one["id"]: one["text"] for one in text_world.documents}
    for row in rows:
        assert row["snippet"].strip("\ufffd") in texts[row["document"]]
    assert {row["source"] for row in rows} == {"texts.jsonl"}


def test_a_document_longer_than_the_context_goes_on(table):
    own = np.array(table["document"].to_pylist()) == f"d{LONG}"
    assert table["position"].to_numpy()[own].max() > 64


def test_tokens_read_back_as_the_text_up_to_the_last_one_which_predicts_nothing(text_world, table):
    vocabulary = Vocabulary.of_tokenizer(text_world.lm.tokenizer)
    own = np.array(table["document"].to_pylist()) == "d3"
    raw = b"".join(vocabulary.bytes_of(token) or b"?" for token in table["token_id"].to_numpy()[own].tolist())
    assert raw.decode() + "\n" == text_world.documents[3]["text"]


def test_only_so_many_tokens_are_read(text_world, table, tmp_path):
    out = api.encode(
        text_world.run, text_world.text, out=tmp_path / "x.parquet", tokens=100, lm=text_world.lm, quiet=True
    )
    assert pq.read_table(out)["token_id"].equals(table["token_id"].slice(0, 100))


def test_nothing_is_overwritten(text_world, tmp_path):
    out = tmp_path / "x.parquet"
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        encode_text(text_world.run, text_world.text, out, lm=text_world.lm, quiet=True)
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": [96]}, "there is no feature 96"),
        ({"features": [-1]}, "there is no feature -1"),
        ({"features": [1, 1]}, "named twice"),
        ({"above": 1.0}, "needs --features"),
        ({"features": [1], "above": float("nan")}, "above is nan"),
    ],
)
def test_wrong_options(text_world, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        encode_text(
            text_world.run, text_world.text, tmp_path / "x.parquet", lm=text_world.lm, quiet=True, **options
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt])
def test_what_is_stopped_leaves_no_file(text_world, tmp_path, monkeypatch, error):
    monkeypatch.setattr(stream, "DOCUMENTS", 5)
    stop, encoded, calls = StopRequest(), stream.encoded, []

    def stopping(sae, x, given):
        calls.append(len(x))
        if len(calls) == 3:
            stop.ask()
            if error is KeyboardInterrupt:
                raise KeyboardInterrupt
        return encoded(sae, x, given)

    monkeypatch.setattr(stream, "encoded", stopping)
    with pytest.raises(error):
        encode_text(
            text_world.run, text_world.text, tmp_path / "x.parquet", lm=text_world.lm, stop=stop, quiet=True
        )
    assert len(calls) == 3 and list(tmp_path.iterdir()) == []


def test_an_empty_text_is_refused(text_world, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": ""}\n')
    with pytest.raises(UsageError, match="holds no"):
        encode_text(
            text_world.run,
            TextSpec(source=str(empty)),
            tmp_path / "x.parquet",
            lm=text_world.lm,
            quiet=True,
        )
    assert not (tmp_path / "x.parquet").exists()
