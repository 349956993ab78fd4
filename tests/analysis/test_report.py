import html.parser
import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from openmm_geomgnn.analysis import plots
from openmm_geomgnn.analysis.crossings import PHI_CORE_A, PHI_CORE_B, PHI_DIVIDING
from openmm_geomgnn.analysis.figures import standard_figures, standard_tables
from openmm_geomgnn.analysis.free_energy import free_energy_1d, free_energy_2d
from openmm_geomgnn.analysis.intervals import TURN
from openmm_geomgnn.analysis.pipeline import analyse_biased_run
from openmm_geomgnn.analysis.report import plain, write_report, write_summary
from openmm_geomgnn.analysis.variables import BiasedRun, Variable
from openmm_geomgnn.errors import GeomGNNError

pytest.importorskip("matplotlib")

PNG = "data:image/png;base64,"


class Page(html.parser.HTMLParser):
    """Tags that are opened and closed, attributes, and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.words = [], [], []
        self.feed(text)
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def run(n_frames=400, torsions=True):
    """An Analysis of two made-up walkers that hop between two basins."""
    rng = np.random.default_rng(0)
    basin = np.repeat(rng.integers(0, 2, size=(n_frames // 20, 2)), 20, axis=0)
    phi = np.where(basin, 1.0, -1.5) + 0.25 * rng.normal(size=(n_frames, 2))
    colvar = {
        "time": np.repeat(np.arange(1.0, n_frames + 1), 2),
        "walker": np.tile([0.0, 1.0], n_frames),
        "cv.1": np.sin(phi).ravel(),
        "cv.2": rng.normal(size=2 * n_frames),
        "opes.bias": np.where(basin, 0.0, 5.0).ravel(),
        "opes.rct": np.linspace(-20, 0, 2 * n_frames),
        "opes.nker": np.linspace(3, 40, 2 * n_frames).round(),
        "temperature": 300 + 50 * rng.normal(size=2 * n_frames),
    }
    run, variables = BiasedRun(colvar, 300, wall_seconds=145.4), []
    if torsions:
        cores = {"cores": (PHI_CORE_A, PHI_CORE_B), "dividing": PHI_DIVIDING}
        variables = [
            Variable("phi", list(phi.T), TURN, unbiased=[np.full(50, -1.2)], **cores),
            Variable("psi", list(rng.normal(size=(2, n_frames))), TURN),
        ]
    return analyse_biased_run(run, variables, [("phi", "psi")] if torsions else [])


@pytest.fixture(scope="module")
def analysis():
    return run()


def drawn(figure):
    """Render; the share of pixels that are not white."""
    figure.canvas.draw()
    return float(np.mean(np.asarray(figure.canvas.buffer_rgba())[..., :3].min(axis=-1) < 250))


@pytest.mark.slow
def test_report_of_a_run_is_one_file_that_needs_nothing_else(tmp_path, analysis):
    path = tmp_path / "deep" / "report.html"
    figures = standard_figures(analysis)
    write_report(path, "Alanine dipeptide", analysis.summary, figures, analysis.notes, standard_tables(analysis))
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    sources = [value for tag, name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == len(figures) >= 9 and all(source.startswith(PNG) for source in sources)
    assert not re.search(r"https?://|<script|@import|url\(", text)
    for headline in ("Crossings", "Crossings without bias", "Free-energy difference", "Mean temperature", "2 min 25 s"):
        assert headline in page.text
    assert f"± {analysis.summary['delta_F_error']:.1f}" in page.text and "hot frames" in page.text
    assert "How to read" in page.text
    titles = [title for title, _, _ in figures]
    assert len(set(titles)) == len(titles)
    for title, caption, figure in figures:
        assert title in page.text and caption in page.text and len(caption) > 40
        assert drawn(figure) > 0.01
        for axes in figure.axes:
            if axes.get_visible() and axes.get_label() != "<colorbar>":
                assert axes.get_ylabel() or len(figure.axes) > 1
    # the same analysis gives the same file, byte for byte
    few = standard_figures(analysis)[:2]
    for name in ("first", "second"):
        write_report(tmp_path / name, "Again", analysis.summary, few, analysis.notes, standard_tables(analysis))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_everything_is_escaped_and_warnings_stand_out(tmp_path):
    bad = '<script>alert("x")</script> & co'
    figure = plots.training_history({"training": [1, 2]})
    write_report(
        tmp_path / "r.html", bad, {bad: bad, "crossings_per_ns": np.nan}, [(bad, bad, figure)],
        ["All is well.", f"Warning: {bad}"], [(bad, [[bad, "n"], [bad, np.float64(1.5)]])],
    )  # fmt: skip
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    assert "<script" not in text and page.text.count(bad) >= 7
    assert "class=warning>Warning: &lt;script" in text
    # warnings come first
    assert text.index("Warning:") < text.index("All is well")


def test_unknown_numbers_are_left_out(tmp_path):
    keys = ("crossings", "crossings_per_ns", "unbiased_crossings_per_ns", "delta_F_kJ_per_mol", "delta_F_error")
    keys += ("mean_temperature_K", "hot_frame_share", "wall_seconds")
    summary = dict.fromkeys(keys, float("nan")) | {"biased_ns": 0.5}
    write_report(tmp_path / "r.html", "A run", summary)
    text = Page((tmp_path / "r.html").read_text()).text
    assert text.startswith("A run A run Simulated with bias 0.5 ns All numbers quantity value biased_ns 0.5 Written by")
    summary.update(delta_F_kJ_per_mol=-12.34, wall_seconds=4000)
    write_report(tmp_path / "r.html", "A run", summary)
    text = Page((tmp_path / "r.html").read_text()).text
    assert "−12.3 kJ/mol its error is not known" in text and "1 h 6 min" in text
    # a report without any of the known keys is a report all the same
    write_report(tmp_path / "r.html", "Nothing", {})
    assert Page((tmp_path / "r.html").read_text()).text.startswith("Nothing")


def test_a_report_that_fails_leaves_the_old_one(tmp_path):
    write_report(tmp_path / "r.html", "Old", {})
    before = (tmp_path / "r.html").read_bytes()
    with pytest.raises(GeomGNNError, match="rows of the table 'T' have"):
        write_report(tmp_path / "r.html", "New", {}, tables=[("T", [["a", "b"], [1]])])
    assert (tmp_path / "r.html").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_summary_is_plain_json(tmp_path, analysis):
    write_summary(tmp_path / "summary.json", {**analysis.summary, "more": {"a": (np.int64(3), np.inf), 5: tmp_path}})
    read = json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    for key in (
        "crossings", "unbiased_crossings", "crossings_per_ns", "unbiased_crossings_per_ns", "delta_F_kJ_per_mol",
        "delta_F_error", "biased_ns", "unbiased_ns", "mean_temperature_K", "hot_frame_share", "effective_sample_size",
        "n_kernels", "wall_seconds",
    ):  # fmt: skip
        assert isinstance(read[key], int | float), key
    assert read["crossings_per_ns"] == analysis.summary["crossings_per_ns"]
    assert read["more"] == {"a": [3, None], "5": str(tmp_path)}
    assert plain([np.array([1.0, np.nan]), np.bool_(True), None, np.float32(0.5)]) == [[1.0, None], True, None, 0.5]
    with pytest.raises(GeomGNNError, match="cannot hold object"):
        plain({"x": object()})


def test_a_run_without_torsions_has_the_pictures_it_can_have(tmp_path):
    analysis = run(torsions=False)
    figures = standard_figures(analysis)
    titles = [title for title, _, _ in figures]
    assert titles == [
        "Free energy along cv.1", "Free energy along cv.2", "cv.1 over time", "cv.2 over time", "Temperature", "Bias"
    ]  # fmt: skip
    write_report(tmp_path / "r.html", "A protein", analysis.summary, figures[:1], analysis.notes)
    assert "Free-energy difference" not in Page((tmp_path / "r.html").read_text()).text


def test_pictures_of_other_variables():
    """A distance, a torsion and the CV, with maps of an angle and a line: axes say what they show and in which unit."""
    rng = np.random.default_rng(0)
    colvar = {"time": np.arange(1.0, 301), "cv.1": rng.normal(size=300), "opes.bias": np.zeros(300)}
    variables = [
        Variable("chi1", [rng.uniform(-3, 3, 300)], TURN),
        Variable("omega", [rng.uniform(-3, 3, 300)], TURN),
        Variable("length", [rng.uniform(0.2, 0.9, 300)], unit="nm", cores=((0.2, 0.4), (0.6, 0.9))),
    ]
    maps = [("chi1", "omega"), ("cv.1", "chi1"), ("length", "cv.1")]
    analysis = analyse_biased_run(BiasedRun(colvar, 300), variables, maps, n_bootstrap=10)
    figures = {title: figure for title, _, figure in standard_figures(analysis)}
    assert list(figures)[:5] == ["length over time", *(f"Free energy along {n}" for n in ("cv.1", "χ1", "ω", "length"))]
    assert list(figures)[5:9] == [
        "Free energy over χ1 and ω", "What cv.1 has learned, over χ1 and ω", "Free energy over cv.1 and χ1",
        "Free energy over length and cv.1",
    ]  # fmt: skip

    def labels(title):
        axes = figures[title].axes[0]
        return axes.get_xlabel(), axes.get_ylabel()

    assert labels("What cv.1 has learned, over χ1 and ω") == ("χ1 (degrees)", "ω (degrees)")
    assert labels("Free energy over length and cv.1") == ("length (nm)", "cv.1 (no unit)")
    mixed = figures["Free energy over cv.1 and χ1"].axes[0]
    assert mixed.get_ylim() == (-180, 180) and np.abs(mixed.get_xlim()).max() < 5
    assert all(drawn(figure) > 0.01 for figure in figures.values())


def test_pictures_of_training():
    assert drawn(plots.vamp_spectrum([0.93, 0.7, 0.2], 5.0, validation=[0.9, 0.6, 0.05])) > 0.05
    assert drawn(plots.vamp_spectrum([1.0, 0.5, -0.1], 5.0)) > 0.02
    figure = plots.training_history({"training": np.linspace(1, 2, 40), "held out": np.linspace(1, 1.8, 40)}, best=31)
    assert [line.get_label() for line in figure.axes[0].lines] == ["training", "held out", "kept"]


def test_curves_show_the_numbers_they_are_given():
    s = np.random.default_rng(0).normal(size=5000)
    profile = free_energy_1d(s, np.zeros(5000), 2.5, np.linspace(-6, 6, 25), n_bootstrap=20)
    figure = plots.free_energy_profile(profile, "s", others=[("again", profile)], label="first")
    line = figure.axes[0].lines[1]
    np.testing.assert_array_equal(line.get_xdata(), profile.centres[0])
    known = np.isfinite(profile.error)
    np.testing.assert_array_equal(line.get_ydata()[known], profile.values[known])
    angle = free_energy_1d(s, np.zeros(5000), 2.5, 20, periodic=True, n_bootstrap=20)
    axes = plots.free_energy_profile(angle, "φ (degrees)", degrees=True).axes[0]
    assert axes.get_xlim() == (-180, 180) and axes.lines[0].get_xdata()[0] == pytest.approx(-171)


def test_maps_are_joined_across_the_period_and_white_where_nobody_was():
    rng = np.random.default_rng(0)
    phi, psi = rng.vonmises(np.pi, 4, 20000), rng.vonmises(0, 4, 20000)
    energies = free_energy_2d(phi, psi, np.zeros(20000), 2.5, 30, (True, True), n_bootstrap=2)
    figure = plots.free_energy_map(energies, "φ (degrees)", "ψ (degrees)", degrees=True)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    box = figure.axes[0].get_window_extent()
    row = pixels.shape[0] - 1 - round((box.y0 + box.y1) / 2)
    line = pixels[row, round(box.x0) + 3 : round(box.x1) - 3].min(axis=-1)
    # coloured up to both edges of the period, white in the middle
    assert line[0] < 200 and line[-1] < 200 and line[len(line) // 2] > 240
    with pytest.raises(GeomGNNError, match="5 frames of torsions but 4"):
        plots.mean_over_angles(np.zeros((5, 2)), np.zeros(4))


def test_at_most_six_walkers_are_drawn():
    walkers = [np.zeros(10)] * 9
    figure = plots.trajectories([("biased", [np.arange(10.0)] * 9, walkers)], "s", cores=((-1, -0.5), (0.5, 1)))
    assert len(figure.axes) == 6 and figure.axes[0].get_title() == "biased (first 6 of 9)"


def test_no_global_state_of_matplotlib_is_touched(analysis):
    import matplotlib
    from matplotlib import _pylab_helpers

    before = dict(matplotlib.rcParams)

    def draw():
        return [drawn(figure) for _, _, figure in standard_figures(analysis)[:2]]

    with ThreadPoolExecutor(1) as pool:
        assert min(pool.submit(draw).result()) > 0.01
    assert dict(matplotlib.rcParams) == before
    assert _pylab_helpers.Gcf.get_all_fig_managers() == []


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(GeomGNNError, match=r'pip install "openmm-geomgnn\[report\]"'):
        plots.training_history({"training": [1, 2]})
