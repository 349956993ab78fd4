import numpy as np
import pytest
from double_well import EXACT_DELTA_F, KT, bias, metropolis, well

from openmm_geomgnn.analysis.crossings import PHI_CORE_A, PHI_CORE_B, PHI_DIVIDING, core_crossings
from openmm_geomgnn.analysis.intervals import TURN
from openmm_geomgnn.analysis.pipeline import analyse_biased_run
from openmm_geomgnn.analysis.variables import BiasedRun, Variable
from openmm_geomgnn.analysis.verdict import judge_run
from openmm_geomgnn.errors import GeomGNNError

# the basins of alanine dipeptide, along phi
PHI = {"cores": (PHI_CORE_A, PHI_CORE_B), "dividing": PHI_DIVIDING}
# two cores along cv.1
WELLS = ((-1.5, -0.5), (0.5, 1.5))


def biased_run(n_frames=4000, seed=0):
    """COLVAR columns of two walkers in lockstep, their torsions (phi = 1.2*s), and phi in two runs without bias."""
    rng = np.random.default_rng(seed)
    s = metropolis(lambda x: well(x) + bias(x), 2, n_frames, seed)
    colvar = {
        "time": np.repeat(0.5 * np.arange(1, n_frames + 1), 2),
        "walker": np.tile([0.0, 1.0], n_frames),
        "cv.1": s.ravel(),
        "opes.bias": bias(s).ravel(),
        "opes.nker": np.repeat(np.arange(n_frames) // 100 + 1.0, 2),
        "temperature": 300 * (1 + 0.2 * rng.normal(size=2 * n_frames)),
    }
    torsions = {"phi": list(1.2 * s.T), "psi": list(rng.uniform(-np.pi, np.pi, (2, n_frames)))}
    return colvar, torsions, [np.full(1000, phi) for phi in (-1.2, 1.2)]


def angles(torsions, **along):
    """Torsions as variables. along: by name, settings of one that crossings are counted along."""
    return [Variable(name, runs, TURN, **along.get(name, {})) for name, runs in torsions.items()]


def test_a_whole_run():
    colvar, torsions, free = biased_run()
    run = BiasedRun(colvar, 300, unbiased_frame_time=2.0, degrees_of_freedom=51, wall_seconds=12.5)
    variables = angles(torsions, phi={"unbiased": free, **PHI})
    result = analyse_biased_run(run, variables, [("phi", "psi")])
    summary = result.summary
    assert summary["crossings"] == core_crossings(torsions["phi"]) > 20
    assert summary["unbiased_crossings"] == summary["unbiased_crossings_per_ns"] == 0
    assert summary["biased_ns"] == pytest.approx(4.0) and summary["unbiased_ns"] == pytest.approx(4.0)
    assert summary["crossings_per_ns"] == pytest.approx(summary["crossings"] / 4.0)
    assert abs(summary["delta_F_kJ_per_mol"] - EXACT_DELTA_F) < 3 * summary["delta_F_error"] < 3
    assert summary["mean_temperature_K"] == pytest.approx(300, abs=3) and summary["hot_frame_share"] < 0.01
    assert summary["hot_threshold_K"] == pytest.approx(300 * (1 + 3 * np.sqrt(2 / 51)))
    assert 100 < summary["effective_sample_size"] < summary["frames_used"] == 6400
    assert summary["n_kernels"] == 40 and summary["wall_seconds"] == 12.5 and summary["discarded_ps"] == 400
    assert result.notes == [] and list(result.profiles) == ["cv.1", "phi", "psi"]
    assert result.maps["phi", "psi"].values.ndim == 2 and result.running_delta_F.shape == (20, 3)
    # the last point of the running estimate is the estimate
    assert result.running_delta_F[-1, 1:].tolist() == [summary["delta_F_kJ_per_mol"], summary["delta_F_error"]]
    # the same data and seed give the same numbers
    assert analyse_biased_run(run, variables).summary == summary


def test_the_transient_has_no_part_in_free_energies():
    colvar, torsions, _ = biased_run(2000)
    variables = angles(torsions, phi=PHI)
    clean = analyse_biased_run(BiasedRun(colvar, 300), variables, discard_ps=200).summary
    early = colvar["time"] <= 200
    spoiled = dict(colvar)
    spoiled["opes.bias"] = np.where(early, 500.0, colvar["opes.bias"])
    again = analyse_biased_run(BiasedRun(spoiled, 300), variables, discard=0.2).summary
    assert again["delta_F_kJ_per_mol"] == clean["delta_F_kJ_per_mol"]
    assert again["crossings"] == clean["crossings"] == core_crossings(torsions["phi"])
    everything = analyse_biased_run(BiasedRun(spoiled, 300), variables, discard=0).summary
    assert everything["effective_sample_size"] < 1000


def test_frames_find_their_rows_by_time():
    colvar, torsions, _ = biased_run(2000)
    every = BiasedRun(colvar, 300)
    full = analyse_biased_run(every, angles(torsions, phi=PHI))
    # every fifth row has a frame, and times are rounded as in an XTC file
    thin = {name: [t[4::5] for t in runs] for name, runs in torsions.items()}
    times = [np.float32(2.5 * np.arange(1, 401))] * 2
    run = BiasedRun(colvar, 300, frame_times=times)
    some = analyse_biased_run(run, angles(thin, phi=PHI))
    component = every.component("cv.1").values
    for w in (0, 1):
        np.testing.assert_array_equal(run.at_frames(component)[w], component[w][4::5])
        np.testing.assert_allclose(run.at_frames(component)[w], thin["phi"][w] / 1.2)
    assert abs(some.summary["delta_F_kJ_per_mol"] - full.summary["delta_F_kJ_per_mol"]) < 1
    late = BiasedRun(colvar, 300, frame_times=[times[0], np.concatenate([times[1][:200], times[1][200:] + 0.2])])
    with pytest.raises(GeomGNNError, match=r"200 of 400 frames of walker 1 have no COLVAR row.* first one at 502\.7 ps"):
        analyse_biased_run(late, angles(thin))
    with pytest.raises(GeomGNNError, match=r"\[400, 400\] values of phi and \[2000, 2000\] times"):
        analyse_biased_run(every, angles(thin))
    with pytest.raises(GeomGNNError, match="No frame of the trajectory is later than the first 998 ps"):
        early = {"phi": [t[:2] for t in thin["phi"]]}
        analyse_biased_run(BiasedRun(colvar, 300, frame_times=[t[:2] for t in times]), angles(early), discard_ps=998)


def test_a_system_without_torsions():
    colvar, _, _ = biased_run(3000)
    run = BiasedRun(colvar, 300)
    plain = analyse_biased_run(run)
    assert np.isnan(plain.summary["crossings"]) and np.isnan(plain.summary["delta_F_kJ_per_mol"])
    assert plain.summary["crossing_variable"] == "none" and plain.profiles["cv.1"].n_blocks > 10
    result = analyse_biased_run(run, [run.component("cv.1", cores=WELLS, unbiased=[np.full(50, -1.0)])])
    walkers = [colvar["cv.1"][w::2] for w in (0, 1)]
    assert result.summary["crossings"] == core_crossings(walkers, *WELLS) > 10
    assert result.summary["unbiased_crossings"] == 0 and result.crossing.name == "cv.1"
    split = analyse_biased_run(run, [run.component("cv.1", cores=WELLS, dividing=[0])]).summary
    assert abs(split["delta_F_kJ_per_mol"] - EXACT_DELTA_F) < 3 * split["delta_F_error"]
    # few frames are near the barrier, so where the run's own estimate of its place is does not matter
    assert result.summary["delta_F_kJ_per_mol"] == pytest.approx(split["delta_F_kJ_per_mol"], abs=0.15)
    assert abs(result.states.dividing[0]) < 0.4
    with pytest.raises(GeomGNNError, match=r"divided at \[0\.9\].*gaps between the cores.* are \(-0\.5, 0\.5\)"):
        analyse_biased_run(run, [run.component("cv.1", cores=WELLS, dividing=[0.9])])


def test_states_are_found_where_no_variable_has_cores():
    colvar, torsions, _ = biased_run(4000)
    run = BiasedRun(colvar, 300)
    rng = np.random.default_rng(0)
    every = [np.column_stack([phi, 2.8 + 0.3 * rng.normal(size=4000)]) for phi in torsions["phi"]]
    names = ["phi ALA2", "psi ALA2"]
    result = analyse_biased_run(run, torsions=(names, every), n_bootstrap=50)
    summary, (first, second) = result.summary, result.found.states
    assert [state["group"] for state in summary["states"]] == ["A", "B"] and first.population > 0.6
    assert first.name.startswith("phi ALA2 -") and second.name.startswith("phi ALA2 ") and "psi" not in first.name
    assert summary["crossing_variable"] == "found states" and "phi ALA2" in summary["delta_F_definition"]
    assert abs(summary["delta_F_kJ_per_mol"] - EXACT_DELTA_F) < 3 * summary["delta_F_error"] < 3
    counted = core_crossings(torsions["phi"])
    assert abs(summary["crossings"] - counted) < 0.3 * counted and summary["crossings_used"] < summary["crossings"]
    # the CV is what hops
    assert 0.5 * counted < summary["cv_crossings"] < 1.3 * counted and judge_run(summary).converged
    assert result.running_delta_F.shape == (20, 3)
    # cores win
    given = analyse_biased_run(run, angles(torsions, phi=PHI), torsions=(names, every))
    assert given.found is None and given.summary["crossings"] == counted
    with pytest.raises(GeomGNNError, match=r"torsions of \[10, 4000\] frames and times of \[4000, 4000\]"):
        analyse_biased_run(run, torsions=(names, [every[0][:10], every[1]]))


def test_a_cv_that_is_fooled():
    """Two walkers in two states that neither leaves, while the CV goes back and forth; and one state."""
    rng = np.random.default_rng(0)
    colvar = {
        "time": np.repeat(np.arange(1.0, 1001), 2),
        "walker": np.tile([0.0, 1.0], 1000),
        "cv.1": np.column_stack([np.sin(np.arange(1000) / 8), 0.1 + np.sin(np.arange(1000) / 8)]).ravel(),
        "opes.bias": np.zeros(2000),
    }
    basins = [0.3 * rng.normal(size=(1000, 2)) + centre for centre in ([np.pi, 2.5], [0.0, 2.5])]
    run, torsions = BiasedRun(colvar, 300), ["omega", "psi"]
    one = [basins[0], basins[0][::-1]]
    summary = analyse_biased_run(run, torsions=(torsions, one), cv_range=(-1.0, 1.0), n_bootstrap=2).summary
    assert summary["cv_crossings"] == pytest.approx(2 * 1000 / 8 / np.pi, abs=4) and summary["state_changes"] == 0
    words = judge_run(summary).in_words()
    assert "one state was found" in words and "while the states never changed: it is fooled" in words
    # it has covered a small part of its range, or nobody knows which
    for known in (None, (-10.0, 10.0)):
        summary = analyse_biased_run(run, torsions=(torsions, one), cv_range=known, n_bootstrap=2).summary
        assert np.isnan(summary["cv_crossings"]) and "fooled" not in judge_run(summary).in_words()
    summary = analyse_biased_run(run, torsions=(torsions, basins), n_bootstrap=2).summary
    assert summary["crossings"] == 0 and len(summary["states"]) == 2
    assert "never crossed" in judge_run(summary).in_words() and "it is fooled" in judge_run(summary).in_words()


def test_any_number_of_variables_and_maps():
    """A distance and an angle of another period count like torsions and CVs, and every pair that is asked for has a map."""
    colvar, torsions, _ = biased_run(3000)
    run = BiasedRun(colvar, 300)
    s = run.component("cv.1").values
    variables = [
        *angles(torsions),
        Variable("length", [0.5 + 0.1 * values for values in s], unit="nm", cores=((0.35, 0.45), (0.55, 0.65))),
        Variable("tenth", [values / TURN for values in torsions["phi"]], period=1.0),
    ]
    pairs = [("phi", "psi"), ("length", "phi"), ("cv.1", "cv.1"), ("cv.1", "tenth")]
    result = analyse_biased_run(run, variables, pairs, n_bootstrap=20)
    assert list(result.profiles) == ["cv.1", "phi", "psi", "length", "tenth"] and list(result.maps) == pairs
    assert result.summary["crossings"] == core_crossings(s, *WELLS) and result.crossing is variables[2]
    assert abs(result.summary["delta_F_kJ_per_mol"] - EXACT_DELTA_F) < 3 * result.summary["delta_F_error"]
    # the same quantity in another unit has the same free energy: ends of bins apart, as rounding may move a frame
    length, component = result.profiles["length"], result.profiles["cv.1"]
    np.testing.assert_allclose(length.centres[0], 0.5 + 0.1 * component.centres[0])
    seen = component.values < 15
    np.testing.assert_allclose(length.values[seen], component.values[seen], atol=0.3)
    tenth, phi = result.profiles["tenth"], result.profiles["phi"]
    np.testing.assert_allclose(TURN * tenth.centres[0], phi.centres[0], atol=1e-12)
    assert np.nanmax(np.abs(tenth.values - phi.values)) < 0.3 and tenth.n_blocks == phi.n_blocks
    # of a map summed over one of its variables, what lies on both sides of 0 along the other differs by delta F
    energies = result.maps["phi", "psi"]
    population = np.nansum(np.exp(-energies.values / KT), axis=1)
    right = energies.centres[0] > 0
    assert -KT * np.log(population[right].sum() / population[~right].sum()) == pytest.approx(EXACT_DELTA_F, abs=1.5)


def test_one_variable_has_cores():
    colvar, torsions, _ = biased_run(100)
    run = BiasedRun(colvar, 300)
    with pytest.raises(GeomGNNError, match=r"cv\.1 and phi have cores, but crossings are counted along one variable"):
        analyse_biased_run(run, [run.component("cv.1", cores=WELLS), *angles(torsions, phi=PHI)])
    with pytest.raises(GeomGNNError, match="map is asked for over omega, but the variables are cv.1, phi, psi"):
        analyse_biased_run(run, angles(torsions), [("phi", "omega")])


def hops(place_a, place_b, n_frames=600):
    """Two walkers that hop between two places, three times as long at the first, and are biased by 4 kJ/mol at the second:
    (columns of COLVAR with the place as cv.1, angles by walker, F(second) - F(first))."""
    at_b = np.stack([np.arange(n_frames) % 40 < 10, np.arange(n_frames) % 80 >= 60], axis=1)
    noise = 0.05 * np.sin(np.arange(2.0 * n_frames)).reshape(n_frames, 2)
    place = np.where(at_b, place_b, place_a) + noise
    colvar = {
        "time": np.repeat(np.arange(1.0, n_frames + 1), 2),
        "walker": np.tile([0.0, 1.0], n_frames),
        "cv.1": place.ravel(),
        "opes.bias": np.where(at_b, 4.0, 0.0).ravel(),
        "opes.nker": np.full(2 * n_frames, 9.0),
    }
    turned = [np.angle(np.exp(1j * walker)) for walker in place.T]
    return colvar, turned, -KT * np.log(at_b.mean() / (1 - at_b.mean())) - 4.0


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("name", "place_a", "place_b", "core_a", "core_b"),
    [
        ("phi", -1.2, 1.0, (-2.8, -0.5), (0.3, 2.0)),
        ("omega", np.pi, 0.0, (2.6, -2.6), (-0.5, 0.5)),  # trans lies across 180 degrees
        ("chi1", 3.0, -1.0, (2.0, -3.0), (-1.5, -0.5)),
        ("chi1", 1.0, -2.9, (0.5, 1.5), (3.1, -2.5)),
        ("cv.1", -7.0, -3.0, (-8, -6), (-4, -1)),
    ],
)
def test_states_follow_the_cores(name, place_a, place_b, core_a, core_b, swapped):
    """However cores are named and wherever they lie on the circle, B is the second one, and nothing is left out."""
    colvar, values, expected = hops(place_a, place_b)
    cores = (core_b, core_a) if swapped else (core_a, core_b)
    run = BiasedRun(colvar, 300)
    if name == "cv.1":
        variables = [run.component(name, cores=cores)]
    else:
        variables = angles({name: values, "psi": values}, **{name: {"cores": cores}})
    result = analyse_biased_run(run, variables, discard=0, n_bootstrap=20)
    summary = result.summary
    assert summary["delta_F_kJ_per_mol"] == pytest.approx(-expected if swapped else expected)
    assert summary["crossings"] == 29 + 14 and summary["crossing_variable"] == name
    assert (summary["core_A"], summary["core_B"]) == cores
    assert summary["delta_F_definition"].startswith("F(B) - F(A), ") and name in summary["delta_F_definition"]
    in_a, in_b = result.states.members(result.crossing.values)
    assert all((a ^ b).all() for a, b in zip(in_a, in_b, strict=True))


def test_states_divided_where_they_are_said_to_be():
    colvar, torsions, _ = biased_run(1000)
    result = analyse_biased_run(BiasedRun(colvar, 300), angles(torsions, phi=PHI))
    assert result.states.core_a == (-2.8, -0.5) and result.states.core_b == (0.3, 2.0)
    assert result.states.intervals == ((2.2, 0.0), (0.0, 2.2))
    assert result.summary["delta_F_definition"] == "F(B) - F(A), B: phi from 0.0 to 126.1 deg; A: the rest"
    in_b = [(v > 0) & (v < 2.2) for v in torsions["phi"]]
    for found, expected in zip(result.states.members(torsions["phi"])[1], in_b, strict=True):
        np.testing.assert_array_equal(found, expected)
    # without cores nothing is counted, but what is there is shown
    alone = analyse_biased_run(BiasedRun(colvar, 300), angles({"psi": torsions["psi"]}))
    assert alone.states is None and alone.crossing is None and list(alone.profiles) == ["cv.1", "psi"] and alone.maps == {}


def test_all_biases_count_in_the_weights():
    colvar, _, _ = biased_run(1000)

    def summary(colvar, **settings):
        run = BiasedRun(colvar, 300, **settings)
        return analyse_biased_run(run, [run.component("cv.1", cores=WELLS)]).summary

    whole = summary(colvar)
    halves = {name: values for name, values in colvar.items() if name != "opes.bias"}
    halves["opes.bias"], halves["wall.bias"] = colvar["opes.bias"] - 3, np.full(2000, 3.0)
    assert summary(halves)["delta_F_kJ_per_mol"] == pytest.approx(whole["delta_F_kJ_per_mol"])
    only = summary(halves, bias_fields="wall.bias")
    assert only["effective_sample_size"] == pytest.approx(only["frames_used"])


def test_warnings_of_a_bad_run():
    colvar, torsions, free = biased_run(1500)
    variables = angles(torsions, phi=PHI)
    hot = dict(colvar, temperature=colvar["temperature"] + 370, **{"opes.nker": np.ones(3000)})
    notes = " ".join(analyse_biased_run(BiasedRun(hot, 300, degrees_of_freedom=51), variables).notes)
    assert (
        judge_run(analyse_biased_run(BiasedRun(hot, 300), variables).summary).in_words().count("heat fakes crossings") == 1
    )
    assert "% of the frames are hotter than" in notes and "1 kernels only" in notes
    stuck = {"phi": [-1.2 - 0.2 * np.abs(t) for t in torsions["phi"]], "psi": torsions["psi"]}
    result = analyse_biased_run(BiasedRun(colvar, 300), angles(stuck, phi={"unbiased": free, **PHI}))
    assert result.summary["crossings"] == 0 and np.isnan(result.summary["delta_F_kJ_per_mol"])
    assert "never crossed" in judge_run(result.summary).in_words() and "state B was never visited" in " ".join(result.notes)
    cold = {name: values for name, values in colvar.items() if name != "temperature"}
    unknown = analyse_biased_run(BiasedRun(cold, 300), variables)
    assert np.isnan(unknown.summary["mean_temperature_K"]) and "have no temperature" in " ".join(unknown.notes)


def test_runs_that_do_not_fit_together():
    colvar, torsions, _ = biased_run(50)

    def check(message, colvar=colvar, torsions=torsions, data=None, phi=PHI, **settings):
        with pytest.raises(GeomGNNError, match=message):
            run = BiasedRun(colvar, **{"temperature": 300, **(data or {})})
            analyse_biased_run(run, angles(torsions, phi=phi), **settings)

    check("phi for 1 walkers and COLVAR rows of 2", torsions={"phi": torsions["phi"][:1]})
    check("phi reaches .* in radians, not degrees", torsions={"phi": [np.degrees(t) for t in torsions["phi"]]})
    check("psi reaches nan", torsions=torsions | {"psi": [np.full(50, np.nan)] * 2})
    check("phi has arrays of shape", torsions={"phi": [t[:, None] for t in torsions["phi"]]})
    check("cores .* overlap", phi={"cores": ((-2.8, 0.5), (0.3, 2.0))})
    check("No column is named \\*.bias", colvar={k: v for k, v in colvar.items() if k != "opes.bias"})
    check("Did you mean 'opes.bias'", data={"bias_fields": ["opes_bias"]})
    check("rows were written twice", colvar=dict(colvar, walker=np.zeros(100)))
    check("no field 'time'", colvar={k: v for k, v in colvar.items() if k != "time"})
    check("too few to analyse", colvar={k: v[:2] for k, v in colvar.items()})
    check("target temperature", data={"temperature": -1})
    check("share of the run", discard=1.5)
    check("discard_ps must be", discard_ps=1e6)
    with pytest.raises(GeomGNNError, match="no field 'omega'"):
        BiasedRun(colvar, 300).component("omega")
    with pytest.raises(GeomGNNError, match="z reaches 1.5: it must be finite and within its period of 1"):
        Variable("z", [np.array([0.0, 1.5])], period=1.0)
