"""The commands that train: pretrain and tilt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from exptilt import hub
from exptilt.commands.common import find_device, load, say, show
from exptilt.config import ADAPTABLE, TiltConfig, override
from exptilt.data import DataSet, load_dataset
from exptilt.errors import InputError
from exptilt.generators.base import Generator
from exptilt.generators.pixel import UniformPixels
from exptilt.presets import preset
from exptilt.tilted import TiltedGenerator
from exptilt.train_run import pretrain_run, tilt_run
from exptilt.training.fit import resolve_recipe

if TYPE_CHECKING:
    from exptilt import options

_CHAIN = ("kernel", "steps", "step_size", "noise_scale", "gradient_limit")
_OF_CHAINS = ("chains", "walkers", "restart", *(f"chain_{name}" for name in _CHAIN))


def pretrain(args: options.Pretrain) -> None:
    """Train a preset, and leave the model, its log and a grid in the folder."""
    names = ("epochs", "batch_size", "learning_rate", "ema_decay", "precision", "data")
    config = override(preset(args.preset, args.scale), **{name: getattr(args, name) for name in names}, seed=args.seed)
    figures = pretrain_run(
        config,
        args.out,
        vae=args.vae,
        limit=args.limit,
        device=find_device(args.device),
        resume=args.resume,
        log=args.log,
        quiet=args.quiet,
        show=lambda settings: show(settings, args.quiet),
    )
    say(f"{args.out}: " + ", ".join(f"test {name} {value:.4f}" for name, value in figures.items()), args.quiet)


def tilt(args: options.Tilt) -> None:
    """Train an energy for a generator, and leave the tilted generator in the folder."""
    generator, train = _base_and_data(args)
    # Settings whose option has their name; those of chains are changed below, all together, as they have to fit.
    names = [field.name for field in dataclasses.fields(TiltConfig)]
    apart = ("recipe", "chains", "walkers", "restart")
    changes = {name: getattr(args, name) for name in names if hasattr(args, name) and name not in apart}
    config = resolve_recipe(args.recipe, generator, **changes)
    _require_use(args, config, isinstance(generator, TiltedGenerator) and generator.strength != 0)
    sampler = config.sampler.change(**args.chain_changes())
    base = generator.generator if isinstance(generator, TiltedGenerator) else generator
    hub.require_memory(sampler, base, "the chain")
    # A step size that the user gave is not adapted, unless that is asked for too.
    fixed = args.step_size is not None or sampler.kernel not in ADAPTABLE
    chain = {name: getattr(args, f"chain_{name}") for name in _CHAIN}
    config = override(
        config,
        chain=config.chain.change(**chain),
        chains=args.chains,
        walkers=args.walkers,
        restart=args.restart,
        sampler=sampler,
        target_acceptance=0.0 if fixed and args.adapt is None else args.adapt,
    )
    tilted = tilt_run(
        generator,
        str(args.generator),
        train,
        config,
        args.out,
        features=args.features,
        resume=args.resume,
        log=args.log,
        quiet=args.quiet,
        show=lambda settings: show(settings, args.quiet),
    )
    if not args.quiet:
        _, info = tilted.sample(64, seed=args.seed, return_latents=True, return_info=True)
        say(f"{args.out}: {info.sentence}", args.quiet)


def _require_use(args: options.Tilt, config: TiltConfig, is_tilted: bool) -> None:
    """Refuse options that the run has no use for; what a recipe gives is not looked at.

    Args:
        args: What the user gave.
        config: The recipe's settings, with those of the options.
        is_tilted: The generator is tilted already.

    Raises:
        InputError: There is one.
    """
    chains = args.chains or config.chains
    is_ratio, objective = config.objective == "logistic_ratio", f"objective {config.objective}"
    # Options; whether the run uses them; with what it does not, and with what it would.
    needs: tuple[tuple[tuple[str, ...], bool, str, str], ...] = (
        (_OF_CHAINS, not is_ratio, objective, "--objective maximum_likelihood"),
        (("relative", "floor", "pool"), is_ratio, objective, "--objective logistic_ratio"),
        (("encoder", "floor", "code_noise"), config.space == "z", f"space {config.space}", "--space z"),
        (("walkers",), chains != "short_run", f"chains {chains}", "--chains persistent"),
        (("restart",), chains in ("persistent", "replay"), f"chains {chains}", "--chains persistent"),
        (("stage_iterations", "stage_learning_rate"), config.stages > 1, "one stage", "--stages 2"),
        (("pool",), config.stages > 1 or is_tilted, "one stage on a generator that is not tilted", "--stages 2"),
    )
    for names, used, without, mend in needs:
        for name in names:
            if not used and getattr(args, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise InputError(option, f"is of no use with {without}", f"leave it out, or give {mend}")


def _base_and_data(args: options.Tilt) -> tuple[Generator | TiltedGenerator, DataSet]:
    """What is to be tilted, and towards what."""
    uniform = args.generator == Path("uniform") and not args.generator.exists()
    generator = None if uniform else load(args.generator, args.device)
    train = load_dataset(args.data, "train", args.limit)
    if generator is None:
        if len(train.shape) != 3:
            raise InputError(f"data {train.name!r}", "holds points", "uniform is for images; give a generator")
        generator = UniformPixels(*train.shape).to(find_device(args.device))
    return generator, train
