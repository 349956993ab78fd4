"""`Name` in a docstring is a link where the site has Name, and code where it does not."""


def show_as_code(app, env, node, contnode):
    if node.get("refdomain") == "py" and node.get("reftype") == "obj":
        return contnode
    return None


def setup(app):
    app.connect("missing-reference", show_as_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
