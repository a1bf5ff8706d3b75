import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saelab.errors import DamagedFileError, UsageError
from saelab.storage.files import write_bytes
from saelab.storage.inspect import list_folders, verify_folder
from saelab.storage.manifest import check_file, digest_of_body, read_manifest, write_manifest

FIELDS = ["format", "version", "content", "files", "bytes", "blake2b", "saelab-run"]


@pytest.fixture
def folder(tmp_path):
    write_bytes(tmp_path / "run" / "data.bin", b"0123456789")
    write_bytes(tmp_path / "run" / "deep" / "more.bin", b"abc")
    write_manifest(tmp_path / "run", "run", ["data.bin", "deep/more.bin"], {"fact": 1})
    return tmp_path / "run"


def rewrite(folder, **changes):
    """Change a manifest as a stranger would who knows its checksum."""
    raw = json.loads((folder / "manifest.json").read_text()) | changes
    raw.pop("blake2b")
    (folder / "manifest.json").write_text(json.dumps(raw | {"blake2b": digest_of_body(raw)}))


def test_a_manifest_tells_kind_content_sizes_and_checksums(folder):
    manifest = read_manifest(folder, "run")
    assert manifest.content == {"fact": 1}
    assert manifest.files["data.bin"]["bytes"] == 10
    for name in manifest.files:
        check_file(folder, name, manifest)


@pytest.mark.parametrize("bit", [0, 37, 79])
def test_one_flipped_bit_is_found_and_the_file_is_named(folder, bit):
    content = bytearray((folder / "data.bin").read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    (folder / "data.bin").write_bytes(content)
    found = verify_folder(folder)
    assert len(found.problems) == 1
    assert "data.bin is damaged" in found.problems[0]


@pytest.mark.parametrize("place", [b'"fact": 1', b'"bytes": 10', b'"version": 1'])
def test_one_changed_digit_in_a_manifest_is_found(folder, place):
    path = folder / "manifest.json"
    content = path.read_bytes()
    assert place in content
    path.write_bytes(content.replace(place, place[:-1] + b"7"))
    (problem,) = verify_folder(folder).problems
    assert "manifest.json" in problem


@pytest.mark.parametrize("name", ["x" * 300, "\ud800", "loop"])
def test_a_name_that_no_file_can_have_is_refused(folder, name):
    (folder / "loop").symlink_to("loop")
    rewrite(folder, files={name: {"bytes": 1, "blake2b": "0" * 32}})
    (problem,) = verify_folder(folder).problems
    assert str(folder) in problem


def test_entries_of_an_earlier_manifest_stand_so_that_damage_stays_visible(folder):
    earlier = read_manifest(folder).files
    (folder / "data.bin").write_bytes(b"9876543210")
    write_bytes(folder / "new.bin", b"new")
    write_manifest(folder, "run", ["new.bin"], {}, known=earlier)
    (problem,) = verify_folder(folder).problems
    assert "data.bin is damaged" in problem


def test_a_file_that_the_manifest_does_not_list_is_refused(folder):
    (folder / "stranger.bin").write_bytes(b"0")
    with pytest.raises(DamagedFileError, match=r"manifest.json does not list stranger.bin"):
        check_file(folder, "stranger.bin", read_manifest(folder))


def test_missing_and_cut_files_are_found(folder):
    (folder / "deep" / "more.bin").unlink()
    (folder / "data.bin").write_bytes(b"0123")
    problems = " ".join(verify_folder(folder.parent).problems)
    assert "more.bin is missing" in problems
    assert "data.bin has 4 bytes, its manifest says 10" in problems


def test_a_newer_version_is_refused_with_advice(folder):
    rewrite(folder, version=2)
    with pytest.raises(DamagedFileError, match="version 2; this saelab reads up to 1: install a newer one"):
        read_manifest(folder)


def test_a_folder_of_another_kind_is_refused(folder):
    with pytest.raises(DamagedFileError, match="holds a run, not a store"):
        read_manifest(folder, "store")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "..", "", "a\\..\\b", "a\0b"]
)
def test_a_name_that_leads_outside_is_refused(folder, name):
    rewrite(folder, files={name: {"bytes": 1, "blake2b": "0" * 32}})
    with pytest.raises(DamagedFileError, match="leads outside"):
        read_manifest(folder)


def test_a_link_that_leads_outside_is_refused(folder, tmp_path):
    (tmp_path / "secret").write_bytes(b"0123456789")
    (folder / "data.bin").unlink()
    (folder / "data.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(DamagedFileError, match="leads outside"):
        check_file(folder, "data.bin", read_manifest(folder))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=1000)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda children: st.lists(children) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), children),
        max_leaves=12,
    )
)
def test_any_json_is_read_or_refused_with_our_own_error(tmp_path, value):
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    try:
        manifest = read_manifest(tmp_path)
    except DamagedFileError:
        return
    assert manifest.version == 1


def test_an_empty_folder_and_a_missing_one_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="no finished saelab folder"):
        verify_folder(tmp_path)
    with pytest.raises(UsageError, match="not a folder"):
        verify_folder(tmp_path / "missing")


def test_listing_counts_inner_folders_as_part_of_the_outer_one(folder):
    write_manifest(folder / "deep", "sae", ["more.bin"], {})
    assert [(entry.kind, entry.path) for entry in list_folders(folder.parent)] == [("run", folder)]
