"""`geomgnn embed`: embed trajectories into residue tokens on disk."""

import time
from pathlib import Path
from typing import Any

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.cli.first_frames import check_first_frames
from openmm_geomgnn.cli.progress import bar, echo
from openmm_geomgnn.cli.settings.protocol import Embed
from openmm_geomgnn.representation.embed_trajectories import EmbedSettings, embed_trajectories
from openmm_geomgnn.representation.selection import as_topology


def run_embed(embed: Embed, overwrite: bool = False, source: PathLike | None = None) -> Any:
    """Fill the store that an `Embed` (from the file `source`) describes, or complete it; returns the store."""
    settings = EmbedSettings(
        encoder=embed.encoder,
        tokens=embed.token_spec(),
        stride=embed.stride,
        frame_interval=embed.frame_interval,
        dtype=embed.dtype,
        chunk=embed.chunk,
        allow_truncated=embed.allow_truncated,
    )
    check_first_frames(embed.trajectories, as_topology(embed.topology), embed.selection, embed.allow_truncated)
    with bar("Embedding", "frames") as update:
        speed = _Speed()

        def progress(done: int, total: int, resumed: int) -> None:
            update(done, total, speed(done - resumed))

        store = embed_trajectories(
            embed.topology,
            embed.trajectories,
            embed.output,
            settings,
            embed.workers,
            embed.scheduler,
            overwrite,
            progress,
            source,
        )
    frames, residues, channels = sum(store.lengths), len(store.settings["molecule"]), store.tokens(0).shape[3]
    echo(
        f"{frames} frames of {len(store)} trajectories, {residues} residues with {channels} channels of scalars and vectors "
        f"in {embed.dtype}, {_size(embed.output):.4g} MB"
    )
    echo(f"written to {embed.output}")
    return store


class _Speed:
    """Reports how many frames per second have been embedded since it was made."""

    def __init__(self) -> None:
        self.began = time.perf_counter()

    def __call__(self, frames: int) -> str:
        return f"{frames / (time.perf_counter() - self.began):.3g} frames/s" if frames else ""


def _size(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
