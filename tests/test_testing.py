"""The public suites find the mistakes that they are for, and nothing wrong where there is none."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BROKEN = Path(__file__).parent / "helpers" / "broken_toys.py"
# class of tests -> the tests that fail
FAILURES = {
    "TestNetworkWithoutEnvelope": {"continuous_at_the_cutoff"},
    "TestNetworkInAFixedFrame": {
        "equivariant_under_rotations_and_reflections",
        "invariant_under_translation",
        "wrapped_is_the_same_as_unwrapped",
    },
    "TestMixerThatIsNotInvariant": {"invariant_under_rotations_and_reflections_of_the_vectors"},
    "TestMixerWithAKink": {"gradient_has_no_jumps"},
    "TestMixerThatIgnoresMasks": {"what_is_masked_has_no_influence"},
    "TestBiasWithAWrongDerivative": {"slope_is_the_derivative_of_the_energy"},
    "TestBiasThatForgets": {"a_restart_is_exact"},
    "TestBiasThatIsNotPure": {"states_do_not_change"},
    "TestCVWithAWrongGradient": {"gradient_is_the_derivative"},
    "TestCVOfAnEncoderWithoutEnvelope": {"continuous_when_a_pair_crosses_the_cutoff"},
}
SOUND = {"TestSoundNetwork", "TestSoundMixer", "TestSoundBias", "TestSoundCV"}


@pytest.fixture(scope="module")
def results(repository):
    """{class of tests: {outcome: tests}} of the classes with mistakes."""
    options = ["-q", "-n0", "-rA", "-p", "no:cacheprovider", "--tb=line", "--no-header"]
    command = [sys.executable, "-m", "pytest", *options, str(BROKEN)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr
    found = {}
    for line in done.stdout.splitlines():
        outcome, _, place = line.partition(" ")
        if outcome in ("PASSED", "FAILED", "ERROR"):
            _, kind, test = place.split(" - ")[0].split("::")
            name = test.partition("[")[0].removeprefix("test_")
            found.setdefault(kind, {}).setdefault(outcome, set()).add(name)
    return found


def test_every_class_is_in_the_table(results):
    assert results.keys() == FAILURES.keys() | SOUND
    assert not any("ERROR" in outcomes for outcomes in results.values())


@pytest.mark.parametrize("kind", FAILURES)
def test_a_mistake_is_found(results, kind):
    """By the tests that it is for; others may fail as well."""
    assert FAILURES[kind] <= results[kind]["FAILED"], results[kind]
    assert results[kind]["PASSED"]


@pytest.mark.parametrize("kind", sorted(SOUND))
def test_what_is_sound_passes(results, kind):
    assert "FAILED" not in results[kind] and len(results[kind]["PASSED"]) > 7
