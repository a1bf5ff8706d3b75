"""The whole benchmark on a tiny problem, with other libraries played by a script."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import pytest

from saelab.cli.main import run
from saelab_kernels.bench.__main__ import main
from saelab_kernels.bench.bound import PARTS
from saelab_kernels.bench.variants import all_variants, own_variants
from saelab_kernels.dispatch import choose_backend

TINY = ["--d-in", "8", "--d-sae", "32", "--k", "2", "--batch", "64", "--rounds", "3", "--copy-mib", "1"]

PLAYED = """
import json, pathlib, sys

steps = 0
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "start":
        variant = request["variant"]
        reply = {"versions": {"torch": "9.9"}}
        if variant == "saelens-bf16":
            reply = {"error": "ImportError: cannot import SAE"}
    elif request["do"] == "step":
        steps += 1
        if variant == "sparsify" and steps == 4:
            sys.exit("killed")
        with open(pathlib.Path(__file__).with_name("log"), "a") as log:
            log.write(f"{variant} {request['batch']}\\n")
        wall = {"saelens": 0.5, "saelens-sparse": 0.25}.get(variant, 1.0)
        reply = {"wall": wall, "cpu": 2 * wall, "loss": 1.5}
    else:
        reply = {"memory": 3 * 2**20}
    print(json.dumps(reply), flush=True)
"""


@pytest.fixture(scope="session")
def played(tmp_path_factory):
    """A folder with the report of a run of everything, its JSON line, its figure and the log of the peers."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "played.py").write_text(PLAYED)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder / "played.py"}" "$@"\n')
    python.chmod(0o755)
    arguments = [*TINY, "--scaling", "--peer-python", python, "--json"]
    arguments += ["--out", folder / "report.json", "--figure", folder / "figure.html"]
    done = subprocess.run(
        [sys.executable, "-m", "saelab_kernels.bench", *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


@pytest.fixture(scope="session")
def report(played):
    return json.loads((played / "report.json").read_text())


def test_standard_output_is_one_line_of_json_and_the_table_is_on_standard_error(played, report):
    lines = (played / "stdout").read_text().splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0]) == report
    table = (played / "stderr").read_text()
    for words in (
        "select per token",
        "saelab-clip",
        "cpu time",
        "best float32",
        "saelens",
        "default",
        "AuxK adds",
        "d_sae",
    ):
        assert words in table


def test_every_operator_has_its_time_bytes_and_shares(report):
    operators = report["operators"]
    assert set(operators) == {
        *("copy", "product", "product-bf16", "traffic", "decode", "decode error", "gradients"),
        *(f"select {rule}" for rule in ("per token", "per batch", "per feature", "above threshold")),
        *("adam", "adam, clipped", "auxk"),
        *(["select per token, float32"] if report["backend"] == "cpu" else []),
    }
    select = operators["select per token"]
    assert select["bytes"] == 4 * (64 * 8 + 32 * 8 + 32) + 8 * 64 * 2
    assert select["flops"] == 2 * 64 * 8 * 32
    for clock in ("cpu", "wall"):
        rounds = {name: one[f"{clock}_ms"]["rounds"] for name, one in operators.items()}
        assert all(len(found) == 3 for found in rounds.values())
        shares = [
            select["bytes"] / mine / (2 * 2**20 / copy)
            for mine, copy in zip(rounds["select per token"], rounds["copy"], strict=True)
        ]
        assert select["share_of_bandwidth"][clock] == pytest.approx(median(shares))
        shares = [
            product / mine
            for mine, product in zip(rounds["select per token"], rounds["product"], strict=True)
        ]
        assert select["share_of_product"][clock] == pytest.approx(median(shares))
    assert (
        operators["copy"]["share_of_bandwidth"]["wall"]
        == operators["product"]["share_of_product"]["wall"]
        == 1
    )
    milliseconds = select["cpu_ms"]["median"]
    assert select["gb_per_s"] == pytest.approx(select["bytes"] / milliseconds / 1e6)


def test_steps_are_ratios_of_rounds_and_peers_are_compared_as_they_are_and_at_their_best(report):
    step = report["step"]
    ours = own_variants("cpu", report["backend"])
    assert {*ours, "dense", "dense-bf16", "saelens", "saelens-sparse"} <= set(step["variants"])
    wall = {name: one["wall_ms"]["rounds"] for name, one in step["variants"].items()}
    bound = [p + t for p, t in zip(wall["product"], wall["traffic"], strict=True)]
    ratios = [mine / least for mine, least in zip(wall["saelab"], bound, strict=True)]
    assert step["variants"]["saelab"]["over_bound"]["wall"] == pytest.approx(median(ratios))
    added = [
        (aux - mine) / product
        for aux, mine, product in zip(wall["saelab-auxk"], wall["saelab"], wall["product"], strict=True)
    ]
    assert step["auxk_over_product"]["wall"] == pytest.approx(median(added))
    saelens = step["peers"]["saelens"]
    assert saelens["default"]["variant"] == "saelens"
    assert saelens["best"]["variant"] == "saelens-sparse"
    assert saelens["best float32"]["variant"] == "saelens-sparse"
    for which, seconds in (("default", 0.5), ("best", 0.25)):
        assert set(saelens[which]["over"]) == set(ours) - {"saelab-auxk"}
        for name, over in saelens[which]["over"].items():
            assert over["wall"] == pytest.approx(median(1e3 * seconds / mine for mine in wall[name]))
    assert step["variants"]["saelens"]["losses"] == [1.5] * 5
    assert step["variants"]["saelens"]["peak_mib"] == 3
    ours_mib = step["variants"]["saelab"]["peak_mib"]
    assert saelens["default"]["peak_over_saelab"] == (pytest.approx(3 / ours_mib) if ours_mib else None)
    assert step["variants"]["saelab"]["losses"] == pytest.approx(
        step["variants"]["dense"]["losses"], rel=1e-5
    )
    assert step["versions"]["saelens"] == {"torch": "9.9"}


def test_what_could_not_run_is_listed_with_its_reason(played, report):
    missing = report["step"]["missing"]
    assert missing == {
        "saelens-bf16": "ImportError: cannot import SAE",
        "sparsify": "in round 2: it ended with code 1: killed",
    }
    ran = set(report["step"]["variants"])
    assert ran | set(missing) == set(all_variants("cpu", report["backend"], peers=True))
    for name, reason in missing.items():
        assert f"not measured: {name}: {reason}" in (played / "stderr").read_text()


def test_all_variants_take_turns_on_the_same_batches(played):
    log = [line.split() for line in (played / "log").read_text().splitlines()]
    peers = ["saelens", "saelens-sparse", "dictionary-learning", "dictionary-learning-bf16", "sparsify"]
    peers.append("sparsify-bf16")
    expected = [[name, batch] for batch in "120" for name in peers]
    assert log[: len(expected)] == expected
    peers.remove("sparsify")  # it dies in its fourth step
    assert log[len(expected) :] == [[name, batch] for batch in "12" for name in peers]


def test_scaling_moves_one_size_at_a_time(report):
    values = {}
    for record in report["scaling"]:
        values.setdefault(record["axis"], []).append(record["value"])
        assert {"product", "traffic", "select", "decode error", "adam", "step"} <= set(record["variants"])
        assert all(one["cpu_ms"]["median"] > 0 for one in record["variants"].values())
    assert values == {"d_sae": [8, 16, 32, 64, 128], "k": [1, 2, 4, 8], "batch": [16, 32, 64, 128]}


def test_the_report_says_where_when_and_with_what(report):
    assert report["options"]["d_sae"] == 32
    assert report["backend"] == choose_backend("cpu")
    assert (report["threads"] >= 1, report["format"]) == (True, 1)
    assert report["machine"]["processor"]
    assert report["machine"]["wait_policy"]
    assert {"python", "torch"} <= set(report["versions"])
    assert report["date"].endswith("+00:00")


def test_the_figure_holds_every_part(played):
    text = (played / "figure.html").read_text()
    for words in ("training step", "saelab-clip", "scaling with d_sae", "scaling with batch"):
        assert words in text
    traces, _ = json.JSONDecoder().raw_decode(text[text.index("[", text.rindex("Plotly.newPlot")) :])
    lines = [trace for trace in traces if trace["type"] == "scatter"]
    colours = {(trace["name"], trace["line"]["color"]) for trace in lines}
    assert len(colours) == len({name for name, _ in colours}) == len({colour for _, colour in colours}) == 7
    assert [trace["name"] for trace in lines if trace["showlegend"]] == [trace["name"] for trace in lines[:7]]


def test_saelab_bench_is_the_same_benchmark(capsys, tmp_path):
    out = tmp_path / "report.json"
    arguments = ["bench", *TINY, "--backend", "torch", "--part", "operators", "--json", "--out", str(out)]
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads(out.read_text())
    assert "select per batch" in captured.err
    assert run(arguments[:-3]) == 0
    assert "encoder products" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--peer-python", "/no/such/python"], "--peer-python /no/such/python: no program there"),
        (["--backend", "fast"], "--backend fast: available here: torch"),
        (["--device", "tpu"], "--device tpu: cpu or cuda"),
        (["--figure", "figure.png"], "must end in .html or .svg"),
        (["--out", "no/such/folder/report.json"], "there is no folder no/such/folder"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line_before_anything_is_measured(capsys, arguments, words):
    assert run(["bench", *TINY, *arguments]) == 2
    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        main([*TINY, *arguments])
    assert words in str(stop.value.code)


def test_a_figure_without_plotly_is_refused_at_once(capsys, monkeypatch):
    monkeypatch.setattr("saelab_kernels.bench.figure.find_spec", lambda name: None)
    assert run(["bench", *TINY, "--figure", "figure.html"]) == 2
    assert "needs plotly, not installed here" in capsys.readouterr().err
    assert run(["bench", *TINY, "--figure", "figure.svg"]) == 2
    assert "needs plotly and kaleido" in capsys.readouterr().err


@pytest.mark.parametrize(
    "call",
    [
        "from saelab.cli.main import run; run(['bench', '--help'])",
        "from saelab_kernels.bench.__main__ import main; main(['--help'])",
    ],
)
def test_help_explains_every_option_and_imports_no_torch(call):
    script = (
        f"import atexit, sys\natexit.register(lambda: sys.stderr.write(str('torch' in sys.modules)))\n{call}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "False")
    assert "--peer-python" in done.stdout
    assert "Tokens in a step" in " ".join(done.stdout.split())


def test_the_benchmark_needs_torch_alone(tmp_path):
    script = (
        "import sys\n"
        "for name in ('numpy', 'plotly', 'jaxtyping', 'beartype', 'numba', 'triton', 'tyro', 'saelab'):\n"
        "    sys.modules[name] = None\n"
        "from saelab_kernels.bench.__main__ import main\n"
        f"main({[*TINY, '--part', 'operators', '--backend', 'torch', '--json', '--out', str(tmp_path / 'r.json')]!r})"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2] / "kernels",
    )
    assert done.returncode == 0, done.stderr
    assert "adam" in json.loads((tmp_path / "r.json").read_text())["operators"]


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_the_benchmark_of_the_gpu_backend_runs_in_the_interpreter(tmp_path):
    sizes = ["--d-in", "4", "--d-sae", "8", "--k", "2", "--batch", "4", "--rounds", "1", "--copy-mib", "1"]
    out = tmp_path / "report.json"
    command = [sys.executable, "-m", "saelab_kernels.bench", *sizes, "--backend", "triton", "--out", str(out)]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("not measured: ") == 1
    assert "not measured: other libraries: not asked for; --peer-python" in done.stderr
    report = json.loads(out.read_text())
    assert report["backend"] == "triton"
    assert {"select per token", "select per feature", "adam, clipped", "auxk"} <= set(report["operators"])
    variants = report["step"]["variants"]
    assert list(variants) == all_variants("cpu", "triton", peers=False)
    assert variants["saelab"]["losses"] == pytest.approx(variants["dense"]["losses"], rel=1e-4)
    assert all("losses" not in variants[part] for part in PARTS)
