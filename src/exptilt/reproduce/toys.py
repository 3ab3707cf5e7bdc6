"""Figure 5.1 of the paper: 25 Gaussians and a Swiss roll, their VAE, and the VAE tilted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from exptilt import hub, provenance
from exptilt.config import override, to_dict
from exptilt.data import load_dataset
from exptilt.demo import TOYS
from exptilt.evaluation.toy import point_figures
from exptilt.presets import PRESETS
from exptilt.report.figures import toy_panels
from exptilt.report.files import png
from exptilt.storage import write_bytes, write_json, write_tensors
from exptilt.train_run import pretrain_run, tilt_run
from exptilt.training.fit import resolve_recipe

# Column of each recipe in the figure.
RECIPES = {"paper": "VAE + EBM", "default": "VAE + EBM, default recipe"}
_POINTS = 5000


def draw_toys(
    out: Path,
    *,
    sets: Sequence[str] = tuple(TOYS),
    seed: int,
    device: torch.device,
    epochs: int | None = None,
    changes: Mapping[str, Any] | None = None,
    points: int = _POINTS,
) -> dict[str, Any]:
    """Train, tilt and draw; what is trained already is taken from the folder.

    Leaves ``fig5.1.png``, ``fig5.1.json``, the points in ``fig5.1.safetensors``, and the runs under ``fig5.1/``.

    Args:
        out: Where the files go.
        sets: Toy sets, ``gaussians`` and ``swissroll``.
        seed: Of training and sampling.
        device: Where to train.
        epochs: Passes over the data of the VAE, in place of the preset's.
        changes: Settings of the tilts in place of the recipes'.
        points: Points in a cloud.

    Returns:
        What the JSON file holds: for each set and column the figures of
        :func:`~exptilt.evaluation.toy.point_figures`, and the recipes as they were resolved.
    """
    rows: dict[str, list[tuple[str, torch.Tensor]]] = {}
    result: dict[str, Any] = {"figure": "fig5.1", "points": points, "seed": seed, "sets": {}}
    for name in sets:
        train, test = load_dataset(name, "train"), load_dataset(name, "test")
        config = override(PRESETS[f"toy-{name}"], epochs=epochs, seed=seed)
        folder = out / "fig5.1" / name
        pretrain_run(config, folder / "vae", device=device, resume=True, keep_finished=True)
        clouds, recipes = {"data": test.stored[:points]}, {}
        for recipe, label in RECIPES.items():
            vae: Any = hub.load(folder / "vae", device=device)
            settings = resolve_recipe(recipe, vae, **{**(changes or {}), "seed": seed})
            run = folder / f"vae-{recipe}"
            tilted = tilt_run(vae, str(folder / "vae"), train, settings, run, resume=True, keep_finished=True)
            clouds.setdefault("VAE", vae.sample(points, seed=seed).cpu())
            clouds[label] = tilted.sample(points, seed=seed).cpu()
            recipes[recipe] = to_dict(settings)
        rows[TOYS[name]] = list(clouds.items())
        figures = {label: point_figures(name, cloud) for label, cloud in clouds.items()}
        result["sets"][name] = {"figures": figures, "recipes": recipes}
    tensors = {f"{name}/{label}": cloud for name, row in rows.items() for label, cloud in row}
    write_tensors(out / "fig5.1.safetensors", tensors)
    write_bytes(out / "fig5.1.png", png(toy_panels(rows)))
    result |= provenance.origin()
    write_json(out / "fig5.1.json", result)
    return result
