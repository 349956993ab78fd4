"""From trajectories to a collective variable, on a slow motion that is known and on simulations of alanine dipeptide."""

from dataclasses import replace

import mdtraj
import numpy as np
import pytest
import torch
from molecules import ALA2, BOXES, ala2, wrapped
from turning_phi import INTERVAL, TIMESCALE, encoder, trajectory  # noqa: F401

from openmm_geomgnn.cv import estimators
from openmm_geomgnn.cv.estimators import feature_rates, softened_linear
from openmm_geomgnn.cv.fit import FitSettings, fit_cv
from openmm_geomgnn.cv.fit_data import even_frames
from openmm_geomgnn.cv.mixers import make_mixer
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.stiffness import stiffness
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import fit_linear
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.featurization import Featurization
from openmm_geomgnn.representation.periodic import SelectedMolecule
from openmm_geomgnn.representation.selection import select_atoms
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.representation.tokens import Tokenizer
from openmm_geomgnn.sampling.unbiased import run_unbiased
from openmm_geomgnn.sampling.walker_spec import WalkerSpec
from torchmdnet_ext.quiet import without_lines

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data():
    return [trajectory(500, seed) for seed in range(3)]


ESTIMATORS = {
    "linear": {"tokens": TokenSpec(window="sequence"), "n_components": 2},
    "linear, not reversible": {"reversible": False, "softening": 0.0},
    "vampnet": {
        "estimator": "vampnet",
        "mixer": "mlp",
        "mixer_settings": {"width": 16, "readout": 16},
        "training": {"epochs": 15, "batch_size": 300},
    },
}


@pytest.fixture(scope="module", params=ESTIMATORS)
def fitted(request, encoder, data):  # noqa: F811
    settings = FitSettings(10.0, INTERVAL, encoder=encoder, **ESTIMATORS[request.param])
    calls = []
    cv = fit_cv([part for part, _ in data], ALA2, settings, lambda *call: calls.append(call))
    return cv, settings, calls


class TestFit:
    def test_finds_the_slow_motion(self, fitted, data):
        cv, settings, _ = fitted
        bound = cv.bind(ALA2, engine="eager")
        unseen, angles = trajectory(400, seed=9)
        psi = bound.compute(unseen)
        assert psi.shape == (400, settings.n_components)
        assert abs(np.corrcoef(psi[:, 0], angles)[0, 1]) > 0.95
        facts = cv.training_information
        assert facts["timescales_ps"][0] == pytest.approx(TIMESCALE, rel=0.4) and facts["timescale_notes"][0] == ""
        assert 8 < facts["transitions"][0] < 40 and facts["verdict"]["grade"] != "not usable"

    def test_is_frozen_with_unit_variance_and_positive_skewness(self, fitted, data):
        cv, settings, _ = fitted
        psi = np.concatenate([cv.bind(ALA2, engine="eager").compute(part) for part, _ in data])
        np.testing.assert_allclose(psi.mean(axis=0), 0, atol=0.1)
        np.testing.assert_allclose(np.cov(psi.T), np.eye(settings.n_components), atol=0.15)
        assert ((psi - psi.mean(axis=0)) ** 3).mean(axis=0)[0] > 0

    def test_says_how_it_was_made(self, fitted, data):
        cv, settings, calls = fitted
        information = cv.training_information
        assert cv.lagtime == 10.0 and information["frames"] == [500] * 3 and information["frame_interval_ps"] == INTERVAL
        assert 1.0 < information["vamp2_held_out"] <= information["vamp2_training"] + 0.3
        assert len(information["singular_values"]) == settings.n_components
        for name in ("rate_300K_per_ps", "in_basin_spread", "range"):
            assert len(information[name]) == settings.n_components and np.isfinite(information[name]).all()
        stages = {stage for stage, _, _ in calls}
        assert stages - {"rates"} == {"embed", "stiffness"} | ({"train"} if settings.estimator == "vampnet" else set())
        assert ("embed", 1500, 1500) in calls and all(done <= total for _, done, total in calls)

    def test_survives_its_file(self, fitted, data, tmp_path):
        cv, _, _ = fitted
        cv.save(tmp_path / "a.cv")
        again = CollectiveVariable.load(tmp_path / "a.cv")
        assert again.training_information == cv.training_information
        part = data[0][0]
        np.testing.assert_array_equal(
            again.bind(ALA2, engine="eager").compute(part), cv.bind(ALA2, engine="eager").compute(part)
        )

    def test_is_the_same_when_made_again(self, fitted, data):
        cv, settings, _ = fitted
        again = fit_cv([part for part, _ in data], ala2().topology, settings)
        np.testing.assert_allclose(again.projection, cv.projection, rtol=1e-6, atol=1e-9)

    def test_trajectories_cut_by_the_box_give_the_same(self, encoder, data):  # noqa: F811
        settings, box = FitSettings(10.0, INTERVAL, encoder=encoder), BOXES["triclinic"]
        cut = []
        for part, _ in data:
            cut.append(mdtraj.Trajectory(wrapped(part.xyz.astype(np.float64), box), part.topology))
            cut[-1].unitcell_vectors = np.tile(box, (len(part), 1, 1))
        assert np.ptp(cut[0].xyz, axis=1).max() > 2.0
        expected, found = (fit_cv(parts, ALA2, settings).training_information for parts in ([part for part, _ in data], cut))
        assert found["singular_values"] == pytest.approx(expected["singular_values"], rel=1e-2)


class TestStiffness:
    def test_rate_is_that_of_thermal_velocities(self, encoder, data):  # noqa: F811
        """The root mean square of ds/dt over velocities drawn at 300 K, by differences in time."""
        cv = fit_cv([part for part, _ in data], ALA2, FitSettings(10.0, INTERVAL, encoder=encoder))
        topology = ala2().topology
        atoms = select_atoms(topology)
        frame = SelectedMolecule(topology, atoms).positions(data[0][0])[:1]
        (rate,) = stiffness(cv, topology, [frame.repeat(30, 1, 1)], INTERVAL)["rate_300K_per_ps"]
        rng, bound, step = np.random.default_rng(1), cv.bind(topology, "double", "eager"), 1e-4
        masses = np.array([topology.atom(int(atom)).element.mass for atom in atoms])
        velocity = rng.normal(size=(2000, len(atoms), 3)) * np.sqrt(0.0083144626 * 300 / masses)[:, None] * 10
        ends = [bound.compute_whole(frame + sign * step * torch.from_numpy(velocity)) for sign in (1, -1)]
        assert rate == pytest.approx(((ends[0] - ends[1]) / (2 * step)).std(), rel=0.06)

    def test_softening_makes_it_softer(self, encoder, data):  # noqa: F811
        rates = []
        for softening in (0.0, 0.5):
            settings = FitSettings(10.0, INTERVAL, encoder=encoder, softening=softening)
            cv = fit_cv([part for part, _ in data], ALA2, settings)
            rates.append(cv.training_information["rate_300K_per_ps"][0])
        assert rates[1] < rates[0]

    def test_a_fold_is_softened_by_rates_at_its_training_frames(self, monkeypatch):
        """Features and rates are marked with the number of their frame."""
        lengths, fits = [300, 500], []
        marks = np.split(np.arange(sum(lengths), dtype=float), np.cumsum(lengths)[:-1])
        rng = np.random.default_rng(0)
        scalars = [np.c_[mark, rng.normal(size=(len(mark), 3))] for mark in marks]
        tokens = [torch.from_numpy(np.repeat(rows, 4, 0).reshape(-1, 1, 4, 4)) for rows in scalars]
        mixer = make_mixer("none", 1, 4)
        rates = np.concatenate([m[frames.numpy()] for m, frames in zip(marks, even_frames(lengths, 500), strict=True)])
        column = int(np.argmax(np.asarray(mixer(tokens[1].float()))[7] == 307))

        def watched(training, *arguments, **options):
            fits.append((np.concatenate(training)[:, column], options["rates"][:, 0]))
            return fit_linear(training, *arguments, **options)

        monkeypatch.setattr(estimators, "fit_linear", watched)
        n = mixer.out_features
        softened_linear(mixer, tokens, np.tile(rates[:, None], n), 5, FitSettings(10.0, INTERVAL, softening=1e-9))
        (whole, every), *folds = fits
        assert len(folds) == 4 and len(whole) == 800 and len(every) == 500
        for training, softened in folds:
            assert len(softened) > 200 and set(softened) == set(every) & set(training)


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"estimator": "tica"}, "Unknown estimator 'tica'; the choices are linear, vampnet"),
            ({"estimator": "vampnet"}, "mixer: mlp or mixer: attention"),
            ({"reversible": False}, "set reversible: true, or softening: 0"),
            ({"mixer": "mlp"}, "Use estimator: vampnet, or mixer: none"),
            ({"encoder": "none-64"}, "There is no encoder 'none-64'"),
            ({"tokens": TokenSpec(selection="resname XYZ")}, "matches none of the 22 atoms"),
            ({"tokens": TokenSpec(window="sequnce")}, "Did you mean 'sequence'"),
            ({"tokens": TokenSpec(pooling="max")}, "Unknown token pooling"),
        ],
    )
    def test_wrong_settings(self, settings, message, encoder, data):  # noqa: F811
        with pytest.raises(GeomGNNError, match=message):
            fit_cv([data[0][0]], ALA2, FitSettings(10.0, INTERVAL, **{"encoder": encoder, **settings}))

    def test_lag_time_that_is_no_number_of_frames(self):
        with pytest.raises(GeomGNNError, match="lag time is 3 ps, not a multiple of the 2 ps .* nearest .* is 4 ps"):
            FitSettings(3.0, INTERVAL).lag_frames()

    def test_trajectories_shorter_than_the_lag_time(self, encoder):  # noqa: F811
        with pytest.raises(GeomGNNError, match="lag"):
            fit_cv([trajectory(5, 0)[0]], ALA2, FitSettings(20.0, INTERVAL, encoder=encoder))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({}, "too short for 4 folds"),
            ({**ESTIMATORS["vampnet"], "training": {"validation_fraction": 0.1}}, "too short to hold out a fraction of 0.1"),
        ],
    )
    def test_too_little_data_is_seen_before_the_embedding(self, encoder, data, changes, message):  # noqa: F811
        settings = FitSettings(50.0, INTERVAL, encoder=encoder, **changes)

        def progress(stage, done, total):
            raise AssertionError(f"{stage} has begun")

        with pytest.raises(GeomGNNError, match=f"{message}.*a shorter lag"):
            fit_cv([part[:100] for part, _ in data[:2]], data[0][0].topology, settings, progress)

    def test_frames_that_are_not_finite(self, encoder):  # noqa: F811
        part, _ = trajectory(50, 0)
        part.xyz[7, 8] = np.nan
        with pytest.raises(GeomGNNError, match="the first is frame 7"):
            fit_cv([part], ALA2, FitSettings(10.0, INTERVAL, encoder=encoder))

    def test_no_trajectories_or_frames(self, encoder):  # noqa: F811
        settings = FitSettings(10.0, INTERVAL, encoder=encoder)
        with pytest.raises(GeomGNNError, match="no trajectories"):
            fit_cv([], ALA2, settings)
        with pytest.raises(GeomGNNError, match="Trajectory 1 has 0 frames, which is not more than the lag of 5 frames"):
            fit_cv([trajectory(50, 0)[0], trajectory(50, 0)[0][:0]], ALA2, settings)

    def test_another_topology(self, encoder):  # noqa: F811
        with pytest.raises(GeomGNNError, match="it has 0 ACE instead of 1"):
            fit_cv([trajectory(50, 0)[0].atom_slice(range(6, 22))], ALA2, FitSettings(10.0, INTERVAL, encoder=encoder))
        # a topology of the molecule's heavy atoms does for a trajectory of all of them
        heavy = ala2().atom_slice(ala2().topology.select("not element H")).topology
        data, settings = [trajectory(60, 0)[0]], FitSettings(10.0, INTERVAL, encoder=encoder, pca=5, softening=0.0)
        expected, found = (fit_cv(data, topology, settings) for topology in (ALA2, heavy))
        np.testing.assert_allclose(found.singular_values, expected.singular_values, rtol=1e-6)

    def test_frames_that_do_not_differ(self, encoder):  # noqa: F811
        still = mdtraj.Trajectory(np.tile(ala2().xyz, (50, 1, 1)), ala2().topology)
        with pytest.raises(GeomGNNError, match="features varies"):
            fit_cv([still], ALA2, FitSettings(10.0, INTERVAL, encoder=encoder))


# ------------------------------------------------------------------------------------------- molecules as they move

FRAME = 0.1  # ps
SHORT = FitSettings(2.0, FRAME, pca=20)  # with the shipped encoder


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """Two unbiased trajectories of 25 ps at 300 K, one in each basin of phi, and their paths."""
    names = [str(ALA2).replace("c7eq", name) for name in ("c7eq", "c7ax")]
    specs = [
        WalkerSpec(name, platform="Reference", seed=4, index=k, equilibration=1.0, colvar_interval=50, frame_interval=50)
        for k, name in enumerate(names)
    ]
    runs = run_unbiased(specs, 25.0, tmp_path_factory.mktemp("unbiased"))
    assert all(250 < run.mean_temperature < 350 for run in runs)
    topology = ala2().topology
    return [run.trajectory(topology) for run in runs], [run.path for run in runs]


@pytest.fixture(scope="session")
def cv(simulated):
    return fit_cv(simulated[0], ALA2, SHORT)


def values(cv, trajectories):
    bound = cv.bind(trajectories[0].topology, engine="eager")
    return [bound.compute(part) for part in trajectories]


def phi(trajectory):
    return mdtraj.compute_phi(trajectory)[1][:, 0]


class TestAlanineDipeptide:
    def test_tells_the_basins(self, cv, simulated):
        parts, _ = simulated
        left, right = values(cv, parts)
        assert phi(parts[0]).max() < 0 < phi(parts[1]).min()
        gap = abs(left.mean() - right.mean())
        assert gap == pytest.approx(2, abs=0.1) and max(left.std(), right.std()) < gap / 6

    def test_normalisation(self, cv, simulated):
        psi = np.concatenate(values(cv, simulated[0]))[:, 0]
        assert psi.mean() == pytest.approx(0, abs=0.05) and psi.std() == pytest.approx(1, abs=0.05)
        assert ((psi - psi.mean()) ** 3).mean() > 0

    def test_what_it_says(self, cv, simulated):
        facts = cv.training_information
        assert 0.9 < facts["singular_values"][0] <= 1
        # the two runs never cross
        assert facts["timescales_ps"] == [None] and facts["timescale_notes"] == ["separates runs; no timescale"]
        assert facts["transitions"] == [0] and facts["verdict"]["grade"] == "weak"
        assert facts["vamp2_training"] == pytest.approx(1 + facts["singular_values"][0] ** 2)
        assert 1.8 < facts["vamp2_held_out"] < 2.1 and 0 < facts["vamp2_held_out_std"] < 0.2
        assert 0.05 < facts["in_basin_spread"][0] < 0.3 and 5 < facts["rate_300K_per_ps"][0] < 20
        # the range and the spread are those of the data that it was fitted to
        psi = values(cv, simulated[0])
        assert facts["range"][0] == pytest.approx(list(np.percentile(np.concatenate(psi), [1, 99])), abs=1e-5)
        pieces = [piece.std() for part in psi for piece in np.array_split(part, 2)]
        assert facts["in_basin_spread"][0] == pytest.approx(np.median(pieces), rel=1e-4)

    def test_its_file_computes_what_the_fit_did(self, cv, simulated, tmp_path):
        cv.save(tmp_path / "cv.safetensors")
        again = CollectiveVariable.load(tmp_path / "cv.safetensors")
        for old, new in zip(values(cv, simulated[0]), values(again, simulated[0]), strict=True):
            np.testing.assert_array_equal(old, new)
        positions = SelectedMolecule(ala2().topology, select_atoms(ala2().topology)).positions
        figures = stiffness(again, ALA2, [positions(part) for part in simulated[0]], FRAME)
        for name, value in figures.items():
            assert again.training_information[name] == value

    def test_softening(self, cv, simulated):
        """The longer, the less the CV moves with every vibration, at a small cost in autocorrelation."""
        fits = {0.02: cv}
        for softening in (0.0, 0.5):
            fits[softening] = fit_cv(simulated[0], ALA2, replace(SHORT, softening=softening))
        facts = [fits[softening].training_information for softening in (0.0, 0.02, 0.5)]
        rates, spreads, slowness = (
            [fact[name][0] for fact in facts] for name in ("rate_300K_per_ps", "in_basin_spread", "singular_values")
        )
        assert rates[0] > 1.2 * rates[1] > 1.2 * rates[2]
        assert rates[0] / spreads[0] > 1.3 * rates[1] / spreads[1] > 1.3**2 * rates[2] / spreads[2]
        assert slowness[0] > slowness[1] > slowness[2] > slowness[0] - 0.05

    def test_rates_of_the_features(self, simulated):
        """Differences in time against the chain rule, dchi/dt = J v, in random combinations of the features."""
        topology = ala2().topology
        featurization = Featurization(topology, TokenSpec(), Encoder.load("et-64"))
        molecule, tokenizer = featurization.molecule, featurization.tokenizer
        mixer = make_mixer("none", 3, 64)
        frames = molecule.positions(simulated[0][0])[::50]
        rates = torch.from_numpy(feature_rates(featurization, mixer, [frames], SHORT))
        assert rates.shape == (len(frames), mixer.out_features)
        # the same velocities again
        noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(SHORT.seed), dtype=torch.float64)
        masses = torch.tensor([topology.atom(int(atom)).element.mass for atom in molecule.atoms], dtype=torch.float64)
        velocities = 10 * noise * torch.sqrt(0.00831446261815324 * 300 / masses)[:, None]  # angstrom/ps
        exact = Tokenizer(Encoder.load("et-64", torch.float64), tokenizer.windows)
        for seed in range(4):
            weights = torch.randn(len(frames), rates.shape[1], generator=torch.Generator().manual_seed(seed)).double()
            moving = frames.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad((weights * mixer(exact(moving))).sum(), moving)
            expected = (gradient * velocities).sum(dim=(1, 2))
            scale = expected.abs().max().item()
            torch.testing.assert_close((weights * rates).sum(1), expected, rtol=1e-4, atol=1e-4 * scale)

    def test_windows_along_the_sequence(self, simulated):
        settings = replace(
            SHORT, frame_interval=2 * FRAME, tokens=TokenSpec(window="sequence", pooling="mean"), n_components=2
        )
        parts = [part[::2] for part in simulated[0]]
        cv = fit_cv(parts, ALA2, settings)
        left, right = values(cv, parts)
        assert left.shape == (125, 2) and abs(left[:, 0].mean() - right[:, 0].mean()) > 1.8
        first, second = cv.training_information["singular_values"]
        assert 1 >= first > second > 0
        assert abs(np.corrcoef(np.concatenate([left, right]).T)[0, 1]) < 0.1

    @pytest.mark.parametrize("mixer", ["mlp", "attention"])
    def test_vampnets(self, mixer, simulated):
        training = {"epochs": 2, "batch_size": 200, "gradient_penalty": 0.01}
        settings = replace(SHORT, estimator="vampnet", mixer=mixer, training=training, seed=3)
        first, again, other = (fit_cv(simulated[0], ALA2, replace(settings, seed=seed)) for seed in (3, 3, 4))
        left, right = values(first, simulated[0])
        assert abs(left.mean() - right.mean()) > 1.8
        facts = first.training_information
        assert len(facts["history"]["validation"]) == 2 and facts["best_epoch"] in (0, 1) and "softening_ps" not in facts
        assert facts == again.training_information
        np.testing.assert_array_equal(left, values(again, simulated[0])[0])
        assert np.abs(left - values(other, simulated[0])[0]).max() > 1e-3

    def test_by_the_command(self, cv, simulated, tmp_path, monkeypatch, capfd):
        """`geomgnn fit` on the files makes the same CV."""
        from openmm_geomgnn.cli.main import main

        names = [str(path) for path in simulated[1]]
        (tmp_path / "fit.yaml").write_text(
            f"topology: ala2-c7eq.pdb\ntrajectories: {names}\nframe_interval: {FRAME} ps\ncv: {{lag: 2 ps, pca: 20}}\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["geomgnn", "fit", "fit.yaml", "--set", "output=my.cv.safetensors"])
        with pytest.raises(SystemExit) as end:
            main()
        output, error = capfd.readouterr()
        assert end.value.code == 0 and error == ""
        assert output.startswith("500 frames, 0.1 ps apart, in 2 trajectories\nEmbedding: 0/500 frames\n")
        assert output.endswith(f"written to {tmp_path / 'my.cv.safetensors'}\n") and "dcdplugin" not in output
        made = CollectiveVariable.load(tmp_path / "my.cv.safetensors")
        assert made.lagtime == 2.0 and made.selection is None
        # files hold angstroms in single precision
        np.testing.assert_allclose(*(np.concatenate(values(x, simulated[0])) for x in (made, cv)), atol=1e-3)


class TestPublishedTrajectories:
    def test_alanine_dipeptide(self, shared_data):
        """Explicit water's basins at 1 ps per frame: the CV separates the signs of phi, in a biased run too."""
        folder = shared_data / "trajectories" / "ala2_plumed_masterclass"
        parts = [mdtraj.load(str(folder / f"unbiased_{k}.xtc"), top=str(folder / "ala2.pdb"), stride=2) for k in "AB"]
        cv = fit_cv(parts, folder / "ala2.pdb", FitSettings(6.0, 2.0))
        biased = mdtraj.load(str(folder / "opes_deeptica.xtc"), top=str(folder / "ala2.pdb"), stride=25)
        for part in (parts[0].join(parts[1]), biased):
            psi, angle = values(cv, [part])[0][:, 0], phi(part)
            core_a, core_b = (angle > -2.8) & (angle < -0.5), (angle > 0.3) & (angle < 2.0)
            assert core_a.sum() > 50 and core_b.sum() > 50
            sign = np.sign(psi[core_b].mean() - psi[core_a].mean())
            middle = (psi[core_b].mean() + psi[core_a].mean()) / 2
            assert (sign * (psi[core_b] - middle) > 0).mean() > 0.95 and (sign * (psi[core_a] - middle) < 0).mean() > 0.95

    def test_chignolin(self, shared_data):
        """Ten residues: a window for each, folded and unfolded frames."""
        folder = shared_data / "trajectories" / "chignolin"
        with without_lines("dcdplugin)", 1):
            part = mdtraj.load(str(folder / "traj.dcd"), top=str(folder / "topology.pdb"), stride=30)
        settings = FitSettings(1.0, 1.0, n_components=2, pca=5, softening=0.0, tokens=TokenSpec(window="sequence"))
        cv = fit_cv([part], folder / "topology.pdb", settings)
        (psi,) = values(cv, [part])
        assert psi.shape == (35, 2) and np.isfinite(psi).all()
        assert cv.bind(folder / "topology.pdb", engine="eager").tokenizer.windows.n_tokens == 10
        with pytest.raises(GeomGNNError, match="not that of the CV file: residue 1"):
            cv.bind(ALA2)
