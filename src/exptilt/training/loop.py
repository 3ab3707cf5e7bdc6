"""The training loop: what pretraining and tilting share.

Every random number of an update follows from (seed, iteration), so a loop is resumed exactly from its weights, the
optimizer's moments and the number of the iteration.

Where several processes share the work (:mod:`exptilt.distributed`), each computes the loss of the whole batch with the
gradient of its own rows. Their gradients are added, and each makes the same step. Only the main process has a folder.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn
from tqdm import tqdm

from exptilt import distributed
from exptilt.errors import InputError, RunError
from exptilt.sampling.chains import ChainsDiverged
from exptilt.training.run_folder import Checkpoint, RunFolder
from exptilt.training.schedules import SCHEDULES
from exptilt.training.stopping import StopRequest, stop_requests

# After an update that failed the run goes back to its last check with half the learning rate, so many times.
MAX_ROLLBACKS = 3

Loss = Callable[[int], tuple[torch.Tensor, dict[str, float]]]


class UpdateFailed(RunError):  # noqa: N818 - named after what happened
    """An update that cannot be made, or must not be kept; the run goes back to its last check."""


def own_rows(n: int) -> range:
    """The rows of a batch of n that this process computes.

    Raises:
        InputError: There are fewer rows than processes.
    """
    if n < distributed.world().size:
        raise InputError("batch size", f"{n} is less than one a process", "use fewer processes, or a larger batch")
    return distributed.share(n)


class Stateful(Protocol):
    """What changes from update to update beside weights and moments: chains that go on."""

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint needs."""
        ...

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        ...


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast.

    Attributes:
        iterations: Number of updates.
        learning_rate: The optimizer's, at the start; of ``"triangles"`` the largest.
        schedule: ``"constant"``, ``"cosine"`` (to zero at the end) or ``"triangles"`` (a fifth, up in 23% of the way,
            then to zero: once over two thirds of the updates, then with 0.4 of the height, which is a warm restart,
            Loshchilov and Hutter 2017).
        optimizer: ``"adamw"``, or ``"sgd"`` with Nesterov's momentum.
        beta1: Adam's first-moment decay, or the momentum.
        bias_factor: Factor on the learning rate of one-dimensional parameters. Their weight decay is divided by it, so
            that they decay as the others do.
        weight_decay: AdamW's, or what is added to the gradient of ``"sgd"``.
        gradient_clip: Largest gradient norm; 0 is no clipping.
        ema_decay: Decay of the running mean of the weights; 0 is none.
        check_every: Updates between two snapshots (and checks, and checkpoints).
        log_every: Updates between two lines of the log.
    """

    iterations: int
    learning_rate: float
    schedule: Literal["constant", "cosine", "triangles"] = "constant"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    bias_factor: float = 1.0
    beta1: float = 0.9
    weight_decay: float = 0.0
    gradient_clip: float = 0.0
    ema_decay: float = 0.0
    check_every: int = 100
    log_every: int = 10


class Loop:
    """Trains ``module`` and leaves in it the weights that were chosen.

    Args:
        module: What is trained.
        config: Length and rates.
        loss: ``loss(iteration)`` gives the loss of one batch and figures for the log. Iterations count from 0. The
            value is the same in every process; see :func:`exptilt.distributed.values_of_all`.
        check: ``check(iteration)`` is called with the averaged weights in place, after every ``check_every`` updates
            and at the end; its figures are logged. ``choose`` names the one by which the best state is chosen.
        choose: Name of a figure of ``check``; smaller is better. None keeps the last state.
        folder: Where log and checkpoints go; None keeps nothing.
        chains: What else a checkpoint has to hold.
        on_divergence: ``on_divergence(times)`` is told how often chains have diverged so far, before the updates that
            follow on that; what it does to them must depend on ``times`` alone.
        tracker: ``tracker(figures, iteration)`` also receives every line of the log.
        quiet: No progress bar.
        label: What the bar says.
    """

    def __init__(
        self,
        module: nn.Module,
        config: LoopConfig,
        loss: Loss,
        *,
        check: Callable[[int], dict[str, float]] | None = None,
        choose: str | None = None,
        folder: RunFolder | None = None,
        chains: Stateful | None = None,
        on_divergence: Callable[[int], None] | None = None,
        tracker: Callable[[dict[str, float], int], None] | None = None,
        quiet: bool = True,
        label: str = "training",
    ) -> None:
        self.module, self.config, self.loss, self.check, self.choose = module, config, loss, check, choose
        self.folder, self.chains, self.tracker, self.quiet, self.label = folder, chains, tracker, quiet, label
        self.on_divergence = on_divergence
        self.optimizer = _optimizer(module, config)
        self.iteration, self.rollbacks, self.divergences, self.seconds = 0, 0, 0, 0.0
        # Whether an update since the last check had a gradient.
        self.learns = False
        self.best_score, self.best_iteration = math.inf, 0
        self.average = self._weights() if config.ema_decay else None
        self.best: dict[str, torch.Tensor] | None = None
        # Of the last update, averaged or not, once all are made.
        self.last: dict[str, torch.Tensor] = {}

    def run(self) -> None:
        """Train from where the folder's checkpoint stands (or from the start) to the end.

        With a folder, a run that Ctrl-C or SIGTERM stops finishes its update and leaves a checkpoint.

        Raises:
            RunError: An update failed even after the last rollback.
        """
        snapshot = self._resume()
        began = time.monotonic() - self.seconds
        total = self.config.iterations
        # All processes listen where one of them has the folder.
        listening = stop_requests() if distributed.same(self.folder is not None) else contextlib.nullcontext()
        stopped = False
        with (
            listening as stop,
            tqdm(total=total, initial=self.iteration, desc=self.label, unit="it", disable=self.quiet) as bar,
        ):
            while not (stopped := self._is_asked(stop)) and self.iteration < total:
                try:
                    figures = self._update()
                    self.iteration += 1
                    self.seconds = time.monotonic() - began
                    at_check = self.iteration % self.config.check_every == 0 or self.iteration == total
                    if at_check:
                        figures |= self._check()
                except RunError as error:
                    self._roll_back(snapshot, error)
                    bar.n = self.iteration
                    continue
                bar.update()
                if at_check or self.iteration % self.config.log_every == 0:
                    bar.set_postfix_str(", ".join(f"{k} {v:.4g}" for k, v in list(figures.items())[:3]))
                    self._log(figures)
                if at_check:
                    snapshot = self._state()
                    if self.folder is not None:
                        self.folder.save_checkpoint(*snapshot)
        if stopped and stop is not None:
            if self.iteration != snapshot[1]["iteration"]:
                state = self._state()
                if self.folder is not None:
                    self.folder.save_stopped(*state)
            distributed.wait()
            stop.follow()
            # Another process of the run was asked.
            raise KeyboardInterrupt
        self._restore_chosen()

    def _is_asked(self, stop: StopRequest | None) -> bool:
        """Whether a process of the run was asked to stop; all stop after the same update."""
        asked = torch.tensor([float(bool(stop))])
        distributed.add_up([asked])
        return bool(asked)

    def _update(self) -> dict[str, float]:
        """One update.

        Raises:
            RunError: Chains, loss or gradient are not finite; the weights are untouched then.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate() * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        loss, figures = self.loss(self.iteration)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UpdateFailed(f"its loss was {value}")
        loss.backward()
        distributed.add_up([p.grad for p in self.module.parameters() if p.grad is not None])
        limit = self.config.gradient_clip or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), limit))
        if not math.isfinite(norm):
            raise UpdateFailed(f"its loss was {value:.4g}, but the norm of its gradient {norm}")
        self.learns |= norm > 0
        self.optimizer.step()
        if self.average is not None:
            # Early on a plain mean, so that the start is forgotten.
            decay = min(self.config.ema_decay, (1 + self.iteration) / (10 + self.iteration))
            for name, value_now in self.module.state_dict().items():
                if value_now.is_floating_point():
                    self.average[name].lerp_(value_now, 1 - decay)
                else:
                    self.average[name].copy_(value_now)
        return {"loss": value, **figures, "gradient_norm": norm}

    def _learning_rate(self) -> float:
        progress = self.iteration / self.config.iterations
        return self.config.learning_rate * SCHEDULES[self.config.schedule](progress) * 0.5**self.rollbacks

    def _check(self) -> dict[str, float]:
        if not self.learns:
            raise UpdateFailed("no update since the last check had a gradient, so that nothing is learned")
        self.learns = False
        if self.check is None:
            return {}
        trained = self._weights()
        if self.average is not None:
            self.module.load_state_dict(self.average)
        try:
            figures = distributed.same(self.check(self.iteration))
        except ChainsDiverged as error:
            # Not those of training, whose step size could be made smaller.
            raise UpdateFailed(f"in its check {error}") from error
        score = figures.get(self.choose, math.nan) if self.choose else math.nan
        if score < self.best_score:
            self.best_score, self.best_iteration, self.best = score, self.iteration, self._weights()
        self.module.load_state_dict(trained)
        return figures

    def _restore_chosen(self) -> None:
        self.last = self._weights() if self.average is None else self.average
        if self.best is not None:
            self.module.load_state_dict(self.best)
        elif self.average is not None:
            self.module.load_state_dict(self.average)
        if self.best is None:
            self.best_iteration = self.iteration

    def _roll_back(self, snapshot: Checkpoint, error: RunError) -> None:
        failed, tried = self.iteration, self.rollbacks + 1
        diverged = self.divergences + isinstance(error, ChainsDiverged)
        if tried > MAX_ROLLBACKS:
            raise RunError(
                f"iteration {failed} failed, also after {MAX_ROLLBACKS} rollbacks with a halved learning rate: "
                f"{error}; the last good state is in the run's checkpoint; try a smaller learning rate or step size"
            ) from error
        self._load(*snapshot)
        self.rollbacks, self.divergences = tried, diverged
        softened = {"learning_rate_factor": 0.5**tried}
        if self.on_divergence is not None and diverged:
            self.on_divergence(diverged)
            softened["step_size_factor"] = 0.5**diverged
        said = ", ".join(f"{name.removesuffix('_factor').replace('_', ' ')} × {f:g}" for name, f in softened.items())
        distributed.say(f"iteration {failed} failed: {error}: back to iteration {self.iteration}, {said}")
        if self.folder is not None:
            # What follows is logged anew.
            self.folder.truncate_log(self.iteration, tried)
        self._log({"rollback_from": float(failed), "rollbacks": float(tried), **softened})

    def _log(self, figures: dict[str, float]) -> None:
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        if self.folder is not None:
            self.folder.log({"iteration": self.iteration, **finite, "seconds": round(self.seconds, 2)})
        if self.tracker is not None:
            self.tracker(finite, self.iteration)

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def _state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tensors = {f"model/{name}": value for name, value in self._weights().items()}
        for kept, weights in (("average", self.average), ("best", self.best)):
            tensors |= {f"{kept}/{name}": value.clone() for name, value in (weights or {}).items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value.clone() for name, value in moments.items()}
        if self.chains is not None:
            tensors |= {f"chains/{name}": value.clone() for name, value in self.chains.state().items()}
        state = {
            "iteration": self.iteration,
            "rollbacks": self.rollbacks,
            "divergences": self.divergences,
            "learns": self.learns,
            "seconds": self.seconds,
            "best_iteration": self.best_iteration,
            "best_score": None if math.isinf(self.best_score) else self.best_score,
        }
        return tensors, state

    def _load(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        def part(name: str) -> dict[str, torch.Tensor]:
            prefix = name + "/"
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        self.module.load_state_dict(part("model"))
        self.average = {k: v.clone() for k, v in part("average").items()} or self.average
        self.best = part("best") or None
        if self.chains is not None:
            self.chains.load(part("chains"))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for key, value in part("optimizer").items():
            index, name = key.split("/")
            like = parameters[int(index)]
            # In the memory order of its parameter (channels-last, for example): the fused optimizer walks through
            # both as through plain memory, and would pair wrong elements without a complaint.
            kept = (
                torch.empty_like(like, dtype=value.dtype).copy_(value) if value.shape == like.shape else value.clone()
            )
            moments.setdefault(int(index), {})[name] = kept
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.iteration, self.seconds, self.learns = state["iteration"], state["seconds"], state["learns"]
        self.rollbacks, self.divergences = state["rollbacks"], state["divergences"]
        if self.on_divergence is not None:
            self.on_divergence(self.divergences)
        self.best_iteration = state["best_iteration"]
        self.best_score = math.inf if state["best_score"] is None else state["best_score"]

    def _resume(self) -> Checkpoint:
        """Go to where the folder's run stopped; returns what a rollback goes back to, the state of the last check."""
        fresh, folder = self._state(), self.folder
        kept, stopped = distributed.from_main(lambda: (None, None) if folder is None else self._found(folder))
        snapshot = kept or fresh
        self._load(*(stopped or snapshot))
        if folder is not None:
            folder.truncate_log(self.iteration if kept or stopped else -1, self.rollbacks)
        return snapshot

    def _found(self, folder: RunFolder) -> tuple[Checkpoint | None, Checkpoint | None]:
        """What the folder has: the state of the last check, and that of a stop after it."""
        kept = folder.checkpoint(self._load)
        at_check = self.iteration
        stopped = folder.stopped(self._load)
        return kept, stopped if self.iteration >= at_check else None


def _optimizer(module: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """The optimizer of what is trained, in a group for each factor on the learning rate."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [{"params": trained, "factor": 1.0, "weight_decay": config.weight_decay}]
    if config.bias_factor != 1:
        biases = [p for p in trained if p.dim() == 1]
        groups[0]["params"] = [p for p in trained if p.dim() != 1]
        decay = config.weight_decay / config.bias_factor
        groups.append({"params": biases, "factor": config.bias_factor, "weight_decay": decay})
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.beta1, nesterov=config.beta1 > 0)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, 0.999), fused=True)
