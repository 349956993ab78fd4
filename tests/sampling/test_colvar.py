import warnings
from pathlib import Path

import numpy as np
import pytest

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.colvar import ColvarWriter, column, read_colvar, split_walkers, truncate_colvar

FIELDS = ["time", "walker", "cv.1", "opes.bias", "opes.nker", "temperature"]
TRAJECTORIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "trajectories"


def rows(n, seed=0, start=0):
    """n rows of two walkers in lockstep, 0.6 ps apart."""
    rng = np.random.default_rng(seed)
    step = np.arange(n) // 2 + 1 + start
    return np.stack(
        [0.6 * step, np.arange(n) % 2, rng.normal(size=n), -40 * rng.random(n), step, 300 + 50 * rng.normal(size=n)], 1
    )


def test_rows_round_trip(tmp_path):
    written = rows(20)
    written[3, 2:4] = [1.23456789012e-11, -9876543.21012]
    written[5, 3], written[6, 4] = np.nan, np.inf
    with ColvarWriter(tmp_path / "COLVAR", FIELDS) as writer:
        writer.write(written[:7])
        # every block is on disk when write returns
        assert len(read_colvar(tmp_path / "COLVAR")["time"]) == 7
        writer.write(written[7])
        writer.write({name: written[8:, i] for i, name in enumerate(FIELDS)})
    read = read_colvar(tmp_path / "COLVAR")
    assert list(read) == FIELDS
    np.testing.assert_allclose(np.stack(list(read.values()), 1), written, rtol=1e-11)
    assert (tmp_path / "COLVAR").read_text().startswith("#! FIELDS time walker cv.1 opes.bias opes.nker temperature\n")
    np.testing.assert_allclose(np.loadtxt(tmp_path / "COLVAR"), written, rtol=1e-11)


def test_a_scalar_serves_all_rows_of_a_block(tmp_path):
    with ColvarWriter(tmp_path / "out" / "COLVAR", ["time", "walker", "cv.1"]) as writer:
        writer.write({"time": 1.5, "walker": [0, 1, 2], "cv.1": [0.1, 0.2, 0.3]})
    read = read_colvar(tmp_path / "out" / "COLVAR", ["cv.1", "time"])
    assert list(read) == ["cv.1", "time"]
    assert read["time"].tolist() == [1.5] * 3 and read["cv.1"].tolist() == [0.1, 0.2, 0.3]


def test_blocks_that_do_not_fit_are_refused(tmp_path):
    writer = ColvarWriter(tmp_path / "COLVAR", ["time", "cv.1"])
    with pytest.raises(GeomGNNError, match=r"\(2, 3\)"):
        writer.write(np.zeros((2, 3)))
    with pytest.raises(GeomGNNError, match="Did you mean 'cv.1'"):
        writer.write({"time": 1, "cv_1": 2})
    with pytest.raises(GeomGNNError, match="lack the field 'cv.1'"):
        writer.write({"time": 1})
    with pytest.raises(GeomGNNError, match=r"differ in length, \[2, 3\]"):
        writer.write({"time": [1, 2], "cv.1": [1, 2, 3]})
    writer.close()
    for fields in ([], ["time", "time"], ["a b"], [""]):
        with pytest.raises(GeomGNNError):
            ColvarWriter(tmp_path / "other", fields)


@pytest.mark.parametrize("by", ["rows", "time"])
def test_truncate_and_continue_equals_an_uninterrupted_run(tmp_path, by):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    data = rows(30)
    with ColvarWriter(whole, FIELDS) as writer:
        writer.write(data)
    with ColvarWriter(parts, FIELDS) as writer:
        writer.write(data[:18])
        writer.write(data[18:26] + 1e-3)  # written after the checkpoint, and to be forgotten
    with parts.open("a") as file:
        file.write(" 8.4 0 0.12")  # killed within a row
    with pytest.raises(GeomGNNError, match="incomplete.*truncate_colvar"):
        ColvarWriter(parts, FIELDS, append=True)
    assert truncate_colvar(parts, **{"rows": 18} if by == "rows" else {"time": data[17, 0]}) == 18
    with ColvarWriter(parts, FIELDS, append=True) as writer:
        writer.write(data[18:])
    assert parts.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]


def test_truncate_refuses_what_it_cannot_do(tmp_path):
    path = tmp_path / "COLVAR"
    with ColvarWriter(path, ["step", "cv.1"]) as writer:
        writer.write(np.ones((3, 2)))
    before = path.read_bytes()
    with pytest.raises(GeomGNNError, match="has 3 complete rows, but 5"):
        truncate_colvar(path, rows=5)
    with pytest.raises(GeomGNNError, match="no field 'time'"):
        truncate_colvar(path, time=1.0)
    for settings in ({}, {"rows": 1, "time": 1.0}):
        with pytest.raises(GeomGNNError, match="exactly one"):
            truncate_colvar(path, **settings)
    assert path.read_bytes() == before
    assert truncate_colvar(path, rows=0) == 0 and path.read_text() == "#! FIELDS step cv.1\n"
    with pytest.raises(GeomGNNError, match="Cannot read"):
        truncate_colvar(tmp_path / "nothing", rows=0)


def test_appending_needs_the_same_fields(tmp_path):
    path = tmp_path / "COLVAR"
    ColvarWriter(path, ["time", "cv.1"], append=True).close()
    ColvarWriter(path, ["time", "cv.1"], append=True).close()
    assert path.read_text() == "#! FIELDS time cv.1\n"
    with pytest.raises(GeomGNNError, match="has the fields time cv.1, but .* time cv.2"):
        ColvarWriter(path, ["time", "cv.2"], append=True)


def test_headers_after_restarts_settings_and_comments(tmp_path):
    path = tmp_path / "COLVAR"
    path.write_text(
        "#! FIELDS time phi metad.bias\n#! SET min_phi -pi\n 0.0 1.5 0\n 1.0 -1.5 2\n\n# a comment\n"
        "#! FIELDS time phi metad.bias\n#! SET min_phi -pi\n 2.0 0.5 3\n#! FIELDS time metad.bias phi\n 3.0 4 0.25\n"
    )
    read = read_colvar(path)
    assert read["time"].tolist() == [0, 1, 2, 3]
    assert read["phi"].tolist() == [1.5, -1.5, 0.5, 0.25]
    assert read["metad.bias"].tolist() == [0, 2, 3, 4]
    path.write_text("#! FIELDS time phi\n 0 1\n#! FIELDS time psi\n 0 1\n")
    with pytest.raises(GeomGNNError, match="line 3, from time phi to time psi"):
        read_colvar(path)


def test_a_cut_last_line_is_left_out_with_a_warning(tmp_path):
    path = tmp_path / "COLVAR"
    # the last number of a row without its line end may lack digits
    for end in (" 2 3.", " 2 3.25", " 2\n"):
        path.write_text("#! FIELDS time cv.1\n 0 1\n 1 2\n" + end)
        with pytest.warns(UserWarning, match="last line .* incomplete"):
            assert read_colvar(path)["cv.1"].tolist() == [1, 2]
    path.write_text("#! FIELDS time cv.1\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_colvar(path)["cv.1"].shape == (0,)


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "COLVAR"
    for text, message in (
        ("#! FIELDS time cv.1\n 0 1\n 1\n 2 3\n", "line 3 has 1 values for 2 fields"),
        ("#! FIELDS time cv.1\n 0 1 2\n 2 3\n", "line 2 has 3 values"),
        ("#! FIELDS time cv.1\n 0 one\n", "line 2 holds something that is not a number"),
        ("0 1\n", "no '#! FIELDS' line"),
        ("", "no '#! FIELDS' line"),
    ):
        path.write_text(text)
        with pytest.raises(GeomGNNError, match=message):
            read_colvar(path)
    path.write_bytes(b"\x89PNG\xff\xfe\n")
    with pytest.raises(GeomGNNError, match="not a COLVAR file"):
        read_colvar(path)
    with pytest.raises(GeomGNNError, match="Cannot read the COLVAR file .*nothing: No such file"):
        read_colvar(tmp_path / "nothing")


def test_a_missing_field_names_the_nearest(tmp_path):
    path = tmp_path / "COLVAR"
    path.write_text("#! FIELDS time opes.bias\n 0 1\n")
    with pytest.raises(GeomGNNError, match=r"'opes_bias' in .*COLVAR\. Did you mean 'opes.bias'"):
        read_colvar(path, ["time", "opes_bias"])
    with pytest.raises(GeomGNNError, match="The fields are time opes.bias"):
        column(read_colvar(path), "xyz")


def test_walkers_are_told_apart(tmp_path):
    data = rows(11)
    first, second = split_walkers({name: data[:, i] for i, name in enumerate(FIELDS)})
    assert len(first["time"]) == 6 and len(second["time"]) == 5
    np.testing.assert_array_equal(second["cv.1"], data[1::2, 2])
    (single,) = split_walkers({"time": data[:, 0]})
    np.testing.assert_array_equal(single["time"], data[:, 0])


@pytest.mark.skipif(not TRAJECTORIES.is_dir(), reason="the shared trajectories are not here")
@pytest.mark.parametrize(
    "name, n_rows, n_fields",
    [("ala2_plumed_masterclass/unbiased_A.COLVAR", 5001, 51), ("chignolin/COLVAR", 1050, 9)],
)
def test_files_that_plumed_wrote(name, n_rows, n_fields):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_colvar(TRAJECTORIES / name)
    assert len(read) == n_fields and {len(values) for values in read.values()} == {n_rows}
    np.testing.assert_array_equal(np.stack(list(read.values()), 1), np.loadtxt(TRAJECTORIES / name))
    assert read["time"][0] == 0 and (np.diff(read["time"]) > 0).all()
