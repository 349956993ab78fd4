"""States are found where there are some, and only there."""

import numpy as np
import pytest
from double_well import KT, metropolis

from openmm_geomgnn.analysis.metastable import find_metastable_states
from openmm_geomgnn.analysis.resampling import relative_weights
from openmm_geomgnn.errors import GeomGNNError


def wander(rng, frames, time, torsions, width=0.35):
    """Angles that fluctuate in one basin, with a relaxation time in frames: (frames, torsions)."""
    kept, values = np.exp(-1 / time), np.zeros((frames, torsions))
    values[0] = rng.normal(size=torsions)
    for frame in range(1, frames):
        values[frame] = kept * values[frame - 1] + np.sqrt(1 - kept**2) * rng.normal(size=torsions)
    return width * values


def hops(rng, frames, life, centres):
    """A run that hops between basins with these centres (n, T): angles and basins."""
    basin = np.zeros(frames, int)
    for frame in range(1, frames):
        leaves = rng.random() < 1 / life
        basin[frame] = (
            (basin[frame - 1] + leaves * rng.integers(1, len(centres))) % len(centres) if leaves else basin[frame - 1]
        )
    angles = np.asarray(centres)[basin] + wander(rng, frames, 3, len(centres[0]))
    return (angles + np.pi) % (2 * np.pi) - np.pi, basin


@pytest.mark.parametrize("seed", range(3))
def test_one_basin_is_one_state(seed):
    rng = np.random.default_rng(seed)
    walk = [0.0]
    for step in 0.2 * rng.normal(size=3000):  # diffusion in a box: slow, but nothing is metastable
        walk.append(walk[-1] + step if abs(walk[-1] + step) < 1 else walk[-1])
    for runs in (
        [wander(rng, 1000, 2, 2)],
        [wander(rng, 1000, 20, 3) for _ in range(2)],
        [wander(rng, 60, 5, 12) for _ in range(6)],  # short runs in many dimensions hardly overlap
        [np.stack([walk, 0.3 * rng.normal(size=len(walk))], axis=1)],
    ):
        found = find_metastable_states(runs, 1.0, seed=seed)
        assert [state.name for state in found.states] == ["all frames"]
        assert found.rarest_cut() is None and found.crossings.tolist() == [[0]]
        assert all((states == 0).all() for states in found.membership)


def test_basins_are_found_named_and_their_crossings_counted():
    rng = np.random.default_rng(0)
    # the third torsion turns without any slow motion
    centres = [[-1.4, 2.6, 0.0], [-1.4, -0.5, 0.0], [1.0, 3.0, 0.0]]
    made = [hops(rng, 1500, 60, centres) for _ in range(2)]
    runs = [np.column_stack([angles[:, :2], rng.uniform(-np.pi, np.pi, len(angles))]) for angles, _ in made]
    found = find_metastable_states(runs, 1.0, ["phi ALA2", "psi ALA2", "chi1 ALA2"])
    assert len(found) == 3 and sum(state.frames for state in found.states) == 3000
    assert [state.population for state in found.states] == sorted((s.population for s in found.states), reverse=True)
    # which is which, by the basins that they were made of
    basins, states = np.concatenate([basin for _, basin in made]), np.concatenate(found.membership)
    table = np.array([[np.count_nonzero((basins == b) & (states == s)) for s in range(3)] for b in range(3)])
    number = table.argmax(1)
    assert sorted(number) == [0, 1, 2] and table.max(1).sum() > 0.98 * 3000
    assert all("chi1" not in state.name for state in found.states)
    assert "psi ALA2" in found.states[number[0]].name and "psi ALA2" in found.states[number[1]].name
    phi = float(found.states[number[2]].name.split("phi ALA2 ")[1].split()[0])
    assert phi == pytest.approx(np.degrees(1.0), abs=5)
    true = np.zeros((3, 3), int)
    for _, basin in made:
        np.add.at(true, (number[basin[:-1]], number[basin[1:]]), 1)
    np.fill_diagonal(true, 0)
    assert abs(found.crossings.sum() - true.sum()) <= 0.15 * true.sum() and true.sum() > 30
    for k, state in enumerate(found.states):
        run, frame = state.example
        assert found.membership[run][frame] == k
        centre = np.array(centres[list(number).index(k)])
        assert (np.cos(runs[run][frame] - centre)[:2] > 0.95).all()
    inside = [cores[cores >= 0] for cores in found.cores]
    assert sum(map(len, inside)) > 2000
    assert np.isnan(found.states[0].error)
    # the same data and seed give the same states
    again = find_metastable_states(runs, 1.0, ["phi ALA2", "psi ALA2", "chi1 ALA2"])
    assert again.states[0].name == found.states[0].name and (again.crossings == found.crossings).all()


def test_states_that_never_exchanged_are_two():
    rng = np.random.default_rng(0)
    trans, cis = wander(rng, 300, 3, 3) + [np.pi, 2.6, 0], wander(rng, 500, 3, 3) + [0, 2.6, 0]
    # frames at 1 ps and at 0.5 ps
    found = find_metastable_states([trans, cis], [1.0, 0.5], ["omega ACE1-PRO2", "psi PRO2", "omega PRO2-NME3"])
    assert len(found) == 2 and found.rarest_cut() == ((0,), (1,), 0)
    names = [state.name for state in found.states]
    assert all(name.startswith("omega ACE1-PRO2 ") and "," not in name for name in names)
    assert abs(float(names[0].split()[2])) < 10 and abs(float(names[1].split()[2])) > 170
    # one event, seen once, is enough
    once = find_metastable_states([np.concatenate([trans, cis])], 1.0)
    assert len(once) == 2 and once.rarest_cut().crossings == 1


def test_a_slow_event_does_not_hide_a_faster_one():
    rng = np.random.default_rng(1)
    fast, _ = hops(rng, 1500, 50, [[0.0, -1.5], [0.0, 1.5]])
    other = wander(rng, 500, 3, 2) + [np.pi, -1.5]
    found = find_metastable_states([fast, other], 1.0)
    assert len(found) == 3
    cut = found.rarest_cut()
    assert cut.crossings == 0 and sorted(map(len, cut[:2])) == [1, 2]
    # a state with next to no population does not decide
    assert found.rarest_cut(least=0.3).crossings > 10


def energy(s):
    return 8 * KT * (s**2 - 1) ** 2 + 1.5 * s


def flattening(s):
    return np.where(np.abs(s) < 1, -energy(s), -energy(np.sign(s))) + 0.3 * s


@pytest.mark.parametrize("seed", range(2))
def test_weights_give_back_the_barrier_that_a_bias_has_filled(seed):
    s = list(metropolis(lambda x: energy(x) + flattening(x), 2, 3000, seed).T)
    runs = [np.column_stack([1.2 * x, 0.3 * np.random.default_rng(seed).normal(size=len(x))]) for x in s]
    logw = [flattening(x) / KT for x in s]
    assert len(find_metastable_states(runs, 1.0)) == 1
    logw[0][:300] = -np.inf  # a transient, whose frames have a state all the same
    found = find_metastable_states(runs, 1.0, ["phi", "psi"], weights=logw)
    assert len(found) == 2 and len(found.membership[0]) == 3000
    left = np.concatenate(s) < 0
    weights = np.concatenate(relative_weights(logw))
    exact = weights[left].sum() / weights.sum()
    assert found.states[0].population == pytest.approx(exact, abs=0.02) and exact > 0.6
    assert 0 < found.states[0].error < 0.2
    crossings = int(found.crossings.sum())
    counted = sum(np.count_nonzero(np.diff(np.sign(x[np.abs(x) > 0.6]))) for x in s)
    assert 0.6 * counted < crossings < 1.1 * counted


def test_there_are_no_more_states_than_asked_for():
    rng = np.random.default_rng(0)
    centres = np.array([(x, y) for x in (-2.1, 0.0, 2.1) for y in (-2.1, 0.0, 2.1)])
    apart = [wander(rng, 50, 3, 2, 0.2) + centre for centre in centres]
    assert len(find_metastable_states(apart, 1.0, most=9)) == 9
    assert len(find_metastable_states(apart, 1.0, most=4)) == 3  # of one torsion


def test_bad_input_is_refused():
    angles = np.zeros((20, 2))
    with pytest.raises(GeomGNNError, match=r"shapes \[\(20, 2\), \(20, 3\)\]"):
        find_metastable_states([angles, np.zeros((20, 3))], 1.0)
    with pytest.raises(GeomGNNError, match="not finite"):
        find_metastable_states([np.full((20, 2), np.nan)], 1.0)
    with pytest.raises(GeomGNNError, match="1 names for 2 torsions"):
        find_metastable_states([angles], 1.0, ["phi"])
    with pytest.raises(GeomGNNError, match="log-weights have the shapes"):
        find_metastable_states([angles], 1.0, weights=[np.zeros(19)])
    with pytest.raises(GeomGNNError, match="longer than the lag time of 30 ps"):
        find_metastable_states([angles], 1.0, lag=30)
    with pytest.raises(GeomGNNError, match="no frames"):
        find_metastable_states([angles[:0]], 1.0)
    # nothing turns: one state
    assert len(find_metastable_states([angles[:, :0]], 1.0)) == len(find_metastable_states([angles], 1.0)) == 1


def test_a_bias_that_carries_it_over_the_barrier():
    """Frames that have nothing to do with one another show no kinetics; their weights show the barrier."""
    rng = np.random.default_rng(3)
    angles = rng.uniform(-np.pi, np.pi, 4000)
    free_energy = 8 * np.cos(2 * angles)  # kT; wells at -90 and 90 degrees
    found = find_metastable_states([angles[:, None]], 1.0, ["chi"], weights=[-free_energy])
    assert len(found) == 2
    assert [state.population for state in found.states] == pytest.approx([0.5, 0.5], abs=0.1)
    wells = [np.abs(angles - centre) < 1.0 for centre in (-np.pi / 2, np.pi / 2)]
    assert sorted(np.unique(found.membership[0][well]).tolist() for well in wells) == [[0], [1]]
    assert len(find_metastable_states([angles[:, None]], 1.0, ["chi"], weights=[0 * angles])) == 1
