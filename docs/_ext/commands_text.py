"""MyST text of the command line, from the commands themselves."""

import inspect

import typer

from openmm_geomgnn.cli.main import app


def commands():
    """Every command with its arguments and options."""
    return "\n".join(_commands(typer.main.get_command(app), ""))


def _commands(group, path):
    for name, command in group.commands.items():
        full = f"{path}{name}"
        if hasattr(command, "commands"):
            yield from _commands(command, f"{full} ")
        else:
            yield from ("", f"## `geomgnn {full}`", "", *_command(full, command))


def _command(name, command):
    described = [parameter for parameter in command.params if getattr(parameter, "help", None) and parameter.name != "help"]
    arguments = [_metavar(parameter) for parameter in described if parameter.param_type_name == "argument"]
    yield f":::{{geomgnn}} {name} = {' '.join([*arguments, '[OPTIONS]'])}"
    yield from (inspect.cleandoc(command.help), "")
    for parameter in described:
        yield from (f"`{_written(parameter)}`", f": {parameter.help}", "")
    yield from (":::", "")


def _metavar(parameter):
    return parameter.metavar or parameter.name.upper()


def _written(parameter):
    """How an argument or an option is written: `--output OUTPUT, -o OUTPUT`."""
    if parameter.param_type_name == "argument":
        return _metavar(parameter)
    value = "" if parameter.is_flag else f" {_metavar(parameter)}"
    return ", ".join(f"{name}{value}" for name in sorted(parameter.opts, key=len, reverse=True))
