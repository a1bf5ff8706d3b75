"""Where indexes are found, and what is refused: names, other SAEs, damage, absent parts."""

import json
import shutil
import struct

import numpy as np
import pyarrow.parquet as pq
import pytest
from index_helpers import D_SAE, N_TOKENS, make_known, make_run, write_index

from saelab.activations import layout
from saelab.errors import DamagedFileError, UsageError
from saelab.features.index import FeatureIndex, open_index
from saelab.features.queries.opened import FILE_OF_PART
from saelab.features.schema import (
    DETAIL,
    EXAMPLES,
    EXAMPLES_SCHEMA,
    FEATURES,
    LOGIT_INVERSE,
    NEIGHBORS,
    VOCABULARY,
)
from saelab.features.tables import write_table
from saelab.sae.files import sae_identity
from saelab.storage.manifest import MANIFEST_NAME, read_manifest, write_manifest


@pytest.fixture
def run(tmp_path, known):
    run = make_run(tmp_path / "run")
    write_index(run / "indexes" / "main", known, run / "sae")
    return run


def described_again(place, **content):
    """Write the manifest of a changed index, as a stranger would who wants it to look sound."""
    old = read_manifest(place, "index")
    write_manifest(
        place, "index", [name for name in old.files if (place / name).exists()], old.content | content
    )


def test_a_run_an_sae_or_an_index_can_be_given(run, known):
    for given in (run, str(run), run / "sae", run / "indexes" / "main"):
        with open_index(given) as index:
            assert index.path.resolve() == (run / "indexes" / "main").resolve()
            assert index.run_path is not None and index.run_path.resolve() == run.resolve()
            assert (index.d_sae, index.n_tokens) == (D_SAE, int(known.keep.sum()))
            assert index.sae_identity == sae_identity(run / "sae")
            assert index.has("neighbors") and index.has("codes") and index.has("logits")
            assert not index.has("anything")
    with FeatureIndex.open(run / "indexes" / "main") as index:
        assert index.run_path is not None and index.is_current and index.config.top == 32


def test_an_overlay_is_found_by_the_identity_of_the_sae(run, known, tmp_path):
    place = write_index(tmp_path / "out" / sae_identity(run / "sae") / "indexes" / "more", known, run / "sae")
    with open_index(run, "more", out=tmp_path / "out") as index:
        assert index.path == place and index.run_path == run
    with pytest.raises(
        UsageError, match=r"no index 'main'; there are more; build it with: saelab index .* --out"
    ):
        open_index(run, out=tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["..", "../../x", ".", "", "a/b", ".old-main", "a\0b", "manifest", "/etc", "a b"]
)
def test_names_that_could_lead_elsewhere_are_refused(run, name):
    with pytest.raises(UsageError, match="cannot name a record"):
        open_index(run, name)


def test_an_index_that_there_is_not(run):
    with pytest.raises(UsageError, match=r"no index 'other'; there are main; build it with: .* --name other"):
        open_index(run, "other")
    shutil.rmtree(run / "indexes")
    with pytest.raises(UsageError, match="has no index 'main'; build it with: saelab index "):
        open_index(run)


def test_other_folders_are_refused(run, tmp_path):
    with pytest.raises(DamagedFileError, match="not a saelab folder, or it was never finished"):
        open_index(tmp_path)
    write_manifest(tmp_path, "store", [], {})
    with pytest.raises(UsageError, match="holds a store; give a run"):
        open_index(tmp_path)
    with pytest.raises(DamagedFileError, match="holds a run, not a index"):
        FeatureIndex.open(run)


def test_links_out_of_the_run_are_refused(run, known, tmp_path):
    elsewhere = write_index(tmp_path / "elsewhere", known, run / "sae")
    (run / "indexes" / "linked").symlink_to(elsewhere)
    with pytest.raises(DamagedFileError, match="leads out of"):
        open_index(run, "linked")
    target = tmp_path / "features.parquet"
    (run / "indexes" / "main" / FEATURES).replace(target)
    (run / "indexes" / "main" / FEATURES).symlink_to(target)
    with pytest.raises(DamagedFileError, match="leads outside the folder"):
        open_index(run)


def test_an_index_of_another_sae_is_refused(run, known, tmp_path):
    other = make_run(tmp_path / "other", seed=1)
    shutil.copytree(run / "indexes", other / "indexes")
    for ask in (lambda: open_index(other), lambda: FeatureIndex.open(other / "indexes" / "main")):
        with pytest.raises(UsageError, match="this index is of another SAE"):
            ask()


def test_an_index_that_was_built_anew_is_not_mixed_with_the_old_one(run):
    place = run / "indexes" / "main"
    with open_index(run) as index:
        before = index.row(5)
        shutil.rmtree(place)
        with pytest.raises(UsageError, match="was built anew since it was opened; open it again"):
            index.detail(5)
        write_index(place, make_known(seed=9), run / "sae")
        assert not index.is_current
        for ask in (index.row, index.detail, index.feature, index.examples, index.neighbors):
            with pytest.raises(UsageError, match="was built anew since it was opened; open it again"):
                ask(5)
    with open_index(run) as index:
        assert index.row(5) != before


@pytest.mark.parametrize("part", FILE_OF_PART)
def test_an_absent_part_says_how_to_add_it(tmp_path, part):
    run, known = make_run(tmp_path / "run"), make_known()
    known.parts = tuple(name for name in known.parts if name != part)
    write_index(run / "indexes" / "small", known, run / "sae")
    with open_index(run, "small") as index:
        asks = {
            "neighbors": [lambda: index.neighbors(1), lambda: index.features(sort="max_decoder_cosine")],
            "coactivation": [lambda: index.companions(1)],
            "near-miss": [lambda: index.examples(1, "near-miss")],
        }
        assert not index.has(part)
        for ask in asks[part]:
            with pytest.raises(UsageError, match=f"add it with: saelab index add {run} {part} --name small"):
                ask()
        view = index.feature(1)
        assert view.row == index.row(1)
        assert (view.neighbors == ()) == (part == "neighbors")
        assert ("near-miss" in view.examples) == (part != "near-miss")


def test_codes_that_were_not_kept(tmp_path):
    run, known = make_run(tmp_path / "run"), make_known()
    known.has_codes = False
    write_index(run / "indexes" / "main", known, run / "sae")
    with open_index(run) as index:
        assert not index.has("codes")
        with pytest.raises(UsageError, match=f"no codes; keep them with: saelab index {run} --keep-codes"):
            index.codes()


def names_of_files(run):
    return sorted(read_manifest(run / "indexes" / "main", "index").files)


def test_every_missing_file_and_every_wrong_size_is_named(run):
    place = run / "indexes" / "main"
    assert len(names_of_files(run)) == 13
    for name in names_of_files(run):
        content = (place / name).read_bytes()
        (place / name).unlink()
        with pytest.raises(DamagedFileError, match=f"{name} is missing"):
            open_index(run)
        (place / name).write_bytes(content + b"x")
        with pytest.raises(DamagedFileError, match=f"{name} has {len(content) + 1:,} bytes"):
            open_index(run)
        (place / name).write_bytes(content)
    open_index(run).close()


def test_tables_with_other_columns_are_named(run):
    place = run / "indexes" / "main"
    for name, schema in ((NEIGHBORS, EXAMPLES_SCHEMA), (FEATURES, None)):
        kept = (place / name).read_bytes()
        table = pq.read_table(place / name)
        table = schema.empty_table() if schema else table.drop_columns(["skew"])
        write_table(place / name, table.to_batches(), table.schema, 16)
        described_again(place)
        with pytest.raises(DamagedFileError, match=f"{name} is not that table of an index: its column"):
            open_index(run)
        (place / name).write_bytes(kept)


@pytest.mark.parametrize("name", [FEATURES, DETAIL])
def test_tables_with_other_rows_are_named(run, name):
    place = run / "indexes" / "main"
    table = pq.read_table(place / name).slice(1)
    write_table(place / name, table.to_batches(), table.schema, 16)
    described_again(place)
    with pytest.raises(DamagedFileError, match=f"{name} has 39 rows, the SAE of the index 40 features"):
        open_index(run)


@pytest.mark.parametrize("name", [FEATURES, DETAIL, EXAMPLES, NEIGHBORS])
def test_flipped_bytes_within_a_table_name_it(run, name):
    place = run / "indexes" / "main"
    content = bytearray((place / name).read_bytes())
    (footer,) = struct.unpack("<I", content[-8:-4])
    body = len(content) - footer - 8
    content[4:body] = bytes(255 - byte for byte in content[4:body])
    (place / name).write_bytes(content)
    described_again(place)
    with pytest.raises(DamagedFileError, match=name), open_index(run) as index:
        for feature in range(D_SAE):
            index.feature(feature)


def test_features_that_are_twice_in_their_table_are_damage(run):
    place = run / "indexes" / "main"
    table = pq.read_table(place / FEATURES)
    feature = table["feature"].to_numpy().copy()
    feature[4] = 5
    table = table.set_column(0, "feature", [feature])
    write_table(place / FEATURES, table.to_batches(), table.schema, 16)
    described_again(place)
    with pytest.raises(DamagedFileError, match=f"{FEATURES}: there is not one row for each feature"):
        open_index(run)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("token_index", N_TOKENS),
        ("token_index", 2**63),
        ("document", 3),
        ("kind", 9),
        ("offsets", [0] * 50),
        ("offsets", None),
    ],
)
def test_examples_that_cannot_be_are_damage(run, known, column, value):
    place = run / "indexes" / "main"
    rows = pq.read_table(place / EXAMPLES).to_pylist()
    at = next(i for i, row in enumerate(rows) if row["feature"] == 5)
    rows[at][column] = value
    table = type(pq.read_table(place / EXAMPLES)).from_pylist(rows, EXAMPLES_SCHEMA)
    write_table(place / EXAMPLES, table.to_batches(), EXAMPLES_SCHEMA, 16)
    described_again(place)
    with open_index(run) as index:
        with pytest.raises(DamagedFileError, match=EXAMPLES):
            index.feature(5)
        assert index.feature(6).examples["top"]


def test_tokens_outside_the_vocabulary_are_damage(run, known):
    place = run / "indexes" / "main"
    for wrong in (-1, 12):
        layout.write_array(place / layout.TOKENS, np.full(N_TOKENS, wrong, dtype=np.int32))
        described_again(place)
        with open_index(run) as index, pytest.raises(DamagedFileError, match="is not of the vocabulary"):
            index.examples(5)


def test_lists_of_other_lengths_are_damage(run):
    place = run / "indexes" / "main"
    rows = pq.read_table(place / DETAIL).to_pylist()
    rows[5]["token_shares"] = [0.5]
    table = pq.read_table(place / DETAIL)
    table = type(table).from_pylist(rows, table.schema)
    write_table(place / DETAIL, table.to_batches(), table.schema, 16)
    described_again(place)
    with (
        open_index(run) as index,
        pytest.raises(DamagedFileError, match=r"feature_detail\.parquet.* feature 5"),
    ):
        index.detail(5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sae": None}, "'sae'"),
        ({"sae": {"identity": 3, "d_sae": D_SAE}}, "'identity'"),
        ({"sae": {"identity": "x", "d_sae": True}}, "'d_sae'"),
        ({"sae": {"identity": "x", "d_sae": -1}}, "d_sae is -1"),
        ({"corpus": {"n_tokens": 2**50, "n_kept": 1, "n_rows": 1, "n_documents": 1}}, "n_tokens is"),
        ({"config": {"top": 3}}, "config"),
        ({"parts": "neighbors"}, "'parts'"),
        ({"parts": ["everything"]}, "the part 'everything'"),
        ({"source": None}, "'source'"),
    ],
)
def test_manifests_that_do_not_say_what_is_needed(run, content, message):
    described_again(run / "indexes" / "main", **content)
    with pytest.raises(DamagedFileError, match=message) as error:
        open_index(run)
    assert MANIFEST_NAME in str(error.value)


def test_a_corpus_of_another_size_is_damage(run):
    described_again(
        run / "indexes" / "main", corpus={"n_tokens": 65, "n_kept": 60, "n_rows": 4, "n_documents": 3}
    )
    with open_index(run) as index, pytest.raises(DamagedFileError, match=r"tokens\.bin|rows\.bin"):
        index.examples(5)


def test_a_changed_manifest_is_refused(run):
    file = run / "indexes" / "main" / MANIFEST_NAME
    body = json.loads(file.read_text())
    body["content"]["source"] = "something else"
    file.write_text(json.dumps(body))
    with pytest.raises(DamagedFileError, match="does not have its own checksum"):
        open_index(run)


@pytest.mark.parametrize(
    ("name", "column", "value", "message"),
    [
        (NEIGHBORS, "other", D_SAE, "names feature 40, which there is not"),
        (LOGIT_INVERSE, "feature", D_SAE, "names feature 40, which there is not"),
        (DETAIL, "promoted", [12, 0], "a token is not of the vocabulary"),
        (FEATURES, "name", None, "there is not one row"),
        (FEATURES, "density", None, "there is not one row"),
    ],
)
def test_rows_that_name_what_there_is_not_are_damage(run, name, column, value, message):
    place = run / "indexes" / "main"
    table = pq.read_table(place / name)
    rows = table.to_pylist()
    at = next(i for i, row in enumerate(rows) if row.get("token", row["feature"]) == 5)
    rows[at][column] = value
    write_table(place / name, type(table).from_pylist(rows, table.schema).to_batches(), table.schema, 16)
    described_again(place)
    with pytest.raises(DamagedFileError, match=message), open_index(run) as index:
        index.feature(5)
        index.search_token("(")


def test_a_vocabulary_out_of_order_is_damage(run):
    place = run / "indexes" / "main"
    table = pq.read_table(place / VOCABULARY)
    write_table(place / VOCABULARY, table.slice(1).to_batches(), table.schema, 16)
    described_again(place)
    with open_index(run) as index, pytest.raises(DamagedFileError, match=r"vocabulary\.parquet"):
        index.search_token("import")
