"""Classes of structures: where structures come from, the networks' symmetry, and a small study by torchmd-train, twice."""

import json
import shutil

import mdtraj
import numpy as np
import pytest
import torch

from openmm_geomgnn.cli.settings.yaml_files import load_structures
from openmm_geomgnn.cli.structures import run_structures
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.studies.latent.networks import Network
from openmm_geomgnn.studies.structures.embedding import embed_structures
from openmm_geomgnn.studies.structures.figures import accuracy_figure, baseline_and_best, standard_figures
from openmm_geomgnn.studies.structures.networks import AlphaCarbonNetwork, GVPNetwork, MixerNetwork
from openmm_geomgnn.studies.structures.peptides import BACKBONES, BuiltPeptides
from openmm_geomgnn.studies.structures.sources import read_folder, read_scope
from openmm_geomgnn.studies.structures.study import best_checkpoint, chance, load_classifier, predict
from openmm_geomgnn.studies.structures.tables import AccuracyRow, accuracy_table, notes, summarise
from torchmdnet_ext.datasets.structures import Structures, read_structures
from torchmdnet_ext.models.residues import make_network

SMALL = """
built: {label: rotamer, sequences: 10, length: 4, noise: 5}
tokens: {window: sequence}
networks: [graph]
network_settings: {graph: {width: 16, layers: 1}}
seeds: [1]
training: {num_epochs: 2}
"""
NETWORKS = [
    (AlphaCarbonNetwork, {"token_channels": 8}),
    (AlphaCarbonNetwork, {}),
    (GVPNetwork, {"token_channels": 8}),
    (GVPNetwork, {}),
    (MixerNetwork, {"token_channels": 8, "mixer": "message-passing"}),
    (MixerNetwork, {"token_channels": 8, "mixer": "mlp", "pool": "attention"}),
]


@pytest.fixture(scope="module")
def peptides():
    return BuiltPeptides(sequences=5, length=5, noise=0.0).build()


def settings_of(folder, text=SMALL):
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return load_structures(path, {"output": str(folder / "out")})


def test_built_peptides_have_the_torsions_of_their_class(peptides):
    for one in peptides[:4]:
        structure = one.load()
        phi, psi = (np.degrees(f(structure)[1][0]) for f in (mdtraj.compute_phi, mdtraj.compute_psi))
        np.testing.assert_allclose(phi, BACKBONES[one.label][0], atol=0.1)
        np.testing.assert_allclose(psi, BACKBONES[one.label][1], atol=0.1)
    sequences = {part: {one.name.split("-")[1] for one in peptides if one.part == part} for part in ("train", "val", "test")}
    assert [len(found) for found in sequences.values()] == [3, 1, 1]
    turned = BuiltPeptides("rotamer", sequences=2, length=5, noise=0.0).build()
    for one in turned[:3]:
        chi = np.degrees(mdtraj.compute_chi1(one.load())[1])
        expected = {"g-": -60.0, "trans": 180.0, "g+": 60.0}[one.label]
        assert np.abs((chi - expected + 180) % 360 - 180).max() < 0.1


def write_protein(path, structure):
    """A protein as the SCOPe data has it, with the arrays that are read and one that is not."""
    h5py = pytest.importorskip("h5py")
    atoms = list(structure.topology.atoms)
    with h5py.File(path, "w") as file:
        file["atom_pos"] = 10 * structure.xyz[:1]
        file["atom_names"] = np.array([atom.name.encode() for atom in atoms])
        file["atom_residue_names"] = np.array([atom.residue.name.encode() for atom in atoms])
        file["atom_amino_id"] = np.array([atom.residue.index for atom in atoms])
        file["amino_types"] = np.zeros(structure.n_residues, dtype=np.int64)


def scope_folder(folder, peptides, training="training", validation="validation"):
    """The tree of the SCOPe data, with folds named as there."""
    folds = {"alpha": "a.1", "3-10": "a.2", "beta": "b.1", "polyproline": "c.1"}
    (folder / "class_map.txt").write_text("".join(f"{fold}\t{k}\n" for k, fold in enumerate(folds.values())))
    parts = {training: peptides[:4], validation: peptides[4:8], "test_fold": peptides[8:10], "test_family": peptides[10:12]}
    for part, members in parts.items():
        (folder / part).mkdir()
        lines = [f"d{k}{part}_\t1\t{folds[one.label]}\n" for k, one in enumerate(members)]
        (folder / f"{part}.txt").write_text("".join(lines))
        for line, one in zip(lines, members, strict=True):
            write_protein(folder / part / f"{line.split()[0]}.hdf5", one.load())
    return folder


@pytest.mark.parametrize("names", [("training", "validation"), ("train", "valid")])
def test_scope_folds_of_pronet_and_gearnet(tmp_path, peptides, names):
    folder = scope_folder(tmp_path, peptides, *names)
    found = read_scope(folder)
    assert [one.part for one in found] == ["train"] * 4 + ["val"] * 4 + ["test_fold"] * 2 + ["test_family"] * 2
    assert [one.label for one in found[:4]] == ["a.1", "a.2", "b.1", "c.1"]
    first, expected = found[0].load(), peptides[0].load()
    np.testing.assert_allclose(first.xyz, expected.xyz, atol=1e-5)
    assert [a.element for a in first.topology.atoms] == [a.element for a in expected.topology.atoms]
    assert [r.name for r in first.topology.residues] == [r.name for r in expected.topology.residues]
    assert first.topology.n_bonds == expected.topology.n_bonds > first.n_atoms - 2
    (folder / "test_fold" / f"{found[8].name}.hdf5").unlink()
    with pytest.raises(GeomGNNError, match=r"unpack test_fold\.zip"):
        read_scope(folder)
    (folder / "class_map.txt").write_text("a.1\t0\n")
    with pytest.raises(GeomGNNError, match=r"fold 'a\.2', which class_map"):
        read_scope(folder)


def test_a_folder_of_pdb_and_mmcif_files(tmp_path, peptides):
    from openmm import app, unit

    lines = ["file,label,part\n"]
    for one, part in zip(peptides[:4], ("train", "train", "val", "test_new"), strict=True):
        structure, name = one.load(), f"{one.name}.pdb"
        if part == "val":
            name = f"{one.name}.cif"
            with open(tmp_path / name, "w", encoding="utf-8") as file:
                app.PDBxFile.writeFile(structure.topology.to_openmm(), structure.xyz[0] * unit.nanometer, file)
        else:
            structure.save_pdb(str(tmp_path / name))
        lines.append(f"{name},{one.label},{part}\n")
    (tmp_path / "labels.csv").write_text("".join(lines))
    found = read_folder(tmp_path, 1)
    assert [one.part for one in found] == ["train", "train", "val", "test_new"]
    for one, expected in zip(found, peptides, strict=False):
        np.testing.assert_allclose(one.load().xyz, expected.load().xyz, atol=2e-4)
    (tmp_path / "labels.csv").write_text("".join(line.rsplit(",", 1)[0] + "\n" for line in lines))
    assert {one.part for one in read_folder(tmp_path, 1)} <= {"train", "val", "test"}
    (tmp_path / "labels.csv").write_text("file,label\nabsent.pdb,a\n")
    with pytest.raises(GeomGNNError, match="Line 2 of"):
        read_folder(tmp_path, 1)


def test_tokens_of_structures_are_those_of_the_encoder(tmp_path, peptides):
    encoder = Encoder.load("et-64")
    path = tmp_path / "et-64.safetensors"
    embed_structures(peptides[:3], {path: Network("et-64", encoder)}, TokenSpec(), "this")
    header, tensors = read_structures(path)
    assert header["encoder"]["hash"] == encoder.content_hash() and header["left_out"] == {}
    assert tensors["ptr"].tolist() == [0, 5, 10, 15]
    structure = peptides[1].load()
    alpha = structure.topology.select("name CA")
    np.testing.assert_allclose(tensors["pos"][5:10], 10 * structure.xyz[0, alpha], atol=1e-4)
    z = [atom.element.number for atom in structure.topology.atoms]
    x, _ = encoder.embed(z, 10 * structure.xyz[0])
    residue = np.array([atom.residue.index for atom in structure.topology.atoms])
    np.testing.assert_allclose(tensors["tokens"][5:10, 0], [x[residue == k].sum(0) for k in range(5)], rtol=1e-4, atol=1e-4)
    item = Structures(path)[1]
    assert item.y.shape == (1, 3) and item.y.sum() == 1 and "tokens" not in Structures(path, tokens=False)[1]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="cannot be read"):
        Structures(path)


@pytest.mark.parametrize(("kind", "arguments"), NETWORKS)
def test_scores_do_not_turn_with_the_structure(kind, arguments):
    from scipy.spatial.transform import Rotation

    torch.manual_seed(0)
    network = kind(classes=3, **arguments).double()
    residue, batch = torch.randint(0, 21, (12,)), torch.tensor([0] * 5 + [1] * 7)
    pos = 3 * torch.randn(12, 3).double()
    tokens = torch.randn(12, 4, 8).double() if "token_channels" in arguments else None
    network(residue, pos, batch, tokens)  # running means of the tokens
    network.eval()
    rotation = torch.from_numpy(Rotation.random(random_state=1).as_matrix())
    turned = tokens
    if tokens is not None:
        turned = torch.cat([tokens[:, :1], rotation @ tokens[:, 1:]], 1)
    scores = network(residue, pos, batch, tokens)
    torch.testing.assert_close(network(residue, pos @ rotation.T + 1, batch, turned), scores)
    alone = network(residue[:5], pos[:5], batch[:5], None if tokens is None else tokens[:5])
    torch.testing.assert_close(alone, scores[:1])  # whatever else is in the batch
    if kind is GVPNetwork and tokens is None:
        assert not torch.allclose(network(residue, -pos, batch), scores)  # mirror images differ


def test_networks_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match="cannot be imported"):
        make_network("openmm_geomgnn.nowhere:Network", {})
    with pytest.raises(ValueError, match="no subclass"):
        make_network("subprocess:Popen", {"args": ["true"]})
    with pytest.raises(ValueError, match="cannot be made"):
        make_network("openmm_geomgnn.studies.structures.networks:GVPNetwork", {"depth": 3})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("networks: [graph]", "none of built, folder and scope is given"),
        ("built: {}\nnetworks: [gpv]", "Did you mean 'gvp'"),
        ("built: {}\ntraining: {model: visnet}", "model is set for each network by the study"),
        ("built: {}\ntraining: {batch: 8}", r"section training of .*no setting 'batch'"),
        ("built: {}\nseeds: [1, 1]", "seeds has 1 twice"),
        ("folder: absent", "There is no folder"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, text, said):
    with pytest.raises(GeomGNNError, match=said):
        settings_of(tmp_path, text)


def test_differences_are_paired_by_seed():
    rows = [AccuracyRow("gvp", "none", s, {"test": value}) for s, value in ((1, 0.5), (2, 0.7))]
    rows += [AccuracyRow("gvp", "et-64", s, {"test": value}) for s, value in ((1, 0.6), (2, 0.8))]
    rows.append(AccuracyRow("gvp", "random weights", 1, problem="it diverged"))
    table = accuracy_table(rows, {"test": 0.25})
    assert table[1] == ["gvp", "none", "60.0 +- 10.0", "2"] and table[3] == ["gvp", "random weights", "", "0"]
    said = list(notes(rows, "et-64", ["test"]))
    assert said[0] == "gvp, test: tokens of et-64 against no tokens, 10.0 +- 0.0 percent points."
    assert said[1] == "Warning: gvp with tokens: random weights, seed 1, failed: it diverged"


def test_pictures_of_accuracies_and_confusions():
    def row(network, tokens, seed, counts):
        return AccuracyRow(network, tokens, seed, {"test": np.trace(counts) / np.sum(counts)}, confusion={"test": counts})

    rows = [row("graph", "none", s, [[2, 2], [2 - s, 2 + s]]) for s in (0, 1)]
    rows += [row("gvp", "none", 1, [[0, 4], [2, 2]]), row("gvp", "et-64", 1, [[4, 0], [1, 3]])]
    rows.append(AccuracyRow("gvp", "et-64", 2, problem="it diverged"))
    found = summarise(rows)
    assert found[0].mean == pytest.approx(0.5625) and found[0].error == pytest.approx(0.0625) and found[1].error is None
    axes = accuracy_figure(found, {"test": 0.5}).axes[0]
    drawn = [(bars.get_label(), bars.lines[0].get_ydata().tolist()) for bars in axes.containers]
    assert drawn == [("no tokens", [56.25, 25.0]), ("et-64", [87.5])]
    (_, bars), *_ = [(line, bars) for line, _, (bars,) in axes.containers]
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [50, 62.5])  # one standard error to either side
    assert [(one.network, one.tokens) for one in baseline_and_best(found, "test", "et-64")] == [
        ("graph", "none"), ("gvp", "et-64"),
    ]  # fmt: skip
    *_, (name, _, _, figure) = standard_figures(rows, {"test": 0.5}, ["a", "b"], "et-64")
    assert name == "confusion.png"
    left, right = figure.axes[:2]
    np.testing.assert_allclose(left.images[0].get_array(), [[50, 50], [37.5, 62.5]])  # of both seeds together
    np.testing.assert_allclose(right.images[0].get_array(), [[100, 0], [25, 75]])
    assert left.get_title() == "graph, no tokens: 56.2 %" and [text.get_text() for text in right.texts] == [
        "100", "0", "25", "75",
    ]  # fmt: skip
    only_mixers = summarise([row("mlp", "random weights", 1, [[1, 0], [0, 1]]), row("mlp", "et-64", 1, [[1, 0], [0, 1]])])
    assert [one.tokens for one in baseline_and_best(only_mixers, "test", "et-64")] == ["random weights", "et-64"]
    assert not list(standard_figures(rows[-1:], {"test": 0.5}, ["a", "b"], "et-64"))  # nothing was trained


@pytest.mark.slow
def test_a_study_through_the_trainer(tmp_path):
    """Peptides, tokens, trainings and accuracies; the second time nothing is trained."""
    settings = settings_of(tmp_path)
    rows = run_structures(settings)
    assert [(row.network, row.tokens) for row in rows] == [("graph", t) for t in ("none", "et-64", "random weights")]
    assert not [row.problem for row in rows if row.problem] and {row.epochs for row in rows} == {2}
    folder = settings.output / "networks" / "graph.et-64.1"
    structures = Structures(settings.output / "tokens" / "et-64.safetensors")
    tested = np.flatnonzero(np.array(structures.parts) == "test")
    classifier = load_classifier(best_checkpoint(folder))
    found = predict(classifier, structures, tested)
    assert rows[1].accuracy["test"] == pytest.approx((found == structures.labels[tested].numpy()).mean())
    counts = np.array(rows[1].confusion["test"])
    assert counts.sum(1).tolist() == [2, 2, 2]  # sequences of each class, as labels are sorted by name
    assert counts.sum(0).tolist() == np.bincount(found, minlength=3).tolist()
    assert chance(structures, "test") == pytest.approx(1 / 3)
    one = structures[int(tested[0])]
    scores, _ = classifier(one.z, one.pos, torch.zeros(4, dtype=torch.long), extra_args={"tokens": one.tokens})
    from torchmdnet.models.model import load_model

    theirs = load_model(str(best_checkpoint(folder))).eval()  # TorchMD-Net reads it, too
    again, _ = theirs(one.z, one.pos, batch=torch.zeros(4, dtype=torch.long), extra_args={"tokens": one.tokens})
    torch.testing.assert_close(again, scores)
    numbers = json.loads((settings.output / "structures.json").read_text())
    assert numbers["structures"] == {"test": 6, "train": 18, "val": 6}
    assert numbers["rows"][1]["confusion"]["test"] == counts.tolist()
    report = (settings.output / "report.html").read_text()
    assert report.count("<figure>") == 2 and report.count("graph, test: tokens of et-64 against") == 2
    assert (settings.output / "accuracy.png").exists() and (settings.output / "confusion.png").exists()
    before = [path.stat().st_mtime_ns for path in sorted(settings.output.rglob("metrics.csv"))]
    assert run_structures(settings) == rows and len(before) == 3
    assert [path.stat().st_mtime_ns for path in sorted(settings.output.rglob("metrics.csv"))] == before
    shutil.copy(settings.output / "tokens" / "et-64.safetensors", tmp_path)
    with pytest.raises(GeomGNNError, match="Give another output"):
        run_structures(settings_of(tmp_path, SMALL.replace("noise: 5", "noise: 6")))
