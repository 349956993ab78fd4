"""MathJax on the site itself, from the package sphinx-mathjax-offline, so that formulas are set without network."""

import shutil
from importlib.util import find_spec
from pathlib import Path

# what tex-chtml.js loads: fonts, and extensions of TeX that a formula asks for
PARTS = ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions")


def copy_mathjax(app, exception):
    if exception is None and app.builder.format == "html":
        source = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
        target = Path(app.outdir) / "_static" / "mathjax"
        for part in PARTS:
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            if (source / part).is_dir():
                shutil.copytree(source / part, target / part, dirs_exist_ok=True)
            else:
                shutil.copyfile(source / part, target / part)


def setup(app):
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
