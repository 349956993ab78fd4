"""The two files of a piece: its frames, and how they were made. Under these names a piece is complete."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from openmm import app

from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.sampling.checkpoint import check_fingerprint
from openmm_geomgnn.sampling.explore.base import Explored, Made
from openmm_geomgnn.sampling.explore.chirality import Verdict
from openmm_geomgnn.sampling.outputs import TrajectoryWriter, read_dcd, read_description

TOLERATED = 1.05  # mean temperature relative to the thermostat's, above which a note says so
_SHORTEST = 2  # frames of a part of a trajectory


class PieceFiles:
    """The files of one piece.

    folder : of the exploration. way, name, start : as in Piece and Molecule.
    """

    def __init__(self, folder: Path, way: str, name: str, start: str) -> None:
        self.name = f"{name} from {start}"
        stem = ".".join(re.sub(r"[^\w-]+", "-", part) for part in (way, name, start))
        self.trajectory = folder / f"{stem}.dcd"
        self.description = folder / f"{stem}.json"

    def is_complete(self, prints: Mapping[str, Any]) -> bool:
        """Whether the piece is there. Raises GeomGNNError if it was made in another way than `prints` says."""
        if not (self.description.exists() and self.trajectory.exists()):
            return False
        check_fingerprint(self._described()["fingerprint"], prints, self.trajectory)
        return True

    def write(self, prints: Mapping[str, Any], topology: app.Topology, made: Made, verdict: Verdict) -> None:
        """Write frames, then the description."""
        notes = [*made.notes, *verdict.notes]
        if not made.notes and made.mean_temperature > TOLERATED * np.min(made.temperature):
            notes.append(f"Its mean temperature is {made.mean_temperature:.0f} K: the bias heats it.")
        with atomic_write(self.trajectory) as temporary:
            with TrajectoryWriter(temporary, topology, made.frame_interval or 1.0, 1) as writer:
                writer.write(made.positions, made.boxes)
                writer.sync()
        content = {
            "fingerprint": prints,
            "name": self.name,
            "frame_interval": made.frame_interval,
            "temperature": np.asarray(made.temperature).tolist(),
            "mean_temperature": made.mean_temperature if np.isfinite(made.mean_temperature) else None,
            "left_out": np.flatnonzero(~verdict.good).tolist(),
            "notes": notes,
            "bias": None if made.bias is None else made.bias.tolist(),
        }
        with atomic_write(self.description) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def read(self) -> list[Explored]:
        """What there is.

        Of a trajectory in which frames are left out, the parts between them; of several temperatures, the frames of each.
        """
        made, frames = self._described(), read_dcd(self.trajectory)
        good = np.ones(len(frames), dtype=bool)
        good[made["left_out"]] = False
        kept = np.flatnonzero(good)
        temperatures = np.broadcast_to(made["temperature"], len(frames))
        parts = [(self.name, kept)]
        if np.ndim(made["temperature"]):
            levels = np.unique(temperatures[kept])
            parts = [(f"{self.name} at {level:.0f} K", kept[temperatures[kept] == level]) for level in levels]
        elif made["frame_interval"] is not None and not good.all():
            pieces = np.split(kept, np.flatnonzero(np.diff(kept) > 1) + 1)
            parts = [(f"{self.name}, part {k}", piece) for k, piece in enumerate(pieces, 1) if len(piece) >= _SHORTEST]
        bias = None if made["bias"] is None else np.array(made["bias"])
        notes = tuple(made["notes"])
        return [
            Explored(
                name=name,
                positions=frames.xyz[part],
                boxes=None if frames.boxes is None else frames.boxes[part],
                frame_interval=made["frame_interval"],
                bias=None if bias is None else bias[part],
                temperature=float(temperatures[part[0]]) if len(part) else float(np.min(made["temperature"])),
                notes=notes if number == 0 else (),
            )
            for number, (name, part) in enumerate(parts or [(self.name, kept[:0])])
        ]

    def _described(self) -> dict[str, Any]:
        return read_description(self.description, self.trajectory)
