"""How TorchMD-Net learns of this package: the entry point that `import torch` calls, and what it leaves alone."""

import ast
import json
import os
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from torchmdnet.models import model as upstream

from torchmdnet_ext import registration
from torchmdnet_ext.heads.noise import EquivariantNoise

pytestmark = pytest.mark.slow

# settings of `torchmd-train` for the smallest network
ARGS = {
    "model": "visnet",
    "output_model": "Noise",
    "embedding_dimension": 8,
    "num_layers": 1,
    "num_rbf": 4,
    "num_heads": 2,
    "rbf_type": "expnorm",
    "trainable_rbf": False,
    "activation": "silu",
    "attn_activation": "silu",
    "neighbor_embedding": False,
    "distance_influence": "both",
    "equivariance_invariance_group": "O(3)",
    "cutoff_lower": 0.0,
    "cutoff_upper": 4.0,
    "max_z": 20,
    "max_num_neighbors": 32,
    "precision": 32,
    "atom_filter": -1,
    "derivative": False,
    "prior_model": None,
    "reduce_op": "add",
}


def python(code, *flags, path=None, **environment):
    """Run code in a fresh interpreter; what it prints last is JSON and is returned."""
    environment = {**os.environ, "PYTHONPATH": str(path or ""), **environment}
    code = f"ARGS = {ARGS!r}\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_imports_nothing_but_the_standard_library(repository):
    for file in ("__init__", "_autoload"):
        tree = ast.parse((repository / "torchmdnet_ext" / f"{file}.py").read_text())
        names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_import_torch_brings_one_package_and_one_module(repository):
    """No other module is imported, installed or not: nothing that costs an `import torch` more than a moment."""
    code = f"""
        import __future__, importlib.abc, importlib.machinery, json, sys, typing, warnings  # as torch does
        sys.path.insert(0, {str(repository)!r})
        before = set(sys.modules)
        from torchmdnet_ext._autoload import register
        register()
        print(json.dumps(sorted(set(sys.modules) - before)))
    """
    assert python(code, "-I", "-S") == ["torchmdnet_ext", "torchmdnet_ext._autoload"]


def fake(folder, files):
    for name, content in files.items():
        file = folder / "torchmdnet" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        for parent in file.relative_to(folder).parents[:-1]:
            (folder / parent / "__init__.py").touch()
        file.write_text(content)
    return folder


def test_torch_imports_whatever_torchmdnet_is_like(tmp_path):
    broken = fake(tmp_path / "broken", {"__init__.py": "raise RuntimeError('broken on purpose')"})
    half = fake(tmp_path / "half", {"models/model.py": "import torch\nraise RuntimeError('broken half-way')"})
    modules = ("models/model.py", "datasets/__init__.py", "data.py", "scripts/train.py", "models/output_modules.py")
    changed = fake(tmp_path / "changed", {name: "NEW = 'and nothing of the old'" for name in modules})
    found = python(
        f"""
        import importlib, json, sys, warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:  # its first line imports torch, and so calls us
                import torchmdnet.models.model
            except RuntimeError as error:
                result = {{"first": str(error)}}
            import torch
            result.update(hooked=type(sys.meta_path[0]).__module__, warnings=[str(w.message) for w in caught])

        def attempt(folder, names):
            sys.path[0:1] = [folder]
            for name in [name for name in sys.modules if name.split(".")[0] == "torchmdnet"]:
                del sys.modules[name]
            importlib.invalidate_caches()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    for name in names:
                        importlib.import_module(name)
                    outcome = getattr(sys.modules[names[0]], "NEW", "no such thing")
                except Exception as error:
                    outcome = f"{{type(error).__name__}}: {{error}}"
            return outcome, [str(w.message) for w in caught]

        names = ["torchmdnet.models.model", "torchmdnet.datasets", "torchmdnet.data", "torchmdnet.scripts.train"]
        sys.path.insert(0, "")
        result["broken"] = attempt({str(broken)!r}, names)
        result["half"] = attempt({str(half)!r}, names)
        result["changed"] = attempt({str(changed)!r}, names)

        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "torchmdnet":
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Absent())
        result["absent"] = attempt({str(tmp_path)!r}, names)
        sys.meta_path[:2] = sys.meta_path[1::-1]
        result["absent, found last"] = attempt({str(tmp_path)!r}, names)
        print(json.dumps(result))
        """,
        path=half,
    )
    assert found["first"] == "broken half-way"
    assert found["hooked"] == "torchmdnet_ext._autoload" and found["warnings"] == []
    assert found["broken"] == ["RuntimeError: broken on purpose", []]
    assert found["half"] == ["RuntimeError: broken half-way", []]
    for case in ("absent", "absent, found last"):
        outcome, messages = found[case]
        assert outcome.startswith("ModuleNotFoundError") and messages == []
    outcome, messages = found["changed"]
    assert outcome == "and nothing of the old"
    ours = [message for message in messages if "could not extend" in message]
    assert len(ours) == 4
    for module, message in zip(("models.model", "datasets", "data", "scripts.train"), ours, strict=True):
        assert f"could not extend torchmdnet.{module} (" in message and "works as without it" in message


def test_first_import_from_the_middle_of_torchmdnet():
    """`import torch`, and so our entry point, runs from within the module that is to be extended."""
    found = python(
        """
        import json, sys, warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert "torch" not in sys.modules
            from torchmdnet.models.model import load_model, create_model
            import torchmdnet.data, torchmdnet.datasets, torchmdnet.module, torchmdnet.models, importlib, inspect
            from torchmdnet.models import output_modules
        same = load_model.__globals__["create_model"] is create_model is torchmdnet.module.create_model
        module = sys.modules["torchmdnet.models.model"]
        loaders = {type(m.__loader__).__module__ for n, m in sys.modules.items() if n.startswith("torchmdnet.")}
        print(json.dumps({
            "same": same,
            "network": type(create_model(dict(ARGS)).representation_model).__name__,
            "warnings": [str(w.message) for w in caught if "openmm-geomgnn" in str(w.message)],
            "spec": type(module.__spec__).__name__,
            "loaders": sorted(loaders),
            "source": "def create_model" in inspect.getsource(module),
            "reloaded": type(importlib.reload(module).create_model(dict(ARGS)).representation_model).__name__,
            "models": torchmdnet.models.__all_models__,
            "heads": output_modules.__all__,
            "datasets": torchmdnet.datasets.__all__,
            "held out": torchmdnet.data.DataModule.setup.__wrapped__.__qualname__,
        }))
        """
    )
    assert found["same"] and found["network"] == found["reloaded"] == "ViSNet"
    assert found["warnings"] == [] and found["spec"] == "ModuleSpec" and found["source"]
    assert not any(name.startswith("torchmdnet_ext") for name in found["loaders"])
    models = (*registration.MODELS, registration.RESIDUES)
    for names, ours in (("models", models), ("heads", registration.HEADS), ("datasets", registration.DATASETS)):
        assert found[names][-len(ours) :] == list(ours) and len(set(found[names])) == len(found[names])
    assert found["held out"] == "DataModule.setup"


def test_torchmdnet_imported_before_us_and_untested_version():
    found = python(
        """
        import importlib.metadata, json, sys, warnings
        import torchmdnet.scripts.train as train, torchmdnet.module
        from torchmdnet import data, datasets, models

        def extended():
            help = train.get_argparse().format_help()
            return ["visnet" in models.__all_models__, hasattr(datasets, "Denoising"), "--lmax" in help]

        before = extended()
        version = importlib.metadata.version
        importlib.metadata.version = lambda name: "3.2.0" if name == "torchmd-net" else version(name)
        from torchmdnet_ext import _autoload, registration
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _autoload.register()
            _autoload.register()
            registration.check_version()
        parser = train.get_argparse()
        print(json.dumps({
            "before": before,
            "after": extended(),
            "warnings": [str(w.message) for w in caught],
            "network": type(torchmdnet.module.create_model(dict(ARGS)).representation_model).__name__,
            "parsed": vars(parser.parse_args(["--model", "visnet", "--smooth-cutoff", "false", "--vertex", "True"])),
            "finders": sum(type(f).__module__ == "torchmdnet_ext._autoload" for f in sys.meta_path),
            "help": parser.format_help(),
        }))
        """,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert found["before"] == [False] * 3 and found["after"] == [True] * 3
    assert found["network"] == "ViSNet" and found["finders"] == 1
    (warning,) = found["warnings"]
    assert "tested with TorchMD-Net >= 3.1, < 3.2, but 3.2.0 is installed" in warning and "pip install" in warning
    assert found["parsed"]["smooth_cutoff"] is False and found["parsed"]["vertex"] is True
    assert found["help"].count("--smooth-cutoff") == 2  # in the usage line and in the list: added once


@pytest.mark.parametrize(
    ("version", "warns"), [("3.1.0", 0), ("3.1.7", 0), ("3.0.9", 1), ("3.2.0", 1), ("4", 1), ("2.4.12", 1)]
)
def test_untested_versions_warn_once(monkeypatch, version, warns):
    monkeypatch.setattr(registration.importlib.metadata, "version", lambda name: version)
    registration.check_version.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        registration.check_version()
        registration.check_version()
    registration.check_version.cache_clear()
    assert len(caught) == warns and all(version in str(warning.message) for warning in caught)


@pytest.mark.parametrize(
    ("model", "head"), [("equivariant-transformer", "Scalar"), ("tensornet", "Scalar"), ("transformer", "DipoleMoment")]
)
def test_networks_of_torchmdnet_are_as_without_us(model, head):
    networks = []
    for create in (upstream.create_model, upstream.create_model.__wrapped__):
        torch.manual_seed(5)
        networks.append(create({**ARGS, "model": model, "output_model": head}))
    extended, plain = networks
    assert [type(module) for module in extended.modules()] == [type(module) for module in plain.modules()]
    a, b = extended.state_dict(), plain.state_dict()
    assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)
    z, pos = torch.tensor([6, 1, 8, 1]), torch.randn(4, 3, generator=torch.Generator().manual_seed(1)) * 1.2
    if model != "tensornet":  # its kernels take long to compile
        assert torch.equal(extended(z, pos)[0], plain(z, pos)[0])


@pytest.mark.parametrize("model", [*registration.MODELS, "equivariant-transformer"])
def test_noise_head_gives_one_rotating_vector_per_atom(model):
    network = upstream.create_model({**ARGS, "model": model})
    z = torch.tensor([6, 1, 8, 1, 7])
    pos = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)) * 1.2
    batch = torch.tensor([0, 0, 0, 1, 1])
    noise, _ = network(z, pos, batch)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)))
    assert noise.shape == (5, 3)
    torch.testing.assert_close(network(z, pos @ q.T, batch)[0], noise @ q.T, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(network(z[:3], pos[:3])[0], noise[:3], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("model", registration.MODELS)
@pytest.mark.parametrize("head", ["Scalar", "DipoleMoment"])
def test_our_networks_take_the_heads_of_torchmdnet(model, head):
    network = upstream.create_model({**ARGS, "model": model, "output_model": head, "derivative": head == "Scalar"})
    z, pos = torch.tensor([6, 1, 8, 1]), torch.randn(4, 3, generator=torch.Generator().manual_seed(1)) * 1.2
    value, force = network(z, pos)
    assert torch.isfinite(value).all() and (head != "Scalar" or (force.shape == (4, 3) and force.abs().sum() > 0))


def test_noise_head_on_a_network_without_vectors_is_an_error():
    with pytest.raises(ValueError, match="model: tensornet does not provide.*visnet"):
        upstream.create_model({**ARGS, "model": "tensornet"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"output_model": "Noize"}, r"output_model is 'Noize'.*Did you mean 'Noise'\?"),
        ({"output_mlp_num_layers": 2}, "output_mlp_num_layers is 2, but the head Noise has no such layers"),
        ({"activation": "silo"}, r"activation is 'silo'.*Did you mean 'silu'\?"),
        ({"attn_activation": "silo", "model": "smooth-equivariant-transformer"}, "attn_activation is 'silo'"),
        ({"rbf_type": "expnormal"}, r"rbf_type is 'expnormal'.*Did you mean 'expnorm'\?"),
    ],
    ids=str,
)
def test_settings_of_head_and_network_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        upstream.create_model({**ARGS, **wrong})


def test_the_noise_head_refuses_settings_that_it_does_not_have():
    with pytest.raises(TypeError, match="no settings activatoin: it has activation"):
        EquivariantNoise(16, activatoin="tanh")


def test_settings_reach_the_network():
    network = upstream.create_model({**ARGS, "lmax": 2, "vertex": True, "smooth_cutoff": False, "vecnorm_type": "max_min"})
    visnet = network.representation_model
    assert (visnet.lmax, visnet.vertex, visnet.smooth_cutoff, visnet.vecnorm_type) == (2, True, False, "max_min")
    args = {**ARGS, "model": "smooth-equivariant-transformer", "envelope_width": 0.7, "vector_cutoff": True, "precision": 64}
    transformer = upstream.create_model(args).representation_model
    assert transformer.envelope.width == 0.7 and transformer.vector_cutoff
    assert transformer.embedding.weight.dtype == torch.float64
