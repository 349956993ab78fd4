"""What users meet first has an example in its docstring, and the examples run."""

import doctest
import importlib

import pytest

EXAMPLES = {
    "openmm_geomgnn.representation.encoder": ("Encoder", "Encoder.load", "Encoder.embed"),
    "openmm_geomgnn.representation.spec": ("TokenSpec",),
    "openmm_geomgnn.representation.featurization": ("Featurization",),
    "openmm_geomgnn.representation.embed_trajectories": ("EmbedSettings",),
    "openmm_geomgnn.representation.store": ("Embeddings",),
    "openmm_geomgnn.koopman": ("KoopmanModel", "VAMPNetResult", "covariances", "cross_validate", "timescales", "vamp"),
    "openmm_geomgnn.koopman.alignment": ("align",),
    "openmm_geomgnn.cv.mixers": ("LearnedMixer", "get_mixer", "make_mixer"),
    "openmm_geomgnn.cv.distillation": ("DistillSettings",),
    "openmm_geomgnn.cv": ("CollectiveVariable", "FitSettings", "fit_cv"),
    "openmm_geomgnn.force": ("GeomGNNCV", "BiasHandle.getValue"),
    "openmm_geomgnn.force.integrators": ("make_integrator",),
    "openmm_geomgnn.sampling": ("OPES", "get_bias"),
    "openmm_geomgnn.sampling.colvar": ("read_colvar",),
    "openmm_geomgnn.sampling.systems": ("build_system",),
    "openmm_geomgnn.sampling.walker": ("Walker",),
    "openmm_geomgnn.conformers.sources": ("source_from",),
    "torchmdnet_ext.datasets.conformers": ("Conformers",),
}

pytestmark = pytest.mark.slow


def examples_of(module, name):
    """The examples in the docstring of a public name of a module, without those of its methods."""
    found = module = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    finder = doctest.DocTestFinder(recurse=False)
    return finder.find(found, name, module=False, globs={"__name__": "__main__", name: found})


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in EXAMPLES.items() for name in names])
def test_examples(module, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tests = [test for test in examples_of(module, name) if test.examples]
    assert tests, f"{module}.{name} has no example"
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in tests:
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)
