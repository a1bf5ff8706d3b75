import json

import pytest
import torch

from saelab.errors import DamagedFileError, SaelabError, UsageError
from saelab.sae.autoencoder import SAEParameters, SparseAutoencoder
from saelab.sae.config import Normalisation, SAEConfig
from saelab.sae.feature_statistics import FeatureAccumulator
from saelab.sae.files import load_feature_statistics, load_optional_theta, load_sae, sae_identity, save_sae
from saelab.sae.fold import Scales, fold
from saelab.sae.normalisation import denormalise, normalise, scale_to_unit_coordinates
from saelab.storage.manifest import write_manifest
from saelab.storage.tensors import read_tensors, write_tensors
from saelab_kernels.code import SparseCode

D_IN, D_SAE = 6, 10


def config(**changes):
    return SAEConfig(
        **{
            "recipe": "topk",
            "d_in": D_IN,
            "d_out": D_IN,
            "d_sae": D_SAE,
            "input_hooks": ("model.layers.2.output",),
            "input_widths": (D_IN,),
            "output_hooks": ("model.layers.2.output",),
            "output_widths": (D_IN,),
            "hook_aliases": ("blocks.2.hook_resid_post",),
            "input_normalisation": Normalisation(),
            "target_normalisation": Normalisation(),
            "apply_b_dec_to_input": True,
            "has_skip": False,
            "attribution": None,
            "inference": {"name": "per_token", "k": 3},
            "units": "raw",
            "model_identity": "abc",
            "model_name": "embedded",
            "source_identity": "def",
            "tokenizer_hash": "",
        }
        | changes
    )


def scales(of_input, of_target, *, apply_b_dec_to_input):
    return Scales(((D_IN, of_input),), ((D_IN, of_target),), apply_b_dec_to_input)


@pytest.fixture
def sae():
    g = torch.Generator().manual_seed(0)
    shapes = ((D_IN, D_SAE), (D_SAE,), (D_SAE, D_IN), (D_IN,))
    return SparseAutoencoder(config(), SAEParameters(*(torch.randn(s, generator=g) for s in shapes)))


@pytest.fixture
def x():
    return torch.randn(20, D_IN, generator=torch.Generator().manual_seed(1))


def test_an_sae_survives_the_disk_bit_for_bit(sae, x, tmp_path):
    accumulator = FeatureAccumulator(D_SAE)
    accumulator.add(sae.encode(x))
    save_sae(tmp_path / "sae", sae, accumulator.result(), optional_theta=torch.tensor(0.5))
    loaded = load_sae(tmp_path / "sae")
    assert loaded.config == sae.config
    assert torch.equal(loaded(x), sae(x))
    assert torch.equal(loaded.encode(x).columns, sae.encode(x).columns)
    assert load_feature_statistics(tmp_path / "sae").n_tokens == 20


@pytest.mark.parametrize("theta", [torch.tensor(0.5), torch.arange(D_SAE) / 7, None])
def test_the_optional_threshold_survives_the_disk(sae, tmp_path, theta):
    save_sae(tmp_path / "sae", sae, optional_theta=theta)
    found = load_optional_theta(tmp_path / "sae")
    assert (found is None) if theta is None else torch.equal(found, theta)


@pytest.mark.parametrize(
    "theta", [torch.zeros(D_SAE + 1), torch.tensor(float("nan")), torch.tensor(1).double()]
)
def test_an_optional_threshold_that_is_none_of_this_sae_is_refused(sae, tmp_path, theta):
    save_sae(tmp_path / "sae", sae, optional_theta=theta)
    with pytest.raises(DamagedFileError, match="optional_theta"):
        load_optional_theta(tmp_path / "sae")


def test_encode_and_decode_follow_the_definition(sae, x):
    u = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    kept = torch.zeros_like(u).scatter(1, u.topk(3, dim=1).indices, 1.0)
    f = torch.relu(u) * kept
    torch.testing.assert_close(sae.encode(x).dense(), f)
    torch.testing.assert_close(sae.decode(sae.encode(x)), f @ sae.W_dec + sae.b_dec)


def test_a_token_is_encoded_to_the_same_bits_in_any_batch(sae, x):
    whole = sae.encode(x)
    alone = SparseCode.cat([sae.encode(row[None]) for row in x])
    assert torch.equal(whole.dense(), alone.dense())


def test_a_threshold_is_part_of_the_sae(x, tmp_path):
    g = torch.Generator().manual_seed(0)
    shapes = ((D_IN, D_SAE), (D_SAE,), (D_SAE, D_IN), (D_IN,))
    parameters = SAEParameters(*(torch.randn(s, generator=g) for s in shapes))
    theta = torch.linspace(0, 2, D_SAE)
    sae = SparseAutoencoder(config(inference={"name": "threshold"}), parameters, theta)
    save_sae(tmp_path / "sae", sae)
    u = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    torch.testing.assert_close(load_sae(tmp_path / "sae").encode(x).dense(), u * (u > theta))


def test_the_wrong_width_is_refused_before_any_work(sae):
    with pytest.raises(SaelabError, match=r"x has shape \(4, 7\), this SAE reads \[tokens, 6\]"):
        sae.encode(torch.zeros(4, 7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 3}, "unknown fields: k"),
        ({"d_sae": None}, "d_sae is None"),
        ({"d_in": True}, "d_in is True"),
        ({"input_hooks": "model"}, "not a list"),
        (
            {"input_normalisation": {"kind": "magic", "factor": 1.0}},
            "kind is 'magic'; choose one of none, scale",
        ),
        ({"input_normalisation": {"kind": "scale", "factor": -1}}, "'scale' with factor -1"),
        ({"units": 3}, "units is 3"),
        ({"d_sae": 0}, "d_sae is 0; it must be at least 1"),
        ({"input_normalisation": {"kind": "none", "factor": 2.0}}, "'none' with factor 2.0"),
        ({"input_normalisation": {"kind": "scale", "factor": 10**400}}, "not a finite number"),
        (
            {"target_normalisation": {"kind": "layer_norm", "factor": 1.0}},
            "which only the same normalisation",
        ),
        ({"d_out": 7}, "do not make up 7"),
        ({"inference": {"name": "magic"}}, "magic"),
        ({"inference": {"name": "threshold"}}, "lacks theta"),
        ({"d_out": 7, "output_widths": [7]}, "W_dec is torch.float32 of shape"),
    ],
)
def test_a_config_with_an_unknown_or_wrong_field_is_an_error(sae, tmp_path, change, message):
    save_sae(tmp_path, sae)
    raw = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(raw))
    write_manifest(tmp_path, "sae", ["config.json", "weights.safetensors"], {})
    with pytest.raises(DamagedFileError, match=message):
        load_sae(tmp_path)


@pytest.mark.parametrize("field", SAEConfig.__dataclass_fields__)
def test_every_field_is_required(sae, tmp_path, field):
    save_sae(tmp_path, sae)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw.pop(field)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    write_manifest(tmp_path, "sae", ["config.json", "weights.safetensors"], {})
    with pytest.raises(DamagedFileError, match=f"lacks {field}"):
        load_sae(tmp_path)


def test_one_flipped_bit_in_the_weights_is_found_when_loading(sae, tmp_path):
    save_sae(tmp_path, sae)
    raw = bytearray((tmp_path / "weights.safetensors").read_bytes())
    raw[-3] ^= 16
    (tmp_path / "weights.safetensors").write_bytes(raw)
    with pytest.raises(DamagedFileError, match=r"weights\.safetensors is damaged"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.full((D_SAE,), float("nan")), "b_enc holds NaN or inf"),
        (torch.zeros(D_SAE, dtype=torch.float16), "b_enc is torch.float16"),
        (torch.zeros(D_SAE, dtype=torch.int64), "b_enc is torch.int64"),
        (torch.zeros(D_SAE + 1), "b_enc is torch.float32 of shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused(sae, tmp_path, tensor, message):
    save_sae(tmp_path, sae)
    tensors = read_tensors(tmp_path / "weights.safetensors") | {"b_enc": tensor}
    write_tensors(tmp_path / "weights.safetensors", tensors)
    write_manifest(tmp_path, "sae", ["config.json", "weights.safetensors"], {})
    with pytest.raises(DamagedFileError, match=message):
        load_sae(tmp_path)


def test_a_finished_sae_is_not_overwritten_unasked(sae, tmp_path):
    save_sae(tmp_path, sae)
    with pytest.raises(UsageError, match="holds a finished SAE"):
        save_sae(tmp_path, sae)
    save_sae(tmp_path, sae, replace=True)
    assert torch.equal(load_sae(tmp_path).W_dec, sae.W_dec)


def test_the_identity_follows_the_weights(sae, tmp_path):
    save_sae(tmp_path / "a", sae)
    save_sae(tmp_path / "b", sae)
    with torch.no_grad():
        sae.b_enc[0] += 1
    save_sae(tmp_path / "c", sae)
    assert sae_identity(tmp_path / "a") == sae_identity(tmp_path / "b") != sae_identity(tmp_path / "c")


@pytest.mark.parametrize("kind", ["none", "scale", "layer_norm", "unit_norm"])
def test_normalisation_is_undone_and_has_its_property(x, kind):
    how = (
        scale_to_unit_coordinates(float(x.square().sum(1).mean()), D_IN)
        if kind == "scale"
        else Normalisation(kind=kind)
    )
    scaled, stats = normalise(x, how)
    # As in the reference, 1e-5 is added to the deviation that is divided by and not to the one that is multiplied by.
    left = 1.1e-5 * float(scaled.abs().max()) if kind == "layer_norm" else 1e-5
    torch.testing.assert_close(denormalise(scaled, stats), x, atol=left, rtol=1.3e-6)
    if kind == "scale":
        assert float(scaled.square().sum(1).mean()) == pytest.approx(D_IN, rel=1e-5)
    if kind == "unit_norm":
        torch.testing.assert_close(scaled.norm(dim=1), torch.ones(len(x)))
    if kind == "layer_norm":
        torch.testing.assert_close(scaled.mean(1), torch.zeros(len(x)), atol=1e-6, rtol=0)
        torch.testing.assert_close(scaled.std(1), torch.ones(len(x)), atol=1e-4, rtol=0)


def test_all_zero_activations_cannot_be_scaled():
    with pytest.raises(SaelabError, match="all zero"):
        scale_to_unit_coordinates(0.0, 4)


def test_folding_equals_scaling_at_every_token(sae, x):
    how = Normalisation(kind="scale", factor=2.5)
    unfolded = SparseAutoencoder(
        config(input_normalisation=how, target_normalisation=how),
        SAEParameters(**{name: getattr(sae, name).detach() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}),
    )
    parameters = SAEParameters(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    folded = fold(parameters, None, None, None, scales(how, how, apply_b_dec_to_input=True))
    raw = SparseAutoencoder(config(), folded.parameters)
    torch.testing.assert_close(raw(x), unfolded(x))
    torch.testing.assert_close(raw.encode(x).dense(), unfolded.encode(x).dense() / 2.5)


def test_different_scales_fold_for_a_transcoder_and_are_refused_with_a_pre_bias(sae, x):
    parameters = SAEParameters(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    s, t = Normalisation(kind="scale", factor=2.0), Normalisation(kind="scale", factor=5.0)
    with pytest.raises(SaelabError, match="cannot fold input scale"):
        fold(parameters, None, None, None, scales(s, t, apply_b_dec_to_input=True))
    folded = fold(parameters, None, None, None, scales(s, t, apply_b_dec_to_input=False))
    plain = {"apply_b_dec_to_input": False}
    unfolded = SparseAutoencoder(config(input_normalisation=s, target_normalisation=t, **plain), parameters)
    torch.testing.assert_close(SparseAutoencoder(config(**plain), folded.parameters)(x), unfolded(x))


def test_a_skip_map_is_added_whatever_the_dtype_of_the_activations_and_is_no_part_of_a_code(sae, x):
    parameters = SAEParameters(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    W_skip = torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(2))
    skip = SparseAutoencoder(config(has_skip=True), parameters, None, W_skip)
    for given in (x, x.bfloat16()):
        torch.testing.assert_close(skip(given), sae(given) + given.float() @ W_skip)
    with pytest.raises(SaelabError, match="adds a linear map of its input"):
        skip.decode(skip.encode(x))


def test_feature_statistics_have_closed_forms():
    accumulator = FeatureAccumulator(3)
    accumulator.add(SparseCode.from_dense(torch.tensor([[1.0, 0.0, 0.0], [3.0, 2.0, 0.0]])))
    accumulator.add(SparseCode.from_dense(torch.tensor([[0.0, 6.0, 0.0], [0.0, 0.0, 0.0]])))
    found = accumulator.result()
    assert found.n_tokens == 4
    assert found.count.tolist() == [2, 2, 0]
    assert found.density.tolist() == [0.5, 0.5, 0.0]
    assert found.mean_active.tolist() == [2.0, 4.0, 0.0]
    assert found.maximum.tolist() == [3.0, 6.0, 0.0]
