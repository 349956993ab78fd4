"""The networks of a sweep: what each has, equal parameters, nested training sets, what is refused before anything runs."""

import numpy as np
import pytest

from openmm_geomgnn.cli.settings.yaml_files import load_scaling
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.scaling.figures import law_figure
from openmm_geomgnn.studies.scaling.sweep import Aspect, Axes, plan, widths
from openmm_geomgnn.studies.scaling.table import Row, fit_axes, models_of
from openmm_geomgnn.studies.training.folder import Result
from openmm_geomgnn.studies.training.trainer import count_parameters

pytestmark = pytest.mark.slow

BASE = {
    "seed": 3, "ngpus": 1, "num_workers": 0, "dataset": "Denoising", "dataset_root": None, "val_size": 40, "test_size": 20,
    "dataset_arg": {"dataset": "Conformers", "sigma": 0.2}, "model": "smooth-equivariant-transformer",
    "output_model": "Noise",
    "embedding_dimension": 8, "num_layers": 1, "num_heads": 4, "num_rbf": 8, "cutoff_upper": 4.0, "max_z": 100,
    "num_epochs": 2,
}  # fmt: skip
EVERY = Axes(
    depth=(1, 2), width=(8, 16), cutoff=(3.0, 4.0), data=(20, 200, 40), source=(("qm9",), ("peptide",), ("qm9", "peptide"))
)


@pytest.fixture(scope="module")
def sweep():
    return plan(BASE, EVERY, (1, 2))


def by_axis(sweep, axis):
    return {network.axes[axis]: network for network in sweep.networks if axis in network.axes}


def test_one_thing_varies_along_an_axis(sweep):
    for axis, name in (("depth", "num_layers"), ("width", "embedding_dimension"), ("cutoff", "cutoff_upper")):
        for value, network in by_axis(sweep, axis).items():
            changed = {key for key in network.settings if network.settings[key] != BASE.get(key)}
            assert changed - {"seed", "save_interval"} == ({name} if value != BASE[name] else set())
            assert network.settings[name] == value and network.conformers == len(sweep.data.train)
            assert network.parameters == count_parameters(network.settings)
    assert {network.settings["seed"] for network in sweep.networks} == {1, 2}


def test_a_network_on_several_axes_is_there_once(sweep):
    names = [network.name for network in sweep.networks]
    assert len(set(names)) == len(names) == 2 * (1 + 1 + 1 + 1 + 3 + 3)
    base = next(network for network in sweep.networks if network.axes.keys() >= {"depth", "width", "cutoff"})
    assert base.axes == {"depth": 1, "width": 8, "cutoff": 4.0}


def test_every_architecture_goes_along_all_axes():
    models = {"visnet": {}, "smooth-tensornet": {"cutoff_upper": 3.0}}
    found = plan(BASE, Axes(depth=(1, 2), width=(8,)), (1,), models).networks
    assert [network.model for network in found] == ["visnet"] * 2 + ["smooth-tensornet"] * 2
    assert [network.name for network in found[1:3]] == [
        "visnet-layers2-width8-cutoff4-data10940-seed1",
        "smooth-tensornet-layers1-width8-cutoff3-data10940-seed1",
    ]
    assert len({network.parameters for network in found}) == 4
    for network in found:
        assert network.settings["model"] == network.model and network.parameters == count_parameters(network.settings)


def test_laws_of_each_architecture_are_its_own():
    """Losses that follow known laws of the number of parameters, another for each."""
    models, slopes = {"visnet": {}, "smooth-tensornet": {}}, {"visnet": 0.3, "smooth-tensornet": 0.1}
    networks = plan(BASE, Axes(width=(8, 16, 24, 32, 48, 64, 96)), (1,), models).networks
    rows = []
    for network in networks:
        loss = 0.5 * (network.parameters / 1e5) ** -slopes[network.model]
        rows.append(Row(network, Result("trained", first_epoch_loss=loss, best_loss=loss, epochs=1)))
    laws = fit_axes(rows)
    assert models_of(rows) == list(models) and len(laws) == 4
    for law in laws:
        power = next(fit for fit in law.comparison.fits if fit.law.name == "power law")
        assert law.comparison.preferred == "power law" and power.values["b"] == pytest.approx(slopes[law.model], abs=1e-3)
        written = law.as_dict()
        assert written["model"] == law.model and written["axis"] == "width" and len(written["laws"]) == 3
    panels = law_figure(rows, laws, "best_loss").axes
    assert len(panels) == 1 and [text.get_text() for text in panels[0].get_legend().get_texts()] == list(models)


def test_training_sets_are_nested_and_hold_nothing_that_is_held_out(sweep):
    small, middle, large = (set(sweep.splits[f"data{number}"].tolist()) for number in (20, 40, 200))
    assert small < middle < large < set(sweep.data.train.tolist()) and len(small) == 20
    held = set(sweep.data.val.tolist()) | set(sweep.data.test.tolist())
    assert not held & set(np.concatenate(list(sweep.splits.values())).tolist())
    again = plan(BASE, Axes(data=(20,)), (7,))
    assert np.array_equal(again.splits["data20"], sweep.splits["data20"])
    other = plan({**BASE, "seed": 4}, Axes(data=(20,)), (7,))
    assert not np.array_equal(other.splits["data20"], sweep.splits["data20"])


def test_sources_have_as_many_conformers(sweep):
    found = by_axis(sweep, "source")
    assert list(found) == ["qm9", "peptide", "qm9 + peptide"]
    assert len({network.conformers for network in found.values()}) == 1
    names = np.array(sweep.data.sources)
    for source in ("qm9", "peptide"):
        assert set(names[sweep.data.source[sweep.splits[found[source].split]]]) == {source}
    assert set(names[sweep.data.source[sweep.splits[found["qm9 + peptide"].split]]]) == {"qm9", "peptide"}


def test_equal_parameters():
    target = count_parameters({**BASE, "num_layers": 4, "embedding_dimension": 40}) + 1000
    found = widths(BASE, Aspect((1, 2, 4), target, 0.08, 4))
    assert found[1] > found[2] > found[4] == 40
    for depth, width in found.items():
        numbers = [
            count_parameters({**BASE, "num_layers": depth, "embedding_dimension": other})
            for other in (width - 4, width, width + 4)
        ]
        deviations = [abs(number - target) for number in numbers]
        assert deviations[1] == min(deviations) < 0.08 * target
    with pytest.raises(GeomGNNError, match=r"With 4 layers, width 40 comes nearest to \d+ parameters, but has \d+, -1"):
        widths(BASE, Aspect((4,), target, 1e-6, 4))


def test_a_network_that_cannot_be_built_has_its_reason():
    bad, good = plan(BASE, Axes(width=(10, 12)), (1,)).networks
    assert bad.parameters is None and "cannot be divided among 4 heads" in bad.reason
    assert good.parameters and not good.reason


@pytest.mark.parametrize(
    ("base", "axes", "message"),
    [
        ({"num_layer": 2}, Axes(depth=(1,)), "no setting 'num_layer'. Did you mean 'num_layers'"),
        ({}, Axes(data=(10**6,)), "asks for 1000000 conformers, but 10940 are there"),
        ({}, Axes(source=(("qm8",),)), "names 'qm8', but the sources of the data are qm9, peptide"),
        ({"max_z": 5}, Axes(depth=(1,)), "The data of the base cannot be used: max_z is 5"),
        ({}, Axes(aspect=Aspect((1,), 100_000, 0.05, 3)), "A network of depth 1 and width 3: it cannot be built"),
    ],
)
def test_what_cannot_be_had(base, axes, message):
    with pytest.raises(GeomGNNError, match=message):
        plan({**BASE, **base}, axes, (1,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axes: {}", "axes names nothing to vary"),
        ("axes: {depth: [1, 0]}", "at least 1"),
        ("axes: {depth: [1, 2, 1]}", "depth has 1 twice"),
        ("axes: {cutoff: [3, -1]}", "greater than 0"),
        ("axes: {dept: [1]}", "Unknown key 'dept'.*Did you mean 'depth'"),
        ("axes: {source: [qm9, []]}", "source has an empty list"),
        ("axes: {aspect: {depths: [2]}}", "2 or more"),
        ("axes: {depth: 1}\ntraining: {log_dir: here}", "log_dir is set for each network by the study"),
        ("axes: {depth: 1}\nmodels: {visnet: {log_dir: here}}", "log_dir is set for each network by the study"),
        ("axes: {depth: 1}\ntraining: {num_layer: 2}", r"section training .*line 3.*'num_layer'. Did you mean 'num_layers'"),
        ("axes: {depth: 1}\nmodels: {visnet: {lmx: 1}}", r"section models of .*line 3.*'lmx'. Did you mean 'lmax'. Known: "),
        ("axes: {depth: 1}\nmodels: {visnett: {}}", "no model 'visnett'. Did you mean 'visnet'. Known: graph-network"),
        ("axes: {depth: 1}\nseeds: []", "1 or more"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, text, message):
    (tmp_path / "b.yaml").write_text("seed: 1\n")
    (tmp_path / "s.yaml").write_text(f"base: b.yaml\n{text}\n")
    with pytest.raises(GeomGNNError, match=message):
        load_scaling(tmp_path / "s.yaml")


def test_a_base_that_is_not_there(tmp_path):
    (tmp_path / "s.yaml").write_text("base: b.yaml\naxes: {depth: 1}\n")
    with pytest.raises(GeomGNNError, match="There is no file of torchmd-train's settings 'b.yaml'"):
        load_scaling(tmp_path / "s.yaml")
