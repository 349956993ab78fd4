"""What the data say of a CV: transitions between its extremes, timescales where there are any, and a verdict in words."""

import numpy as np
import pytest
from cv_files import changed
from molecules import ala2, random_cv

from openmm_geomgnn.cli import run as workflow
from openmm_geomgnn.cli.settings.yaml_files import load_protocol
from openmm_geomgnn.cv.kernel_widths import basin_widths
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.verdict import (
    SEPARATES,
    estimate_note,
    in_words,
    judge,
    judge_student,
    missed,
    timescale_notes,
)
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import fit_linear, timescales, transitions


def relaxing(length, time, rng, noise=4):
    """(T, 1 + noise) an Ornstein-Uhlenbeck process that forgets within `time` frames, and white noise."""
    decay, x = np.exp(-1 / time), np.zeros(length)
    x[0] = rng.normal()
    for t in range(1, length):
        x[t] = decay * x[t - 1] + np.sqrt(1 - decay**2) * rng.normal()
    return np.column_stack([x, rng.normal(size=(length, noise))])


def found(trajs, lag):
    """(timescale in frames, its note, transitions) of a linear fit to trajectories."""
    model = fit_linear(trajs, lag, 1)
    result = transitions([model.transform(x) for x in trajs], lag, model.singular_values)
    (value,), (note,) = timescale_notes(timescales(model.singular_values, lag), lag, result.separates_runs)
    return value, note, int(result.counts[0])


class TestTransitions:
    @pytest.mark.parametrize("lag", [1, 5, 25])
    @pytest.mark.parametrize("apart", [2.5, 10])
    def test_runs_of_noise_that_are_apart_have_no_timescale(self, apart, lag):
        """Even where noise takes one run's values into the other's."""
        rng = np.random.default_rng(lag)
        runs = [rng.normal(size=(750, 5)) + np.eye(5)[0] * shift for shift in (0, apart)]
        value, note, count = found(runs, lag)
        assert value is None and note == SEPARATES and (count == 0 or apart < 10)

    def test_three_runs_two_of_which_mix(self):
        rng = np.random.default_rng(0)
        runs = [np.column_stack([relaxing(500, 40, rng), np.full(500, shift)]) for shift in (0.0, 0.0, 9.0)]
        model = fit_linear(runs, 10, 2)
        result = transitions([model.transform(x) for x in runs], 10, model.singular_values)
        assert result.separates_runs.tolist() == [True, False] and result.counts[0] == 0 < result.counts[1]

    @pytest.mark.parametrize(("runs", "length"), [(1, 9000), (3, 3000), (45, 200)])
    def test_a_process_that_relaxes_has_its_timescale(self, runs, length):
        rng = np.random.default_rng(1)
        value, note, count = found([relaxing(length, 40, rng) for _ in range(runs)], 10)
        assert value == pytest.approx(40, rel=0.3) and note == "" and 30 < count < 180

    def test_a_jump_process_is_counted_exactly(self):
        """Two states of unequal share: the passages within each run, none across runs, none of the noise."""
        rng = np.random.default_rng(2)
        states = [np.repeat([0, 1, 0, 1, 0], [300, 20, 400, 30, 250]), np.repeat([0, 1], [900, 40]), np.zeros(500)]
        runs = [np.column_stack([s, 0 * s]) + 0.15 * rng.normal(size=(len(s), 2)) for s in states]
        assert found(runs, 5)[2] == 5

    @pytest.mark.parametrize(("on_the_way", "expected"), [(0, 0), (12, 12)])
    def test_frames_between_two_basins(self, on_the_way, expected):
        rng = np.random.default_rng(4)
        states = np.concatenate([np.zeros(500), np.linspace(0.4, 0.6, on_the_way), np.ones(500)])
        result = transitions([states[:, None] + 0.02 * rng.normal(size=(len(states), 1))], 5, [0.9])
        assert result.between.tolist() == [expected]

    def test_one_basin_has_frames_in_its_middle(self):
        noise = np.random.default_rng(5).normal(size=(1000, 1))
        assert transitions([noise], 1, [0.3]).between[0] > 100

    def test_faster_than_the_lag_is_unresolved(self):
        value, note, _ = found([relaxing(2000, 4, np.random.default_rng(3))], 10)
        assert value is None and note == "unresolved, below the lag of 10 ps"


class TestVerdict:
    GOOD = {
        "vamp2_training": 1.8,
        "vamp2_held_out": 1.75,
        "vamp2_held_out_error": 0.02,
        "timescale_notes": [""],
        "transitions": [12],
        "rate_300K_per_ps": [8.0],
        "in_basin_spread": [0.2],
    }

    def test_frames_between_are_enough(self):
        assert judge({**self.GOOD, "frames_between": [5]})["reasons"] == []
        fast = judge({**self.GOOD, "frames_between": [0], "timescale_notes": ["unresolved, below the lag"]})
        assert len(fast["reasons"]) == 1  # where nothing slow was found there are no basins
        assert (
            estimate_note(None) == ""
            and estimate_note(23.04) == "about 23 ps; an estimate, from biased frames in rescaled time"
        )

    def test_usable(self):
        assert judge(self.GOOD) == {"grade": "usable", "reasons": []} and in_words(judge(self.GOOD)) == "usable"

    @pytest.mark.parametrize(
        ("changes", "grade", "reason"),
        [
            ({"vamp2_training": 1.767, "vamp2_held_out": 1.019}, "not usable", "1.019 .*a constant's 1 .1.767 in"),
            ({"timescale_notes": ["unresolved, below the lag"]}, "not usable", "relaxes within the lag; nothing slow"),
            ({"vamp2_held_out": 1.3}, "weak", "over-fitted"),
            ({"vamp2_held_out_error": 0.4}, "weak", "within two errors of a constant"),
            ({"vamp2_held_out": None}, "weak", "no held-out score"),
            ({"timescale_notes": [SEPARATES], "transitions": [0]}, "weak", "no trajectory crosses"),
            ({"timescale_notes": [SEPARATES], "transitions": [40]}, "weak", "averages are further apart"),
            ({"transitions": [1]}, "weak", "it has 1 transition between"),
            ({"frames_between": [0]}, "weak", "no frame lies between the basins, so .* fit it again"),
            ({"frames_between": [3]}, "weak", "3 frames lie between the basins"),
            ({"timescale_notes": [estimate_note(23.0)]}, "usable", "rescaled time, so its timescale is an estimate"),
            ({"untrained_elements": ["P"]}, "weak", "its encoder was not trained on P, so .* no better than random weights"),
            ({"in_basin_spread": [0.01]}, "weak", "stiff: .* 0.032 wide, and kernels as wide as a basin have 0.01"),
        ],
    )
    def test_reasons(self, changes, grade, reason):
        verdict = judge({**self.GOOD, **changes})
        assert verdict["grade"] == grade and len(verdict["reasons"]) == 1
        with pytest.raises(GeomGNNError, match=reason):
            raise GeomGNNError(in_words(verdict))

    def test_stiffness_is_of_the_kernels_that_a_bias_has(self):
        """Several components have wider ones."""
        assert judge({**self.GOOD, "in_basin_spread": [0.01], "kernel_widening": 2.28})["reasons"] == []

    def test_the_worst_comes_first_and_components_are_named(self):
        two = {name: value * 2 for name, value in self.GOOD.items() if isinstance(value, list)}
        verdict = judge({**self.GOOD, **two, "vamp2_held_out": 1.01, "timescale_notes": ["", "unresolved, below"]})
        assert verdict["grade"] == "not usable" and verdict["reasons"][0].startswith("the held-out")
        assert verdict["reasons"][1] == "cv.2 relaxes within the lag"

    def test_a_student_is_no_better_than_its_teacher(self):
        teacher = {"verdict": judge({**self.GOOD, "transitions": [2]})}
        inherited = judge_student(teacher, reproduces([0.999]))
        assert inherited["grade"] == "weak" and inherited["reasons"][0].startswith("its teacher has 2 transitions between")
        poor = {"verdict": judge({**self.GOOD, "vamp2_held_out": 1.01})}
        assert judge_student(poor, reproduces([1.0]))["reasons"][0].startswith(
            "for its teacher, the held-out VAMP-2 score is 1.010"
        )
        assert judge_student({}, reproduces([0.999, 0.99])) == {"grade": "usable", "reasons": []}
        assert judge_student({}, reproduces([0.999, 0.9]))["grade"] == "weak"
        assert judge_student({}, reproduces([0.3]))["grade"] == "not usable"

    def test_an_error_that_no_kernel_resolves_is_none(self):
        """An R2 of frames in basins is of their fluctuation, which may be all that a component shows there."""
        facts = {"in_basin_spread": [0.18, 0.04], "least_kernel_width": 0.1}
        assert basin_widths(facts).tolist() == [0.18, 0.1] and not len(basin_widths({}))
        assert judge_student({**facts, "kernel_widening": 2}, reproduces([0.96, 0.999], rmse=0.05))["grade"] == "usable"
        assert judge_student(facts, reproduces([0.96, 0.999], rmse=0.04)) == {"grade": "usable", "reasons": []}
        assert judge_student(facts, reproduces([0.96, 0.999], rmse=0.05))["grade"] == "weak"
        assert judge_student({}, reproduces([0.96, 0.999], rmse=0.04))["grade"] == "weak"
        assert missed(reproduces([0.5, np.nan])["held_out"], 0.98, [0.18, 0.1]) == [0, 1]

    def test_the_gradient_of_a_student_counts(self):
        """Along turns about bonds most, by which a bias crosses."""
        stiff = judge_student({}, reproduces([0.999], gradient=0.6))
        assert stiff["grade"] == "usable" and "off by 60 %, mostly along bonds and angles" in stiff["reasons"][0]
        turning = judge_student({}, reproduces([0.999], gradient=0.6, turning=0.4))
        assert turning["grade"] == "weak" and "by which a bias crosses, is off by 40 %" in turning["reasons"][0]
        assert "as a whole" in turning["reasons"][1]


def reproduces(r2, rmse=1.0, gradient=0.1, turning=0.1):
    """Errors of a student, the same on all frames."""
    found = {"r2": r2, "rmse": [rmse] * len(r2), "gradient_error": [gradient], "turning_error": [turning]}
    return {"held_out": found, "turned": found}


FACTS = {
    **TestVerdict.GOOD,
    **{"vamp2_held_out": 1.01, "timescales_ps": [22.4], "singular_values": [0.8], "range": [[-1.0, 1.0]]},
}


class TestRun:
    @pytest.fixture
    def protocol(self, tmp_path):
        def load(**facts):
            cv = random_cv(ala2().topology, dimension=1, lagtime=5.0, training={**FACTS, **facts})
            cv.save(tmp_path / "given.safetensors")
            path = tmp_path / "given.yaml"
            path.write_text("system: {structures: [ala2-c7eq.pdb]}\ncv: {file: given.safetensors}\n")
            return lambda **settings: load_protocol(path, {"output": str(tmp_path / "run"), **settings})

        return load

    def test_stops_at_a_cv_that_is_not_usable(self, protocol, monkeypatch):
        load = protocol(verdict=judge(FACTS))
        monkeypatch.setattr(workflow, "run_biased", lambda *arguments: pytest.fail("it was biased"))
        with pytest.raises(GeomGNNError, match="CV is not usable: the held-out.* set run.accept: not-usable"):
            workflow.run_protocol(load())
        reached = []
        monkeypatch.setattr(workflow, "run_biased", lambda *arguments: reached.append(1))
        monkeypatch.setattr(workflow, "_comparison", lambda *arguments: None)
        monkeypatch.setattr(workflow, "report", lambda *arguments: None)
        # the folder that it stopped in goes on
        workflow.run_protocol(load(**{"run.accept": "not-usable"}))
        assert reached == [1]

    def test_a_file_without_a_verdict_goes_on(self, protocol, monkeypatch, capsys):
        load, reached = protocol(), []
        for name in ("run_biased", "_comparison", "report"):
            monkeypatch.setattr(workflow, name, lambda *arguments, name=name: reached.append(name))
        workflow.run_protocol(load())
        assert reached == ["run_biased", "_comparison", "report"] and "Verdict" not in capsys.readouterr().out

    def test_accept_may_ask_for_more(self, protocol):
        weak = judge({**FACTS, "vamp2_held_out": 1.7, "transitions": [2]})
        with pytest.raises(GeomGNNError, match="CV is weak: it has 2 transitions.* set run.accept: weak"):
            workflow.run_protocol(protocol(verdict=weak)(**{"run.accept": "usable"}))


def test_the_command_line_says_what_the_timescales_rest_on():
    training = {
        **TestVerdict.GOOD,
        "timescales_ps": [22.4, None, None],
        "timescale_notes": ["", SEPARATES, "unresolved, below the lag of 5 ps"],
        "transitions": [1, 0, 30],
        "verdict": {"grade": "weak", "reasons": ["cv.2 separates runs"]},
    }
    cv = random_cv(ala2().topology, dimension=3, lagtime=5.0, training=training)
    figures, verdict = workflow.describe(cv)
    assert "held out 1.750 +- 0.020 at a lag of 5 ps; cv.1: timescale 22.4 ps (1 transition); cv.2: separ" in figures
    assert "cv.2: separates runs; no timescale; cv.3: unresolved, below the lag of 5 ps; spread" in figures
    assert verdict == "Verdict: weak: cv.2 separates runs."
    # files before version 4
    cv.training_information = {**TestVerdict.GOOD, "timescales_ps": [22.4, 7.1]}
    del cv.training_information["timescale_notes"], cv.training_information["transitions"]
    (figures,) = workflow.describe(cv)
    assert "cv.1: timescale 22.4 ps; cv.2: timescale 7.1 ps; spread" in figures


class TestFile:
    def test_components_without_a_timescale(self, tmp_path):
        cv = random_cv(ala2().topology, training={"timescales_ps": [None, 3.5], "vamp2_held_out": None})
        cv.save(tmp_path / "a.cv")
        assert CollectiveVariable.load(tmp_path / "a.cv").training_information == cv.training_information

    @pytest.mark.parametrize(("mixer", "kept"), [("none", "vamp2_held_out"), ("mlp", "vamp2_validation")])
    def test_version_3_called_a_score_held_out_that_chose_the_epoch(self, mixer, kept, tmp_path):
        cv = random_cv(ala2().topology, mixer=mixer, training={"vamp2_training": 1.5, "vamp2_held_out": 1.4})
        cv.save(tmp_path / "new.cv")

        def older(metadata, tensors):
            metadata["version"] = 3
            del metadata["checksum"]  # which later versions have

        old = CollectiveVariable.load(changed(tmp_path / "new.cv", older))
        assert old.training_information == {"vamp2_training": 1.5, kept: 1.4}
        assert CollectiveVariable.load(tmp_path / "new.cv").training_information["vamp2_held_out"] == 1.4
