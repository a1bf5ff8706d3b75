"""Files from strangers: nothing in them runs, nothing leads out of its folder, nothing is read without end."""

import ast
import json
import os
import pickle
import shutil
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from reliability_helpers import commands

from saelab.errors import DamagedFileError, SaelabError
from saelab.lm.embedded import model_folder
from saelab.storage.files import read_json
from saelab.storage.manifest import FORMAT_VERSION, digest_of, digest_of_body
from saelab.storage.tensors import TensorFile
from saelab.training.config import train_config_from_json

ROOT = Path(__file__).parents[2]
PICKLED_WEIGHTS = ROOT / "saelab" / "interop" / "pickled.py"  # other tools' files, where the user allows them
RUNS_CODE = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}


def calls_in(path):
    """Yield the dotted name and the keywords of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            yield ast.unparse(node.func), {key.arg: ast.unparse(key.value) for key in node.keywords}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "saelab").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_reader_unpickles_or_runs_code(path):
    tree = ast.parse(path.read_text())
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert not imported & RUNS_CODE
    for name, options in calls_in(path):
        assert name not in ("eval", "exec", "np.fromfile"), name
        if name == "torch.load":
            assert path == PICKLED_WEIGHTS and options.get("weights_only") == "True", path
        if name in ("np.load", "numpy.load"):
            assert options.get("allow_pickle") in (None, "False"), path
        assert options.get("trust_remote_code") in (None, "False"), path


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_in_a_model_folder_does_not_run(saelab, inputs, tmp_path, name):
    folder = shutil.copytree(model_folder(), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    line = commands(inputs, tmp_path)["cache"]
    line[1] = str(folder)
    code, _, err = saelab(*line)
    assert code == 1
    assert not (tmp_path / "ran").exists()
    assert len([text for text in err.splitlines() if text.startswith("saelab cache: ")]) == 1
    assert "unexpected" not in err


def test_code_in_a_model_folder_does_not_run(saelab, inputs, tmp_path):
    folder = shutil.copytree(model_folder(), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mystery",
        "architectures": ["Mystery"],
        "auto_map": {"AutoConfig": "code.Mystery"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})")
    line = commands(inputs, tmp_path)["cache"]
    line[1] = str(folder)
    code, _, err = saelab(*line)
    assert code == 1 and "contains custom code" in err, err
    assert not (tmp_path / "ran").exists()


def test_json_of_100_mb_and_a_header_of_1_gb_are_refused_unread(tmp_path):
    for name, length in (("huge.json", 100 * 2**20), ("huge.safetensors", 2**30 + 8)):
        with (tmp_path / name).open("wb") as file:
            file.write(struct.pack("<Q", 2**30) if name.endswith("tensors") else b"[")
            file.truncate(length)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(DamagedFileError, match="more than 16,777,216 bytes"):
        read_json(tmp_path / "huge.json")
    with pytest.raises(DamagedFileError, match="announces a header of 1,073,741,824 bytes"):
        TensorFile(tmp_path / "huge.safetensors")
    assert time.process_time() - began < 1.0
    assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    tracemalloc.stop()


def reseal(folder, **changes):
    """Change a manifest as a stranger would who knows its checksum."""
    raw = json.loads((folder / "manifest.json").read_text()) | changes
    raw.pop("blake2b")
    (folder / "manifest.json").write_text(json.dumps(raw | {"blake2b": digest_of_body(raw)}))


@pytest.mark.parametrize("place", ["store", "run", "run/sae"])
def test_a_newer_format_is_refused_by_every_command_that_reads_it(own, saelab, tmp_path, place):
    reseal(own / place, version=FORMAT_VERSION + 1)
    line = commands(own, tmp_path)["train" if place == "store" else "evaluate"]
    for command in (line, ["verify", own / place]):
        code, out, err = saelab(*command)
        assert code == 1
        assert f"format version {FORMAT_VERSION + 1}" in out + err
        assert "install a newer one" in out + err


@pytest.mark.parametrize("link", ["keep.bin", "documents.parquet"])
def test_a_store_reads_nothing_outside_its_folder(own, saelab, tmp_path, link):
    secret = shutil.copy(own / "store" / link, tmp_path / "secret")
    (own / "store" / link).unlink()
    (own / "store" / link).symlink_to(secret)
    code, _, err = saelab(*commands(own, tmp_path)["train"])
    assert code == 1
    assert "leads outside the folder" in err


def test_a_table_of_documents_with_other_columns_is_refused(own, saelab, tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = own / "store" / "documents.parquet"
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.rename_columns(["id", "start", "length", "source", "part"]), path)
    raw = json.loads((own / "store" / "manifest.json").read_text())
    raw["files"]["documents.parquet"]["bytes"] = path.stat().st_size
    reseal(own / "store", files=raw["files"])
    code, _, err = saelab(*commands(own, tmp_path)["train"])
    assert code == 1
    assert "has no column 'split'" in err


@pytest.mark.parametrize("name", ["mystery", "relu ", "", None])
def test_an_unknown_architecture_is_an_error_and_never_a_default(own, saelab, tmp_path, name):
    config = json.loads((own / "run" / "config.json").read_text())
    with pytest.raises(SaelabError, match="recipe"):
        train_config_from_json(config | {"recipe": config["recipe"] | {"name": name}}, "config.json")
    sae = json.loads((own / "run/sae/config.json").read_text())
    sae["inference"]["name"] = name
    content = json.dumps(sae).encode()
    (own / "run/sae/config.json").write_bytes(content)
    raw = json.loads((own / "run/sae/manifest.json").read_text())
    raw["files"]["config.json"] = {"bytes": len(content), "blake2b": digest_of(content)}
    reseal(own / "run/sae", files=raw["files"])
    code, _, err = saelab(*commands(own, tmp_path)["evaluate"])
    assert code == 1
    assert "inference" in err or "rule" in err, err
