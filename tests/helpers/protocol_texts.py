"""Settings as text, for the tests of what reads them."""

from pathlib import Path

PROTOCOLS = Path(__file__).resolve().parents[2] / "protocols"
SHIPPED = ("ala2-c7eq.pdb", "ala2-c7ax.pdb", "et-64.safetensors", "conformers.safetensors")
MINIMAL = "system:\n  structures: [a.pdb, b.pdb]\n"
# a whole run in a minute
TINY = """
system:
  structures: [ala2-c7eq.pdb, ala2-c7ax.pdb]
  platform: Reference
unbiased: {length: 30 ps, frame_interval: 0.2 ps, equilibration: 1 ps, comparison_length: 6 ps}
cv: {lag: 2 ps, pca: 20}
bias: {pace: 0.6 ps}
run: {length: 12 ps, walkers: 2, every: 3, colvar_interval: 0.12 ps, frame_interval: 0.24 ps, checkpoint_interval: 1.2 ps}
analysis:
  torsions: {phi: auto, psi: [ALA2-N, ALA2-CA, ALA2-C, NME3-N]}
  cores: {along: phi, a: [-2.8, -0.5], b: [0.3, 2.0]}
"""
FULL = (PROTOCOLS / "ala2-opes.yaml").read_text()


def changed(*replacements, text=FULL):
    for old, new in replacements:
        assert text.count(old) >= 1, old
        text = text.replace(old, new, 1)
    return text


def line_of(text, part):
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)
