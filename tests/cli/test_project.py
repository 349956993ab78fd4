"""`geomgnn project`: its files and what it says, settings that make no sense, packages that are missing."""

import csv
import json

import numpy as np
import pytest
from molecules import ALA2
from turning_phi import INTERVAL, encoder, trajectory  # noqa: F401

from openmm_geomgnn.cli.project import FRAMES, REPORT, RESULTS, run_project
from openmm_geomgnn.cli.settings.yaml_files import dump, load_project
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.tokens import Tokenizer
from torchmdnet_ext.layers import layers_of

ET_LAYERS = len(layers_of(Encoder.load("et-64").network))


@pytest.fixture
def written(encoder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        trajectory(150, seed)[0].save_dcd(str(tmp_path / f"{seed}.dcd"))
    (tmp_path / "s.yaml").write_text(
        f"topology: {ALA2}\ntrajectories: ['*.dcd']\nframe_interval: {INTERVAL} ps\ncv: {{lag: 4 ps, encoder: {encoder}}}\n"
        "project: {encoders: et-64, random_weights: 2, projections: pca, cka_frames: 100}\n"
    )
    return tmp_path


@pytest.mark.slow
def test_command(written, geomgnn):
    code, output, error = geomgnn("project", "s.yaml")
    assert code == 0 and not error
    folder = written / "s.projection"
    pictures = ["cka-layers.png", "cka-pooled.png", "cka-tokens.png", "pca-pooled.png", "pca-tokens.png"]
    pictures += ["probes.png", "probes-layers.png"]
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    assert names == sorted([*pictures, RESULTS, FRAMES, REPORT])
    content = json.loads((folder / RESULTS).read_text())
    networks = ["random", "et-64", "random weights 1", "random weights 2"]
    assert [one["name"] for one in content["networks"]] == networks and content["frames"] == [150, 150]
    r2 = {}
    for row in content["probes"]:
        r2[row["network"], row["representation"], row["observable"]] = row["r2_by_fold"]
    assert len(r2) == 4 * 2 * len(content["observables"]) and {len(row) for row in r2.values()} == {4}
    # what the molecule was made to do is found, in every network; it turns about phi alone
    assert min(np.mean(r2[name, "tokens", "phi ALA2"]) for name in networks) > 0.95
    assert {row["network"] for row in content["comparison_with_random_weights"]} == {"random", "et-64"}
    assert content["cka"]["pooled"]["names"] == networks
    np.testing.assert_allclose(np.diag(content["cka"]["tokens"]["values"]), 1)
    layers = content["cka_of_layers"]["names"]
    assert "et-64, layer 3" in layers and "random weights 1, layer 2" in layers and "random weights 2, layer 2" not in layers
    by_layer = {}
    for row in content["probes_of_layers"]:
        by_layer[row["network"], row["representation"], row["layer"], row["observable"]] = row["r2_by_fold"]
    # of every network, also those with random weights; the last layer is the output, on all frames as here
    assert {(name, layer) for name, _, layer, _ in by_layer} == {
        *((name, layer) for name in networks[:1] + networks[2:] for layer in ("embedding", "layer 1", "layer 2")),
        *(("et-64", layer) for layer in ("embedding", *(f"layer {k}" for k in range(1, ET_LAYERS + 1)))),
    }
    for (name, kind, observable), found in r2.items():
        last = f"layer {ET_LAYERS if name == 'et-64' else 2}"
        np.testing.assert_allclose(by_layer[name, kind, last, observable], found, atol=2e-3)
    with (folder / FRAMES).open(newline="") as file:
        head, *rows = csv.reader(file)
    assert len(rows) == 300 and rows[149][:2] == ["0", "298"] and rows[150][:2] == ["1", "0"]
    phi = [float(row[head.index("phi ALA2 (rad)")]) for row in rows]
    first = [float(row[head.index("random, tokens, pca 1")]) for row in rows]
    assert abs(np.corrcoef(phi, first)[0, 1]) > 0.8
    report = (folder / REPORT).read_text()
    assert report.count("<figure>") == 7 and "Linear probes of tokens features" in report
    assert "et-64, tokens, by layer: most is read after" in output and "Linear probes of tokens features by layer" in report
    assert "et-64, pooled: mean R2" in report and "et-64, pooled: mean R2" in output and f"written to {folder}" in output


@pytest.mark.slow
def test_stopped_and_asked_again(written, monkeypatch, capsys):
    from openmm_geomgnn.studies.latent import study

    counts, embed, compare = [], Tokenizer.embed, study._compare_layers
    changes = {"project.encoders": [], "project.random_weights": 1}

    def counted(self, pos, *rest, **options):
        counts.append(len(pos))
        return embed(self, pos, *rest, **options)

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Tokenizer, "embed", counted)
    monkeypatch.setattr(study, "_compare_layers", stop)
    with pytest.raises(KeyboardInterrupt):
        run_project(load_project("s.yaml", changes))
    assert sum(counts) == 2 * 300 and not (written / "s.projection" / RESULTS).exists()
    monkeypatch.setattr(study, "_compare_layers", compare)
    run_project(load_project("s.yaml", changes))
    assert sum(counts) == 2 * 300 and (written / "s.projection" / RESULTS).exists()  # nothing twice
    assert not list((written / "s.projection").glob("*.partial"))


def test_the_shipped_file_has_the_defaults(repository, tmp_path):
    text = (repository / "protocols/project-ala2.yaml").read_text()
    (tmp_path / "a.dcd").touch()
    (tmp_path / "p.yaml").write_text(text.replace("../runs/ala2-opes/unbiased/trajectory.*.dcd", "a.dcd"))
    project = load_project(tmp_path / "p.yaml")
    assert project.project.encoders == ("visnet-64",) and project.project.random_weights == 3
    (tmp_path / "short.yaml").write_text("topology: ala2-c7eq.pdb\ntrajectories: a.dcd\nframe_interval: 0.2 ps\n")
    short = load_project(tmp_path / "short.yaml", {"project.encoders": "visnet-64"})
    assert short.output.name == "short.projection"
    assert project.model_dump(exclude={"output"}) == short.model_dump(exclude={"output"})
    (tmp_path / "again.yaml").write_text(dump(project))
    assert load_project(tmp_path / "again.yaml") == project


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("project: {encodings: et-64}", r"Unknown key 'encodings'.*Did you mean 'encoders'"),
        ("project: {encoders: [et-46]}", "et-46.*et-64"),
        ("project: {folds: 1}", "at least 2"),
        ("project: {projections: tsne}", "'pca' or 'umap'"),
        ("project: {random_weights: -1}", "at least 0"),
        ("projects: {}", "Unknown key 'projects'.*Did you mean 'project'"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, text, message):
    (tmp_path / "s.yaml").write_text(f"topology: {ALA2}\ntrajectories: [{ALA2}]\nframe_interval: 1 ps\n{text}\n")
    with pytest.raises(GeomGNNError, match=message):
        load_project(tmp_path / "s.yaml")


def test_a_store_is_refused(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "s.yaml").write_text(f"topology: {ALA2}\nembeddings: a.zarr\n")
    with pytest.raises(GeomGNNError, match="embeddings are those of one network"):
        load_project(tmp_path / "s.yaml")


def test_too_short(written):
    with pytest.raises(GeomGNNError, match="too short for 4 folds with a gap of 200 frames"):
        run_project(load_project("s.yaml", {"project.gap": "400 ps"}))
    assert not list((written / "s.projection").glob("tokens*"))  # before anything is embedded


def test_without_umap(written, monkeypatch):
    from importlib import util

    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "umap" else find(name, *rest))
    with pytest.raises(GeomGNNError, match=r'pip install "openmm-geomgnn\[project\]", or set projections: pca'):
        run_project(load_project("s.yaml", {"project.projections": ["umap"]}))
    assert not (written / "s.projection").exists()
