"""OPES_EXPLORE on the collective variable that is known so far."""

from dataclasses import replace

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import sha256
from openmm_geomgnn.sampling.explore.base import ExploreSettings, Made, Molecule, Piece
from openmm_geomgnn.sampling.opes.method import OPES
from openmm_geomgnn.sampling.plan import whole_steps
from openmm_geomgnn.sampling.walker import Walker

_PACE = 0.5  # ps between kernels
_RAMP, _SHARE = 20.0, 0.25  # ps over which the bias sets in, but at most this share of the length


def why_not(molecule: Molecule, settings: ExploreSettings) -> str | None:
    """Why this way does not fit a molecule, in a sentence; None if it does."""
    return "There is no CV yet to bias: give its file as cv." if settings.cv is None else None


def pieces(molecule: Molecule, settings: ExploreSettings) -> list[Piece]:
    """One piece under a bias of its own."""
    shared = {"length": settings.length, "frame_interval": settings.frame_interval, "barrier": settings.barrier}
    sigma = None if settings.sigma is None else list(settings.sigma)
    made = {"collective variable (content of its file)": sha256(str(settings.cv)), "sigma": sigma}
    return [Piece("opes", "OPES_EXPLORE", shared | made, settings.cv)]


def make(piece: Piece, molecule: Molecule) -> Made:
    """Run a piece."""
    given, spec = piece.settings, molecule.spec
    outer = spec.timestep * spec.every
    interval, pace = (whole_steps(time, outer) for time in (given["frame_interval"], _PACE))
    # at once it would be a hole as deep as the barrier, and heat
    ramp = round(min(_RAMP, _SHARE * given["length"]) / _PACE)
    bias = OPES(given["barrier"], pace, spec.temperature, sigma=given["sigma"], explore=True, ramp=ramp)
    walker = Walker(replace(spec, cv_path=piece.file, bias=bias, colvar_interval=interval, frame_interval=interval))
    state = bias.initial_state(dimension=walker.facts.dimension)
    reports, trouble = [], None
    try:
        walker.start()
        total = whole_steps(given["length"], outer)
        while walker.step < total:
            report = walker.advance(state, min(pace - walker.step % pace, total - walker.step))
            reports.append(report)
            for s in () if report.observations is None else report.observations:
                state = bias.observe(state, s, 0)
            if walker.step % pace == 0:
                state = bias.update(state, np.array([report.s]))
    except GeomGNNError as error:
        if not reports:
            raise
        trouble = f"It ended after {walker.time:g} ps: {error}"
    rows = np.concatenate([report.rows for report in reports])
    frames = np.concatenate([report.frames for report in reports])
    boxes = None if reports[0].boxes is None else np.concatenate([report.boxes for report in reports if len(report.frames)])
    mean = float(rows[:, -1].mean()) if len(rows) else float("nan")
    notes = () if trouble is None else (trouble,)
    return Made(frames, boxes, interval * outer, rows[:, -2], spec.temperature, mean, notes)
