"""Whether a run has converged, in words, by the numbers of its summary."""

import math

import pytest

from openmm_geomgnn.analysis.notes import reading_notes
from openmm_geomgnn.analysis.verdict import judge_run, sentences

GOOD = {
    "crossing_variable": "phi",
    "crossings": 43,
    "crossings_used": 34,
    "delta_F_kJ_per_mol": 9.1,
    "delta_F_error": 0.9,
    "delta_F_first_half": 8.6,
    "delta_F_second_half": 9.8,
    "mean_temperature_K": 300.8,
    "target_temperature_K": 300.0,
    "biased_ns": 2.0,
}


def test_a_bias_on_several_components_heats_while_it_fills():
    hot = GOOD | {"mean_temperature_K": 309.0}
    assert "on 3 components does while it fills" in judge_run(hot, components=3).in_words()
    assert "fills" not in judge_run(hot).in_words() and "fills" not in judge_run(GOOD, components=3).in_words()


@pytest.mark.parametrize(
    ("change", "warned"), [({"mean_temperature_K": 303.2}, True), ({}, False), ({"biased_ns": 0.5}, False)]
)
def test_heat_that_no_verdict_minds_is_a_doubt(change, warned):
    """A run that was 3 K too warm said that it had converged, and was several of its errors off."""
    others = {"hot_frame_share": 0.005, "n_kernels": 90, "effective_sample_size": 900, "hot_threshold_K": 390.0}
    summary = GOOD | others | ({"mean_temperature_K": 303.2} if "biased_ns" in change else {}) | change
    assert judge_run(summary).converged is True
    assert any("3.2 K warmer than its target" in note for note in reading_notes(summary)) == warned


def test_a_run_that_crossed_often_and_agrees_with_itself_has_converged():
    verdict = judge_run(GOOD)
    assert verdict.converged is True and not verdict.reasons
    assert sentences(verdict) == ["the run has converged: it crossed often, and the halves of the data agree."]


@pytest.mark.parametrize(
    ("change", "words", "advice"),
    [
        ({"crossings": 0, "crossings_used": 0, "delta_F_error": math.nan}, "never crossed", "geomgnn fit"),
        ({"crossings_used": 9}, "crossed 9 times", "Run longer"),
        ({"delta_F_error": 2.6}, "more than 1 kT", "Run longer"),
        ({"delta_F_error": math.nan}, "no error bar", "Run longer"),
        ({"delta_F_second_half": 13.0}, "8.6 kJ/mol in the first half of the data and 13.0", "analysis.discard"),
        ({"mean_temperature_K": 307.0}, "307 K", "run.every"),
        ({"mean_temperature_K": 292.0}, "292 K at a target of 300 K, too cold", "run.length"),
    ],
)
def test_what_speaks_against_a_run(change, words, advice):
    verdict = judge_run(GOOD | change)
    assert verdict.converged is False
    (sentence,) = sentences(verdict)
    assert sentence.startswith("Warning: not converged") and words in sentence and advice in sentence
    assert len(verdict.reasons) == 1


def test_a_torsion_that_the_cv_was_learned_for_may_be_worse_known():
    slow = [
        {"torsion": name, "error": error} for name, error in (("phi ALA2", 0.7), ("phi ALA3", 2.8), ("chi1 VAL2", math.nan))
    ]
    verdict = judge_run(GOOD | {"slow_torsion_delta_F": slow})
    assert verdict.converged is False and len(verdict.reasons) == 1
    assert "the error of the free energy along phi ALA3 (2.8 kJ/mol) is more than 1 kT" in verdict.in_words()
    assert judge_run(GOOD | {"slow_torsion_delta_F": slow[:1]}).converged is True


FOUND = {"crossing_variable": "found states", "states": [{"name": "omega 0 deg"}, {"name": "omega 180 deg"}]}


def test_states_that_were_found():
    assert judge_run(GOOD | FOUND).converged is True
    few = judge_run(GOOD | FOUND | {"crossings_used": 1})
    assert few.converged is False and "it crossed 1 time between its states after" in few.in_words()
    one = judge_run(GOOD | FOUND | {"states": FOUND["states"][:1], "crossings": 0, "crossings_used": 0})
    assert one.converged is False and "one state was found" in one.in_words() and "system.structures" in one.in_words()
    assert len(one.reasons) == 1


@pytest.mark.parametrize(("changes", "words"), [(0, "never changed"), (1, "changed 1 time:"), (9, "changed 9 times")])
def test_a_cv_that_moves_without_the_states_is_fooled(changes, words):
    moved = GOOD | {"cv_crossings": 50.0, "state_changes": changes}
    verdict = judge_run(moved)
    assert verdict.converged is False and "moved between its ends 50 times" in verdict.in_words()
    assert words in verdict.in_words() and "geomgnn fit" in verdict.in_words()
    # it is said once what to do about it
    stuck = judge_run(moved | {"crossings": 0, "crossings_used": 0})
    assert stuck.in_words().count("geomgnn fit") == 1 and "never crossed" in stuck.in_words()


@pytest.mark.parametrize("moved", [math.nan, 9.0, 60.0])
def test_a_cv_that_moves_with_the_states_is_not_fooled(moved):
    assert judge_run(GOOD | {"cv_crossings": moved, "state_changes": 43 if moved == 60 else 0}).converged is True


def test_unfinished_runs_and_useless_cvs():
    verdict = judge_run(GOOD, "10 of 20 ps are done", {"grade": "not usable", "reasons": []})
    assert verdict.converged is False
    assert "10 of 20 ps" in verdict.in_words() and "its CV is not usable" in verdict.in_words()


def test_without_states_nothing_is_judged():
    unknown = GOOD | {"crossing_variable": "none", "crossings": math.nan, "delta_F_error": math.nan}
    verdict = judge_run(unknown)
    assert verdict.converged is None and "analysis.cores" in verdict.in_words()
    assert judge_run(unknown | {"mean_temperature_K": 330.0}).converged is False
    assert judge_run(GOOD | {"mean_temperature_K": math.nan}).converged is True
