"""Pages made from the package: every setting, every command, the settings of mixers and sources, the API, the
picture of the layers.

A line `% generated: NAME ARGUMENTS` of a page is replaced by MyST text before it is parsed. Settings and commands become
objects of the site: {setting}`cv.softening` and {geomgnn}`data build` link to them.
"""

import re
from pathlib import Path

from api_text import api
from commands_text import commands
from layers_picture import layers
from settings_text import mixer_settings, protocol_settings, source_settings
from sphinx import addnodes

DOCS = Path(__file__).resolve().parents[1]


def contents(arguments):
    """`FOLDER NAME NAME ...`: the contents of a folder, the named pages in this order, then the others."""
    folder, *order = arguments.split()
    there = sorted(path.stem for path in (DOCS / folder).glob("*.md") if path.stem != "index")
    names = [name for name in order if name in there] + [name for name in there if name not in order]
    return "\n".join(["```{toctree}", ":maxdepth: 1", "", *names, "```"]) if names else ""


GENERATORS = {
    "settings": protocol_settings,
    "mixers": mixer_settings,
    "sources": source_settings,
    "commands": commands,
    "layers": layers,
    "api": api,
    "contents": contents,
}
LINE = re.compile(r"^% generated: (.+)$", re.MULTILINE)


def generate(app, docname, source):
    def text(match):
        name, *arguments = match[1].split(" ", 1)
        return GENERATORS[name](*arguments)

    source[0] = LINE.sub(text, source[0])


def parse_setting(env, signature, node):
    """`name = default`: the name in bold, the default behind it."""
    name, _, default = signature.partition(" = ")
    node += addnodes.desc_name(name, name)
    if default:
        text = default if default == "required" else f"default: {default}"
        node += addnodes.desc_annotation(text, f"  {text}", classes=["setting-default"])
    return name


def parse_command(env, signature, node):
    """`name ARGUMENTS`, behind the word geomgnn."""
    name, _, arguments = signature.partition(" = ")
    node += addnodes.desc_addname("geomgnn ", "geomgnn ")
    node += addnodes.desc_name(name, name)
    if arguments:
        node += addnodes.desc_annotation(arguments, f" {arguments}")
    return name


def setup(app):
    app.add_object_type("setting", "setting", objname="setting", parse_node=parse_setting)
    app.add_object_type("geomgnn", "geomgnn", objname="command", parse_node=parse_command)
    app.connect("source-read", generate)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
