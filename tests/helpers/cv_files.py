"""Files of collective variables that were tampered with."""

import json

from safetensors import safe_open
from safetensors.torch import save_file


def changed(path, change):
    """A copy of a CV file whose metadata or tensors `change(metadata, tensors)` has changed."""
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["cv"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    change(metadata, tensors)
    copy = path.with_name("changed.cv")
    save_file(tensors, copy, metadata={"cv": json.dumps(metadata)})
    return copy
