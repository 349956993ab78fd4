"""The documentation site: `make docs` builds it without network, and a warning is an error."""

import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
# notebooks run `!geomgnn`, also where sphinx-build was started from an environment that is not activated
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
# ... and of this source tree
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))

project = "openmm-geomgnn"
author = "the openmm-geomgnn developers"
copyright = author
version = release = version_of("openmm-geomgnn")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx.ext.mathjax",
    "sphinx_design",
    "sphinx_copybutton",
    "generated",  # docs/_ext: pages and pictures made from the package
    "offline_mathjax",
    "plain_docstrings",
    "internal_links",
]
exclude_patterns = ["_build", "_ext", "**/.ipynb_checkpoints"]
nitpicky = True
# what other packages define cannot be looked up without network
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(numpy|np|torch|nn|torch_geometric|torchmdnet|openmm|mdtraj|pathlib|collections|typing|dask|zarr|scipy|networkx|pydantic|typer|abc)(\..*)?",
    ),
]

# ----------------------------------------------------------------------------------------------------------------- pages
myst_enable_extensions = [
    "amsmath",
    "attrs_block",
    "attrs_inline",
    "colon_fence",
    "deflist",
    "dollarmath",
    "substitution",
    "tasklist",
]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

# ------------------------------------------------------------------------------------------------------------------- API
default_role = "py:obj"  # `Name` in a docstring links to Name where the site has it
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
autoclass_content = "class"
numpydoc_show_class_members = False  # autodoc lists them
numpydoc_attributes_as_param_list = True
numpydoc_xref_param_type = False  # types in docstrings are prose: "(frames, atoms, 3) ndarray, nm"
add_module_names = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# ------------------------------------------------------------------------------------------------------------------ look
html_theme = "furo"
html_title = "openmm-geomgnn"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
smartquotes = False  # --set is an option, "auto" a value
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0f6b68", "color-brand-content": "#0f6b68"},
    "dark_css_variables": {"color-brand-primary": "#5fc3bd", "color-brand-content": "#5fc3bd"},
    "sidebar_hide_name": False,
}
