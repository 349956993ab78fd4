"""Docstrings are written to be read as text: what reStructuredText would take for markup is not meant as such."""

import re

# code; or a bar, or a star in front of a word that no other star follows
CODE_OR_MARKUP = re.compile(r"(``.*?``|`.*?`)|(?<!\\)(\||(?<!\S)\*(?=\w[^*]*$))")


def escape_markup(app, what, name, obj, options, lines):
    """|v| is a length, no substitution; *values are arguments, no emphasis."""
    lines[:] = [CODE_OR_MARKUP.sub(lambda match: match[1] or f"\\{match[2]}", line) for line in lines]


def show_as_code(app, env, node, contnode):
    """`Name` is a link where the site has Name, and code where it does not; so are names in signatures."""
    if node.get("refdomain") == "py" and (node.get("reftype") == "obj" or node.get("py:module") is not None):
        return contnode
    return None


def setup(app):
    app.connect("autodoc-process-docstring", escape_markup)
    app.connect("missing-reference", show_as_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
