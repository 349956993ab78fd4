"""Protocols and fits in YAML: what is read, what is refused and in which words, and that it can be written out."""

import math
import os
import warnings
from pathlib import Path

import openmm.unit as u
import pytest
import yaml
from pydantic import ValidationError

from openmm_geomgnn.cli import fields
from openmm_geomgnn.cli.config import Fit, Protocol, Schedule, dump, lag_in_frames, load_fit, load_protocol
from openmm_geomgnn.cli.fields import Section
from openmm_geomgnn.errors import GeomGNNError

PROTOCOLS = Path(__file__).resolve().parents[1] / "protocols"
SHIPPED = ("ala2-c7eq.pdb", "ala2-c7ax.pdb", "et-64.safetensors", "conformers.safetensors")
MINIMAL = "system:\n  structures: [a.pdb, b.pdb]\n"
FULL = (PROTOCOLS / "ala2-opes.yaml").read_text()


@pytest.fixture(autouse=True)
def shipped(tmp_path_factory, monkeypatch):
    """Stand-ins for the files that the package ships: settings only need them to be there."""
    folder = tmp_path_factory.mktemp("data")
    for name in SHIPPED:
        (folder / name).touch()
    monkeypatch.setattr(fields, "DATA", folder)
    return folder


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a text as a file of the given kind, in a folder with a.pdb, b.pdb and some trajectories; warnings are errors."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "input"
    folder.mkdir()
    for name in ("a.pdb", "b.pdb", "a.xtc", "b.xtc", "a.dcd", "notes.txt", "mine.safetensors", "water.xml"):
        (folder / name).touch()

    def load(text, kind=load_protocol, **overrides):
        path = folder / "x.yaml"
        path.write_text(text, encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return kind(path, **overrides)

    return load


@pytest.fixture
def refused(load):
    """The message with which a text is refused: one paragraph."""

    def refused(text, kind=load_protocol, **overrides):
        with pytest.raises(GeomGNNError) as error:
            load(text, kind, **overrides)
        assert type(error.value) is GeomGNNError and "\n" not in str(error.value)
        return str(error.value)

    return refused


def changed(*replacements, text=FULL):
    for old, new in replacements:
        assert text.count(old) >= 1, old
        text = text.replace(old, new, 1)
    return text


def line_of(text, part):
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


# -------------------------------------------------------------------------------------------------------- what is read


def test_defaults_are_those_of_the_prototype(load, tmp_path):
    protocol = load(MINIMAL)
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
    assert (run.length, run.walkers, run.every, run.engine) == (500.0, 2, 3, "auto")
    assert (protocol.analysis.torsions, protocol.analysis.cores, protocol.analysis.discard) == ({}, None, 0.2)
    # results go where the command runs, not next to the protocol
    assert protocol.output == tmp_path / "runs/x"
    assert protocol.comparison_length == 1000.0


def test_shipped_protocol(load, shipped):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        protocol = load_protocol(PROTOCOLS / "ala2-opes.yaml")
    assert protocol.system.structures == (shipped / "ala2-c7eq.pdb", shipped / "ala2-c7ax.pdb")
    assert protocol.analysis.torsions == {"phi": "auto", "psi": "auto"}
    cores = protocol.analysis.cores
    assert (cores.along, cores.a, cores.b) == ("phi", (-2.8, -0.5), (0.3, 2.0))
    # everything it spells out is a default, but for what belongs to alanine dipeptide
    own = {"system": {"structures"}, "analysis": {"torsions", "cores"}, "output": True}
    minimal = load(f"system: {{structures: {[str(file) for file in protocol.system.structures]}}}")
    assert protocol.model_dump(exclude=own) == minimal.model_dump(exclude=own)


def test_shipped_fit(load, tmp_path):
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


def test_a_shipped_file_is_found_by_name(load, shipped, tmp_path):
    (shipped / "demo.yaml").write_text(FULL)
    protocol = load_protocol("demo.yaml")
    assert protocol == load_protocol(shipped / "demo.yaml")
    # one that lies next to the settings goes first
    (tmp_path / "input/ala2-c7eq.pdb").touch()
    assert load(FULL).system.structures[0] == tmp_path / "input/ala2-c7eq.pdb"


def test_units_of_every_kind(load):
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
    protocol = load(text)
    system = protocol.system
    assert (system.temperature, system.friction, system.timestep) == (350.0, 0.5, 0.004)
    assert (system.hydrogen_mass, system.nonbonded_cutoff) == (1.5, 0.9)
    assert (protocol.unbiased.length, protocol.unbiased.frame_interval, protocol.cv.lag) == (100.0, 0.4, 4.0)
    assert (protocol.bias.barrier, protocol.bias.pace, protocol.run.length) == (pytest.approx(41.84), 1.0, 1000.0)


def test_null_is_the_default_or_a_choice(load):
    protocol = load(
        MINIMAL + "  hydrogen_mass: null\n  constraints: None\n  timestep:\nrun:\ncv: {pca: null, lag: null}\n"
        "unbiased: {comparison_length: 0}\noutput: null\nbias: {sigma: ~}",
        overrides={"system.timestep": "1 fs"},
    )
    assert protocol.system.hydrogen_mass is None and protocol.system.constraints is None
    assert protocol.cv.pca is None and protocol.cv.lag == 5.0
    assert protocol.run.length == 500.0 and protocol.comparison_length == 0.0
    assert load(MINIMAL + "  timestep:").system.timestep == 0.002


def test_yaml_s_own_ideas_of_numbers(load):
    # "1e-3" and "1e2" without a point are text in YAML 1.1
    protocol = load(
        changed(
            ("estimator: linear", "estimator: vampnet\n  training: {learning_rate: 1e-3, epochs: 5.0, patience: '7'}"),
            ("mixer: none", "mixer: attention\n  mixer_settings: {heads: 4, width: 32, dropout: 1.0e-1}"),
            ("pace: 1 ps", "pace: 1 ps\n  sigma: 1e-1\n  sigma_min: 0.08\n  biasfactor: inf\n  explore: no"),
        )
    )
    training = protocol.cv.training
    assert (training.learning_rate, training.epochs, training.patience) == (0.001, 5, 7)
    assert protocol.cv.mixer_settings == {"heads": 4, "width": 32, "dropout": 0.1}
    assert type(protocol.cv.mixer_settings["heads"]) is int
    assert (protocol.bias.sigma, protocol.bias.sigma_min, protocol.bias.biasfactor) == (0.1, 0.08, math.inf)
    assert protocol.bias.explore is False


def test_torsions_and_cores(load):
    protocol = load(
        changed(
            ("{phi: auto, psi: auto}", "{phi: [4, 6, 8, 14], psi: [ALA2-N, ALA2-CA, ALA2-C, NME3-N], chi1: AUTO}"),
            ("a: [-2.8, -0.5]", "a: [-160 deg, -0.5]"),
        )
    )
    torsions = protocol.analysis.torsions
    assert torsions == {"phi": (4, 6, 8, 14), "psi": ("ALA2-N", "ALA2-CA", "ALA2-C", "NME3-N"), "chi1": "auto"}
    assert protocol.analysis.cores.a == pytest.approx((-160 * math.pi / 180, -0.5))
    # CV components have no unit and no range
    cores = "analysis:\n  cores: {along: cv.2, a: [-20, -10], b: [7, 9]}\ncv: {components: 2}\n"
    assert load(MINIMAL + cores).analysis.cores.b == (7.0, 9.0)


def test_other_files(load, tmp_path):
    protocol = load(MINIMAL + "  forcefield: [amber14-all.xml, water.xml]\ncv: {encoder: mine.safetensors}\n")
    assert protocol.system.forcefield == ("amber14-all.xml", str(tmp_path / "input/water.xml"))
    assert protocol.cv.encoder == str(tmp_path / "input/mine.safetensors")
    assert load(MINIMAL + "  forcefield: amber14-all.xml").system.forcefield == ("amber14-all.xml",)


def test_overrides(load, tmp_path):
    protocol = load(
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


def test_trajectories_of_a_fit(load, tmp_path):
    folder = tmp_path / "input"

    def names(text):
        return [file.relative_to(folder).as_posix() for file in load(f"topology: a.pdb\n{text}", load_fit).trajectories]

    assert names("trajectories: '*.xtc'") == ["a.xtc", "b.xtc"]
    assert names("trajectories: [b.xtc, '[ab].xtc', a.dcd]\nframe_interval: 1 ps") == ["b.xtc", "a.xtc", "a.dcd"]
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/c.xtc").touch()
    (folder / "d[1].xtc").touch()
    assert names("trajectories: ['**/c.xtc', 'd[1].xtc']") == ["deep/er/c.xtc", "d[1].xtc"]
    assert names(f"trajectories: {folder}/b*.xtc") == ["b.xtc"]
    fit = load("topology: a.pdb\ntrajectories: a.xtc", load_fit)
    assert isinstance(fit, Fit) and fit.output == tmp_path / "x.cv.safetensors" and fit.cv.lag == 5.0


# ------------------------------------------------------------------------------------------------------------ and written


@pytest.mark.parametrize(
    "text",
    [
        MINIMAL,
        FULL,
        changed(
            ("pace: 1 ps", "pace: 0.7 ps\n  sigma: 0.1\n  biasfactor: .inf"), ("friction: 1/ps", "friction: 0.3/ps")
        ),
        changed(
            ("pace: 1 ps", "pace: 1 ps\n  sigma_min: [0.1, 0.2]\n  adaptive_stride: 0.1 ns"),
            ("components: 1", "components: 2"),
            ("barrier: 40 kJ/mol", "barrier: 7.1 kcal/mol"),
        ),
        changed(
            ("mixer: none", "mixer: mlp\n  mixer_settings: {layers: [3, 4], bias: true, act: silu, x: 1.0}"),
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
def test_dump_loads_back(load, tmp_path, monkeypatch, text):
    protocol = load(text)
    written = dump(protocol)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/settings.yaml").write_text(written)
    monkeypatch.chdir(tmp_path / "elsewhere")  # paths are absolute
    again = load_protocol("settings.yaml")
    assert again == protocol
    assert dump(again) == written


def test_dump_is_complete_and_has_units(load):
    written = yaml.safe_load(dump(load(MINIMAL)))
    assert list(written) == list(Protocol.model_fields)
    assert list(written["cv"]["training"]) == list(
        Protocol.model_fields["cv"].annotation.model_fields["training"].annotation.model_fields
    )
    assert written["system"]["timestep"] == "0.002 ps" and written["system"]["friction"] == "1/ps"
    assert written["bias"]["barrier"] == "40 kJ/mol" and written["bias"]["sigma"] is None


def test_dump_of_a_fit(load, tmp_path):
    fit = load("topology: a.pdb\ntrajectories: ['*.xtc', a.dcd]\nframe_interval: 0.5 ps\nstride: 2\nseed: 7", load_fit)
    (tmp_path / "again.yaml").write_text(dump(fit))
    assert load_fit(tmp_path / "again.yaml") == fit


def test_nothing_can_be_changed_afterwards(load):
    protocol = load(FULL)
    for section, name in ((protocol, "seed"), (protocol.run, "length")):
        with pytest.raises(ValidationError):
            setattr(section, name, 3)


def test_every_setting_is_described():
    def fields_of(section):
        for name, field in section.model_fields.items():
            yield f"{section.__name__}.{name}", field
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                yield from fields_of(field.annotation)

    described = {**dict(fields_of(Protocol)), **dict(fields_of(Fit))}
    assert len(described) > 50
    for name, field in described.items():
        assert field.description, name
        # quantities, and nothing else, are written with a unit
        unit = next(
            (
                m.func(1.0).split("1", 1)[1].strip()
                for m in field.metadata
                if hasattr(m, "func") and hasattr(m, "when_used")
            ),
            None,
        )
        if unit:
            assert unit.removeprefix("/") in field.description, name
    required = {name for name, field in described.items() if field.is_required()}
    assert required == {"Protocol.system", "SystemSection.structures", "Fit.topology", "Fit.trajectories"}


# ------------------------------------------------------------------------------------------------------- rounded times


def test_schedule(load):
    protocol = load(FULL)
    schedule = protocol.schedule
    # 1 ps is 166.67 evaluations of the bias, every 3 steps of 2 fs
    assert schedule == Schedule(
        bias_step=pytest.approx(0.006),
        length=499 * 167,
        pace=167,
        colvar_interval=33,
        frame_interval=5 * 33,
        checkpoint_interval=50 * 167,
    )
    opes = protocol.opes()
    assert (opes.pace, opes.adaptive_stride, opes.barrier, opes.temperature) == (167, 1670, 40.0, 300.0)
    assert opes.biasfactor == pytest.approx(16.036314, abs=1e-6)
    assert protocol.opes(sigma=0.1, sigma_min=0.08).sigma == 0.1
    assert protocol.md_steps(0.2) == 100 and protocol.md_steps(5.0) == 2500


def test_schedule_of_odd_times(load):
    schedule = load(
        changed(
            ("every: 3", "every: 1"),
            ("pace: 1 ps", "pace: 0.5 ps\n  adaptive_stride: 3 ps"),
            ("frame_interval: 1 ps", "frame_interval: 0.31 ps"),
            ("length: 500", "length: 10.2"),
            ("checkpoint_interval: 50 ps", "checkpoint_interval: 0.1 ps"),
        )
    ).schedule
    assert (schedule.pace, schedule.colvar_interval, schedule.frame_interval) == (250, 100, 200)
    assert (schedule.length, schedule.checkpoint_interval) == (20 * 250, 250)


@pytest.mark.parametrize(("lag", "interval", "frames"), [(5, 0.2, 25), (5, 5, 1), (5, 0.200000003, 25), (0.3, 0.1, 3)])
def test_lag_in_frames(lag, interval, frames):
    assert lag_in_frames(lag, interval) == frames


@pytest.mark.parametrize(
    ("lag", "interval", "parts"),
    [(5.1, 0.2, ["not a multiple", "is 5 ps"]), (0.04, 0.2, ["shorter than", "is 0.2 ps"]), (5, 0.3, ["is 5.1 ps"])],
)
def test_lag_that_does_not_fit(lag, interval, parts):
    with pytest.raises(GeomGNNError) as error:
        lag_in_frames(lag, interval)
    assert all(part in str(error.value) for part in parts)


# ---------------------------------------------------------------------------------------------------- what is refused


def test_unknown_key(refused):
    text = changed(("barrier: 40", "barier: 40"))
    assert refused(text).startswith(
        f"Unknown key 'barier' in section bias of x.yaml (line {line_of(text, 'barier')}). Did you mean 'barrier'? "
        "Known keys: method, barrier, pace, "
    )
    assert "in section cv.training of x.yaml (line 3). Did you mean 'epochs'?" in refused(
        MINIMAL + "cv: {training: {epoch: 3}}"
    )
    assert "It belongs in section system." in refused(changed(("pace: 1 ps", "timestep: 1 ps")))
    assert "It belongs outside of any section." in refused(changed(("pace: 1 ps", "seed: 1")))
    assert "Unknown key 'zzz' of x.yaml (line 3). Known keys: seed, " in refused(MINIMAL + "zzz: 1")


def test_wrong_kind_of_file(refused):
    assert "file for `geomgnn fit`; this one was read for `geomgnn run`" in refused(
        "topology: a.pdb\ntrajectories: a.xtc"
    )
    assert "file for `geomgnn run`" in refused(FULL, load_fit)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        # units and numbers
        ("barrier: 40 kJ/mol", "barrier: 40 ps", ["section bias", "barrier is '40 ps'", "kcal/mol"]),
        ("barrier: 40 kJ/mol", "barrier: 40 kj/mol", ["Did you mean 'kJ'?"]),
        ("temperature: 300 K", "temperature: 27 C", ["temperature is '27 C'"]),
        ("timestep: 2 fs", "timestep: 2", ["2000 fs", "was it meant in fs"]),
        ("length: 500 ps", "length: -500 ps", ["length is", "greater than 0", "of each walker"]),
        ("length: 500 ps", "length: long", ["length is 'long'"]),
        ("length: 500 ps", "length: [1, 2]", ["length is [1, 2]"]),
        ("walkers: 2", "walkers: 0", ["walkers is 0", "at least 1", "share one bias"]),
        ("walkers: 2", "walkers: 1.5", ["walkers is 1.5", "a whole number"]),
        ("walkers: 2", "walkers: two", ["walkers is 'two'", "a whole number"]),
        ("walkers: 2", "walkers: yes", ["walkers is true", "a whole number"]),
        ("seed: 1", "seed: -1", ["In x.yaml (line", "seed is -1", "at least 0"]),
        ("discard: 0.2", "discard: 1.5", ["discard is 1.5", "less than 1"]),
        ("discard: 0.2", "discard: 20 %", ["discard is '20 %'", "without a unit"]),
        ("discard: 0.2", "discard: .nan", ["discard is nan"]),
        ("pace: 1 ps", "explore: maybe", ["explore is 'maybe'", "true or false"]),
        ("pace: 1 ps", "sigma: 0.1 nm", ["sigma is '0.1 nm'", "without a unit"]),
        ("pace: 1 ps", "sigma: [0.1, -1]", ["sigma", "greater than 0"]),
        ("pace: 1 ps", "sigma: []", ["sigma is []"]),
        ("pace: 1 ps", "biasfactor: 1", ["biasfactor is 1", "greater than 1"]),
        ("hydrogen_mass: 3 amu", "hydrogen_mass: 12 amu", ["at most 4"]),
        # choices
        ("method: opes", "method: OPES", ["method is 'OPES'", "Did you mean 'opes'?"]),
        ("window: all", "window: sequences", ["'all' or 'sequence'", "Did you mean 'sequence'?"]),
        ("constraints: HBonds", "constraints: hbonds", ["Did you mean 'HBonds'?"]),
        ("platform: auto", "platform: cuda", ["Did you mean 'CUDA'?"]),
        # sections
        ("  method: opes\n  barrier", "- barrier", ["bias is", "'key: value' lines", "section"]),
        ("{phi: auto, psi: auto}", "[phi, psi]", ["torsions is", "'key: value' lines"]),
        # files
        (
            "ala2-c7eq.pdb",
            "ala2-c7q.pdb",
            ["no structure 'ala2-c7q.pdb' in", "input", "Did you mean 'ala2-c7eq.pdb'?", "Shipped:"],
        ),
        ("ala2-c7eq.pdb", "../ala2-c7eq.pdb", ["no structure '../ala2-c7eq.pdb'"]),
        ("ala2-c7eq.pdb", "notes.txt", ["must be a file that ends in .pdb"]),
        ("ala2-c7eq.pdb", "7", ["structure is 7", "name of a file"]),
        ("[ala2-c7eq.pdb, ala2-c7ax.pdb]", "[]", ["structures is []", "a list of 1 or more"]),
        ("[ala2-c7eq.pdb, ala2-c7ax.pdb]", "", ["structures is missing (PDB"]),
        ("amber14-all.xml", "amber14-al.xml", ["no force field 'amber14-al.xml'", "Did you mean 'amber14-all.xml'?"]),
        ("encoder: et-64", "encoder: et-46", ["no encoder 'et-46'", "Did you mean 'et-64'?", "ships et-64;"]),
        ("encoder: et-64", "encoder: conformers", ["no encoder 'conformers'"]),
        ("encoder: et-64", "encoder: net.pth", [".safetensors, .ckpt"]),
        ("encoder: et-64", "encoder: yours.safetensors", ["no encoder 'yours.safetensors'"]),
        # the CV
        ("window: all", "selection: foo bar", ["selection is 'foo bar'", "mdtraj"]),
        ("window: all", "selection: __import__('os')", ["mdtraj"]),
        ("mixer: none", "mixer: mlp", ["mixer: mlp", "estimator: vampnet"]),
        ("estimator: linear", "estimator: vampnet", ["mixer: none has none"]),
        ("mixer: none", "mixer_settings: {heads: 2}", ["mixer: none has no settings", "heads"]),
        ("components: 1", "components: 51", ["51 components", "Raise pca"]),
        # torsions and cores
        ("{phi: auto", "{foo: auto", ["The torsion foo is auto"]),
        ("{phi: auto", "{'a b': auto", ["'a b' cannot name a torsion"]),
        ("{phi: auto", "{time: [1, 2, 3, 4]", ["'time' cannot name a torsion"]),
        ("{phi: auto", "{phi: [1, 2, 3]", ["four different atoms"]),
        ("{phi: auto", "{phi: [1, 2, 3, 3]", ["four different atoms"]),
        ("{phi: auto", "{phi: [1, 2, 3, CA]", ["four different atoms"]),
        ("{phi: auto", "{phi: 7", ["four different atoms"]),
        ("along: phi", "along: phy", ["section analysis.cores", "no such torsion", "Did you mean 'phi'?"]),
        ("along: phi", "along: cv.2", ["cores are along cv.2", "cv.components is 1"]),
        ("a: [-2.8, -0.5]", "a: [-160, -30]", ["radians", "90 deg"]),
        ("a: [-2.8, -0.5]", "a: [-0.5, -2.8]", ["low must be below high"]),
        ("a: [-2.8, -0.5]", "a: [-2.8, 0.5]", ["overlap"]),
        ("a: [-2.8, -0.5]", "a: -2.8", ["an interval [low, high]"]),
        ("a: [-2.8, -0.5]", "", ["a is missing"]),
        # what must fit together
        (
            "lag: 5 ps",
            "lag: 5.1 ps",
            ["section cv", "not a multiple of the 0.2 ps", "nearest possible lag time is 5 ps"],
        ),
        ("lag: 5 ps", "lag: 100 fs", ["shorter than the 0.2 ps", "0.2 ps."]),
        ("lag: 5 ps", "lag: 50 ps", ["section unbiased", "length is 150 ps, less than 5 lag times", "at least 250 ps"]),
        ("frame_interval: 0.2 ps", "frame_interval: 0.301 ps", ["timestep of 2 fs", "nearest is 0.3 ps"]),
        ("length: 150 ps", "length: 25 ps\n  frame_interval: 1 ps", ["given twice"]),
        ("pca: 50", "pca: 1500", ["1500 principal components", "only 1500 frames"]),
        ("length: 500 ps", "length: 9 ps", ["section run", "fewer than 10 depositions", "at least 10 ps"]),
        ("pace: 1 ps", "pace: 1 fs", ["section bias", "pace is 0.001 ps", "0.006 ps"]),
        ("colvar_interval: 0.2 ps", "colvar_interval: 2 fs", ["colvar_interval is 0.002 ps", "0.006 ps"]),
        ("frame_interval: 1 ps", "frame_interval: 0.1 ps", ["shorter than colvar_interval", "no weight"]),
        (
            "timestep: 2 fs\n  hydrogen_mass: 3 amu",
            "timestep: 4 fs\n  hydrogen_mass: null",
            ["4 fs", "1.008 amu", "3 amu"],
        ),
        ("timestep: 2 fs\n  hydrogen_mass: 3 amu", "timestep: 4 fs\n  hydrogen_mass: 1.4", ["1.4 amu"]),
        ("pace: 1 ps", "sigma: [0.1, 0.2]", ["sigma has 2 entries", "cv.components is 1"]),
        ("pace: 1 ps", "sigma: 0.1\n  sigma_min: 0.2", ["section bias", "sigma_min (0.2) is above sigma"]),
        ("pace: 1 ps", "sigma: 0.1\n  adaptive_stride: 9 ps", ["adaptive_stride", "sigma"]),
        ("pace: 1 ps", "biasfactor: .inf", ["biasfactor", "sigma"]),
        ("barrier: 40 kJ/mol", "barrier: 1 kJ/mol", ["barrier", "kT"]),
    ],
)
def test_refused_with_line_and_reason(refused, old, new, parts):
    text = changed((old, new))
    message = refused(text)
    for part in parts:
        assert part in message
    assert "x.yaml" in message and "line" in message


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("walkers: 2", "walkers: 0", "walkers: 0"),
        ("barrier: 40", "barrier: ps", "barrier: ps"),
        ("ala2-c7ax.pdb", "\n    missing.pdb", "missing.pdb"),
        ("lag: 5 ps", "lag: 5.1 ps", "lag: 5.1 ps"),
        ("pace: 1 ps", "sigma: 0.1\n  sigma_min: 0.2", "sigma_min: 0.2"),
        ("along: phi", "along: cv.2", "along: cv.2"),
        ("psi: auto}", "psi: \n     [1]}", "psi:"),
        ("  length: 500 ps", "  ", "run:"),
    ],
)
def test_line_numbers(refused, old, new, line):
    text = changed((old, new))
    if old.startswith("  length"):
        text = changed(("pace: 1 ps", "pace: 60 ps"), text=text)  # 500 ps, the default, is too short for it
    assert f"(line {line_of(text, line)})" in refused(text)


def test_several_problems(refused):
    text = changed(("walkers: 2", "walkers: 0"), ("every: 3", "every: 0"), ("pca: 50", "pca: x"))
    message = refused(text)
    assert "pca is 'x'" in message
    lines = [line_of(text, "walkers: 0"), line_of(text, "every: 0")]
    assert message.endswith(f"There is more to correct in lines {lines[0]}, {lines[1]}.")


def test_overrides_are_checked_too(refused):
    assert "Unknown key 'lenth' in section run of x.yaml (overridden when it was loaded)" in refused(
        FULL, overrides={"run.lenth": 1}
    )
    assert "(overridden when it was loaded): length is '5 K'" in refused(FULL, overrides={"run.length": "5 K"})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["holds no settings"]),
        ("# nothing\n", ["holds no settings"]),
        ("- a\n- b\n", ["holds no settings"]),
        ("run: [1, 2\nseed: 1\n", ["not valid YAML at line 2", "expected ',' or ']'"]),
        ("run:\n\twalkers: 2\n", ["not valid YAML at line 2", "Indent with spaces"]),
        ("run: walkers: 2\n", ["not valid YAML at line 1"]),
        ("seed: 1\n---\nseed: 2\n", ["not valid YAML at line 2"]),
        ("seed: *other\n", ["not valid YAML at line 1", "alias"]),
        ("seed: !!python/object/apply:os.system [ls]\n", ["not valid YAML at line 1", "python/object"]),
        ("seed: 2026-13-01\n", ["cannot read", "Quote it"]),
        ("seed: 1\nrun: {walkers: 1}\nrun: {every: 1}\n", ["'run' is given twice", "lines 2 and 3"]),
        ("run:\n  every: 1\n  walkers: 2\n  every: 2\n", ["'every' is given twice", "lines 2 and 4"]),
        ("1: 2\n", ["'1' in line 1", "cannot be a key"]),
        ("system: {yes: 2}\n", ["'yes' in line 1", "cannot be a key"]),
        ("? [a]\n: 2\n", ["A list or section in line 1"]),
        ("seed: \x07\n", ["UTF-8"]),
        ("a: &x\n  b: *x\n", ["Unknown key 'a'"]),
        ("system:\n", ["structures is missing"]),
        ("run: 5\nsystem: {structures: [a.pdb, b.pdb]}\n", ["run is 5", "'key: value' lines"]),
    ],
)
def test_yaml_errors(refused, text, parts):
    message = refused(text)
    assert "x.yaml" in message
    for part in parts:
        assert part in message


def test_anchors_and_merge_keys(load, refused):
    text = "x: &steps {}\n" + MINIMAL
    assert "Unknown key 'x'" in refused(text)
    text = MINIMAL + "unbiased: &times\n  length: 200 ps\nrun:\n  <<: *times\n  walkers: 1\n"
    assert load(text).run.length == 200.0


def test_file_errors(refused, tmp_path):
    for kind in (load_protocol, load_fit):
        with pytest.raises(GeomGNNError, match="no settings file 'nope.yaml'"):
            kind("nope.yaml")
        with pytest.raises(GeomGNNError, match=r"ends in \.yaml, \.yml"):
            kind(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("output: früh\n".encode("latin-1"))
    with pytest.raises(GeomGNNError, match="UTF-8"):
        load_protocol(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("trajectories: a.xtc", ["topology is missing"]),
        ("topology: a.pdb", ["trajectories is missing"]),
        ("topology: a.pdb\ntrajectories: []", ["trajectories is []", "1 or more"]),
        ("topology: a.pdb\ntrajectories: 3", ["trajectories is 3", "a list"]),
        ("topology: a.pdb\ntrajectories: aa.xtc", ["no trajectory 'aa.xtc'", "Did you mean 'a.xtc'?"]),
        ("topology: a.pdb\ntrajectories: 'c*.xtc'", ["'c*.xtc' matches nothing", ".xtc, .trr"]),
        ("topology: a.pdb\ntrajectories: '*'", ["'*' also matches", "mine.safetensors"]),
        ("topology: a.pdb\ntrajectories: notes.txt", ["ends in .xtc"]),
        ("topology: notes.txt\ntrajectories: a.xtc", ["topology 'notes.txt'", "ends in .pdb"]),
        (
            "topology: a.pdb\ntrajectories: [a.xtc, a.dcd]",
            ["frame_interval is not given", "a.dcd", "frame_interval: 1 ps"],
        ),
        (
            "topology: a.pdb\ntrajectories: a.dcd\nframe_interval: 0.3 ps",
            ["section cv", "0.3 ps between frames", "5.1 ps"],
        ),
        ("topology: a.pdb\ntrajectories: a.dcd\nframe_interval: 1 ps\nstride: 3", ["3 ps between frames", "6 ps"]),
        ("topology: a.pdb\ntrajectories: a.xtc\nstride: 0", ["stride is 0", "at least 1"]),
        ("topology: a.pdb\ntrajectories: a.xtc\noutput: cv.pt", ["output is 'cv.pt'", "cv.pt.safetensors"]),
    ],
)
def test_fits_that_are_refused(refused, text, parts):
    message = refused(text, load_fit)
    for part in parts:
        assert part in message


# ------------------------------------------------------------------------------------------------------------ warnings


@pytest.mark.parametrize(
    ("replacements", "part"),
    [
        ([("[ala2-c7eq.pdb, ala2-c7ax.pdb]", "ala2-c7eq.pdb")], "one structure, ala2-c7eq.pdb"),
        ([("every: 3", "every: 5")], "every 5 steps of 2 fs = 10 fs"),
        ([("timestep: 2 fs", "timestep: 4 fs"), ("every: 3", "every: 2")], "every 2 steps of 4 fs = 8 fs"),
        (
            [("constraints: HBonds", "constraints: null"), ("hydrogen_mass: 3 amu", "hydrogen_mass: null")],
            "without constraints",
        ),
        ([("barrier: 40 kJ/mol", "barrier: 400 kcal/mol")], "barrier"),
    ],
)
def test_doubtful_settings_warn(tmp_path, replacements, part):
    path = tmp_path / "x.yaml"
    path.write_text(changed(*replacements))
    with pytest.warns(UserWarning) as caught:
        load_protocol(path)
    messages = [str(warning.message) for warning in caught]
    assert any(message.startswith("x.yaml: ") and part in message for message in messages)
    assert Path(caught[0].filename).name == "test_config.py"


@pytest.mark.parametrize(
    "replacements",
    [
        [("every: 3", "every: 4")],  # 8 fs
        [("timestep: 2 fs", "timestep: 4 fs"), ("every: 3", "every: 1")],
        [
            ("timestep: 2 fs", "timestep: 4 fs"),
            ("every: 3", "every: 2"),
            ("constraints: HBonds", "constraints: AllBonds"),
        ],
        [("timestep: 2 fs", "timestep: 1 fs"), ("constraints: HBonds", "constraints: null")],
    ],
)
def test_sound_settings_do_not_warn(load, replacements):
    load(changed(*replacements))


@pytest.mark.skipif(
    not all((Path(fields.__file__).parents[1] / "data" / name).is_file() for name in SHIPPED[:3]),
    reason="the shipped structures and encoder are not there",
)
def test_shipped_protocol_with_shipped_files(monkeypatch):
    monkeypatch.setattr(fields, "DATA", Path(fields.__file__).parents[1] / "data")
    protocol = load_protocol(PROTOCOLS / "ala2-opes.yaml")
    assert all(file.stat().st_size and os.path.isabs(file) for file in protocol.system.structures)
