"""Commands of studies: what many networks, or many calculations, say together."""

import typer

studies = typer.Typer()
