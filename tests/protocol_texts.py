"""Settings as text, for the tests of what reads them."""

from pathlib import Path

PROTOCOLS = Path(__file__).resolve().parents[1] / "protocols"
SHIPPED = ("ala2-c7eq.pdb", "ala2-c7ax.pdb", "et-64.safetensors", "conformers.safetensors")
MINIMAL = "system:\n  structures: [a.pdb, b.pdb]\n"
FULL = (PROTOCOLS / "ala2-opes.yaml").read_text()


def changed(*replacements, text=FULL):
    for old, new in replacements:
        assert text.count(old) >= 1, old
        text = text.replace(old, new, 1)
    return text


def line_of(text, part):
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)
