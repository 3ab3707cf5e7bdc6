"""What an installation without extras takes."""

from __future__ import annotations

import importlib.metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

MOST_BYTES = 1_000_000_000


def _needed() -> set[str]:
    """Names of the distributions that exptilt without extras comes with, itself included."""
    found: dict[str, set[str]] = {}
    waiting = [Requirement("exptilt")]
    while waiting:
        wanted = waiting.pop()
        name, extras = canonicalize_name(wanted.name), {"", *wanted.extras}
        new = extras - found.setdefault(name, set())
        found[name] |= new
        for line in importlib.metadata.requires(name) or [] if new else []:
            further = Requirement(line)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in new):
                waiting.append(further)
    return {*found}


def test_the_package_takes_less_than_a_gigabyte_beside_torch() -> None:
    needed = _needed()
    assert {"torch", "exptilt", "zuko", "pyarrow"} <= needed
    assert not needed & {"gradio", "diffusers", "wandb", "sphinx", "pytest", "torchvision"}
    # What the GPU's version of torch brings belongs to torch.
    ours = {name for name in needed - {"torch", "triton"} if not name.startswith(("nvidia-", "cuda-"))}
    files = [file.locate() for name in ours for file in importlib.metadata.files(name) or []]
    assert sum(file.stat().st_size for file in files if file.is_file()) < MOST_BYTES
