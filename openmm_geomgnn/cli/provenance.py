"""The record of what the CV in a run's folder was made from, and its comparison with the protocol."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from openmm_geomgnn.cli.names import CV_FILE
from openmm_geomgnn.cli.run_folder import has_biased_steps
from openmm_geomgnn.cli.settings.protocol import Protocol
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import sha256
from openmm_geomgnn.locks import set_aside
from openmm_geomgnn.representation.encoder import Encoder

MADE_FROM = "made_from"  # in the training information of a CV file
CHOSEN = ("pca", "softening", "window")  # by cv: auto
# settings whose names in the file are older than their attributes
_RECORDED_AS = {"lagtime": "lag_time", "n_components": "components"}
# a run's fingerprint includes these, but another platform gives equivalent trajectories
_INCIDENTAL = ("platform",)


def made_from(
    settings: Any, runs: Any, student: bool = False, auto: bool = False, learning: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Record everything that determines a CV that is fitted to unbiased runs, in types of JSON.

    settings : FitSettings. runs : the fingerprint of each unbiased run, see `sampling.unbiased.fingerprints`. student :
    whether the CV is distilled. auto : whether settings are chosen by scores of the runs, from which
    they follow. learning : sections of a protocol that say what else it is learned from.
    """
    others = {_RECORDED_AS.get(name, name): value for name, value in asdict(settings).items()}
    tokens = others.pop("tokens")
    del tokens["neighbours"]  # they follow from the rest
    fit = {"encoder": None, **tokens, **others}
    # the names of files do not matter
    fit["encoder"] = Encoder.load(settings.encoder).content_hash()
    fit["reference"] = None if settings.tokens.reference is None else sha256(settings.tokens.reference)
    runs = [{name: value for name, value in run.items() if name not in _INCIDENTAL} for run in runs]
    fit["student"] = student
    if auto:
        fit |= dict.fromkeys(CHOSEN, "auto")
    fit |= learning or {}
    return json.loads(json.dumps({"fit": fit, "unbiased runs": runs}))


def learned_from(protocol: Protocol) -> dict[str, Any]:
    """The sections of a protocol that say what a CV is learned from besides unbiased runs, as `made_from` takes them."""
    if not protocol.learns_from_a_bias:
        return {}
    names = ("explore", "seeds", "rounds")
    sections = {name: getattr(protocol, name) for name in names if name != "seeds" or protocol.explore is not None}
    found = {name: section.model_dump(mode="json") for name, section in sections.items() if section is not None}
    if "rounds" in found:
        found["rounds"].pop("number")  # further ones begin with the same
        found["bias in rounds"] = protocol.bias.model_dump(mode="json")
    return found


def current_cv(protocol: Protocol, record: Mapping[str, Any] | None) -> Any:
    """Load the fitted CV in the protocol's folder; None if there is none or it has to be fitted again. Changes nothing.

    record : what it would be made from now, see `made_from`.

    Raises GeomGNNError if it was made from something else and biased steps rest on it.
    """
    path = protocol.output / CV_FILE
    if not path.exists():
        return None
    cv = CollectiveVariable.load(path)
    noted = cv.training_information.get(MADE_FROM)
    begun = has_biased_steps(protocol.output)
    if noted is None:  # from a version that did not record it, or from another run
        return cv if begun else None
    differing = _differing(noted, record)
    if differing and begun:
        raise GeomGNNError(
            f"{path} was fitted under other conditions: {', '.join(differing)} differ. A biased run only continues with the "
            "CV that it began with: restore what that was made from, choose another output, or start again with --overwrite."
        )
    return None if differing else cv


def _differing(old: Any, new: Any) -> list[str]:
    """List the differences between two records in words. Entries in only one, from another version, are ignored."""
    before_students = {"student": False, **old["fit"]}
    names = [
        f"{name} of the fit"
        for name, value in new["fit"].items()
        if name in before_students and before_students[name] != value
    ]
    if len(old["unbiased runs"]) != len(new["unbiased runs"]):
        names.append("the number of unbiased runs")
    for before, now in zip(old["unbiased runs"], new["unbiased runs"], strict=False):
        names += [f"{name} of the unbiased runs" for name in now if name in before and before[name] != now[name]]
    return list(dict.fromkeys(names))


def write_cv(protocol: Protocol, cv: Any, record: Mapping[str, Any] | None) -> None:
    """Write a CV into the protocol's folder, with the record of what it was made from; an existing one is moved aside."""
    path = protocol.output / CV_FILE
    cv.training_information[MADE_FROM] = record
    if path.exists():
        set_aside(path)
    cv.save(path)


def check_given(protocol: Protocol) -> None:
    """Raise a GeomGNNError if the file that the protocol names is not the CV that the biased run began with."""
    path = protocol.output / CV_FILE
    if not path.exists() or not has_biased_steps(protocol.output):
        return
    given: Any = protocol.cv.file
    there, named = sha256(path), sha256(given)
    if there != named:
        raise GeomGNNError(
            f"{protocol.cv.file} (cv.file, with the hash {named}) is not the CV that the biased run began with, which is "
            f"{path} (with the hash {there}). To continue that run, put a copy of the latter into cv.file; for the new CV "
            "choose another output, or start again with --overwrite."
        )
