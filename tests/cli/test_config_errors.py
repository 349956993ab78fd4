"""Protocols and fits in YAML: what is refused, or read with a warning, and in which words."""

import os
from pathlib import Path

import pytest
from protocol_texts import FULL, MINIMAL, PROTOCOLS, SHIPPED, changed, line_of

from openmm_geomgnn.cli.settings.yaml_files import load_fit, load_protocol
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation import shipped

# ten lines that stand for 10^9 values, by aliases and by merge keys
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join(10 * [f'*a{k - 1}'])}]\n" for k in range(1, 9)
)
MERGE_BOMB = "".join(f"d{k}: &d{k} {{<<: [{', '.join(10 * [f'*d{k - 1}' if k else '*c'])}]}}\n" for k in range(9))

pytestmark = pytest.mark.usefixtures("shipped_files")


# ---------------------------------------------------------------------------------------------------- what is refused


def test_unknown_key(refusal):
    text = changed(("barrier: 40", "barier: 40"))
    assert refusal(text).startswith(
        f"Unknown key 'barier' in section bias of x.yaml (line {line_of(text, 'barier')}). Did you mean 'barrier'? "
        "Known keys: method, barrier, pace, "
    )
    assert "in section cv.training of x.yaml (line 3). Did you mean 'epochs'?" in refusal(
        MINIMAL + "cv: {training: {epoch: 3}}"
    )
    assert "It belongs in section system." in refusal(changed(("pace: 1 ps", "timestep: 1 ps")))
    assert "It belongs outside of any section." in refusal(changed(("pace: 1 ps", "seed: 1")))
    assert "Unknown key 'zzz' of x.yaml (line 3). Known keys: seed, " in refusal(MINIMAL + "zzz: 1")


def test_wrong_kind_of_file(refusal):
    assert "file for `geomgnn fit`; this one was read for `geomgnn run`" in refusal("topology: a.pdb\ntrajectories: a.xtc")
    assert "file for `geomgnn run`" in refusal(FULL, load_fit)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        # units and numbers
        ("barrier: 40 kJ/mol", "barrier: 40 ps", ["section bias", "barrier is '40 ps'", "kcal/mol"]),
        ("barrier: 40 kJ/mol", "barrier: 40 kj/mol", ["Did you mean 'kJ'?"]),
        ("temperature: 300 K", "temperature: 27 C", ["temperature is '27 C'"]),
        ("timestep: 2 fs", "timestep: 2", ["2000 fs", "was it meant in fs"]),
        ("length: 1000 ps", "length: -500 ps", ["length is", "greater than 0", "of each walker"]),
        ("length: 1000 ps", "length: long", ["length is 'long'"]),
        ("length: 1000 ps", "length: [1, 2]", ["length is [1, 2]"]),
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
        # numbers that no simulation has
        ("temperature: 300 K", "temperature: 1e-9 K", ["temperature is 1e-9 K", "at least 1 K"]),
        ("temperature: 300 K", "temperature: 1e5 K", ["at most 10000 K"]),
        ("length: 1000 ps", "length: 1e30 ps", ["section run", "length is 1e30 ps", "at most 1e+12 ps"]),
        ("length: 1000 ps", "length: 1e308 ps", ["length is 1e308 ps", "at most"]),
        ("length: 1000 ps", "length: 1e308 s", ["beyond every number"]),
        ("length: 1000 ps", "length: 1:30", ["section run", "length is '1:30'", "ps, ns"]),
        ("length: 1000 ps", "length: 1 " + "(" * 3000, ["too long"]),
        ("timestep: 2 fs", "timestep: 1e-320", ["timestep is 1e-320", "at least 1e-06 ps"]),
        ("timestep: 2 fs", "timestep: 1e-3 fs", ["at least 1e-05"]),
        ("walkers: 2", "walkers: 1.0e+30", ["walkers is 1e+30", "a smaller number"]),
        ("walkers: 2", "walkers: 1:30", ["walkers is '1:30'", "a whole number"]),
        ("pace: 1 ps", "sigma: 1e-320", ["sigma is 1e-320", "between 1e-09 and"]),
        # choices
        ("method: opes", "method: OPES", ["method is 'OPES'", "Did you mean 'opes'?"]),
        ("window: all", "window: sequences", ["'all', 'sequence' or 'space'", "Did you mean 'sequence'?"]),
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
        ("amber14-all.xml", "notes.txt", ["section system", "notes.txt is not XML (no element found", "amber14-all.xml"]),
        ("amber14-all.xml", "page.xml", ["page.xml is an XML file, but not a force field", "<html>", "<ForceField>"]),
        ("encoder: et-64", "encoder: et-46", ["no encoder 'et-46'", "Did you mean 'et-64'?", "ships et-64;"]),
        ("encoder: et-64", "encoder: conformers", ["no encoder 'conformers'"]),
        ("encoder: et-64", "encoder: net.onnx", [".safetensors, .ckpt, .pth"]),
        ("encoder: et-64", "encoder: yours.safetensors", ["no encoder 'yours.safetensors'"]),
        # the CV
        ("window: all", "selection: foo bar", ["selection is 'foo bar'", "mdtraj"]),
        ("window: all", "selection: __import__('os')", ["mdtraj"]),
        ("mixer: none", "mixer: mlp", ["mixer: mlp", "estimator: vampnet"]),
        ("estimator: linear", "estimator: vampnet", ["mixer: none has none"]),
        ("mixer: none", "mixer_settings: {heads: 2}", ["heads is no setting of mixer 'none'", "chirality, pool"]),
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
        ("a: [-2.8, -0.5]", "a: [-0.5, -2.8]", ["overlap", "Core a goes upwards from its first number, across 180"]),
        ("a: [-2.8, -0.5]", "a: [-180 deg, 180 deg]", ["its two ends are one point"]),
        ("a: [-2.8, -0.5]", "a: [150 deg, 210 deg]", ["across 180 degrees as [150 deg, -150 deg]"]),
        ("along: phi\n    a: [-2.8, -0.5]", "along: cv.1\n    a: [-0.5, -2.8]", ["lower number must come first"]),
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
        ("length: 1000 ps", "length: 9 ps", ["section run", "fewer than 10 depositions", "at least 10 ps"]),
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
def test_refused_with_line_and_reason(refusal, old, new, parts):
    text = changed((old, new))
    message = refusal(text)
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
        ("mixer: none", "mixer_settings:\n    pool: mean\n    chirality: 1", "chirality: 1"),
        ("  length: 1000 ps", "  ", "run:"),
    ],
)
def test_line_numbers(refusal, old, new, line):
    text = changed((old, new))
    if old.startswith("  length"):
        text = changed(("pace: 1 ps", "pace: 120 ps"), text=text)  # 1000 ps, the default, is too short for it
    assert f"(line {line_of(text, line)})" in refusal(text)


@pytest.mark.parametrize(
    ("mixer", "settings", "parts"),
    [
        ("mlp", "widht: 64", ["widht is no setting of mixer 'mlp'", "Did you mean 'width'?", "Known: chirality, layers"]),
        ("mlp", "layers: 1.5", ["layers must be a whole number", "1.5"]),
        ("attention", "width: 30", ["width must be a multiple of heads", "30"]),
        ("attention", "pool: flaten", ["pool 'flaten' is unknown", "Did you mean 'flatten'?"]),
        ("attention", "seed: one", ["seed must be a whole number", "'one'"]),
        ("token-merging", "n_tokens: 3", ["n_tokens is no setting of mixer 'token-merging'"]),
    ],
)
def test_settings_of_a_mixer(refusal, mixer, settings, parts):
    text = changed(
        ("mixer: none", f"mixer: {mixer}\n  mixer_settings:\n    chirality: true\n    {settings}"),
        ("estimator: linear", "estimator: vampnet"),
    )
    message = refusal(text)
    assert f"In section cv.mixer_settings of x.yaml (line {line_of(text, settings)}): " in message
    for part in parts:
        assert part in message


def test_several_problems(refusal):
    text = changed(("walkers: 2", "walkers: 0"), ("every: 3", "every: 0"), ("pca: 50", "pca: x"))
    message = refusal(text)
    assert "pca is 'x'" in message
    lines = [line_of(text, "walkers: 0"), line_of(text, "every: 0")]
    assert message.endswith(f"There is more to correct in lines {lines[0]}, {lines[1]}.")


def test_overrides_are_checked_too(refusal):
    assert "Unknown key 'lenth' in section run of x.yaml (overridden when it was loaded)" in refusal(
        FULL, overrides={"run.lenth": 1}
    )
    assert "(overridden when it was loaded): length is '5 K'" in refusal(FULL, overrides={"run.length": "5 K"})


@pytest.mark.slow
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
        # what would take for ever, or be read as something else
        ("a: &x\n  b: *x\n", ["line 1", "used (*) inside itself"]),
        ("system: {structures: &x [*x]}\n", ["line 1", "used (*) inside itself"]),
        (BOMB, ["(line 5)", "more than 100000 values"]),
        ("a: &a {b: 1}\nc: &c {<<: [*a, *a]}\n" + MERGE_BOMB, ["more than 100000 values"]),
        ("seed: " + "[" * 3000 + "]" * 3000, ["more than 30 deep"]),
        ("seed: " + "[" * 3000, ["more than 30 deep"]),
        ("seed: " + "[" * 40 + "]" * 40, ["(line 1)", "more than 30 deep"]),
        (MINIMAL + 'output: "a\\0b"\n', ["(line 3)", "U+0000"]),
        (MINIMAL + 'output: "\\ud800"\n', ["(line 3)", "U+D800"]),
        (MINIMAL + f"output: {'x' * 300}\n", ["(line 3)", "no file can have this name"]),
        (MINIMAL + f"output: {'x' * 20000}\n", ["(line 3)", "20000 characters"]),
        (MINIMAL + "seed: !!bool maybe\n", ["cannot read"]),
        ("system:\n", ["structures is missing"]),
        ("run: 5\nsystem: {structures: [a.pdb, b.pdb]}\n", ["run is 5", "'key: value' lines"]),
    ],
)
def test_yaml_errors(refusal, text, parts):
    message = refusal(text)
    assert "x.yaml" in message
    for part in parts:
        assert part in message


def test_numbers_are_read_as_they_look(load_text):
    text = MINIMAL + "seed: 010\nrun: {length: 1_000, walkers: +3}\nbias: {barrier: 0.40E+2}\n"
    protocol = load_text(text)
    assert (protocol.seed, protocol.run.length, protocol.run.walkers, protocol.bias.barrier) == (10, 1000.0, 3, 40.0)


def test_an_override_changes_one_use_of_an_anchor(load_text):
    text = MINIMAL + "unbiased: &times {length: 200 ps, frame_interval: 1 ps}\nrun: *times\n"
    protocol = load_text(text, overrides={"run.length": "50 ps"})
    assert (protocol.unbiased.length, protocol.run.length) == (200.0, 50.0)


def test_anchors_and_merge_keys(load_text, refusal):
    text = "x: &steps {}\n" + MINIMAL
    assert "Unknown key 'x'" in refusal(text)
    text = MINIMAL + "unbiased: &times\n  length: 200 ps\nrun:\n  <<: *times\n  walkers: 1\n"
    assert load_text(text).run.length == 200.0


def test_file_errors(refusal, tmp_path):
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
def test_fits_that_are_refused(refusal, text, parts):
    message = refusal(text, load_fit)
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
    assert Path(caught[0].filename).name == Path(__file__).name


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
def test_sound_settings_do_not_warn(load_text, replacements):
    load_text(changed(*replacements))


@pytest.mark.skipif(
    not all((Path(shipped.__file__).parents[1] / "data" / name).is_file() for name in SHIPPED[:3]),
    reason="the shipped structures and encoder are not there",
)
def test_shipped_protocol_with_shipped_files(monkeypatch):
    monkeypatch.setattr(shipped, "DATA", Path(shipped.__file__).parents[1] / "data")
    protocol = load_protocol(PROTOCOLS / "ala2-opes.yaml")
    assert all(file.stat().st_size and os.path.isabs(file) for file in protocol.system.structures)
