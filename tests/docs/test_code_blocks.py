"""Every code block of every page of the documentation is run: a page's blocks in order, in a folder with example files."""

import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import doc_pages as pages
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
    if "_build" not in path.parts
)
FIT = """
topology: topology.pdb
trajectories: [a.xtc, b.xtc]
output: my.cv.safetensors
cv: {lag: 5 ps, components: 1}
"""

pytestmark = pytest.mark.slow


def simulate(structure, output, frames, interval=0.2):
    """A run of alanine dipeptide in implicit solvent; `interval` in ps."""
    from openmm import LangevinMiddleIntegrator, app, unit

    pdb = app.PDBFile(str(structure))
    # these make a GBSAOBCForce; implicit/obc2.xml a CustomGBForce, which takes thirty times as long on this platform
    forcefield = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
    system = forcefield.createSystem(pdb.topology, constraints=app.HBonds, hydrogenMass=3 * unit.amu)
    integrator = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 2 * unit.femtoseconds)
    integrator.setRandomNumberSeed(1)
    simulation = app.Simulation(pdb.topology, system, integrator, app_platform())
    simulation.context.setPositions(pdb.positions)
    simulation.context.setVelocitiesToTemperature(300, 1)
    simulation.reporters.append(app.XTCReporter(str(output), round(interval / 0.002)))
    simulation.step(frames * round(interval / 0.002))


def app_platform():
    from openmm import Platform

    return Platform.getPlatformByName("Reference")


@pytest.fixture(scope="module")
def example_files(tmp_path_factory):
    """The folder whose copy is what a page's blocks run in."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(ROOT / "protocols", folder / "protocols")
    for name in ("ala2-c7eq.pdb", "ala2-c7ax.pdb"):
        shutil.copy(files("openmm_geomgnn.data") / name, folder)
    shutil.copy(folder / "ala2-c7eq.pdb", folder / "topology.pdb")
    for name, structure in (("a.xtc", "ala2-c7eq.pdb"), ("b.xtc", "ala2-c7ax.pdb")):
        simulate(folder / structure, folder / name, frames=300)
    (folder / "my.yaml").write_text(FIT)
    subprocess.run(["geomgnn", "fit", "my.yaml"], cwd=folder, env=pages.environment(ROOT), check=True, capture_output=True)
    (folder / "my.yaml").unlink()
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_blocks_of_a_page_run(page, request, tmp_path, monkeypatch, subtests):
    found = pages.blocks((ROOT / page).read_text(encoding="utf-8"))
    if not any(block.language not in ("text", "") for block in found):
        return
    folder = tmp_path / "page"
    shutil.copytree(request.getfixturevalue("example_files"), folder)
    monkeypatch.chdir(folder)
    reader = pages.Reader(page, pages.environment(ROOT))
    for block in found:
        with subtests.test(f"line {block.line}"):
            reader.run(block)
            if "skip" in block.marks:
                pytest.skip(f"{page}:{block.line}: {block.marks['skip']}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```python\nx = 1\n```\n", [("python", "x = 1\n", {})]),
        (
            "<!-- skip: needs a GPU -->\n```bash\na\n```\n```\nb\n```",
            [("bash", "a\n", {"skip": "needs a GPU"}), ("", "b\n", {})],
        ),
        (
            "<!-- file: f.yaml; settings: fit -->\n\n```yaml\na: 1\n```",
            [("yaml", "a: 1\n", {"file": "f.yaml", "settings": "fit"})],
        ),
        (
            "<!-- python\ny = 2\n-->\ntext\n\n  ```python\n  x = y\n  ```",
            [("python", "y = 2\n\n", {}), ("python", "x = y\n", {})],
        ),
        (":::{note}\n```{code-cell} ipython3\n1/0\n```\n```console\n$ ls\n```\n:::", [("console", "$ ls\n", {})]),
        ("<!-- a remark -->\n````{toctree}\n```\n````\n<!-- skip: no -->\nwords\n```python\n```", [("python", "\n", {})]),
    ],
)
def test_blocks_are_found(text, expected):
    assert [(block.language, block.text, block.marks) for block in pages.blocks(text)] == expected


@pytest.mark.parametrize("text", ["```julia\n```", "<!-- skip: -->\n```bash\n```", "<!-- skip: a; fle: b -->\n```bash\n```"])
def test_what_nobody_runs_is_refused(text):
    with pytest.raises(ValueError, match="line 1"):
        pages.blocks(text)


@pytest.mark.parametrize(
    "block",
    [
        pages.Block("python", "assert False\n", 1),
        pages.Block("python", ">>> 1 + 1\n3\n", 1),
        pages.Block("python", "x = 1\n", 1, {"raises": "ValueError"}),
        pages.Block("python", "from openmm_geomgnn import NoSuchThing\n", 1, {"skip": "needs a GPU"}),
        pages.Block("bash", "false | true\n", 1),
        pages.Block("bash", "geomgnn fit a.yaml --no-such-option\n", 1, {"skip": "takes long"}),
        pages.Block("console", "$ echo a b\na c\n", 1),
        pages.Block("yaml", "cv: {no_such_key: 1}\n", 1),
        pages.Block("yaml", "run: {length: 3 kg}\n", 1),
        pages.Block("yaml", "no_such_key: 1\n", 1, {"settings": "torchmd-train"}),
    ],
    ids=lambda block: block.text.strip(),
)
def test_a_block_that_is_wrong_fails(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(BaseException) as error:
        pages.Reader("page.md", pages.environment(ROOT)).run(block)
    assert not isinstance(error.value, KeyboardInterrupt)


def test_blocks_that_are_right_pass(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    reader = pages.Reader("page.md", pages.environment(ROOT))
    reader.run(pages.Block("python", "x = 2\n", 1))
    reader.run(pages.Block("python", ">>> x + 1\n3\n", 1))
    reader.run(pages.Block("console", "$ echo one\n$ echo two\none\n...\n", 1))
    reader.run(pages.Block("bash", "geomgnn run a.yaml --set run.length=1ns\n", 1, {"skip": "takes long"}))
    reader.run(pages.Block("bash", "exit 3\n", 1, {"raises": "an error"}))
