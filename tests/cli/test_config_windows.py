"""The settings of windows and tokens in YAML, on their way to a fit."""

from protocol_texts import MINIMAL

from openmm_geomgnn.cli.fitting import fit_settings
from openmm_geomgnn.cli.settings.yaml_files import dump

SPACE = MINIMAL + "cv:\n  window: space\n  radius: 5 A\n  reference: b.pdb\n  pooling: mean\n"


def test_windows_by_space(load_text, shipped_files, tmp_path):
    protocol = load_text(SPACE)
    settings = fit_settings(protocol.cv, 0.2, 1).tokens
    assert (settings.window, settings.radius, settings.pooling) == ("space", 0.5, "mean")
    assert settings.reference == str(tmp_path / "input" / "b.pdb")
    assert load_text(dump(protocol)).cv == protocol.cv


def test_the_first_frame_is_the_reference_otherwise(load_text, shipped_files):
    settings = fit_settings(load_text(MINIMAL + "cv:\n  window: space\n").cv, 0.2, 1).tokens
    assert (settings.radius, settings.reference, settings.pooling) == (0.45, None, "sum")


def test_wrong_windows_are_refused(refusal, shipped_files):
    for line, parts in (
        ("window: sequence\n  reference: b.pdb", ["reference is given, but window: sequence", "window: space"]),
        ("window: space\n  reference: c.pdb", ["c.pdb"]),
        ("window: space\n  reference: notes.txt", ["notes.txt"]),
        ("window: space\n  radius: 0", ["radius is 0", "greater than 0", "nm"]),
        ("window: space\n  radius: 5", ["radius is 5", "at most 2", "nm"]),
        ("pooling: max", ["pooling is 'max'", "'sum' or 'mean'"]),
        ("window: spaces", ["'all', 'sequence' or 'space'", "Did you mean 'space'?"]),
    ):
        message = refusal(MINIMAL + f"cv:\n  {line}\n")
        assert all(part in message for part in parts), message
