"""Local models keep their meaning in every folder, are never looked for on the hub, and mistakes are told."""

import shutil
import socket
from typing import Any

import pytest
import torch

import saelab
from saelab.activations.cache import cache_activations
from saelab.activations.live import LiveSource
from saelab.activations.request import saved_config
from saelab.activations.spec import CacheConfig, LiveConfig
from saelab.activations.store import Store
from saelab.cli.main import run
from saelab.errors import UsageError
from saelab.lm.load import load_model
from saelab.lm.source import locate, locate_adapter
from saelab.lm.spec import ModelSpec
from saelab.text.spec import TextSpec

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture
def here(llama_folder, tmp_path, monkeypatch):
    """A folder to work in that holds `models/llama` and `texts/a.jsonl`."""
    home = tmp_path / "home"
    shutil.copytree(llama_folder, home / "models" / "llama")
    (home / "texts").mkdir()
    lines = ('{"text": "def add(first, second): return first + second"}\n' for _ in range(20))
    (home / "texts" / "a.jsonl").write_text("".join(lines))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


@pytest.fixture
def fails(capsys):
    """Run a command that is refused as wrong usage, and return its one line."""

    def call(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        err = capsys.readouterr().err
        assert code == 2, err
        assert err.count("\n") == 1
        return err

    return call


def cache_config(model="models/llama", text="texts/a.jsonl", **options):
    spec = ModelSpec(name=model, device="cpu", device_map=options.pop("device_map", None))
    source = TextSpec(source=text, streaming=options.pop("streaming", False))
    return CacheConfig(model=spec, text=source, at=(HOOK,), tokens=100, context=16, **options)


def test_what_is_recorded_of_a_store_holds_whole_paths(here, monkeypatch):
    lm = load_model(ModelSpec(name="models/llama", device="cpu"))
    assert lm.spec.name == str(here / "models" / "llama")
    out = here / "store"
    made = cache_activations(cache_config(), out, progress=False)
    monkeypatch.chdir(here.parent / "elsewhere")
    recorded = saved_config(out)
    assert recorded.model.name == str(here / "models" / "llama")
    assert recorded.text.source == str(here / "texts" / "a.jsonl")
    spec = Store.open(out).model_spec()
    assert spec is not None
    assert load_model(spec).identity == made.model_identity
    assert cache_activations(recorded, out, progress=False).identity == made.identity


def test_what_is_recorded_of_a_live_stream_holds_whole_paths(here):
    config = LiveConfig(
        model=ModelSpec(name="./models/llama", device="cpu"),
        text=TextSpec(source="texts/*.jsonl"),
        at=(HOOK,),
        context=16,
    )
    live = LiveSource(config).describe(here)["live"]
    assert live["model"]["name"] == str(here / "models" / "llama")
    assert live["text"]["source"] == str(here / "texts" / "*.jsonl")


@pytest.mark.parametrize(
    "other",
    [
        {"model": "./models/../models/llama"},
        {"text": "./texts/a.jsonl"},
        {"text": "texts"},
        {"streaming": True},
        {"model": "models/copy"},
    ],
)
def test_another_spelling_of_the_same_inputs_is_the_same_request(here, other):
    shutil.copytree(here / "models" / "llama", here / "models" / "copy")
    lm = load_model(ModelSpec(name=other.get("model", "models/llama"), device="cpu"))
    first = cache_activations(cache_config(), here / "store", progress=False)
    again = cache_activations(cache_config(**other), here / "store", progress=False, lm=lm)
    assert again.identity == first.identity


def test_another_model_is_refused_by_name_and_hash(here, folders):
    cache_activations(cache_config(), here / "store", progress=False)
    with pytest.raises(
        UsageError, match=r"inputs.model.hash.*inputs.model.name: \"llama\" there, \"tiny-gpt2\""
    ):
        other = cache_config(model=str(folders["gpt2"]))
        cache_activations(other, here / "store", progress=False)


def test_names_that_are_not_local_stay_as_they_are(here):
    (here / "embedded").mkdir()
    (here / "gpt2").write_text("a file is no model")
    for name in ("embedded", "module:mine", "someone/some-model", "gpt2", ""):
        assert ModelSpec(name=name, adapter=name).resolved().name == name
    adapter = ModelSpec(name="embedded", adapter="models/llama").resolved().adapter
    assert adapter == str(here / "models" / "llama")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("models/lama", "did you mean models/llama?"),
        ("models/lama", "models is a folder here, so the hub is not asked"),
        ("models/nothing/like/it", "models holds llama"),
        ("{here}/models/gone", "there is no model folder {here}/models/gone any more"),
        ("./nowhere", "there is no model folder ./nowhere"),
        ("texts", "texts is not a model folder"),
        ("", "the name of the model is empty"),
    ],
)
def test_a_local_model_that_is_not_there_is_wrong_usage(here, fails, name, said):
    assert said.format(here=here) in fails("hooks", name.format(here=here))
    with pytest.raises(UsageError):
        locate(ModelSpec(name=name.format(here=here)))


@pytest.mark.usefixtures("no_network", "here")
def test_a_local_adapter_that_is_not_there_is_wrong_usage():
    for name in ("models/lora", "texts", ""):
        with pytest.raises(UsageError, match="adapter"):
            locate_adapter(name)


def test_hooks_refuses_the_devices_that_cache_refuses(here, fails, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "there is no device 'nosuch'" in fails("hooks", "models/llama", "--device", "nosuch")
    assert "'cuda' is not available" in fails("hooks", "models/llama", "--device", "cuda")


def test_a_vision_model_is_told_that_it_reads_no_text(here, vit_folder, fails):
    common = [
        "texts/a.jsonl",
        "--at",
        "**.layernorm.output",
        "--tokens",
        "10",
        "--context",
        "8",
        "--out",
        "s",
    ]
    for packing in ("packed", "document"):
        line = fails("cache", vit_folder, *common, "--packing", packing)
        assert "tiny-vit has no tokenizer, so it cannot be given text" in line
        assert "--packing document" not in line


def test_packing_and_column_that_do_not_go_together_name_the_option(here, fails):
    common = ["models/llama", "texts/a.jsonl", "--at", HOOK, "--tokens", "10", "--out", "s"]
    assert "--column messages" in fails("cache", *common, "--packing", "conversation")
    assert "--packing conversation" in fails("cache", *common, "--column", "messages")


def test_hooks_in_python_lists_what_the_command_lists(here):
    lm = load_model(ModelSpec(name="models/llama", device="cpu"))
    assert saelab.hooks("models/llama") == saelab.hooks(lm) == saelab.hooks(here / "models/llama")
    found = saelab.hooks("models/llama", match="blocks.{0..1}.hook_resid_post")
    assert [point.module_path for point in found] == ["model.layers.0.output", "model.layers.1.output"]
    with pytest.raises(UsageError, match=r"blocks.9"):
        saelab.hooks(lm, match=["blocks.9.hook_resid_post"])


@pytest.mark.usefixtures("unchecked")
def test_a_bare_module_is_told_how_to_be_wrapped(here):
    module: Any = torch.nn.Linear(2, 2)
    number: Any = 3
    for call in (saelab.cache, saelab.live):
        with pytest.raises(UsageError, match=r"saelab.LanguageModel.from_module"):
            call(
                module,
                "texts/a.jsonl",
                at=HOOK,
                **({} if call is saelab.live else {"tokens": 9, "out": here}),
            )
    with pytest.raises(UsageError, match="not int 3"):
        saelab.hooks(number)
