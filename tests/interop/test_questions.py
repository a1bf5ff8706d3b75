"""What files do not say is asked for, with the option that answers, and never guessed; formats are found by files."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from interop_cases import CASES, FIXTURES, case, errors

import saelab
from saelab.errors import SaelabError, UsageError
from saelab.interop.answers import Answers
from saelab.interop.formats import detect
from saelab.interop.hooks import find_hookpoint, spelled_without_model
from saelab.interop.importing import import_run
from saelab.interop.locations import locate
from saelab.interop.read import load_foreign, read_foreign
from saelab.lm.hooks import Hookpoint
from saelab.storage.tensors import read_tensors, write_tensors

TOLERANCE = 1e-5


@pytest.mark.parametrize("name", CASES)
def test_the_format_is_found_from_the_files(name):
    wanted = {"dictionary": "dictionary-learning", "gemma": "gemma-scope", "llama": "llama-scope"}
    expected = wanted.get(name.split("-")[0], name.split("-")[0])
    expected = "gemma-scope-2" if name.startswith("gemma-scope-2") else expected
    assert detect(locate(case(name).sae)) == expected


def test_several_saes_in_a_folder_are_listed(tmp_path):
    for layer in (1, 2):
        shutil.copytree(case("sparsify-topk").sae, tmp_path / "all" / f"layers.{layer}")
    with pytest.raises(UsageError, match=r"holds 2 SAE\(s\) below it; name one: layers.1, layers.2"):
        read_foreign(tmp_path / "all")


def test_files_of_two_formats_are_a_question(tmp_path):
    for name in ("sparsify-topk", "saelens-topk-rescaled"):
        shutil.copytree(case(name).sae, tmp_path / "both", dirs_exist_ok=True)
    with pytest.raises(UsageError, match="saelens and sparsify; say which with --from"):
        read_foreign(tmp_path / "both")


def test_nothing_that_is_known(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UsageError, match="no format that is known"):
        read_foreign(tmp_path)
    with pytest.raises(UsageError, match="there is no file or folder"):
        read_foreign(tmp_path / "missing")
    with pytest.raises(UsageError, match="is not a run"):
        saelab.load(tmp_path)


def old_config(tmp_path, **changes):
    place = shutil.copytree(case("saelens-5-topk").sae, tmp_path / "old")
    raw = json.loads((place / "cfg.json").read_text())
    raw = {key: value for key, value in (raw | changes).items() if value is not ...}
    (place / "cfg.json").write_text(json.dumps(raw))
    return place


@pytest.mark.parametrize(
    ("missing", "question", "answer"),
    [
        ("activation_fn_str", "activation function; say it with --activation", {"activation": "topk"}),
        ("apply_b_dec_to_input", "say it with --b-dec-on-input", {"b_dec_on_input": True}),
        (
            "normalize_activations",
            "how activations were normalised; say it with --normal",
            {"normalisation": "none"},
        ),
        ("activation_fn_kwargs", "how many features topk keeps; say it with --k", {"k": 5}),
    ],
)
def test_saelens_5_where_it_leaves_something_open(tmp_path, missing, question, answer):
    place = old_config(tmp_path, **{missing: ...})
    with pytest.raises(UsageError, match=question):
        saelab.load(place)
    assert max(errors(saelab.load(place, **answer), case("saelens-5-topk").expected())) < TOLERANCE


def test_what_the_files_say_is_not_overruled():
    wrong = {
        "activation": "relu",
        "k": 1,
        "b_dec_on_input": False,
        "normalisation": "layer_norm",
        "scale": 3.0,
    }
    assert (
        max(errors(saelab.load(case("saelens-5-topk").sae, **wrong), case("saelens-5-topk").expected()))
        < TOLERANCE
    )


def test_an_unknown_scale_is_asked_for(tmp_path):
    name = "saelens-jumprelu-scaled"
    place = shutil.copytree(case(name).sae, tmp_path / "scaled")
    (place / "activation_scaler.json").unlink()
    with pytest.raises(UsageError, match="--scale FACTOR"):
        saelab.load(place)
    assert max(errors(saelab.load(place, scale=0.37), case(name).expected())) < TOLERANCE


def test_a_threshold_that_was_never_estimated(tmp_path):
    place = shutil.copytree(case("dictionary-learning-BatchTopKSAE").sae, tmp_path / "ae")
    table = torch.load(place / "ae.pt", weights_only=True)
    torch.save(table | {"threshold": torch.tensor(-1.0)}, place / "ae.pt")
    with pytest.raises(UsageError, match=r"never estimated; .* say it with --activation topk"):
        saelab.load(place, allow_pickle=True)
    sae = saelab.load(place, allow_pickle=True, activation="topk")
    assert sae.config.inference == {"name": "per_token", "k": 5}


def test_weights_without_a_configuration(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "W_enc": torch.randn(8, 8, generator=generator),
        "b_enc": torch.randn(8, generator=generator),
        "W_dec": torch.randn(8, 8, generator=generator),
        "b_dec": torch.randn(8, generator=generator),
    }
    write_tensors(tmp_path / "sae.safetensors", tensors)
    told = {}
    for question, answer in (
        ("--rows inputs", {"rows": "inputs"}),
        ("--activation relu, topk or jumprelu", {"activation": "relu"}),
        ("--b-dec-on-input", {"b_dec_on_input": True}),
        ("--normalisation", {"normalisation": "none"}),
    ):
        with pytest.raises(UsageError, match=question):
            saelab.load(tmp_path / "sae.safetensors", **told)
        told |= answer
    x = torch.randn(5, 8, generator=generator)
    z = torch.relu((x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"])
    sae = saelab.load(tmp_path / "sae.safetensors", **told)
    torch.testing.assert_close(sae(x), z @ tensors["W_dec"] + tensors["b_dec"], atol=1e-5, rtol=1e-5)
    z = torch.relu((x - tensors["b_dec"]) @ tensors["W_enc"].T + tensors["b_enc"])
    sae = saelab.load(tmp_path / "sae.safetensors", **told | {"rows": "features"})
    torch.testing.assert_close(sae(x), z @ tensors["W_dec"].T + tensors["b_dec"], atol=1e-5, rtol=1e-5)


def test_an_answer_that_does_not_exist(tmp_path):
    with pytest.raises(UsageError, match="no answer mystery"):
        saelab.load(case("saelens-standard").sae, mystery=1)


def test_an_import_without_a_place_asks_for_it(tmp_path):
    nameless = shutil.copytree(case("sparsify-transcoder").sae, tmp_path / "nameless")
    found = read_foreign(nameless, answers=Answers(at="model.layers.2.mlp.input"))
    with pytest.raises(UsageError, match="--target-at HOOK"):
        import_run(found, tmp_path / "run")
    bare = shutil.copytree(case("gemma-scope").sae, tmp_path / "somewhere")
    with pytest.raises(UsageError, match="say it with --at HOOK"):
        import_run(read_foreign(bare), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Places


@pytest.mark.parametrize(
    ("name", "hook", "alias"),
    [
        ("saelens-standard", "transformer.h.1.output", "blocks.1.hook_resid_post"),
        ("saelens-5-topk", "transformer.h.3.input", "blocks.3.hook_resid_pre"),
        ("sparsify-topk", "layers.2.output", ""),
        ("sparsify-transcoder", "layers.2.mlp.input", ""),
        ("dictionary-learning-AutoEncoder", "gpt_neox.layers.3.output", "blocks.3.hook_resid_post"),
        ("gemma-scope", "model.layers.3.output", "blocks.3.hook_resid_post"),
        ("gemma-scope-attention", "model.layers.12.self_attn.o_proj.input", "blocks.12.attn.hook_z"),
        ("gemma-scope-embedding", "model.embed_tokens.output", "hook_embed"),
        ("gemma-scope-2", "model.layers.3.output", ""),
        ("llama-scope", "model.layers.8.output", "blocks.8.hook_resid_post"),
        ("openai-topk", "transformer.h.6.output", "blocks.6.hook_resid_post"),
    ],
)
def test_places_as_far_as_names_tell(name, hook, alias):
    config = load_foreign(case(name).read()).config
    assert (config.input_hooks[0], config.hook_aliases[0]) == (hook, alias)


def test_a_place_that_no_family_has_keeps_its_name():
    assert spelled_without_model("blocks.2.hook_resid_mid", "gpt2") == ("blocks.2.hook_resid_mid",) * 2
    assert spelled_without_model("blocks.2.hook_resid_post", "mystery") == ("blocks.2.hook_resid_post",) * 2
    transcoder = load_foreign(case("gemma-scope-transcoder").read()).config
    assert transcoder.input_hooks == ("blocks.3.ln2.hook_normalized",)
    assert transcoder.output_hooks == ("model.layers.3.post_feedforward_layernorm.output",)


def test_a_module_path_gets_its_other_name_where_the_family_is_known():
    assert spelled_without_model("model.layers.3.output", "google/gemma-2-2b") == (
        "model.layers.3.output",
        "blocks.3.hook_resid_post",
    )
    transcoder = load_foreign(case("sparsify-transcoder").read()).config
    assert transcoder.output_hooks == ("layers.2.mlp.output",)


def test_a_place_of_a_model_by_the_end_of_its_path():
    points = [
        Hookpoint("model.layers.1.output", "blocks.1.hook_resid_post", 8),
        Hookpoint("model.layers.1.mlp.output", "blocks.1.hook_mlp_out", 8),
        Hookpoint("other.layers.1.mlp.output", None, 8),
    ]
    assert find_hookpoint("layers.1", points).alias == "blocks.1.hook_resid_post"
    assert find_hookpoint("blocks.1.hook_mlp_out", points).module_path == "model.layers.1.mlp.output"
    with pytest.raises(UsageError, match=r"may mean model.layers.1.mlp.output or other"):
        find_hookpoint("layers.1.mlp", points)
    with pytest.raises(UsageError, match="no hookpoint"):
        find_hookpoint("layers.7", points)


# The hub


class HubFile:
    def __init__(self, rfilename):
        self.rfilename = rfilename


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub: one repository, the cases; it keeps count of what is fetched."""
    fetched = []

    def model_info(self, name, revision=None):
        if name != "someone/saes":
            raise RepositoryNotFoundError("404", response=FakeResponse())
        files = [
            HubFile(str(path.relative_to(FIXTURES))) for path in sorted(FIXTURES.rglob("*")) if path.is_file()
        ]
        return type("Info", (), {"sha": "c0ffee", "siblings": files})()

    def download(name, filename, revision=None):
        fetched.append((filename, revision))
        return str(FIXTURES / filename)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return fetched


class FakeResponse:
    request, status_code = None, 404

    def __init__(self):
        self.headers = {}


@pytest.mark.parametrize("name", CASES)
def test_the_hub_gives_what_local_files_give(hub, name):
    about = case(name).about
    found = read_foreign(f"hf://someone/saes/{name}/{about['sae']}", allow_pickle=True)
    assert max(errors(load_foreign(found), case(name).expected())) < TOLERANCE
    assert {revision for _, revision in hub} == {"c0ffee"}
    assert len(hub) <= 3 and all(file.startswith(f"{name}/sae") for file, _ in hub)  # no more than is needed


def test_an_import_from_the_hub_keeps_address_and_commit(hub, tmp_path):
    run = saelab.import_sae("hf://someone/saes@main/saelens-standard/sae", out=tmp_path / "run")
    assert run.imported.source == "hf://someone/saes/saelens-standard/sae"
    assert run.imported.revision == "c0ffee"
    assert set(run.imported.files) == {"cfg.json", "sae_weights.safetensors"}


def test_addresses_that_lead_nowhere(hub):
    with pytest.raises(UsageError, match="no such repository"):
        read_foreign("hf://someone/else/folder")
    with pytest.raises(UsageError, match="the repository has no missing"):
        read_foreign("hf://someone/saes/missing")
    with pytest.raises(UsageError, match="no address of the hub"):
        read_foreign("hf://someone")
    with pytest.raises(UsageError, match="no address of the hub"):
        read_foreign("hf://someone/saes/../../etc")
    with pytest.raises(UsageError, match=r"SAE\(s\) below it; name one"):
        read_foreign("hf://someone/saes")


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """The hub is out of reach; its cache on this machine holds one SAE of one repository."""

    def broken(self, name, revision=None):
        raise OSError("no route to the hub\nand more")

    cached = tmp_path / "hub" / "models--someone--cached"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("c0ffee" * 6 + "abcd")
    shutil.copytree(
        case("saelens-jumprelu").folder, cached / "snapshots" / ("c0ffee" * 6 + "abcd") / "layer.3"
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", broken)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_without_a_network_what_was_fetched_before_is_read(no_network):
    found = read_foreign("hf://someone/cached/layer.3/sae")
    assert max(errors(load_foreign(found), case("saelens-jumprelu").expected())) < TOLERANCE
    assert found.location.revision == "c0ffee" * 6 + "abcd"


def test_without_a_network_the_hub_is_one_line(no_network):
    with pytest.raises(SaelabError, match=r"did not deliver .no route to the hub.; check the network"):
        read_foreign("hf://someone/saes/folder")


def test_expected_values_are_not_trivial():
    """A case that nothing activates would prove nothing."""
    for name in CASES:
        expected = case(name).expected()
        active = float((expected["features"] > 0).float().mean())
        assert 0.05 < active < 0.95, name
        assert read_tensors(case(name).folder / "expected.safetensors").keys() == expected.keys()
