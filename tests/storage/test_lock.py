import subprocess
import sys

import pytest

from saelab.errors import SaelabError
from saelab.storage.lock import locked


def test_a_second_process_is_refused_at_once_and_admitted_after(tmp_path):
    script = (
        "import sys; from pathlib import Path; from saelab.storage.lock import locked; from saelab.errors import *\n"
        "try:\n    with locked(Path(sys.argv[1]), 'train'): print('free')\n"
        "except SaelabError as error: print(error)"
    )

    def other_process() -> str:
        return subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
        ).stdout

    with locked(tmp_path, "train"):
        assert "in use by another process" in other_process()
    assert other_process() == "free\n"


def test_the_lock_is_released_when_the_work_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path, "train"):
        raise ZeroDivisionError
    with locked(tmp_path, "train"):
        assert (tmp_path / ".lock").exists()


def test_a_path_that_is_a_file_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaelabError, match="train: cannot write to"), locked(tmp_path / "file", "train"):
        pass
