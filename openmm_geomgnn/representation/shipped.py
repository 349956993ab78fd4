"""The files that the package ships, and which names of encoders are known; nothing heavy is imported to tell."""

import functools
import json
from pathlib import Path

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.plugins import known_names
from openmm_geomgnn.units import did_you_mean

DATA = Path(__file__).resolve().parents[1] / "data"
ENCODER_ENDINGS = (".safetensors", ".ckpt", ".pth")  # of files of encoders
_NO_ENCODERS = ("conformers",)  # other tensors that are shipped


def file_names(folder: Path, endings: tuple[str, ...]) -> list[str]:
    """Names of the files in a folder that have one of these endings, sorted."""
    return sorted(file.name for file in folder.glob("*") if file.suffix in endings and file.is_file())


def shipped_files(endings: tuple[str, ...]) -> list[str]:
    """Names of the files that come with the package and have one of these endings, sorted."""
    return file_names(DATA, endings)


def shipped_encoders() -> list[str]:
    """Names of the encoders that come with the package."""
    names = [Path(file).stem for file in shipped_files((".safetensors",))]
    return [name for name in names if name not in _NO_ENCODERS]


@functools.cache
def shipped_elements(name: str) -> tuple[str, ...]:
    """Symbols of the elements that an encoder of the package was trained on."""
    from safetensors import safe_open

    with safe_open(DATA / f"{name}.safetensors", "np") as file:
        return tuple(json.loads(file.metadata()["encoder"])["training"]["elements"])


def known_encoders() -> list[str]:
    """Names of the encoders that come with the package, and of those that come with installed ones."""
    return known_names("encoder", dict.fromkeys(shipped_encoders()))


def unknown_encoder(name: str) -> GeomGNNError:
    """The error for a name that no encoder has: it says which there are, and the nearest one."""
    shipped, known = shipped_encoders(), known_encoders()
    others = known[len(shipped) :]
    more = f", other packages have {', '.join(others)}" if others else ""
    *endings, last = ENCODER_ENDINGS
    return GeomGNNError(
        f"There is no encoder '{name}'.{did_you_mean(name, known)} The package ships {', '.join(shipped) or 'none'}{more}; "
        f"otherwise give the path of a {', '.join(endings)} or {last} file."
    )
