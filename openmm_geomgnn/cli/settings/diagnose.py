"""Settings of `geomgnn diagnose`: which encoders are measured, and on what."""

from pydantic import Field

from openmm_geomgnn.cli.settings.fields import RESULTS, EncoderNames, OutputFolder, Section, Structures, Whole


class Diagnose(Section):
    """A look at what the layers of encoders are worth: over-smoothing and under-reaching."""

    encoders: EncoderNames = Field(
        min_length=1, description="names of shipped encoders, or files such as the checkpoints of `geomgnn scaling`"
    )
    structures: Structures = Field(
        min_length=1, description="structure files; each should be wider than a few cutoffs, or nothing is out of reach"
    )
    selection: str | None = Field(
        None, description="atoms in mdtraj's language; null is the heavy atoms of protein and nucleic acids, as for a CV"
    )
    random_weights: Whole = Field(
        3, ge=0, le=100, description="networks of the settings of each encoder with random weights, to compare with"
    )
    draws: Whole = Field(8, ge=1, description="random projections from which the Jacobians of an atom are estimated")
    seed: Whole = Field(1, ge=0, description="of random weights and projections")
    output: OutputFolder = RESULTS
