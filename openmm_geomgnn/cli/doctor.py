"""`geomgnn doctor`: what is installed, what works, and what `auto` chooses."""

import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Any

from rich.table import Table

from openmm_geomgnn.cli.progress import console, echo
from openmm_geomgnn.force.backends import BACKENDS, PREFERENCE
from openmm_geomgnn.force.backends.versions import installed_versions

PACKAGE = "openmm-geomgnn"
# packages in the table of versions that our own metadata does not require
OTHERS = ("openmmtorch", "warp-lang")
LIMIT = 180  # longest time of a probe, seconds
_REQUIREMENT = re.compile(r"^([\w.-]+)\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?$")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")
_SILENT = {"test", "lint", "all"}  # extras that users need not know about, or that combine others


def run_doctor(as_json: bool = False) -> int:
    """Examine everything, print the findings, and return 0 if a CV can be biased here, else 1."""
    if as_json:
        found = examine()
        print(json.dumps(found, indent=2))
    else:
        with console.status("Looking at what is installed ...") as status:
            found = examine(lambda tried: status.update(f"Trying {tried} ..."))
        show(found)
    return 1 if found["problems"] else 0


def probe(name: str, *arguments: str, limit: float = LIMIT) -> dict[str, Any]:
    """Run a probe of `probes` and return its findings, a dict; {"error": text} if it failed, crashed or took too long."""
    command = [sys.executable, "-m", "openmm_geomgnn.cli.probes", name, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, errors="replace")
    except subprocess.TimeoutExpired:
        return {"error": f"it took more than {limit} s"}
    except OSError as error:
        return {"error": f"no process could be started ({error})"}
    if done.returncode < 0:
        return {"error": f"it crashed (signal {-done.returncode})"}
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return {"error": lines[-1].strip() if lines else f"it ended with status {done.returncode}"}
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return {"error": "it printed nothing that can be read"}


def examine(announce: Callable[[str], None] = lambda tried: None) -> dict[str, Any]:
    """Collect everything that `geomgnn doctor` reports, as data for JSON; `problems` lists obstacles to biasing a CV.

    announce: called with the name of the next probe.
    """
    required, extras = requirements()
    announce("the platforms of OpenMM")
    listed = probe("platforms")
    platforms = {name: probe("platform", name) for name in listed.get("names", [])}
    announce("the engines")
    engines = probe("engines")
    backends = {}
    for name in BACKENDS:
        announce(f"the backend {name}")
        backends[name] = probe("backend", name)
    # `auto` also takes a backend that fails although its versions are compatible
    taken = next((name for name in PREFERENCE if not backends[name].get("reason")), None)
    found = {
        "versions": versions(required, extras),
        "required": required,
        "extras": extras,
        "platforms": {"found": platforms, **listed},
        "engines": engines,
        "backends": backends,
        "auto": {
            "backend": taken,
            "engine": taken and backends[taken].get("engine"),
            "platform": listed.get("auto"),
        },
    }
    return {**found, "problems": problems(found)}


def problems(found: dict[str, Any]) -> list[str]:
    """List the obstacles to biasing a CV in sentences, given the other findings."""
    told = [f"{name}: {reason}" for name, reason in found["required"].items() if reason]
    platforms, auto = found["platforms"], found["auto"]
    if "error" in platforms:
        told.append(f"OpenMM's platforms cannot be listed: {platforms['error']}.")
    for name in sorted(set((platforms.get("auto") or {}).values())):
        if "error" in platforms["found"][name]:
            told.append(f"The platform {name}, which auto takes, does not work: {platforms['found'][name]['error']}.")
    if auto["backend"] is None:
        told.append("No backend can be used: see why in the table of backends.")
    elif "error" in found["backends"][auto["backend"]]:
        error = found["backends"][auto["backend"]]["error"]
        told.append(f"The backend {auto['backend']}, which auto takes, does not work: {error}.")
    return told


def requirements() -> tuple[dict[str, Any], dict[str, Any]]:
    """Check the requirements in our own metadata.

    Returns
    -------
    required : dict of str to str or None
        What is wrong with each package that is always needed.
    extras : dict of str to dict
        For each extra, its `packages`, as `required`, and the command that installs it.
    """
    required: dict[str, Any] = {}
    extras: dict[str, Any] = {}
    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        lines = []  # run from the source tree
    for line in lines:
        requirement: Any = _REQUIREMENT.match(line)
        name, bounds, marker = requirement.groups(default="")
        extra = _EXTRA.search(marker)
        if extra is None:
            required[name] = trouble(name, bounds)
        elif extra[1] not in _SILENT:
            entry = {"packages": {}, "install": f'pip install "{PACKAGE}[{extra[1]}]"'}
            extras.setdefault(extra[1], entry)["packages"][name] = trouble(name, bounds)
    return required, extras


def trouble(name: str, bounds: str, version: str | None = None) -> str | None:
    """Say what is wrong with an installed package; None if it is within bounds such as ">=3.1,<3.2".

    version: by default the installed one.
    """
    try:
        version = version or importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f'not installed (pip install "{name}{bounds.strip()}")'
    for sign, limit in re.findall(r"([<>=]+)\s*([\w.]+)", bounds):
        found, wanted = _numbers(version), _numbers(limit)
        length = max(len(found), len(wanted))
        found, wanted = (numbers + (0,) * (length - len(numbers)) for numbers in (found, wanted))
        if (sign == ">=" and found < wanted) or (sign == "<" and found >= wanted):
            return f'{version} is installed, but {sign}{limit} is needed (pip install "{name}{bounds.strip()}")'
    return None


def _numbers(version: str) -> tuple[int, ...]:
    digits: Any = re.match(r"[\d.]*", version)
    return tuple(int(part) for part in digits[0].split(".") if part)


def versions(required: Mapping[str, Any], extras: Mapping[str, Any]) -> dict[str, str]:
    """Versions of Python and of all packages that matter; "" for those that are not installed."""
    optional = [name for entry in extras.values() for name in entry["packages"]]
    found = {"python": platform.python_version()}
    for name in dict.fromkeys([PACKAGE, *required, *optional, *OTHERS]):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    # including what metadata lacks: the build of torch, an unreleased openmm-torch
    return {**found, **installed_versions()}


def show(found: dict[str, Any]) -> None:
    """Print the findings as tables."""
    _show_versions(found)
    console.print(_platform_table(found["platforms"]))
    console.print(_engine_table(found["engines"]))
    console.print(_backend_table(found["backends"]))
    auto = found["auto"]
    if auto["engine"] is not None and auto["platform"]:
        platforms = auto["platform"]
        echo(
            f"auto takes the backend {auto['backend']}, the engine {auto['engine']} for et-64, and the platform "
            f"{platforms['large']}, for small systems {platforms['small']}."
        )
    for problem in found["problems"]:
        console.print(f"Problem: {problem}", style="red", highlight=False, markup=False, soft_wrap=True)
    if not found["problems"]:
        console.print("A collective variable can be biased here.", style="green", highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _mark(works: bool) -> str:
    return "[green]yes[/]" if works else "[red]no[/]"


def _escaped(text: object) -> str:
    return str(text).replace("[", r"\[")


def _show_versions(found: dict[str, Any]) -> None:
    wrongs = {**found["required"], **{k: v for entry in found["extras"].values() for k, v in entry["packages"].items()}}
    owner = {name: extra for extra, entry in found["extras"].items() for name in entry["packages"]}
    table = _table("Versions", "package", "version", "")
    for name, version in found["versions"].items():
        remark = wrongs.get(name) or ""
        if remark and name in owner:
            remark = f"{remark.split(' (')[0]}; {found['extras'][owner[name]]['install']}"
        table.add_row(name, version or "-", _escaped(remark))
    console.print(table)


def _platform_table(platforms: Mapping[str, Any]) -> Table:
    table = _table("Platforms of OpenMM", "platform", "works", "")
    for name, result in platforms["found"].items():
        takes = [size for size, chosen in (platforms.get("auto") or {}).items() if chosen == name]
        remark = result.get("error") or (f"auto, {' and '.join(takes)} systems" if takes else "")
        table.add_row(name, _mark("error" not in result), _escaped(remark))
    for reason, plugins in _by_reason(platforms.get("failures", [])).items():
        table.add_row("-", _mark(False), _escaped(f"{', '.join(plugins)}: {reason}"))
    if "error" in platforms:
        table.add_row("-", _mark(False), _escaped(platforms["error"]))
    return table


def _by_reason(failures: Iterable[str]) -> dict[str, list[str]]:
    """Group the names of plug-ins that could not be loaded by the reason in OpenMM's messages."""
    found: dict[str, list[str]] = {}
    for text in failures:
        path, _, reason = text.removeprefix("Error loading library ").partition(": ")
        found.setdefault(reason or text, []).append(PurePath(path).stem.removeprefix("lib"))
    return found


def _engine_table(engines: Mapping[str, Any]) -> Table:
    table = _table("Engines", "engine", "works", "")
    if "error" in engines:
        table.add_row("-", _mark(False), _escaped(engines["error"]))
        return table
    table.add_row("eager", _mark(True), "every network")
    compiled = [name for name, reason in engines["encoders"].items() if reason is None]
    reasons = "; ".join(f"{name}: {reason}" for name, reason in engines["encoders"].items() if reason)
    table.add_row("numba", _mark(bool(compiled)), _escaped(", ".join(engines["networks"]) if compiled else reasons))
    table.add_row("cuda", _mark(engines["gpu"] is not None), _escaped(engines["gpu"] or "PyTorch sees no CUDA device"))
    if engines["folder"]:
        warm = ", ".join(engines["warm"])
        kept = f"compiled for {warm}" if warm else "empty: the first use of a network compiles for 30 s"
        table.add_row("kernels", _mark(True), _escaped(f"{engines['folder']}: {kept}"))
    return table


def _backend_table(backends: Mapping[str, Any]) -> Table:
    table = _table("Backends", "backend", "works", "")
    for name, result in backends.items():
        trouble = result.get("error") or result.get("reason")
        remark = trouble or f"{result['milliseconds']:.0f} ms for et-64 on alanine dipeptide, engine eager"
        table.add_row(name, _mark(not trouble), _escaped(remark))
    return table
