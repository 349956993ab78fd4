"""Commands of studies: what many networks, or many calculations, say together."""

from pathlib import Path
from typing import Annotated

import typer

from openmm_geomgnn.cli.options import AllowTruncated, Check, Settings, flags, interruptible, overrides

studies = typer.Typer()


@studies.command("label-noise")
def label_noise(
    settings_file: Annotated[Path, typer.Argument(metavar="STUDY", help="Such as protocols/label-noise.yaml.")],
    settings: Settings = None,
) -> None:
    """Compute labels of small molecules with many functionals and basis sets: their spread, beside a model's error."""
    from openmm_geomgnn.cli.settings.yaml_files import load_label_noise

    chosen = load_label_noise(settings_file, overrides(settings))
    with interruptible("The same command continues with what is missing."):
        from openmm_geomgnn.cli import label_noise as computing

        computing.run_label_noise(chosen)


@studies.command()
def diagnose(
    settings_file: Annotated[Path, typer.Argument(metavar="DIAGNOSE", help="Such as protocols/diagnose.yaml.")],
    settings: Settings = None,
) -> None:
    """Measure what the layers of encoders are worth: whether features become alike, and how far atoms see."""
    from openmm_geomgnn.cli.settings.yaml_files import load_diagnose

    chosen = load_diagnose(settings_file, overrides(settings))
    with interruptible("Nothing is kept of what was measured so far."):
        from openmm_geomgnn.cli import diagnose as measuring

        measuring.run_diagnose(chosen)


@studies.command()
def project(
    settings_file: Annotated[Path, typer.Argument(metavar="PROJECT", help="Such as protocols/project-ala2.yaml.")],
    allow_truncated: AllowTruncated = False,
    settings: Settings = None,
) -> None:
    """Show what the features of networks hold: linear probes, CKA, PCA and UMAP, beside networks with random weights."""
    from openmm_geomgnn.cli.settings.yaml_files import load_project

    chosen = load_project(settings_file, {**overrides(settings), **flags(allow_truncated=allow_truncated)})
    with interruptible("The same command continues with what is missing."):
        from openmm_geomgnn.cli import project as projecting

        projecting.run_project(chosen)


@studies.command()
def scaling(
    settings_file: Annotated[Path, typer.Argument(metavar="SCALING", help="Such as protocols/scaling.yaml.")],
    check: Check = False,
    settings: Settings = None,
) -> None:
    """Train networks of many sizes on denoising, and say which law their losses follow; what is trained stays."""
    from openmm_geomgnn.cli.settings.yaml_files import load_scaling

    chosen = load_scaling(settings_file, overrides(settings))
    with interruptible("The same command goes on from the last checkpoints."):
        from openmm_geomgnn.cli import scaling as study

        study.check_scaling(chosen) if check else study.run_scaling(chosen)


@studies.command()
def structures(
    settings_file: Annotated[Path, typer.Argument(metavar="STRUCTURES", help="Such as protocols/structures-backbone.yaml.")],
    settings: Settings = None,
) -> None:
    """Train networks on residues to tell classes of structures, such as folds, with residue tokens and without."""
    from openmm_geomgnn.cli.settings.yaml_files import load_structures

    chosen = load_structures(settings_file, overrides(settings))
    with interruptible("The same command continues with what is missing."):
        from openmm_geomgnn.cli import structures as training

        training.run_structures(chosen)


@studies.command()
def transfer(
    settings_file: Annotated[Path, typer.Argument(metavar="TRANSFER", help="Such as protocols/transfer-peptides.yaml.")],
    settings: Settings = None,
) -> None:
    """Train a CV on some molecules and use it on another: held-out VAMP-2 beside CVs fitted to that one."""
    from openmm_geomgnn.cli.settings.yaml_files import load_transfer

    chosen = load_transfer(settings_file, overrides(settings))
    with interruptible("The same command continues with what is missing."):
        from openmm_geomgnn.cli import transfer as transferring

        transferring.run_transfer(chosen)


@studies.command()
def supervised(
    settings_file: Annotated[Path, typer.Argument(metavar="STUDY", help="Such as protocols/supervised-qm9.yaml.")],
    check: Check = False,
    settings: Settings = None,
) -> None:
    """Learn QM9's targets from scratch and from pre-trained encoders, and compare the errors; what is trained stays."""
    from openmm_geomgnn.cli.settings.yaml_files import load_supervised

    chosen = load_supervised(settings_file, overrides(settings))
    with interruptible("The same command goes on from the last checkpoints."):
        from openmm_geomgnn.cli import supervised as study

        study.check_supervised(chosen) if check else study.run_supervised(chosen)


@studies.command()
def forces(
    settings_file: Annotated[Path, typer.Argument(metavar="STUDY", help="Such as protocols/forces-malonaldehyde.yaml.")],
    check: Check = False,
    settings: Settings = None,
) -> None:
    """Learn energies and forces of a distorted molecule from scratch and from pre-trained encoders; what is there stays."""
    from openmm_geomgnn.cli.settings.yaml_files import load_forces

    chosen = load_forces(settings_file, overrides(settings))
    with interruptible("The same command goes on from the last frames and checkpoints."):
        from openmm_geomgnn.cli import forces as study

        study.check_forces(chosen) if check else study.run_forces(chosen)
