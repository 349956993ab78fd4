"""Protocols and fits in YAML: what is read, and that it can be written out."""

import math
import warnings

import openmm.unit as u
import pytest
import yaml
from protocol_texts import FULL, MINIMAL, PROTOCOLS, changed
from pydantic import ValidationError

from openmm_geomgnn.cli.settings.fields import Section
from openmm_geomgnn.cli.settings.yaml_files import (
    Embed,
    Fit,
    Protocol,
    Schedule,
    dump,
    load_fit,
    load_protocol,
    load_score,
)

pytestmark = pytest.mark.usefixtures("shipped_files")


# -------------------------------------------------------------------------------------------------------- what is read


def test_defaults_are_those_of_the_prototype(load_text, tmp_path):
    protocol = load_text(MINIMAL)
    system, run, cv = protocol.system, protocol.run, protocol.cv
    assert system.structures == (tmp_path / "input/a.pdb", tmp_path / "input/b.pdb")
    assert system.forcefield == ("amber14-all.xml", "implicit/obc2.xml")
    assert (system.temperature, system.friction, system.timestep, system.hydrogen_mass) == (300.0, 1.0, 0.002, 3.0)
    assert (system.constraints, system.platform) == ("HBonds", "auto")
    assert (protocol.unbiased.length, protocol.unbiased.frame_interval, protocol.unbiased.equilibration) == (
        150,
        0.2,
        5,
    )
    assert (cv.encoder, cv.selection, cv.window, cv.mixer, cv.estimator) == ("et-64", None, "all", "none", "linear")
    assert (cv.lag, cv.components, cv.pca, cv.reversible) == (5.0, 1, 50, True)
    assert (protocol.bias.method, protocol.bias.barrier, protocol.bias.pace) == ("opes", 40.0, 1.0)
    assert (run.length, run.walkers, run.every, run.engine) == (1000.0, 2, "auto", "auto")
    assert (protocol.analysis.torsions, protocol.analysis.cores, protocol.analysis.discard) == ({}, None, 0.2)
    # results go where the command runs, not next to the protocol
    assert protocol.output == tmp_path / "runs/x"
    assert protocol.comparison_length == 2000.0


def test_shipped_protocol(load_text, shipped_files):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        protocol = load_protocol(PROTOCOLS / "ala2-opes.yaml")
    assert protocol.system.structures == (shipped_files / "ala2-c7eq.pdb", shipped_files / "ala2-c7ax.pdb")
    assert protocol.analysis.torsions == {"phi": "auto", "psi": "auto"}
    cores = protocol.analysis.cores
    assert (cores.along, cores.a, cores.b) == ("phi", (-2.8, -0.5), (0.3, 2.0))
    # everything it spells out is a default, but for what belongs to alanine dipeptide, and `every` of measured figures
    own = {"system": {"structures"}, "analysis": {"torsions", "cores"}, "output": True, "run": {"every"}}
    minimal = load_text(f"system: {{structures: {[str(file) for file in protocol.system.structures]}}}")
    assert protocol.model_dump(exclude=own) == minimal.model_dump(exclude=own)


def test_shipped_fit(load_text, tmp_path):
    folder = tmp_path / "protocols"
    folder.mkdir()
    (folder / "fit-ala2.yaml").write_text((PROTOCOLS / "fit-ala2.yaml").read_text())
    (tmp_path / "runs/ala2-opes/unbiased").mkdir(parents=True)
    for i in (1, 0):
        (tmp_path / f"runs/ala2-opes/unbiased/trajectory.{i}.dcd").touch()
    fit = load_fit(folder / "fit-ala2.yaml")
    assert fit.trajectories == tuple(tmp_path / f"runs/ala2-opes/unbiased/trajectory.{i}.dcd" for i in (0, 1))
    assert fit.output == tmp_path / "ala2.cv.safetensors"
    assert (fit.frame_interval, fit.stride, fit.cv.components, fit.cv.window) == (0.2, 1, 2, "sequence")


def test_shipped_score(tmp_path):
    folder = tmp_path / "protocols"
    folder.mkdir()
    text = (PROTOCOLS / "score-ala2.yaml").read_text()
    (folder / "score-ala2.yaml").write_text(text.replace("../runs/ala2-opes/unbiased/trajectory.*.dcd", "a.dcd"))
    (folder / "a.dcd").touch()
    score = load_score(folder / "score-ala2.yaml")
    assert score.output.name == "ala2.scores" and score.score.pca == (20, 50, 100, None)
    own = {"trajectories", "output", "topology", "frame_interval"}
    (folder / "short.yaml").write_text("topology: ala2-c7eq.pdb\ntrajectories: a.dcd\nframe_interval: 1 ps\n")
    assert score.model_dump(exclude=own) == load_score(folder / "short.yaml").model_dump(exclude=own)  # the defaults


def test_a_shipped_file_is_found_by_name(load_text, shipped_files, tmp_path):
    (shipped_files / "demo.yaml").write_text(FULL)
    protocol = load_protocol("demo.yaml")
    assert protocol == load_protocol(shipped_files / "demo.yaml")
    # one that lies next to the settings goes first
    (tmp_path / "input/ala2-c7eq.pdb").touch()
    assert load_text(FULL).system.structures[0] == tmp_path / "input/ala2-c7eq.pdb"


def test_units_of_every_kind(load_text):
    text = """
system:
  structures: [a.pdb, b.pdb]
  temperature: 350
  friction: 0.5 ps^-1
  timestep: 4 fs
  hydrogen_mass: 1.5 dalton
  nonbonded_cutoff: 9 A
unbiased: {length: 0.1 ns, frame_interval: 400 fs}
cv: {lag: 4000 fs}
bias: {barrier: 10 kcal/mol, pace: 1}
run: {length: 1 ns, every: 1}
"""
    protocol = load_text(text)
    system = protocol.system
    assert (system.temperature, system.friction, system.timestep) == (350.0, 0.5, 0.004)
    assert (system.hydrogen_mass, system.nonbonded_cutoff) == (1.5, 0.9)
    assert (protocol.unbiased.length, protocol.unbiased.frame_interval, protocol.cv.lag) == (100.0, 0.4, 4.0)
    assert (protocol.bias.barrier, protocol.bias.pace, protocol.run.length) == (pytest.approx(41.84), 1.0, 1000.0)


def test_null_is_the_default_or_a_choice(load_text):
    protocol = load_text(
        MINIMAL + "  hydrogen_mass: null\n  constraints: None\n  timestep:\nrun:\ncv: {pca: null, lag: null}\n"
        "unbiased: {comparison_length: 0}\noutput: null\nbias: {sigma: ~}",
        overrides={"system.timestep": "1 fs"},
    )
    assert protocol.system.hydrogen_mass is None and protocol.system.constraints is None
    assert protocol.cv.pca is None and protocol.cv.lag == 5.0
    assert protocol.run.length == 1000.0 and protocol.comparison_length == 0.0
    assert load_text(MINIMAL + "  timestep:").system.timestep == 0.002


def test_yaml_s_own_ideas_of_numbers(load_text):
    # "1e-3" and "1e2" without a point are text in YAML 1.1
    protocol = load_text(
        changed(
            ("estimator: linear", "estimator: vampnet\n  training: {learning_rate: 1e-3, epochs: 5.0, patience: '7'}"),
            ("mixer: none", "mixer: attention\n  mixer_settings: {heads: 4, width: 32, chirality: yes}"),
            ("pace: 1 ps", "pace: 1 ps\n  sigma: 1e-1\n  sigma_min: 0.08\n  biasfactor: inf\n  explore: no"),
        )
    )
    training = protocol.cv.training
    assert (training.learning_rate, training.epochs, training.patience) == (0.001, 5, 7)
    assert protocol.cv.mixer_settings == {"heads": 4, "width": 32, "chirality": True}
    assert type(protocol.cv.mixer_settings["heads"]) is int
    assert (protocol.bias.sigma, protocol.bias.sigma_min, protocol.bias.biasfactor) == (0.1, 0.08, math.inf)
    assert protocol.bias.explore is False


def test_torsions_and_cores(load_text):
    protocol = load_text(
        changed(
            ("{phi: auto, psi: auto}", "{phi: [4, 6, 8, 14], psi: [ALA2-N, ALA2-CA, ALA2-C, NME3-N], chi1: AUTO}"),
            ("a: [-2.8, -0.5]", "a: [-160 deg, -0.5]"),
        )
    )
    torsions = protocol.analysis.torsions
    assert torsions == {"phi": (4, 6, 8, 14), "psi": ("ALA2-N", "ALA2-CA", "ALA2-C", "NME3-N"), "chi1": "auto"}
    assert protocol.analysis.cores.a == pytest.approx((-160 * math.pi / 180, -0.5))
    # across 180 degrees, along any torsion
    wrapped = changed(
        ("{phi: auto, psi: auto}", "{trans: [4, 6, 8, 14]}"),
        ("along: phi", "along: trans"),
        ("a: [-2.8, -0.5]", "a: [150 deg, -150 deg]"),
    )
    cores = load_text(wrapped).analysis.cores
    assert cores.along == "trans" and cores.a == pytest.approx((math.radians(150), math.radians(-150)))
    # CV components have no unit and no range
    cores = "analysis:\n  cores: {along: cv.2, a: [-20, -10], b: [7, 9]}\ncv: {components: 2}\n"
    assert load_text(MINIMAL + cores).analysis.cores.b == (7.0, 9.0)


def test_other_files(load_text, tmp_path):
    protocol = load_text(MINIMAL + "  forcefield: [amber14-all.xml, water.xml]\ncv: {encoder: mine.safetensors}\n")
    assert protocol.system.forcefield == ("amber14-all.xml", str(tmp_path / "input/water.xml"))
    assert protocol.cv.encoder == str(tmp_path / "input/mine.safetensors")
    assert load_text(MINIMAL + "  forcefield: amber14-all.xml").system.forcefield == ("amber14-all.xml",)


def test_overrides(load_text, tmp_path):
    protocol = load_text(
        FULL,
        overrides={
            "run.length": "50 ps",
            "output": "runs/short",
            "bias.barrier": 5 * u.kilocalories_per_mole,
            "cv.training.epochs": 3,
        },
    )
    assert (protocol.run.length, protocol.output) == (50.0, tmp_path / "runs/short")
    assert protocol.bias.barrier == pytest.approx(20.92) and protocol.cv.training.epochs == 3
    assert protocol.bias.pace == 1.0 and protocol.run.walkers == 2


def test_trajectories_of_a_fit(load_text, tmp_path):
    folder = tmp_path / "input"

    def names(text):
        return [file.relative_to(folder).as_posix() for file in load_text(f"topology: a.pdb\n{text}", load_fit).trajectories]

    assert names("trajectories: '*.xtc'") == ["a.xtc", "b.xtc"]
    assert names("trajectories: [b.xtc, '[ab].xtc', a.dcd]\nframe_interval: 1 ps") == ["b.xtc", "a.xtc", "a.dcd"]
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/c.xtc").touch()
    (folder / "d[1].xtc").touch()
    assert names("trajectories: ['**/c.xtc', 'd[1].xtc']") == ["deep/er/c.xtc", "d[1].xtc"]
    assert names(f"trajectories: {folder}/b*.xtc") == ["b.xtc"]
    fit = load_text("topology: a.pdb\ntrajectories: a.xtc", load_fit)
    assert isinstance(fit, Fit) and fit.output == tmp_path / "x.cv.safetensors" and fit.cv.lag == 5.0


# ------------------------------------------------------------------------------------------------------------ and written


@pytest.mark.parametrize(
    "text",
    [
        MINIMAL,
        FULL,
        changed(("pace: 1 ps", "pace: 0.7 ps\n  sigma: 0.1\n  biasfactor: .inf"), ("friction: 1/ps", "friction: 0.3/ps")),
        changed(
            ("pace: 1 ps", "pace: 1 ps\n  sigma_min: [0.1, 0.2]\n  adaptive_stride: 0.1 ns"),
            ("components: 1", "components: 2"),
            ("barrier: 40 kJ/mol", "barrier: 7.1 kcal/mol"),
        ),
        changed(
            ("mixer: none", "mixer: mlp\n  mixer_settings: {layers: 3, chirality: true, pool: mean}"),
            ("estimator: linear", "estimator: vampnet"),
            ("pca: 50", "pca: null"),
            ("{phi: auto, psi: auto}", "{phi: [4, 6, 8, 14], psi: [ALA2-N, ALA2-CA, ALA2-C, NME3-N]}"),
        ),
        changed(
            ("hydrogen_mass: 3 amu", "hydrogen_mass: null"),
            ("constraints: HBonds", "constraints: null"),
            ("timestep: 2 fs", "timestep: 1 fs"),
            ("a: [-2.8, -0.5]", "a: [-133.3 deg, -0.5]"),
        ),
    ],
)
def test_dump_loads_back(load_text, tmp_path, monkeypatch, text):
    protocol = load_text(text)
    written = dump(protocol)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/settings.yaml").write_text(written)
    monkeypatch.chdir(tmp_path / "elsewhere")  # paths are absolute
    again = load_protocol("settings.yaml")
    assert again == protocol
    assert dump(again) == written


def test_dump_is_complete_and_has_units(load_text):
    written = yaml.safe_load(dump(load_text(MINIMAL)))
    assert list(written) == list(Protocol.model_fields)
    assert list(written["cv"]["training"]) == list(
        Protocol.model_fields["cv"].annotation.model_fields["training"].annotation.model_fields
    )
    assert written["system"]["timestep"] == "0.002 ps" and written["system"]["friction"] == "1/ps"
    assert written["bias"]["barrier"] == "40 kJ/mol" and written["bias"]["sigma"] is None


def test_dump_of_a_fit(load_text, tmp_path):
    fit = load_text("topology: a.pdb\ntrajectories: ['*.xtc', a.dcd]\nframe_interval: 0.5 ps\nstride: 2\nseed: 7", load_fit)
    (tmp_path / "again.yaml").write_text(dump(fit))
    assert load_fit(tmp_path / "again.yaml") == fit


def test_nothing_can_be_changed_afterwards(load_text):
    protocol = load_text(FULL)
    for section, name in ((protocol, "seed"), (protocol.run, "length")):
        with pytest.raises(ValidationError):
            setattr(section, name, 3)


def test_every_setting_is_described():
    def fields_of(section):
        for name, field in section.model_fields.items():
            yield f"{section.__name__}.{name}", field
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                yield from fields_of(field.annotation)

    described = {**dict(fields_of(Protocol)), **dict(fields_of(Fit)), **dict(fields_of(Embed))}
    assert len(described) > 50
    for name, field in described.items():
        assert field.description, name
        # quantities, and nothing else, are written with a unit
        unit = next(
            (m.func(1.0).split("1", 1)[1].strip() for m in field.metadata if hasattr(m, "func") and hasattr(m, "when_used")),
            None,
        )
        if unit:
            assert unit.removeprefix("/") in field.description, name
    required = {name for name, field in described.items() if field.is_required()}
    assert required == {
        *("Protocol.system", "SystemSection.structures", "Fit.topology", "Embed.topology", "Embed.trajectories")
    }


# ------------------------------------------------------------------------------------------------------- rounded times


def test_schedule(load_text):
    protocol = load_text(FULL)
    schedule = protocol.schedule
    # 1 ps is 166.67 evaluations of the bias, every 3 steps of 2 fs
    assert schedule == Schedule(
        bias_step=pytest.approx(0.006),
        length=998 * 167,
        pace=167,
        colvar_interval=33,
        frame_interval=5 * 33,
        checkpoint_interval=50 * 167,
    )
    opes = protocol.make_bias()
    assert (opes.pace, opes.adaptive_stride, opes.barrier, opes.temperature) == (167, 1670, 40.0, 300.0)
    assert opes.biasfactor == pytest.approx(16.036314, abs=1e-6)
    assert protocol.make_bias(sigma=0.1, sigma_min=0.08).sigma == 0.1
    assert protocol.md_steps(0.2) == 100 and protocol.md_steps(5.0) == 2500


def test_schedule_of_odd_times(load_text):
    schedule = load_text(
        changed(
            ("every: 3", "every: 1"),
            ("pace: 1 ps", "pace: 0.5 ps\n  adaptive_stride: 3 ps"),
            ("frame_interval: 1 ps", "frame_interval: 0.31 ps"),
            ("length: 1000", "length: 10.2"),
            ("checkpoint_interval: 50 ps", "checkpoint_interval: 0.1 ps"),
        )
    ).schedule
    assert (schedule.pace, schedule.colvar_interval, schedule.frame_interval) == (250, 100, 200)
    assert (schedule.length, schedule.checkpoint_interval) == (20 * 250, 250)
