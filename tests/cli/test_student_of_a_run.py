"""`cv.student: true`: a run distils its CV and biases the student, or the network where the student is no good."""

import json
from types import SimpleNamespace

import pytest
from protocol_texts import TINY

from openmm_geomgnn.cli import student as students
from openmm_geomgnn.cli.names import CV_FILE, NETWORK_FILE
from openmm_geomgnn.cli.provenance import _differing
from openmm_geomgnn.cli.run import run_protocol
from openmm_geomgnn.cli.settings.yaml_files import load_protocol
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.students.cv import StudentCV
from openmm_geomgnn.sampling.colvar import read_colvar

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def protocol(tmp_path, monkeypatch):
    monkeypatch.setattr(students, "LABELS", (1500, 1600))
    monkeypatch.setattr(students, "EPOCHS", 10)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY.replace("pca: 20", "pca: 20, student: true"))
    return load_protocol(tmp_path / "tiny.yaml", {"unbiased.comparison_length": "0 ps"})


def test_student_is_biased_and_the_network_kept(protocol, monkeypatch):
    run_protocol(protocol)
    student = CollectiveVariable.load(protocol.output / CV_FILE)
    network = CollectiveVariable.load(protocol.output / NETWORK_FILE)
    assert isinstance(student, StudentCV) and not isinstance(network, StudentCV)
    assert student.output.limits.tolist() == network.output.limits.tolist()
    rows = read_colvar(protocol.output / "COLVAR")["cv.1"]
    assert (rows >= student.output.limits[0, 0]).all() and (rows <= student.output.limits[0, 1]).all()
    summary = json.loads((protocol.output / "summary.json").read_text())
    assert summary["cv_r2_of_teacher"][0] > 0.98

    def again(*arguments, **options):
        raise AssertionError("it was fitted again")

    monkeypatch.setattr("openmm_geomgnn.cli.fitting.fit_cv", again)
    before = (protocol.output / CV_FILE).read_bytes()
    run_protocol(protocol)  # everything is there
    assert (protocol.output / CV_FILE).read_bytes() == before


def test_runs_from_before_there_were_students(protocol):
    """A record without a word of students is of a network, which is fitted again where a student is wanted."""
    old = {"fit": {"pca": 20}, "unbiased runs": []}
    assert _differing(old, {"fit": {"pca": 20, "student": True}, "unbiased runs": []}) == ["student of the fit"]
    assert _differing(old, {"fit": {"pca": 20, "student": False}, "unbiased runs": []}) == []


def test_network_is_biased_where_the_student_is_no_good(protocol, monkeypatch, capsys):
    monkeypatch.setattr(students, "LARGEST_TURNING_ERROR", 0.0)
    run_protocol(protocol)
    cv = CollectiveVariable.load(protocol.output / CV_FILE)
    assert not isinstance(cv, StudentCV) and "along turns" in cv.training_information["student_refused"]
    said = capsys.readouterr().out
    assert "It is made once more, from 1600 conformations." in said and "The network itself is biased." in said
    assert not list(protocol.output.glob("*.partial"))


def test_a_poor_student_is_refused_and_says_why():
    def refused(facts=None, **found):
        good = {"r2": [0.999, 0.99], "rmse": [0.05, 0.05], "turning_error": [0.1, 0.1]}
        distillation = {name: {**good, **found.get(name, {})} for name in ("held_out", "displaced", "turned")}
        return students.why_not(SimpleNamespace(training_information={**(facts or {}), "distillation": distillation}))

    assert refused() == ""
    assert "R2 on held-out frames is 0.999, 0.966, below 0.98" in refused(held_out={"r2": [0.999, 0.966]})
    assert refused({"in_basin_spread": [0.04, 0.21]}, held_out={"r2": [0.999, 0.966]}) == ""  # an error of 0.05
    assert "below 0.98" in refused({"in_basin_spread": [0.04, 0.19]}, held_out={"r2": [0.999, 0.966]})
    assert "below 0.9," in refused(displaced={"r2": [0.85, 0.99]}) and refused(turned={"r2": [0.95, 0.99]}) == ""
    assert "off by 0.1, 0.6 of the network's" in refused(turned={"turning_error": [0.1, 0.6]})
