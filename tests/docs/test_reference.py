"""The reference is made from the package: it lists every setting and every command, and no link of it leads nowhere."""

from pathlib import Path
from typing import get_args

import pytest
import typer
from pydantic import BaseModel

from openmm_geomgnn.cli.main import app
from openmm_geomgnn.cli.settings.fields import Unit
from openmm_geomgnn.cli.settings.yaml_files import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def extensions(monkeypatch):
    """The modules that `make docs` uses."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))


def settings(model, path=""):
    """(dotted name, field) of every setting of a model, and of the sections in it."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        yield f"{path}{name}", field
        for section in sections:
            yield from settings(section, f"{path}{name}.")


@pytest.mark.parametrize(("model", "command"), COMMANDS.items(), ids=COMMANDS.values())
def test_every_setting_is_described_and_listed(model, command):
    from settings_text import PREFIXES, protocol_settings, section_of, unit_of

    command = command.removeprefix("geomgnn ")
    text, found = protocol_settings(command), dict(settings(model))
    assert len(found) > 5
    for name, field in found.items():
        assert field.description, name
        if section_of(field):
            assert f"# Section `{name}`" in text or name.startswith("cv.")
        elif command == "run" or not name.startswith("cv."):
            assert f":::{{setting}} {PREFIXES[command]}{name} = " in text, name
        units = [entry.name for entry in field.metadata if isinstance(entry, Unit)]
        if units:
            assert unit_of(field) == units[0] and units[0].removeprefix("/") in field.description, name


def test_units_and_defaults_are_those_of_the_models():
    from settings_text import protocol_settings

    text = protocol_settings("run")
    for line in (
        ":::{setting} cv.softening = 0.02 ps",
        ":::{setting} system.friction = 1/ps",
        ":::{setting} system.structures = required",
        ":::{setting} system.nonbonded_cutoff = null",
        ":::{setting} run.walkers = 2",
        ":::{setting} cv.reversible = true",
    ):
        assert line in text.splitlines()
    assert "unit: nm, or null; more than 0" in text.splitlines()


def test_every_mixer_and_source_is_described():
    from settings_text import mixer_settings, source_settings

    assert ":::{setting} mixer.attention.heads = 4" in mixer_settings()
    assert ":::{setting} data.sources.smiles.per_molecule = 1" in source_settings()


def test_every_command_is_listed():
    from commands_text import commands

    def leaves(group, path=()):
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from leaves(command, (*path, name))
            else:
                yield " ".join((*path, name)), command

    text = commands()
    found = dict(leaves(typer.main.get_command(app)))
    assert {"run", "fit", "data build"} <= found.keys()
    for name, command in found.items():
        assert f"## `geomgnn {name}`" in text
        for option in (option for parameter in command.params for option in parameter.opts if option.startswith("--")):
            assert option == "--help" or f"`{option}" in text, (name, option)


def test_links_that_lead_nowhere_are_found(tmp_path):
    from internal_links import broken_links

    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text('<h1 id="top">A</h1><a href="sub/b.html#end">b</a><a href="https://openmm.org">o</a>')
    (tmp_path / "sub" / "b.html").write_text(
        '<p id="end"><a href="../a.html#top">a</a><img src="c.png"><a href="#end">e</a>'
    )
    assert broken_links(tmp_path) == [("sub/b.html", "c.png")]
    (tmp_path / "sub" / "c.png").touch()
    assert broken_links(tmp_path) == []
    (tmp_path / "a.html").write_text('<a href="sub/b.html#start">b</a><a href="c.html">c</a>')
    assert broken_links(tmp_path) == [
        ("a.html", "sub/b.html#start"),
        ("a.html", "c.html"),
        ("sub/b.html", "../a.html#top"),
    ]
