import json

import pytest

from saelab.cli.main import run
from saelab.cli.model_options import ModelOptions
from saelab.lm.spec import ModelSpec


def hooks(capsys, *arguments):
    code = run(["hooks", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_table_has_both_spellings_and_the_width(llama_folder, capsys):
    code, out, _ = hooks(capsys, llama_folder)
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["blocks.1.hook_resid_post", "24", "model.layers.1.output"] in rows
    assert ["40", "model.layers.1.mlp.up_proj.output"] in rows
    assert not any(row[-1] == "model.layers.1.mlp.up_proj.input" for row in rows)
    assert "inputs of modules" in out.splitlines()[-1]


def test_match_takes_patterns_of_both_spellings(llama_folder, capsys):
    wanted = ["--match", "blocks.{0,2}.hook_resid_*", "model.layers.1.mlp.up_proj.*"]
    code, out, _ = hooks(capsys, llama_folder, *wanted, "--json")
    found = json.loads(out)["hookpoints"]
    assert code == 0
    assert [point["module_path"] for point in found] == [
        "model.layers.0.input",
        "model.layers.0.output",
        "model.layers.1.mlp.up_proj.input",
        "model.layers.1.mlp.up_proj.output",
        "model.layers.2.input",
        "model.layers.2.output",
    ]
    assert found[0] == {"module_path": "model.layers.0.input", "alias": "blocks.0.hook_resid_pre", "d_in": 24}
    assert len(hooks(capsys, llama_folder, *wanted)[1].splitlines()) == 7
    code, _, err = hooks(capsys, llama_folder, "--match", "blocks.7.hook_resid_post")
    assert code == 2
    assert "blocks.7.hook_resid_post" in err
    assert err.count("\n") == 1


def test_vision_models_are_listed_too(vit_folder, capsys):
    code, out, _ = hooks(capsys, vit_folder, "--match", "**.output")
    assert code == 0
    assert "24" in out


@pytest.mark.parametrize(
    ("options", "named"),
    [(["--revision", "main"], "revision"), (["--adapter", "nowhere/at/all"], "nowhere/at/all")],
)
def test_model_options_are_checked(llama_folder, capsys, options, named):
    code, _, err = hooks(capsys, llama_folder, *options)
    assert code in (1, 2)
    assert named in err
    assert err.count("\n") == 1


def test_every_model_option_reaches_the_specification():
    options = ModelOptions(
        revision="v1", device="cuda:1", model_dtype="bfloat16", device_map="balanced", adapter="a/b"
    )
    assert options.model_spec("m") == ModelSpec(
        name="m", revision="v1", device="cuda:1", dtype="bfloat16", device_map="balanced", adapter="a/b"
    )
    assert ModelOptions().model_spec("m") == ModelSpec(name="m")
