"""Which versions of OpenMM, openmm-torch and PyTorch are compatible; checked before any import, since some crash."""

import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

Condition: TypeAlias = Callable[[Mapping[str, str]], bool]
PACKAGES = ("torch", "openmm", "openmmtorch")
# our name for builds of openmm-torch's main branch: they call themselves 1.5, like the release that lacks PythonTorchForce
UNRELEASED = "1.5+main"
_WHEELS = 'pip install "torch==2.9.1" "openmm==8.4.0" "openmm-cuda-12==8.4.0" "openmmtorch==1.5"'
_NEW_OPENMM = 'pip install "openmm>=8.6"'
_MAIN = f"Build openmm-torch's main branch (github.com/openmm/openmm-torch) against OpenMM >= 8.6: {_NEW_OPENMM}"


def installed_versions() -> dict[str, str]:
    """Read the versions of the installed ones of `PACKAGES` from their metadata, without importing anything.

    A package without metadata has the version "unknown".
    """
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if importlib.util.find_spec(package) is not None:
                versions[package] = "unknown"
    if versions.get("openmmtorch", "").startswith("1.5") and _has_python_torch_force():
        versions["openmmtorch"] = UNRELEASED
    if versions.get("torch", "unknown") != "unknown":
        versions["torch"] += _build_of_torch(versions["torch"])
    return versions


def _has_python_torch_force() -> bool:
    """Whether the installed openmm-torch has `PythonTorchForce`, judging by the text of its module."""
    spec = importlib.util.find_spec("openmmtorch")
    if spec is None or spec.origin is None:
        return False
    return "class PythonTorchForce" in Path(spec.origin).read_text(encoding="utf-8")


def _build_of_torch(version: str) -> str:
    """Read from torch/version.py the part of torch's version that its metadata may lack, such as "+cu128"."""
    spec = importlib.util.find_spec("torch")
    path = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if "+" in version or path is None or not path.is_file():
        return ""
    build = re.search(r"^__version__ = '[^'+]*(\+[^']+)'", path.read_text(encoding="utf-8"), re.MULTILINE)
    return build[1] if build else ""


def refusal(backend: str, versions: Mapping[str, str]) -> str | None:
    """Say why a backend cannot be used with the installed versions, and which command helps; None if it can be used.

    Parameters
    ----------
    backend : {"PythonForce", "PythonTorchForce", "TorchForce"}
    versions : mapping of str to str
        As returned by `installed_versions`, without packages that are not installed.
    """
    for applies, reason, remedy in RULES[backend]:
        if applies(versions):
            return f"{reason.format_map(_Named(versions))} {remedy}"
    return None


class _Named(dict):
    def __missing__(self, package: str) -> str:
        return "(none)"


def _numbers(version: str) -> tuple[int, ...] | None:
    """Parse "2.9.1+cu128" into (2, 9); None if a version is not known."""
    parts = version.split("+")[0].split(".")[:2]
    return tuple(map(int, parts)) if len(parts) == 2 and all(part.isdigit() for part in parts) else None


def _absent(package: str) -> Condition:
    return lambda versions: package not in versions


def _older(package: str, bound: tuple[int, int]) -> Condition:
    return lambda versions: (found := _numbers(versions.get(package, ""))) is not None and found < bound


def _other(package: str, wanted: tuple[int, int]) -> Condition:
    return lambda versions: _numbers(versions.get(package, "")) not in (None, wanted)


def _of_the_release(condition: Condition) -> Condition:
    """Restrict a condition to the released openmm-torch 1.5."""
    return lambda versions: _is_the_release(versions) and condition(versions)


def _is_the_release(versions: Mapping[str, str]) -> bool:
    return _numbers(versions["openmmtorch"]) == (1, 5) and versions["openmmtorch"] != UNRELEASED


def _not_for_cuda_12(versions: Mapping[str, str]) -> bool:
    build = versions.get("torch", "").partition("+")[2]
    return bool(build) and not build.startswith("cu12")


_NO_OPENMM = (_absent("openmm"), "OpenMM is not installed.", f"Install it: {_NEW_OPENMM}")
_NO_OPENMM_TORCH = (_absent("openmmtorch"), "openmm-torch is not installed.", f"Wheels that fit together: {_WHEELS}")
_MAIN_WITH_OLD_OPENMM = (
    lambda versions: versions["openmmtorch"] == UNRELEASED and _older("openmm", (8, 6))(versions),
    "openmm-torch's main branch was tried with OpenMM 8.6, not with {openmm}.",
    f"Update OpenMM and build openmm-torch against it: {_NEW_OPENMM}",
)
# (condition on the versions, what is wrong, what to do) for each backend; the first one that applies is reported
RULES: dict[str, tuple[tuple[Condition, str, str], ...]] = {
    "PythonForce": (
        _NO_OPENMM,
        (
            _older("openmm", (8, 6)),
            "OpenMM {openmm} has no openmm.PythonForce that can be given its particles; 8.6 is the first that has.",
            f"Update it: {_NEW_OPENMM}",
        ),
    ),
    "TorchForce": (
        _NO_OPENMM,
        _NO_OPENMM_TORCH,
        (
            _older("openmmtorch", (1, 5)),
            "openmm-torch {openmmtorch} is older than 1.5, the first that is tested.",
            f"Wheels that fit together: {_WHEELS}",
        ),
        (
            _of_the_release(_other("torch", (2, 9))),
            "The wheel of openmm-torch 1.5 was built for PyTorch 2.9 and cannot be loaded with {torch}.",
            f"Wheels that fit together: {_WHEELS}",
        ),
        (
            _of_the_release(_not_for_cuda_12),
            "The wheel of openmm-torch 1.5 needs the CUDA 12 build of PyTorch, also without a GPU, but {torch} is another.",
            f"Wheels that fit together: {_WHEELS}",
        ),
        (
            _of_the_release(_other("openmm", (8, 4))),
            "openmm-torch 1.5 was built for OpenMM 8.4; with {openmm} it crashes in CustomCVForce and XML.",
            f"Wheels that fit together: {_WHEELS}",
        ),
        _MAIN_WITH_OLD_OPENMM,
    ),
    "PythonTorchForce": (
        _NO_OPENMM,
        (_absent("openmmtorch"), "openmm-torch is not installed, and no release of it has PythonTorchForce yet.", _MAIN),
        (
            lambda versions: _is_the_release(versions) or _older("openmmtorch", (1, 5))(versions),
            "openmm-torch {openmmtorch} has no PythonTorchForce; no release has it yet.",
            _MAIN,
        ),
        _MAIN_WITH_OLD_OPENMM,
    ),
}
