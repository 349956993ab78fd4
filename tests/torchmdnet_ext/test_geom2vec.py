"""geom2vec's published weights: what `Encoder.load` makes of its files, and the files that it refuses."""

import os
import pickle
import shutil
import warnings

import numpy as np
import pytest
import torch

from openmm_geomgnn import Encoder
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.testing.numerics import relative
from torchmdnet_ext import checkpoints, geom2vec

# what the names of the files say; the code must find it in the tensors
NAMES = {
    "et_l6_h64_rbf64_r75": ("smooth-equivariant-transformer", 6, 64, 7.5, 100),
    "visnet_l6_h64_rbf64_r75": ("visnet", 6, 64, 7.5, 100),
    "tensornet_l3_h64_rbf32_r5": ("smooth-tensornet", 3, 32, 5.0, 128),
}
OWN = {
    "et_l6_h64_rbf64_r75": {"num_heads": 8, "neighbor_embedding": False, "distance_influence": "both"},
    "visnet_l6_h64_rbf64_r75": {"num_heads": 8, "lmax": 1, "vecnorm_type": "max_min", "trainable_vecnorm": True},
    "tensornet_l3_h64_rbf32_r5": {},
}
PRECISIONS = [(torch.float32, "f32", 1e-5), (torch.float64, "f64", 1e-9)]


@pytest.fixture(scope="module")
def weights(shared_data):
    return shared_data / "geom2vec_weights"


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def file(weights, name, tmp_path_factory):
    """The file under a name that says nothing, or something wrong."""
    return shutil.copy(weights / f"{name}.pth", tmp_path_factory.mktemp("weights") / "et_l2_h16_rbf8_r4.pth")


@pytest.fixture(scope="module")
def encoder(file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {dtype: Encoder.load(file, dtype) for dtype, *_ in PRECISIONS}


@pytest.fixture(scope="module")
def denoiser(file):
    return checkpoints.read_denoiser(file)


@pytest.fixture
def reference(shared_data, name):
    def reference(system):
        return np.load(shared_data / "reference_embeddings" / f"{name}_{system}.npz")

    return reference


def test_architecture_comes_from_the_tensors(encoder, name):
    settings = encoder[torch.float32].settings
    found = [settings[key] for key in ("model", "num_layers", "num_rbf", "cutoff_upper", "max_z")]
    assert tuple(found) == NAMES[name] and settings["embedding_dimension"] == 64
    assert settings.items() >= OWN[name].items() and settings["smooth_cutoff"] is False
    assert encoder[torch.float32].training_information == {"program": "geom2vec", "sigma": 0.2}


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "precision", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("system", ["ala2", "chignolin"])
@pytest.mark.parametrize("atoms", ["heavy", "all"])
def test_embeddings_are_those_of_geom2vec(encoder, denoiser, reference, dtype, precision, tolerance, system, atoms):
    with reference(system) as stored:
        z, pos = stored[f"Z_{atoms}"], stored[f"pos_{atoms}"][:2]
        x, v = encoder[dtype].embed(z, pos)
        assert x.dtype == v.dtype == {torch.float32: np.float32, torch.float64: np.float64}[dtype]
        for found, key in ((x, "x"), (v, "v")):
            for frame, expected in zip(found, stored[f"{key}_{precision}_{atoms}"][:2], strict=True):
                assert relative(torch.from_numpy(frame), torch.from_numpy(expected)) < tolerance
        one = torch.from_numpy(pos[0]).to(dtype)
        noise = denoiser.to(dtype)(torch.from_numpy(z), one, torch.zeros(len(z)).long())
        assert relative(noise, torch.from_numpy(stored[f"noise_{precision}_{atoms}"][0])) < tolerance


def test_the_envelope_costs_no_accuracy(encoder, file, reference):
    """What the warning advises: the same weights with the envelope."""
    smooth = Encoder.load(file, smooth_cutoff=True)
    assert smooth.network.smooth_cutoff and smooth.content_hash() != encoder[torch.float32].content_hash()
    with reference("ala2") as stored:
        z, pos = torch.from_numpy(stored["Z_all"]), torch.from_numpy(stored["pos_all"][0]).float()
    noise = torch.randn(pos.shape, generator=torch.Generator().manual_seed(0))
    losses = []
    for network in (smooth, encoder[torch.float32]):
        x, v = network(z, pos + 0.2 * noise, torch.zeros_like(z))
        losses.append((network.head.pre_reduce(x, v, z, pos, None) - noise).square().mean().item())
    assert losses[1] < 0.4 and losses[0] < losses[1] + 0.01


@pytest.mark.slow
def test_that_it_is_not_smooth_is_said_once(file, tmp_path):
    other = shutil.copy(file, tmp_path / "other.pth")
    with pytest.warns(UserWarning, match=r"not smooth.*atoms crosses .* angstrom.*smooth_cutoff=True.*\.save\(\)") as said:
        Encoder.load(other)
        Encoder.load(other)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Encoder.load(other, smooth_cutoff=True).save(tmp_path / "mine.safetensors")
        assert Encoder.load(tmp_path / "mine.safetensors").network.smooth_cutoff


def test_converted_file_is_the_same_network(file, encoder, tmp_path):
    encoder[torch.float32].save(tmp_path / "mine.safetensors")
    with pytest.warns(UserWarning, match="trained without an envelope"):
        mine = Encoder.load(tmp_path / "mine.safetensors")
    assert mine.content_hash() == encoder[torch.float32].content_hash()
    assert mine.settings == encoder[torch.float32].settings and mine.head is not None


@pytest.fixture
def changed(weights, tmp_path):
    def changed(name, change):
        content = torch.load(weights / f"{name}.pth", weights_only=True, map_location="cpu")
        change(content)
        torch.save(content, tmp_path / "changed.pth")
        return tmp_path / "changed.pth"

    return changed


ET, VISNET, TENSORNET = NAMES
BODY, HEAD, VISNET_HEAD = "representation_model.", "output_model_noise.output_network.", "vec_out.output_network."


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        (ET, f"{BODY}embedding.weight"),
        (ET, f"{BODY}distance_expansion.means"),
        (ET, f"{BODY}attention_layers.5.vec_proj.weight"),
        (ET, f"{BODY}attention_layers.3.dk_proj.bias"),
        (ET, f"{HEAD}0.update_net.2.bias"),
        (VISNET, f"{BODY}edge_embedding.edge_proj.weight"),
        (VISNET, f"{BODY}vis_mp_layers.0.f_proj.weight"),
        (VISNET, f"{BODY}vec_out_norm.weight"),
        (VISNET, f"{VISNET_HEAD}1.vec2_proj.weight"),
        (TENSORNET, f"{BODY}tensor_embedding.emb.weight"),
        (TENSORNET, f"{BODY}layers.0.linears_scalar.0.weight"),
        (TENSORNET, f"{BODY}layers.2.linears_tensor.5.weight"),
        (TENSORNET, "pos_normalizer.acc_count"),
    ],
)
class TestIncompleteFiles:
    def test_missing_tensor_is_named(self, changed, name, tensor):
        path = changed(name, lambda content: content.pop(tensor))
        with pytest.raises(GeomGNNError, match=rf"{tensor} is missing") as error:
            Encoder.load(path)
        assert "\n" not in str(error.value)

    def test_misshapen_tensor_is_named_alone(self, changed, name, tensor):
        def change(content):
            content[tensor] = torch.zeros(*content[tensor].shape[:-1], content[tensor].shape[-1] + 1)

        with pytest.raises(GeomGNNError) as error:
            Encoder.load(changed(name, change))
        message = str(error.value)
        assert f"{tensor} has shape" in message and message.count("has shape") == 1


@pytest.mark.parametrize("name", NAMES)
def test_surplus_tensors_are_named(changed, name):
    def change(content):
        content["representation_model.surplus"] = torch.zeros(3)
        content["another.weight"] = torch.zeros(2)

    message = r"another\.weight belongs to another network; representation_model\.surplus belongs to another network"
    with pytest.raises(GeomGNNError, match=message):
        Encoder.load(changed(name, change))


@pytest.mark.parametrize("shape", [(), (5, 64), (64, 100)])
def test_embedding_of_another_shape_is_named(changed, shape):
    def change(content):
        content["representation_model.embedding.weight"] = torch.zeros(shape)

    with pytest.raises(GeomGNNError, match=r"representation_model\.embedding\.weight has "):
        Encoder.load(changed(ET, change))


def test_missing_last_layer_is_noticed(changed):
    """Its tensors are those of a whole network with fewer layers, which does not denoise."""

    def change(content):
        for tensor in [tensor for tensor in content if ".layers.2." in tensor]:
            del content[tensor]

    with pytest.raises(
        GeomGNNError, match=r"does not do what it was trained for.* best loss is .*, where predicting no noise"
    ):
        Encoder.load(changed(TENSORNET, change))


def test_number_of_heads_is_the_one_that_denoises(weights, monkeypatch):
    monkeypatch.setattr(geom2vec, "SURE", 0.0)  # so that all are tried
    assert geom2vec.read_geom2vec(weights / f"{ET}.pth").settings["num_heads"] == 8
    monkeypatch.setattr(geom2vec, "CLEARLY", 100.0)
    with pytest.raises(ValueError, match="its best loss with any num_heads is 0.31"):
        geom2vec.read_geom2vec(weights / f"{ET}.pth")


def test_trained_radial_basis_does_not_tell_the_cutoff(changed):
    def change(content):
        content["representation_model.distance_expansion.means"][3] += 0.01

    with pytest.raises(GeomGNNError, match=r"does not tell its cutoff.*trainable_rbf"):
        Encoder.load(changed(ET, change))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "not a dictionary of tensors"),
        ({}, "not a dictionary of tensors"),
        ({3: torch.zeros(2)}, "not a dictionary of tensors"),
        ({"epoch": 3, "weight": torch.zeros(2)}, "not a dictionary of tensors"),
        ({"weight": torch.zeros(2)}, "not a network of geom2vec that this code knows"),
        (
            {"representation_model.attention_layers.0.x": torch.zeros(2)},
            "embedding.weight and .*means and .*betas is missing",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(GeomGNNError, match=message):
        Encoder.load(tmp_path / "a.pth")


@pytest.mark.parametrize("length", [0, 100, -200])
def test_truncated_file_is_refused(tmp_path, length):
    torch.save({"representation_model.embedding.weight": torch.zeros(100, 64)}, tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:length])
    with pytest.raises(GeomGNNError, match="truncated or of another kind"):
        Encoder.load(tmp_path / "a.pth")


@pytest.mark.parametrize("written", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path, written):
    trace = tmp_path / "it-ran"

    class Code:
        def __reduce__(self):
            return os.system, (f"touch {trace}",)

    content, path = {"representation_model.embedding.weight": torch.zeros(3, 2), "code": Code()}, tmp_path / "a.pth"
    if written == "pickle":
        path.write_bytes(pickle.dumps({"code": Code()}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=written == "zip")
    reason = rf"is refused.*without running code that it carries, which would call {os.system.__module__}\.system"
    for read in (Encoder.load, checkpoints.read_denoiser):
        with pytest.raises(ValueError, match=reason):
            read(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes()) if written == "pickle" else torch.load(path, weights_only=False)
    assert trace.exists()  # the file of this test would indeed have run it
