"""CVs on a GPU: what can be told without one, and what needs one (skipped where there is none)."""

import warnings

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from force_systems import BIAS, PDB, POSITIONS, energy_and_forces, make_context, make_system
from graph_stand_in import Operators, StandIn, as_on_a_gpu
from molecules import TRANSFORMER, ala2, peptide, random_cv, random_encoder

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.cv import network
from openmm_geomgnn.cv.cuda_graph import EagerFunction, GraphedFunction, Replay
from openmm_geomgnn.cv.engines import choose_device
from openmm_geomgnn.cv.mixers import MIXERS
from openmm_geomgnn.errors import GeomGNNError

NETWORKS = {
    "transformer": (TRANSFORMER, {}),
    "transformer, neighbour embedding": (TRANSFORMER, {"neighbor_embedding": True}),
    "transformer, not smooth": (TRANSFORMER, {"smooth_cutoff": False}),
    "transformer, vector cutoff": (TRANSFORMER, {"smooth_cutoff": False, "vector_cutoff": True}),
    "visnet": ("visnet", {}),
    "visnet, lmax 2, vertex": ("visnet", {"lmax": 2, "vertex": True}),
    "visnet, not smooth": ("visnet", {"smooth_cutoff": False}),
    "tensornet": ("smooth-tensornet", {}),
    "tensornet, not smooth": ("smooth-tensornet", {"smooth_cutoff": False}),
}
READ_BACK = ("local_scalar", "nonzero", "masked_select", "unique")  # operators that a GPU has to be waited for
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a CUDA device")


def bound_cv(network="transformer", mixer="mlp", precision="double", engine="eager", **options):
    """A CV of five glycines in windows, in which most pairs are beyond the cutoff."""
    model, settings = NETWORKS[network]
    topology = peptide([1, 2, 3, 4, 5])
    cv = random_cv(topology, random_encoder(model, **settings), mixer=mixer, window="sequence")
    return cv.bind(topology, precision, engine, **options)


def frame(bound, seed=0):
    """Positions (n, 3) in angstrom, along a line and scattered about it."""
    n = len(bound.atoms)
    rng = np.random.default_rng(seed)
    return np.linspace(0, 3.0 * n**0.7, n)[:, None] * [0.8, 0.5, 0.2] + rng.normal(size=(n, 3))


def of_autograd(bound, pos, weights):
    pos = torch.tensor(pos, device=bound.device, requires_grad=True)
    s = bound.single(pos)
    return s.detach().cpu().numpy(), torch.autograd.grad(s @ torch.as_tensor(weights).to(s), pos)[0].cpu().numpy()


def agree(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert np.abs(other).max() > 1e-3
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


class TestFixedShapes:
    @pytest.mark.parametrize("network", NETWORKS)
    def test_far_pairs_change_nothing(self, network):
        bound = bound_cv(network)
        distance = bound.tokenizer.encoder.network.distance
        pos, weights = frame(bound), np.array([0.7, -1.3])
        i, j = (bound.tokenizer.rows[side].numpy() for side in (bound.tokenizer.pair_i, bound.tokenizer.pair_j))
        far = np.linalg.norm(pos[i] - pos[j], axis=1) > distance.cutoff
        assert 0.3 < far.mean() < 0.9
        expected = of_autograd(bound, pos, weights)
        with distance.every_pair():
            agree(of_autograd(bound, pos, weights), expected, 1e-12)
        for k in range(2):  # of each component
            alone = np.eye(2)[k]
            expected = of_autograd(bound, pos, alone)
            with distance.every_pair():
                agree(of_autograd(bound, pos, alone), expected, 1e-12)

    def test_where_no_pair_is_near_or_atoms_coincide(self):
        bound = bound_cv()
        apart, together = 100 * frame(bound), frame(bound)
        together[1] = together[0]
        for pos in (apart, together):
            expected = of_autograd(bound, pos, [1.0, 1.0])
            with bound.tokenizer.encoder.network.distance.every_pair():
                found = of_autograd(bound, pos, [1.0, 1.0])
            np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
            np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-12 * max(1, np.abs(expected[1]).max()))

    def test_what_is_not_finite_stays_so(self):
        """Not 0 times infinity dropped somewhere: the values tell that positions are broken."""
        bound = bound_cv()
        with bound.tokenizer.encoder.network.distance.every_pair():
            for broken in (np.nan, np.inf):
                pos = frame(bound)
                pos[7, 1] = broken
                assert not np.isfinite(bound.single(torch.tensor(pos)).numpy()).any()

    def test_ends_with_its_block_and_needs_fixed_pairs(self):
        distance = bound_cv().tokenizer.encoder.network.distance
        pos, batch = torch.zeros(3, 3), torch.zeros(3, dtype=torch.long)
        pos[2, 0] = 100.0
        pairs = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
        with distance.every_pair():
            assert len(distance(pos, batch, pairs=pairs).i) == 3
            with pytest.raises(ValueError, match="need candidate pairs and no periodic box"):
                distance(pos, batch)
            with pytest.raises(ValueError, match="need candidate pairs and no periodic box"):
                distance(pos, batch, torch.eye(3), pairs)
        assert len(distance(pos, batch, pairs=pairs).i) == 1
        distance.box.copy_(30 * torch.eye(3))
        with pytest.raises(ValueError, match="without a periodic box"), distance.every_pair():
            pass

    @pytest.mark.parametrize(
        ("network", "mixer"), [(network, "none") for network in NETWORKS] + [("transformer", mixer) for mixer in MIXERS]
    )
    def test_nothing_is_read_back_from_the_device(self, network, mixer):
        """On the meta device there are no numbers: what would wait for a GPU, to decide on them, fails."""
        bound = bound_cv(network, mixer)
        with bound.tokenizer.encoder.network.distance.every_pair():
            bound.to("meta")
            pos = torch.zeros(len(bound.atoms), 3, dtype=torch.float64, device="meta", requires_grad=True)
            for _ in range(2):  # the first is the warm-up, in which constants are copied
                with Operators() as operators:
                    s = bound.single(pos)
                    (gradient,) = torch.autograd.grad(s, pos, torch.ones_like(s), retain_graph=True)
        assert s.shape == (2,) and gradient.shape == pos.shape and len(operators.names) > 100
        assert not operators.on_the_cpu
        assert not [name for name in operators.names if any(part in name for part in READ_BACK)]


class TestGraphedFunction:
    def test_values_and_products(self):
        bound = bound_cv()
        capture = as_on_a_gpu(bound)
        assert bound.takes_tensors
        for seed in range(3):
            pos = frame(bound, seed)
            s, vjp = bound.value_and_vjp(pos)
            for weights in (np.array([1.0, 0.0]), np.array([-0.3, 2.0])):  # any number of products of one value
                gradient = vjp(weights)
                assert isinstance(s, np.ndarray) and isinstance(gradient, np.ndarray) and gradient.dtype == np.float64
                agree((s, gradient), of_autograd(bound, pos, weights), 1e-12)
        assert capture.captures == 1

    def test_tensors_stay_tensors(self):
        bound = bound_cv()
        as_on_a_gpu(bound)
        pos = frame(bound)
        s, vjp = bound.value_and_vjp(torch.tensor(pos))
        gradient = vjp(np.array([0.5, 0.5]))
        assert isinstance(s, np.ndarray) and isinstance(gradient, torch.Tensor)
        agree((s, gradient.numpy()), of_autograd(bound, pos, [0.5, 0.5]), 1e-12)

    def test_two_values_do_not_share_their_products(self):
        bound = bound_cv()
        as_on_a_gpu(bound)
        first, second = frame(bound, 1), frame(bound, 2)
        (s, vjp), (other, other_vjp) = bound.value_and_vjp(first), bound.value_and_vjp(second)
        weights = np.array([1.0, -2.0])
        gradients = vjp(weights), other_vjp(weights), vjp(weights)
        agree((s, gradients[0]), of_autograd(bound, first, weights), 1e-12)
        agree((other, gradients[1]), of_autograd(bound, second, weights), 1e-12)
        np.testing.assert_array_equal(gradients[0], gradients[2])

    def test_results_are_not_overwritten(self):
        bound = bound_cv()
        as_on_a_gpu(bound)
        s, vjp = bound.value_and_vjp(torch.tensor(frame(bound, 1)))
        gradient = vjp(np.ones(2))
        before = s.copy(), gradient.clone()
        bound.value_and_vjp(torch.tensor(frame(bound, 2)))[1](np.ones(2))
        np.testing.assert_array_equal(s, before[0])
        assert torch.equal(gradient, before[1])

    def test_replays_only_what_it_captured(self):
        layer = torch.nn.Linear(3, 2).double().requires_grad_(False)
        capture = StandIn()
        function = GraphedFunction(lambda x: layer(x.to(layer.weight.dtype)).sum(0), layer, capture=capture)

        def check(x, captures):
            y, vjp = function.value_and_vjp(x)
            expected, expected_vjp = EagerFunction(lambda x: layer(x.to(layer.weight.dtype)).sum(0)).value_and_vjp(x)
            torch.testing.assert_close(y, expected)
            weights = torch.ones_like(y)
            torch.testing.assert_close(vjp(weights), expected_vjp(weights))
            assert capture.captures == captures

        x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        check(x, 1)
        check(2 * x, 1)
        with torch.no_grad():
            layer.weight.mul_(3.0)  # where it is: a replay reads it
        check(x, 1)
        layer.load_state_dict({name: tensor + 1 for name, tensor in layer.state_dict().items()})
        check(x, 1)
        check(x[:2], 2)
        check(x.float(), 3)
        check(x, 4)
        layer.float()  # new memory
        check(x, 5)
        layer.bias = torch.nn.Parameter(layer.bias.data.clone(), requires_grad=False)
        check(x, 6)
        check(x, 6)

    def test_every_pair_is_kept_in_the_capture_only(self):
        bound = bound_cv()
        distance, seen = bound.tokenizer.encoder.network.distance, []

        def capture(function, x):
            seen.append(distance._every_pair)
            return StandIn()(function, x)

        as_on_a_gpu(bound, capture)
        bound.value_and_vjp(frame(bound))
        assert seen == [True] and distance._every_pair is False

    def test_where_the_capture_fails_it_goes_on_without(self):
        bound = bound_cv()
        attempts = []

        def capture(function, x):
            attempts.append(x.shape)
            try:
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")
            finally:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

        as_on_a_gpu(bound, capture)
        pos = frame(bound)
        with pytest.warns(RuntimeWarning, match=r"could not be captured .*not permitted when stream is capturing\)") as told:
            s, vjp = bound.value_and_vjp(pos)
        assert "\n" not in str(told[0].message)
        agree((s, vjp(np.ones(2))), of_autograd(bound, pos, np.ones(2)), 1e-12)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            bound.value_and_vjp(frame(bound, 1))  # neither tried nor warned about again
        assert len(attempts) == 1 and not bound.tokenizer.encoder.network.distance._every_pair

    def test_in_a_simulation(self, cv_file):
        """The force of OpenMM is the same by replays as by the eager network."""
        found = []
        for replayed in (False, True):
            force = GeomGNNCV(cv_file, PDB.topology, precision="double", engine="eager")
            capture = as_on_a_gpu(force.bound) if replayed else None
            system = make_system()
            handle = force.addToSystem(system, BIAS)
            context = make_context(system)
            handle.setBiasState(BIAS.update(handle.getBiasState(), handle.getValue(context)[0] + 0.1))
            found.append(energy_and_forces(context, POSITIONS + 0.01))
        agree(found[1], found[0], 1e-10)
        assert capture.captures == 1


class TestDevice:
    def test_the_default_is_the_cpu(self, cv_file):
        assert choose_device(None, "auto") == torch.device("cpu") == choose_device("cpu", "numba")
        force = GeomGNNCV(cv_file, PDB.topology)
        assert force.bound.device == torch.device("cpu") and not force.bound.takes_tensors

    @pytest.mark.parametrize(
        ("device", "engine", "message"),
        [
            ("gpu", "auto", "Unknown device 'gpu'; the choices are cpu, cuda"),
            (3.5, "auto", "Unknown device 3.5"),
            ("mps", "auto", "on a CPU or on a CUDA device, but the device is 'mps'"),
            ("cpu", "cuda", "cuda engine does not run on a CPU"),
            ("cuda", "numba", "numba engine does not run on 'cuda'"),
            pytest.param("cuda", "auto", "There is no CUDA device that PyTorch", marks=no_gpu),
            pytest.param("cuda:1", "eager", "There is no CUDA device that PyTorch", marks=no_gpu),
            pytest.param(None, "cuda", "There is no CUDA device that PyTorch", marks=no_gpu),
            pytest.param("cuda:99", "cuda", "There is no device 'cuda:99': PyTorch sees", marks=gpu),
        ],
    )
    def test_refusals(self, cv_file, device, engine, message):
        for make in (
            lambda: choose_device(device, engine),
            lambda: GeomGNNCV(cv_file, PDB.topology, engine=engine, device=device),
        ):
            with pytest.raises(GeomGNNError, match=message) as error:
                make()
            assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("engine", "name", "kind"),
        [("auto", "cuda", GraphedFunction), ("cuda", "cuda", GraphedFunction), ("eager", "eager", EagerFunction)],
    )
    def test_bound_to_another_device(self, monkeypatch, engine, name, kind):
        """With the meta device for a GPU: what the constructor makes, and that all of the CV is there."""
        monkeypatch.setattr(network, "choose_device", lambda device, engine: torch.device("meta"))
        bound = bound_cv(engine=engine)
        assert bound.engine_name == name and type(bound._function) is kind and bound.takes_tensors
        assert {tensor.device.type for tensor in [*bound.parameters(), *bound.buffers()]} == {"meta"}
        pos = torch.zeros(len(bound.atoms), 3, dtype=torch.float64, device="meta")
        monkeypatch.setattr(bound.tokenizer.encoder.network.distance, "_every_pair", True)
        assert bound._function._function(pos).device.type == "meta"


@gpu
class TestOnAGPU:
    """Values are compared to those of the CPU; the tolerance is that of single precision, or of sums in another order."""

    @pytest.mark.parametrize("precision", ["single", "double"])
    @pytest.mark.parametrize("network", NETWORKS)
    def test_values_are_those_of_the_cpu(self, network, precision):
        tolerance = {"single": 2e-3, "double": 1e-10}[precision]
        expected = bound_cv(network)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a capture that fails would be one
            bound = bound_cv(network, precision=precision, engine="auto", device="cuda")
            assert bound.engine_name == "cuda" and bound.takes_tensors and bound.device.type == "cuda"
            for seed in range(3):
                pos, weights = frame(bound, seed), np.array([0.7, -1.3])
                s, vjp = bound.value_and_vjp(pos)
                agree((s, vjp(weights)), of_autograd(expected, pos, weights), tolerance)
        assert isinstance(bound._function._evaluator, Replay)

    @pytest.mark.parametrize("mixer", MIXERS)
    def test_graphs_are_the_eager_network(self, mixer):
        graphed, eager = (bound_cv(mixer=mixer, engine=engine, device="cuda") for engine in ("cuda", "eager"))
        assert (graphed.engine_name, eager.engine_name) == ("cuda", "eager")
        for seed in range(3):
            pos = torch.tensor(frame(graphed, seed), device="cuda")
            found = []
            for bound in (graphed, eager):
                s, vjp = bound.value_and_vjp(pos)
                gradient = vjp(np.array([1.0, 0.5]))
                assert gradient.device == pos.device
                found.append((s, gradient.cpu().numpy()))
            agree(found[0], found[1], 1e-10)

    def test_a_thousand_evaluations(self):
        """Products of this value and of an earlier one, in turns, and no memory that grows."""
        graphed, eager = (bound_cv(precision="single", engine=engine, device="cuda") for engine in ("cuda", "eager"))
        start, rng, kept = frame(graphed), np.random.default_rng(1), None
        for step in range(1000):
            pos = start + 0.3 * rng.normal(size=start.shape)
            s, vjp = graphed.value_and_vjp(pos)
            weights = rng.normal(size=2)
            gradient = vjp(weights)
            if step % 100 == 0:
                agree((s, gradient), of_autograd(eager, pos, weights), 5e-5)
                if kept is not None:
                    earlier, earlier_vjp = kept
                    agree((earlier_vjp(weights),), of_autograd(eager, earlier, weights)[1:], 5e-5)
                kept = pos, vjp
            if step == 100:
                memory = torch.cuda.memory_allocated()
        assert torch.cuda.memory_allocated() <= memory + 2**20

    def test_captured_anew_for_new_memory(self):
        bound = bound_cv(engine="cuda", device="cuda")
        pos = frame(bound)
        before = bound.value_and_vjp(pos)[0]
        replay = bound._function._evaluator
        bound.projection.mul_(2.0)
        np.testing.assert_allclose(bound.value_and_vjp(pos)[0], 2 * before, rtol=1e-10)
        assert bound._function._evaluator is replay
        bound.projection = 2.0 * bound.projection
        np.testing.assert_allclose(bound.value_and_vjp(pos)[0], 4 * before, rtol=1e-10)
        assert bound._function._evaluator is not replay

    def test_what_cannot_be_captured_is_evaluated_eagerly(self):
        """ViSNet's max_min normalisation asks whether all vectors vanish, on the CPU."""
        topology = ala2().topology
        cv = random_cv(topology, random_encoder("visnet", vecnorm_type="max_min"))
        bound, expected = cv.bind(topology, "double", "cuda"), cv.bind(topology, "double", "eager")
        pos = 10 * POSITIONS[bound.atoms]
        with pytest.warns(RuntimeWarning, match="could not be captured as a CUDA graph"):
            s, vjp = bound.value_and_vjp(pos)
        agree((s, vjp(np.ones(2))), of_autograd(expected, pos, np.ones(2)), 1e-10)

    def test_offline_values(self, cv_file):
        trajectory = mdtraj.join([ala2()] * 5)
        trajectory.xyz += 0.01 * np.random.default_rng(0).normal(size=trajectory.xyz.shape)
        found = GeomGNNCV(cv_file, PDB.topology, device="cuda").compute(trajectory)
        np.testing.assert_allclose(found, GeomGNNCV(cv_file, PDB.topology).compute(trajectory), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("platform", ["Reference", "CUDA"])
    def test_a_thousand_steps_of_openmm(self, cv_file, platform):
        """`openmm.PythonForce`, with the network on the GPU: s is that of the positions, at every step that is looked at."""
        names = [openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())]
        if platform not in names:
            pytest.skip(f"this OpenMM has no {platform} platform")
        force = GeomGNNCV(cv_file, PDB.topology, device="cuda", backend="PythonForce")
        expected = GeomGNNCV(cv_file, PDB.topology, engine="eager")
        system, bonds = make_system(), openmm.HarmonicBondForce()
        for i, j in PDB.topology.bonds():
            bonds.addBond(i.index, j.index, float(np.linalg.norm(POSITIONS[i.index] - POSITIONS[j.index])), 1e5)
        system.addForce(bonds)
        handle = force.addToSystem(system, BIAS)
        integrator = openmm.LangevinMiddleIntegrator(300, 5.0, 0.0005)
        integrator.setRandomNumberSeed(1)
        context = make_context(system, integrator=integrator, platform=platform)
        for _ in range(20):
            integrator.step(50)
            s, _ = handle.getValue(context)
            positions = context.getState(getPositions=True).getPositions(asNumpy=True)
            np.testing.assert_allclose(s, expected.compute(positions)[0], atol=1e-3)
        assert handle.error is None
