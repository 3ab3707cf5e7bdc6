"""The stages of a tilt, and the better of two tilts by codes of different encoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from exptilt import distributed
from exptilt.config import SamplerConfig, TiltConfig, override
from exptilt.data import DataSet
from exptilt.generators.base import Generator, lay_out
from exptilt.generators.prior import StandardNormal
from exptilt.tilted import TiltedGenerator
from exptilt.training.calibrate import Calibration, Monitor, choose
from exptilt.training.codes import draw_codes
from exptilt.training.fitting import Fitting
from exptilt.training.loop import Loop, LoopConfig
from exptilt.training.outcome import Outcome, nothing_tried, settled
from exptilt.training.run_folder import RunFolder
from exptilt.training.trackers import Tracker


@dataclass(frozen=True)
class Task:
    """What is tilted, and towards what.

    Attributes:
        before: The generator, frozen, or a tilted one.
        data: Training set.
        held_out: Data that the energy does not see.
        monitor: Figures of the quality of samples.
        folder: Where log and checkpoints go.
        tracker: Receives the figures of the log.
        quiet: No progress bar.
    """

    before: Generator | TiltedGenerator
    data: DataSet
    held_out: DataSet | None
    monitor: Monitor | None
    folder: RunFolder | None
    tracker: Tracker | None
    quiet: bool

    @property
    def generator(self) -> Generator:
        """What is tilted, without a tilt."""
        return self.before.generator if isinstance(self.before, TiltedGenerator) else self.before


@dataclass(frozen=True)
class Made:
    """What the stages of a tilt have come to.

    Attributes:
        model: The tilted generator, or one that samples as what was tilted does.
        encoder: Whose codes it is by: ``"own"`` or ``"learned"``.
        calibration: That of the last stage which helped; of the first where none did.
        chosen: Number of the update whose weights it has.
        updates: Updates of all stages.
        recorded: What each stage tried.
        chain: The chain of training, its step size as it was at the end.
        seconds: Duration of training.
        rollbacks: How often it was rolled back.
        gradients: Gradients of U that all chains took.
    """

    model: TiltedGenerator
    encoder: str
    calibration: Calibration
    chosen: int
    updates: int
    recorded: list[dict[str, Any]]
    chain: SamplerConfig
    seconds: float
    rollbacks: int
    gradients: int


def tilt_in_stages(task: Task, config: TiltConfig) -> Made:
    """Tilt by all stages of a recipe, the training recorded in the task's folder.

    Where the codes are to be of the best encoder, they are the generator's own at first. If these decode to noticeably
    less diversity than both the data and its samples have, the energy can only take that from the samples, so a second
    tilt has codes of an encoder that is learned from the samples, and the better of both by held-out data comes back.
    """
    encoder = "own" if config.encoder == "best" else config.encoder
    tries = [_by_codes_of(encoder, task, config, number=0, first=0)]
    own = tries[0]
    is_normal = isinstance(task.generator.prior, StandardNormal)
    if config.encoder == "best" and own.calibration.is_narrow and is_normal:
        distributed.say(
            "codes of the generator's encoder decode to less diversity than data and samples have: an encoder is "
            "learned as well, and the better tilt kept"
        )
        tries.append(_by_codes_of("learned", task, config, number=config.stages, first=own.updates))
    made = nearest(tries)
    if len(tries) > 1:
        told = ", ".join(f"{_distance(each)} by the {each.encoder} encoder" for each in tries)
        distributed.say(f"kept: the tilt by the {made.encoder} encoder (distance {told})")
    if task.folder is not None:
        _record(task.folder, made, tries)
    return made


def nearest(tries: Sequence[Made]) -> Made:
    """The one nearest to held-out data of those that keep the diversity which any of them can."""
    helped = [(made, made.calibration.best) for made in tries if made.calibration.best is not None]
    if not helped:
        return tries[0]
    leasts = [made.calibration.least for made, _ in helped]
    wanted = {name: max(least[name] for least in leasts) for name in leasts[0]}
    best = choose([trial for _, trial in helped], wanted)
    return next(made for made, trial in helped if trial is best)


def _by_codes_of(encoder: str, task: Task, config: TiltConfig, *, number: int, first: int) -> Made:
    """All stages with codes of one encoder, after ``number`` other stages of ``first`` updates."""
    config = override(config, encoder=encoder)
    codes, generator = None, task.generator
    if config.space == "z":
        told = task.held_out if config.objective == "logistic_ratio" else None
        codes = draw_codes(generator, task.data, told, config, quiet=task.quiet)
    if len(generator.data_shape) == 3:
        lay_out(generator, torch.channels_last)
    outcome = Outcome(task.before, True, nothing_tried())
    calibrations, recorded = list[Calibration](), list[dict[str, Any]]()
    updates, chosen, gradients, rollbacks = first, first, 0, 0
    seconds, chain = 0.0, config.chain
    for stage, settings in enumerate(_settings(config)):
        fitting = Fitting(outcome.model, task.data, settings, codes, task.monitor, stage)
        trained = _train(fitting, number + stage, updates, task)
        reached = fitting.tilted() if fitting.learned(trained.best_score) else None
        told_apart = fitting.held_out is not None and trained.best_iteration < settings.iterations
        last = fitting.tilted(trained.last) if told_apart else None
        outcome = settled(outcome.model, reached, fitting, task.held_out, last)
        states = [updates + trained.best_iteration, updates + settings.iterations]
        recorded.append({"helps": outcome.helps, **outcome.calibration.recorded(states)})
        seconds += trained.seconds
        rollbacks, chain = rollbacks + trained.rollbacks, fitting.chain
        gradients += fitting.gradient_evaluations() + outcome.calibration.gradients
        updates += settings.iterations
        if outcome.helps or not calibrations:
            calibrations.append(outcome.calibration)
        if not outcome.helps:
            break
        chosen = states[outcome.state]
    tilted = outcome.model
    assert isinstance(tilted, TiltedGenerator)
    return Made(tilted, encoder, calibrations[-1], chosen, updates, recorded, chain, seconds, rollbacks, gradients)


def _settings(config: TiltConfig) -> list[TiltConfig]:
    """The settings of each stage; the strength is found by the first."""
    later = dataclasses.replace(
        config, iterations=config.stage_iterations, learning_rate=config.stage_learning_rate, strengths=(1.0,)
    )
    return [config, *[later] * (config.stages - 1)]


def _train(fitting: Fitting, stage: int, first: int, task: Task) -> Loop:
    """Train the energy of one stage, which comes after ``first`` updates of earlier ones."""
    config, tracker = fitting.config, task.tracker
    loop = LoopConfig(
        iterations=config.iterations,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        beta1=config.beta1,
        weight_decay=config.weight_decay,
        gradient_clip=config.gradient_clip,
        ema_decay=config.ema_decay,
        check_every=config.check_every,
    )
    trained = Loop(
        fitting.energy,
        loop,
        fitting.loss,
        check=fitting.check,
        choose="kid" if fitting.held_out is None else "held_out_loss",
        folder=None if task.folder is None else task.folder.stage(stage, first),
        chains=fitting,
        on_divergence=fitting.shorten_steps,
        tracker=None if tracker is None else lambda figures, iteration: tracker(figures, first + iteration),
        quiet=task.quiet,
        label=f"tilt ({config.recipe}{f', stage {stage + 1}' if stage else ''})",
    )
    trained.run()
    return trained


def _distance(made: Made) -> str:
    best = made.calibration.best
    return "not used" if best is None else f"{best.distance:.4g}"


def _record(folder: RunFolder, made: Made, tries: Sequence[Made]) -> None:
    tilted = made.model
    folder.record(
        seconds=round(sum(each.seconds for each in tries), 1),
        chosen_iteration=made.chosen,
        updates=tries[-1].updates,
        rollbacks=sum(each.rollbacks for each in tries),
        chain=dataclasses.asdict(made.chain),
        gradient_evaluations=sum(each.gradients for each in tries),
        sampler=dataclasses.asdict(tilted.sampler),
        strength=tilted.strength,
        floor=getattr(tilted.latent_energy, "floor", None),
        **made.recorded[0],
        **({"later_stages": made.recorded[1:]} if len(made.recorded) > 1 else {}),
        **({"encoder": made.encoder} if len(tries) > 1 else {}),
        **{f"by_{each.encoder}_encoder": each.recorded for each in tries if each is not made},
    )
    tilted.save_pretrained(folder.path)
