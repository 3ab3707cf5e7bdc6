"""Trains a generator, or a feature network, from data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from exptilt import distributed, rows
from exptilt.config import PretrainConfig
from exptilt.data import DataSet, batch_indices
from exptilt.data.augment import augment
from exptilt.moments import shared_by_batch_norm
from exptilt.precision import autocast, resolve
from exptilt.training.loop import Loop, LoopConfig, own_rows
from exptilt.training.run_folder import RunFolder
from exptilt.training.trackers import Tracker

# Training samples from which a module sets what it does not learn.
_FITTED = 5000
# Held-out samples that a check looks at while training goes on; the final figures are of all of them.
_CHECKED = 1000
# Held-out samples that are looked at together.
_AT_ONCE = 500
# Updates between two checks: whole epochs, so many that there are at least this many.
_LEAST_BETWEEN_CHECKS = 100


def pretrain(
    module: nn.Module,
    train: DataSet,
    config: PretrainConfig,
    *,
    test: DataSet | None = None,
    folder: RunFolder | None = None,
    device: torch.device | str = "cpu",
    on_check: Callable[[int], None] | None = None,
    tracker: Tracker | None = None,
    quiet: bool = True,
) -> dict[str, float]:
    """Train ``module`` by its own ``training_loss(x, labels, generator) -> (N,)``.

    Args:
        module: A VAE, a feature network, or anything with ``training_loss`` and
            ``metrics(x, labels, generator) -> {name: (N,)}``. If it has ``fit_data(x)``, that is called first, with
            up to 5,000 training samples.
        train: Training set.
        config: Resolved settings.
        test: Held-out set, for figures only: nothing is chosen by it.
        folder: Where log and checkpoints go.
        device: Where to train.
        on_check: Called after every check with the number of the iteration.
        tracker: Receives the figures of the log.
        quiet: No progress bar.

    Returns:
        Mean of each of the module's metrics over the whole of ``test``; empty without one.

    Raises:
        InputError: The data do not have the shape that the module needs, or are not finite.
        RunError: The training diverged.
    """
    if (expected := getattr(module, "data_shape", None)) is not None:
        train.require_shape(expected)
    train.require_finite()
    device = torch.device(device)
    is_image = len(train.shape) == 3
    layout = torch.channels_last if is_image else torch.contiguous_format
    module.to(device, memory_format=layout).train()  # type: ignore[call-overload]
    dtype = resolve(config.precision, device) if is_image else torch.float32
    if (fit_data := getattr(module, "fit_data", None)) is not None:
        fit_data(train.batch(slice(0, _FITTED)).to(device))
    per_epoch = max(1, len(train) // config.batch_size)

    def loss(iteration: int) -> tuple[torch.Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(rows.seed_of(config.seed, iteration))
        indices = batch_indices(len(train), config.batch_size, config.seed, iteration)
        n, mine = len(indices), own_rows(len(indices))
        indices = indices[mine.start : mine.stop]
        with rows.part([mine], n):
            x = augment(train.batch(indices), config.augment, generator, indices + iteration // per_epoch)
            x = x.to(device, memory_format=layout)
            labels = None if train.labels is None else train.labels[indices].to(device)
            with autocast(dtype, device):
                values = module.training_loss(x, labels, generator)  # type: ignore[operator]
        return distributed.values_of_all(values.float(), n).mean(), {"epoch": iteration / per_epoch}

    def check(iteration: int) -> dict[str, float]:
        figures = {} if test is None else held_out_metrics(module, test.select(slice(0, _CHECKED)), device)
        if on_check is not None:
            on_check(iteration)
        module.train()
        return {f"test_{name}": value for name, value in figures.items()}

    loop = LoopConfig(
        iterations=config.epochs * per_epoch,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        optimizer=config.optimizer,
        bias_factor=config.bias_factor,
        beta1=config.momentum,
        weight_decay=config.weight_decay,
        ema_decay=config.ema_decay,
        check_every=per_epoch * math.ceil(_LEAST_BETWEEN_CHECKS / per_epoch),
    )
    with shared_by_batch_norm(module):
        Loop(module, loop, loss, check=check, folder=folder, tracker=tracker, quiet=quiet, label=config.preset).run()
    module.eval()
    return {} if test is None else held_out_metrics(module, test, device)


@torch.no_grad()
def held_out_metrics(module: Any, data: DataSet, device: torch.device) -> dict[str, float]:
    """Mean of each of the module's metrics over ``data``, in evaluation mode and float32."""
    module.eval()
    generator = torch.Generator().manual_seed(0)
    sums: dict[str, float] = {}
    for first in range(0, len(data), _AT_ONCE):
        n = min(_AT_ONCE, len(data) - first)
        mine = distributed.share(n)
        # A process without a row looks at one all the same, and leaves it out: its noise goes on like that of others.
        seen = mine or range(1)
        part = data.select(slice(first + seen.start, first + seen.stop))
        labels = None if part.labels is None else part.labels.to(device)
        with rows.part([seen], n):
            metrics = module.metrics(part.batch(slice(None)).to(device), labels, generator)
        for name, values in metrics.items():
            sums[name] = sums.get(name, 0.0) + float(values.double()[: len(mine)].sum())
    totals = torch.tensor(list(sums.values()), dtype=torch.float64)
    distributed.add_up([totals])
    return {name: total / len(data) for name, total in zip(sums, totals.tolist(), strict=True)}


def describe(config: PretrainConfig, data: DataSet) -> dict[str, Any]:
    """What a run folder records of a pretraining."""
    return {"kind": "pretrain", **dataclasses.asdict(config), "data": data.name, "n_train": len(data)}
