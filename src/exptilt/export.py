"""Publishing: a trained run as a small folder with weights in half precision, figures of those weights, and a card."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from exptilt import hub, provenance
from exptilt.data import load_dataset
from exptilt.errors import InputError
from exptilt.evaluation.evaluate import evaluate
from exptilt.generators.base import Generator
from exptilt.report.card import write_card
from exptilt.report.card_picture import card_picture
from exptilt.report.files import png
from exptilt.report.log import training_seconds
from exptilt.storage import GRID, MODULE_WEIGHTS, RESULT, RUN, read_tensors, write_bytes, write_json
from exptilt.tilted import TiltedGenerator
from exptilt.training.pretrain import held_out_metrics
from exptilt.vetting import read_config

HalfOrFull = Literal["float16", "bfloat16", "float32"]


def export(
    run: str | Path,
    out: str | Path,
    *,
    data: str | None = None,
    n: int = 10_000,
    seeds: Sequence[int] = (0, 1, 2),
    features: str | Path | None = None,
    precision: HalfOrFull = "float16",
    link_generator: str | Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Path:
    """Write a model's folder for others: weights, ``run.json``, ``result.json``, a grid and a card; all or nothing.

    What is measured is what is published: figures are of the weights as written, read back.

    Args:
        run: Folder of a generator or a tilted generator, as ``pretrain`` and ``tilt`` leave it, or its id on the Hub.
        out: The new folder.
        data: Data set to measure on; None measures nothing, and the card says so by having no figures.
        n: Samples for each seed.
        seeds: Seeds of the sampling.
        features: Feature network; the data set's own unless given.
        precision: Type of the weights in the file. They are float32 again once loaded.
        link_generator: Folder of the exported generator under a tilted one, beside ``out``: a relative link to it is
            made in place of a second copy.
        device: Where to measure.
        progress: Show progress bars.

    Returns:
        The folder.

    Raises:
        InputError: The run holds no model of images, ``out`` exists and is not an empty folder, the data do not fit the
            model, a weight does not fit the precision, or the linked generator is another than the run's or stands
            elsewhere.
    """
    run, out = Path(run), Path(out)
    # At the end the new folder takes this name, which a link or the present folder cannot give up.
    if not out.name or out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InputError(f"--out {out}", "exists already", "give a new folder")
    run = hub.locate(run, progress=progress)
    model = hub.load(run)
    if len(model.data_shape) != 3:
        raise InputError(run, "makes points and no images", "share its folder as it is")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that relative links hold and the last step is a rename.
    unfinished = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        unfinished.chmod(0o755)
        model.save_pretrained(unfinished, getattr(torch, precision))
        if link_generator is not None:
            _link(unfinished, Path(link_generator))
        published = hub.load(unfinished, device=device)
        result, test = None, {}
        if data is not None:
            result, test = _measure(published, data, n, seeds, features, progress)
            write_json(unfinished / RESULT, result | {"model": str(out)})
        record: dict[str, Any] = read_config(run / RUN) if (run / RUN).exists() else {}
        record["seconds"] = training_seconds(run, record)
        record["exported"] = {"precision": precision, "test": test, **provenance.origin()}
        write_json(unfinished / RUN, record)
        if (picture := card_picture(published)) is not None:
            write_bytes(unfinished / GRID, png(picture))
        write_card(unfinished, out.name)
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return out


def _measure(
    model: Generator | TiltedGenerator,
    data: str,
    n: int,
    seeds: Sequence[int],
    features: str | Path | None,
    progress: bool,
) -> tuple[dict[str, Any], dict[str, float]]:
    """What ``exptilt evaluate`` would write, and likelihood figures of a generator on the whole test set."""
    held_out, train = load_dataset(data, "test"), load_dataset(data, "train")
    held_out.require_shape(model.data_shape)
    test = {}
    if isinstance(model, Generator) and hasattr(model, "metrics"):
        test = held_out_metrics(model, held_out, model.device)
    result = evaluate(model, held_out, n=n, seeds=seeds, train=train, features=features, progress=progress)
    return result | provenance.origin() | model.describe(), test


def _link(folder: Path, generator: Path) -> None:
    """Put a relative link in the place of ``folder/generator``, if both hold the same numbers.

    Only to a folder beside: of other links a reader cannot know whether they were meant, and ``load`` refuses them.
    """
    mine = folder / "generator"
    if generator.resolve().parent != folder.resolve().parent:
        raise InputError(
            f"--link-generator {generator}", "does not stand beside --out", "export it to that place first"
        )
    if not mine.is_dir():
        raise InputError("--link-generator", "the run has no generator of its own", "leave it out")
    own, other = (read_tensors(part / MODULE_WEIGHTS)[0] for part in (mine, generator))
    if own.keys() != other.keys() or not all(torch.equal(own[name], other[name]) for name in own):
        raise InputError(
            f"--link-generator {generator}", "is another generator than the run's", "export that one first"
        )
    shutil.rmtree(mine)
    mine.symlink_to(Path("..", generator.resolve().name), target_is_directory=True)
