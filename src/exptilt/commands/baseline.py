"""The baseline that the options of a command ask for."""

from __future__ import annotations

import dataclasses
from typing import Any

from exptilt import options
from exptilt.baselines import Baseline, GradientFlow, OptimalTransport, PriorTemperature, Rejection
from exptilt.errors import InputError
from exptilt.generators.base import Generator
from exptilt.tilted import TiltedGenerator

_KINDS = {"rejection": Rejection, "dot": OptimalTransport, "dgflow": GradientFlow}
_SETTINGS = {
    "temperature": ("temperature",),
    "rejection": ("percentile",),
    "dot": ("steps", "step_size"),
    "dgflow": ("steps", "step_size", "divergence"),
}


def sampling_options(args: options.Drawn) -> list[str]:
    """The options that were given of those that say how samples are drawn, as they are typed."""
    common = {field.name for field in dataclasses.fields(options.Seeded)}
    names = [field.name for field in dataclasses.fields(options.Drawn) if field.name not in common]
    given = {name: getattr(args, name) for name in names}
    # A flag that is not given is False; 0 is a value.
    return [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None and value is not False]


def asks_for_baseline(args: options.Drawn) -> bool:
    """Whether samples are to come from a baseline.

    Raises:
        InputError: An option of a baseline was given without it, or one that it does not use.
    """
    name = "temperature" if args.temperature is not None and args.baseline is None else args.baseline
    used = _SETTINGS[name] if name is not None else ()
    own = {"temperature": args.temperature, "percentile": args.percentile, "divergence": args.divergence}
    chain = (args.chain_changes() | {"adapt": args.adapt}) if name is not None else {}
    for option, value in (own | chain).items():
        if value is not None and option not in used:
            users = [f"--baseline {kind}" for kind in _KINDS if option in _SETTINGS[kind]]
            mend = f"leave it out, or give {' or '.join(users)}" if users and option in own else "leave it out"
            raise InputError(f"--{option.replace('_', '-')}", f"is of no use to {name or 'this model'}", mend)
    return name is not None


def make_baseline(model: Generator | TiltedGenerator, args: options.Drawn) -> Baseline:
    """The baseline on a model.

    Raises:
        InputError: It needs an energy and the model has none, or the other way round; or a setting is out of range.
    """
    if args.baseline is None:
        assert args.temperature is not None
        if isinstance(model, TiltedGenerator):
            fault = "is of the prior, and this model is tilted"
            raise InputError("--temperature", fault, "give the folder of the generator")
        return PriorTemperature(model, args.temperature)
    if not isinstance(model, TiltedGenerator):
        raise InputError(f"--baseline {args.baseline}", "needs an energy", "give the folder of a tilted generator")
    given = {name: getattr(args, name) for name in _SETTINGS[args.baseline]}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return _KINDS[args.baseline](model, **settings)
