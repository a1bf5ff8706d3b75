"""wandb and TensorBoard: each step once, files under the run, silence, and never a reason to stop."""

import json
import struct
import sys

import pytest
from commands import start_python

from saelab.errors import UsageError
from saelab.training import loggers
from saelab.training.loggers import Loggers, open_loggers

CONFIG = {"width": 64, "recipe": {"name": "topk", "k": 4}}


def line(step, fvu=None):
    return {"step": step, "loss": 1 / step, "fvu": fvu}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that logs some steps, as one process of a run does."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR", "WANDB_ERROR_REPORTING"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "run"
    folder.mkdir()

    def log(*names, after=0, steps=(), config=CONFIG):
        metrics = folder / "metrics.jsonl"
        past = [json.dumps(line(step)) + "\n" for step in range(3, after + 1, 3)]
        metrics.write_text("".join(past))
        with open_loggers(names, folder, "a run", config, after, history=metrics) as opened:
            for step in steps:
                opened.log(line(step))
        if sys.modules.get("wandb"):
            sys.modules["wandb"].teardown()  # its writer is another process, which this waits for
        assert not list((tmp_path / "elsewhere").iterdir())
        return folder / "logs"

    return log


def tensorboard_scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def wandb_records(path):
    """Read a wandb file: 7 bytes of header, then records in blocks of 32 KiB as LevelDB's log has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", raw, at + 4)
        part, at = part + raw[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = Record()
            record.ParseFromString(part)
            yield record
            part = b""


def wandb_runs(folder):
    """Return for each wandb id its settings and the values that were logged, over all its files."""
    found = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        identity = path.stem.removeprefix("run-")
        told = found.setdefault(identity, {"history": [], "config": {}})
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "run":
                told["name"] = record.run.display_name
                told["config"] |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
            if record.WhichOneof("record_type") == "history":
                values = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
                told["history"].append({k: v for k, v in values.items() if k in ("_step", "loss", "fvu")})
    return found


def test_tensorboard_files_hold_what_was_logged(run, capfd):
    folder = run("tensorboard", steps=(3, 6))
    scalars = tensorboard_scalars(folder)
    assert scalars == {"loss": [(3, pytest.approx(1 / 3)), (6, pytest.approx(1 / 6))]}, "None is left out"
    assert capfd.readouterr() == ("", "")


def test_a_run_that_was_cut_back_shows_no_step_twice_in_tensorboard(run):
    run("tensorboard", steps=(3, 6, 9, 12))
    folder = run("tensorboard", after=6, steps=(9, 12, 15))
    assert [step for step, _ in tensorboard_scalars(folder)["loss"]] == [3, 6, 9, 12, 15]


def test_what_tensorboard_shows_is_on_the_disk_at_once(run, tmp_path):
    opened = open_loggers(("tensorboard",), tmp_path, "a run", CONFIG, 0, history=tmp_path / "none")
    opened.log(line(3))
    assert tensorboard_scalars(tmp_path / "logs")["loss"] == [(3, pytest.approx(1 / 3))]
    opened.close()


def test_wandb_is_offline_silent_and_under_the_run(run, capfd):
    (told,) = wandb_runs(run("wandb", steps=(3, 6))).values()
    assert told["history"] == [{"_step": 3, "loss": 1 / 3}, {"_step": 6, "loss": 1 / 6}]
    assert told["name"] == "a run" and told["config"]["recipe"] == CONFIG["recipe"]
    assert capfd.readouterr() == ("", "")


NO_NETWORK = """
import os, socket, sys, pathlib

def tell(*address, **_):
    os.write(2, f"tried to reach {address}\\n".encode())
    raise OSError("no network")

socket.getaddrinfo = socket.create_connection = tell
from saelab.training.loggers import open_loggers
folder = pathlib.Path(sys.argv[1])
names = ("wandb", "tensorboard")
with open_loggers(names, folder, "a run", {}, 0, history=folder / "none") as opened:
    opened.log({"step": 1, "loss": 0.5})
"""


def test_neither_logger_looks_for_the_network_or_says_a_word(run, tmp_path):
    process = start_python(NO_NETWORK, tmp_path / "run")
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
    (told,) = wandb_runs(tmp_path / "run" / "logs").values()
    assert told["history"] == [{"_step": 1, "loss": 0.5}]
    assert tensorboard_scalars(tmp_path / "run" / "logs") == {"loss": [(1, 0.5)]}


def test_a_resumed_run_tells_wandb_every_step_once_under_one_id(run):
    run("wandb", steps=(3, 6, 9))
    (told,) = wandb_runs(run("wandb", after=6, steps=(9, 12))).values()
    assert sorted(values["_step"] for values in told["history"]) == [3, 6, 9, 12]


def test_a_run_that_was_killed_is_told_to_wandb_anew_with_its_past(run):
    folder = run("wandb", steps=(3, 6, 9))
    (folder / "wandb.json").unlink()  # written when it is closed
    runs = wandb_runs(run("wandb", after=6, steps=(9, 12)))
    steps = sorted([values["_step"] for values in told["history"]] for told in runs.values())
    assert steps == [[3, 6, 9], [3, 6, 9, 12]]


def test_another_configuration_from_an_earlier_step_is_another_wandb_run_with_its_past(run):
    run("wandb", steps=(3, 6, 9))
    runs = wandb_runs(run("wandb", after=6, steps=(9, 12), config=CONFIG | {"tokens": 9}))
    steps = sorted([values["_step"] for values in told["history"]] for told in runs.values())
    assert steps == [[3, 6, 9], [3, 6, 9, 12]]


def test_loggers_that_are_new_to_a_resumed_run_show_its_past(run):
    folder = run("tensorboard", "wandb", after=6, steps=(9,))
    assert [step for step, _ in tensorboard_scalars(folder)["loss"]] == [3, 6, 9]
    (told,) = wandb_runs(folder).values()
    assert [values["_step"] for values in told["history"]] == [3, 6, 9]


def test_the_users_mode_is_obeyed(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_runs(run("wandb", steps=(3,))) == {}


class Broken:
    """Fails in one of its calls."""

    def __init__(self, where):
        self.where, self.calls = where, []

    def _call(self, name):
        self.calls.append(name)
        if name == self.where:
            raise OSError("no space left\non the device")

    def open(self, run):
        self._call("open")
        return self

    def log(self, step, values):
        self._call("log")

    def close(self):
        self._call("close")


@pytest.mark.parametrize(
    ("where", "calls"),
    [
        ("open", ["open"]),
        ("log", ["open", "log"]),
        ("close", ["open", "log", "log", "close"]),
    ],
)
def test_a_logger_that_fails_says_so_once_and_the_others_go_on(
    run, monkeypatch, tmp_path, capfd, where, calls
):
    broken, sound = Broken(where), Broken("never")
    openers = {"wandb": broken.open, "tensorboard": sound.open}
    monkeypatch.setattr(loggers, "_OPENERS", openers)
    with open_loggers(("wandb", "tensorboard"), tmp_path, "", {}, 0, history=tmp_path / "none") as opened:
        opened.log(line(3))
        opened.log(line(6))
    assert broken.calls == calls
    assert sound.calls == ["open", "log", "log", "close"]
    expected = "--log wandb: OSError: no space left; the run goes on without it\n"
    assert capfd.readouterr() == ("", expected)


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_package_that_is_missing_is_named_with_what_installs_it(run, monkeypatch, capfd, name):
    monkeypatch.setitem(sys.modules, name, None)
    run(name, steps=(3, 6))
    out, err = capfd.readouterr()
    assert out == ""
    assert (
        err
        == f'--log {name}: {name} is not installed (pip install "saelab[loggers]"); the run goes on without it\n'
    )


def test_a_folder_that_cannot_be_written_stops_nothing(run, tmp_path, capfd):
    (tmp_path / "run" / "logs").write_text("a file stands where the logs would go")
    run("tensorboard", "wandb", steps=(3,))
    err = capfd.readouterr().err.splitlines()
    assert [text.split(": ")[0] for text in err] == ["--log tensorboard", "--log wandb"]


def test_an_unknown_logger_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(UsageError, match="--log tensorbored is unknown; known: tensorboard, wandb"):
        open_loggers(("wandb", "tensorbored"), tmp_path, "", {}, 0, history=tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_logger_is_the_default_and_costs_nothing(tmp_path, monkeypatch):
    for name in ("wandb", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with open_loggers((), tmp_path, "", {}, 0, history=tmp_path) as opened:
        opened.log(line(1))
    assert isinstance(opened, Loggers) and not list(tmp_path.iterdir())
