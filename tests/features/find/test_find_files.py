"""Texts of files: what is a document of the indexed corpus is not read again, and gives the same either way."""

import json

import numpy as np
import pytest
import torch

from saelab import api
from saelab.errors import UsageError
from saelab.evaluation.sources import Shared
from saelab.features.find import file_units
from saelab.features.find.file_units import units_of_files
from saelab.features.find.spec import FindConfig
from saelab.features.index import open_index
from saelab.interrupts import StopRequest

NEW = "class Other:\n    def area(self):\n        return 0\n"


@pytest.fixture(scope="module")
def index(text_world):
    return open_index(text_world.run.path)


@pytest.fixture
def files(text_world, tmp_path):
    """Documents of the corpus: the even ones and the odd ones."""
    return [
        write(
            tmp_path / f"{kind}.jsonl", [one["text"] for one in text_world.documents if one["kind"] == kind]
        )
        for kind in ("even", "odd")
    ]


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def units_for(text_world, paths, index):
    with Shared(text_world.lm) as shared:
        return units_of_files(
            text_world.run,
            paths,
            column="text",
            index=index,
            seed=0,
            shared=shared,
            stop=StopRequest(),
            quiet=True,
        )


def values(found, d_sae=96):
    """Return the codes of each unit, token after token."""
    of_unit = {number: [] for number in range(len(found.units.positive))}
    for shard in found.shards():
        units = found.units.of_token[shard.token_index.numpy()]
        for number, row in zip(units.tolist(), shard.code.dense(), strict=True):
            if number >= 0:
                of_unit[number].append(row)
    return [torch.stack(rows) for rows in of_unit.values()]


def test_codes_from_the_corpus_are_those_of_encoding(text_world, index, files):
    there, encoded = units_for(text_world, files, index), units_for(text_world, files, None)
    assert (there.n_from_corpus, encoded.n_from_corpus) == (48, 0)
    for name in ("positive", "document", "size", "heldout"):
        assert np.array_equal(getattr(there.units, name), getattr(encoded.units, name))
    for one, other in zip(values(there), values(encoded), strict=True):
        # The texts stand in another order, so in other batches, whose products may round otherwise.
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_without_new_texts_no_model_is_needed(text_world, index, files, monkeypatch):
    monkeypatch.setattr(file_units, "TextEncoder", None)
    assert units_for(text_world, files, index).n_from_corpus == 48


def test_new_texts_alone_are_encoded(text_world, index, files, monkeypatch, tmp_path):
    texts = []
    group = file_units.TextEncoder.pieces

    def noting(self, tokens=0, documents=()):
        documents = list(documents)
        texts.extend(one.text for one in documents)
        return group(self, tokens, documents)

    odd = [one["text"] for one in text_world.documents if one["kind"] == "odd"]
    paths = [files[0], write(tmp_path / "more.jsonl", [*odd, NEW, NEW + " ", NEW])]
    wanted = values(units_for(text_world, paths, None))
    monkeypatch.setattr(file_units.TextEncoder, "pieces", noting)
    found = units_for(text_world, paths, index)
    assert texts == [NEW, NEW + " "]  # one that is there twice counts once
    assert found.n_from_corpus == 48 and len(found.units.positive) == 50
    for one, other in zip(values(found), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_texts_of_a_corpus_that_was_packed_are_not_mixed_with_encoded_ones(
    text_world, index, files, monkeypatch, tmp_path
):
    monkeypatch.setitem(index.manifest.content["corpus"]["provenance"], "packing", "packed")
    assert units_for(text_world, files, index).n_from_corpus == 48
    more = write(tmp_path / "more.jsonl", [one["text"] for one in text_world.documents[1::2]] + [NEW])
    assert units_for(text_world, [files[0], more], index).n_from_corpus == 0


def test_texts_in_both_files_are_left_out(text_world, index, tmp_path):
    texts = [one["text"] for one in text_world.documents]
    paths = [write(tmp_path / "a.jsonl", texts[:20]), write(tmp_path / "b.jsonl", texts[15:40])]
    found = units_for(text_world, paths, index)
    assert found.units.n_in_both == 5
    assert (int(found.units.positive.sum()), int((~found.units.positive).sum())) == (15, 20)


def test_lines_of_a_text_file_are_texts(text_world, tmp_path):
    for name, texts in (("a", ["x = 1", "", "y = 2", "z = 3"]), ("b", ["import os", "import re", "  "])):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts) + "\n")
    found = units_for(text_world, [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], None)
    assert found.units.positive.tolist() == [True] * 3 + [False] * 2


def test_the_texts_of_files_are_told_apart(text_world, files):
    found = api.find(
        text_world.run,
        positive=files[0],
        negative=files[1],
        config=FindConfig(limit=3, draws=19),
        lm=text_world.lm,
        quiet=True,
    )
    assert found.n_from_corpus == 48 and found.n_positive == found.n_negative == 12
    assert found.features[0].auroc > 0.9 and found.features[0].name
    assert "48 of the texts are documents of the indexed corpus" in str(found)


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        ("EVEN", "re:x", "a file is compared with a file"),
        ("EVEN", None, "a file is compared with a file"),
        ("column:kind=odd", "ODD", "a file is compared with a file"),
        ("EVEN", "EVEN", "both sets are"),
        ("EVEN", "nowhere.jsonl", "nowhere.jsonl is no file"),
        ("re:x", "re:x", "both sets are 're:x'"),
    ],
)
def test_sets_that_cannot_be_compared(text_world, files, positive, negative, message):
    names = {"EVEN": files[0], "ODD": files[1]}
    with pytest.raises(UsageError, match=message):
        api.find(
            text_world.run,
            positive=names.get(positive, positive),
            negative=names.get(negative, negative) if negative else None,
            quiet=True,
        )


def test_a_file_without_text_is_refused(text_world, files, tmp_path):
    with pytest.raises(UsageError, match="holds no text"):
        units_for(text_world, [files[0], write(tmp_path / "empty.jsonl", [""])], None)
