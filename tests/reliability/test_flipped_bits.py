"""One bit in any file of anything that saelab writes: `saelab verify` names the file."""

import shutil

import pytest
from commands import NOT_DATA
from reliability_helpers import commands

from saelab.cli.main import run
from saelab.storage.inspect import verify_folder


@pytest.fixture(scope="module")
def everything(inputs, tmp_path_factory):
    """A store with losses, a group with its checkpoints, and records of evaluations, in the runs and beside them."""
    folder = tmp_path_factory.mktemp("everything")
    lines = commands(inputs, folder)
    group = [*lines["train"][:-1], str(folder / "group")]
    group.insert(group.index("--k") + 1, "3")
    for line in (
        lines["cache"],
        group,
        ["evaluate", str(folder / "group"), "--tokens", "500"],
        lines["evaluate"],
    ):
        assert run(line) == 0, line
    return folder


def test_one_flipped_bit_in_any_file_is_found_and_the_file_is_named(everything, tmp_path):
    folder = shutil.copytree(everything, tmp_path / "copy")
    names = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in NOT_DATA]
    kinds = {path.name if path.suffix in (".json", ".jsonl", ".bin") else path.suffix for path in names}
    assert len(kinds) == 12, kinds
    assert verify_folder(folder).problems == []
    for path in names:
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            flipped = bytearray(content)
            flipped[place] ^= 1
            path.write_bytes(flipped)
            problems = verify_folder(folder).problems
            # Files of an SAE are listed by its own manifest and by that of the run.
            assert problems, (path, place)
            assert all(str(path) in problem for problem in problems), (path, place, problems)
        path.unlink()
        # Without its manifest a folder is not finished, and its outer one misses a file where it lists it.
        assert path.name == "manifest.json" or str(path) in "".join(verify_folder(folder).problems), path
        path.write_bytes(content)
