"""`geomgnn score`: which CVs describe data best that they were not fitted to."""

from openmm_geomgnn.cli.fit import read_data
from openmm_geomgnn.cli.progress import echo
from openmm_geomgnn.cli.score_files import MAP, SCORES
from openmm_geomgnn.cli.scoring import as_yaml, choices_of, conclude, scores_in
from openmm_geomgnn.cli.settings.score import Score
from openmm_geomgnn.locks import locked


def run_score(score: Score) -> None:
    """Score the CVs that a `Score` describes, write and show the table and what is chosen.

    Raises GeomGNNError if data or settings do not suffice, or another process writes to the same folder.
    """
    with locked(score.output):
        data = read_data(score)
        scoring = score.score.settings(score.cv, score.seed)
        rows, made_from = scores_in(score.output, data.trajectories, data.topology, data.settings, scoring, **data.biased)
        choices = choices_of(rows, scoring, score.score.bias_step, data.settings.temperature)
        for section in conclude(score.output, rows, made_from, score.cv, choices):
            echo(f"\n{as_yaml(section)}")
        written = [name for name in (SCORES, MAP) if (score.output / name).exists()]
        echo(f"written to {score.output}: {', '.join(written)}")
