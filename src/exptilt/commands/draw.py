"""The command that draws samples, and what it shares with the evaluation: a model whose chains are set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from exptilt import distributed, hub
from exptilt.baselines import Baseline
from exptilt.commands.baseline import asks_for_baseline, make_baseline, sampling_options
from exptilt.commands.common import load, say, show
from exptilt.errors import InputError
from exptilt.evaluation.features import weights_digest
from exptilt.generators.base import Generator, blocks
from exptilt.memory import block_size
from exptilt.report.files import write_samples
from exptilt.report.shards import Format, plan, write_pictures, write_shards
from exptilt.sampling.diagnostics import SampleInfo
from exptilt.tilted import TiltedGenerator

if TYPE_CHECKING:
    from exptilt import options

# Samples drawn, rounded and written before the next are drawn: so many, or as many as there are chains side by side.
_STREAMED, _STREAMED_POINTS = 500, 10_000
_SHARD, _COLUMNS = 10_000, 8


def sample(args: options.Sample) -> None:
    """Draw samples into a grid, an archive or a folder."""
    if args.n < 1:
        raise InputError(f"-n {args.n}", "is out of range", "give a whole number ≥ 1")
    kind = args.out.suffix.lower()
    _require_use(args, kind)
    model = load_for_sampling(args)
    if args.base and isinstance(model, TiltedGenerator):
        model = model.generator
    if args.format is not None:
        _sample_to_folder(model, args, args.format)
        return
    if kind not in ("", ".png", ".npz"):
        raise InputError(f"--out {args.out}", "has an unknown ending", "use .png, .npz, or a folder's name")
    if kind != ".npz" and len(model.data_shape) != 3:
        raise InputError(f"--out {args.out}", "cannot hold points", "use .npz for a generator of points")
    if kind == "":
        _sample_to_folder(model, args, None)
        return
    batch_size = prepare_chains(model, args, args.n)
    show(model.describe(), args.quiet)
    infos: list[SampleInfo] = []
    samples = _shared_stream(model, args, batch_size, infos)
    if distributed.is_main():
        write_samples(args.out, samples, args.n, columns=args.columns or _COLUMNS)
    else:
        for _ in samples:
            pass
    distributed.wait()
    say(". ".join([f"{args.n} samples in {args.out}", *(info.sentence for info in infos)]), args.quiet)


def load_for_sampling(args: options.Sample | options.Evaluate) -> Generator | TiltedGenerator | Baseline:
    """The model, its chain changed as the options say, or the baseline that they ask for in its place."""
    for_baseline = asks_for_baseline(args)
    model, changes = load(args.model, args.device, progress=not args.quiet), args.chain_changes()
    if for_baseline:
        return make_baseline(model, args)
    if isinstance(model, TiltedGenerator):
        model.sampler = model.sampler.change(**changes)
        hub.require_memory(model.sampler, model.generator, "the chain")
        if args.adapt is not None:
            model.sampler = model.adapted_sampler(args.adapt, seed=args.seed)
    elif changes or args.adapt is not None:
        name = next(iter(changes), "adapt").replace("_", "-")
        raise InputError(f"--{name}", f"{args.model} is not tilted, so it has no chain", "leave it out")
    return model


def prepare_chains(
    model: Generator | TiltedGenerator | Baseline, args: options.Sample | options.Evaluate, at_once: int
) -> int | None:
    """Set how a tilted model's chains run, and how many side by side; of another model, return the latter.

    ``at_once`` is the most samples that are drawn at once.
    """
    if isinstance(args.batch_size, int) and args.batch_size < 1:
        raise InputError(f"--batch-size {args.batch_size}", "is out of range", "give a whole number ≥ 1")
    if not isinstance(model, TiltedGenerator):
        for option, given in (("--compile", args.compile), ("--batch-size auto", args.batch_size == "auto")):
            if given:
                raise InputError(option, "needs a chain, and there is none here", "leave it out")
        return None if args.batch_size == "auto" else args.batch_size
    model.compile_chains = args.compile
    if args.batch_size == "auto":
        # By the clock, which tells each process something else, and all have to draw blocks of one size.
        model.batch_size = distributed.same(model.fastest_batch_size(at_once))
        say(f"{model.batch_size} chains side by side, the fastest number here", args.quiet)
    else:
        model.batch_size = args.batch_size
    return None


def _require_use(args: options.Sample, kind: str) -> None:
    """Refuse options that say nothing of what is to be written, whose name ends in ``kind``."""
    if args.columns is not None:
        if args.columns < 1:
            raise InputError(f"--columns {args.columns}", "is out of range", "give a whole number ≥ 1")
        if kind != ".png" or args.format is not None:
            raise InputError("--columns", "is for a grid only", "give --out FILE.png, or leave it out")
    if args.shard_size is not None and args.format is None:
        raise InputError("--shard-size", "is for shards only", "give --format, or leave it out")
    if args.resume and args.format is None and kind != "":
        raise InputError("--resume", "is for folders only", "give --out FOLDER, or leave it out")
    if args.base and (given := [option for option in sampling_options(args) if option != "--batch-size"]):
        raise InputError(given[0], "is of no use with --base, the generator as it is", "leave one of them out")


def _sample_to_folder(model: Generator | TiltedGenerator | Baseline, args: options.Sample, kind: Format | None) -> None:
    """Draw samples into a folder, each file by one process: shards of a format, or else a PNG file of each."""
    size = _SHARD if args.shard_size is None else args.shard_size
    shards = [] if kind is None else plan(args.n, args.start, size, kind)
    batch_size = prepare_chains(model, args, args.n if kind is None else min(args.n, size))
    at_once = _at_once(model, batch_size, args.n)
    parts = [range(first, first + n) for first, n in blocks(args.n, args.start, at_once)]
    described = {
        "model": str(args.model),
        "weights": weights_digest(_weights(model)),
        "base": args.base,
        "seed": args.seed,
        "start": args.start,
        "n": args.n,
        **({} if kind is None else {"shard_size": size}),
        "sample_shape": list(model.data_shape),
        **model.describe(),
    }
    show(described, args.quiet)
    infos: list[SampleInfo] = []
    world = distributed.world()
    mine = ([shard.indices for shard in shards] or parts)[world.rank :: world.size]
    with tqdm(total=sum(map(len, mine)), unit="sample", disable=args.quiet) as bar:

        def draw(indices: range) -> Iterator[torch.Tensor]:
            for x in _stream(model, args, batch_size, infos, indices, at_once):
                yield x
                bar.update(len(x))

        if kind is None:
            kept = write_pictures(args.out, parts, draw, described, resume=args.resume)
        else:
            kept = write_shards(args.out, shards, draw, kind, described, resume=args.resume)
    in_shards = f", {len(shards)} shards" if shards else ""
    found = f", {kept} of which were there" if kept else ""
    told = [f"{args.n} samples in {args.out}{in_shards}{found}", *(info.sentence for info in infos)]
    say(". ".join(told), args.quiet)


def _weights(model: Generator | TiltedGenerator | Baseline) -> dict[str, torch.Tensor]:
    """Those that the samples depend on."""
    module: torch.nn.Module = getattr(model, "tilted", model.generator) if isinstance(model, Baseline) else model
    return module.state_dict()


def _at_once(model: Generator | TiltedGenerator | Baseline, batch_size: int | None, n: int) -> int:
    """How many of n samples are drawn at once: as many as are made side by side, and not few."""
    # Points are small, and many chains side by side are fastest.
    least = _STREAMED if len(model.data_shape) == 3 else _STREAMED_POINTS
    wanted = model.side_by_side if isinstance(model, TiltedGenerator) else batch_size or 0
    return block_size(wanted, least, -(-n // distributed.world().size), model.data_shape)


def _shared_stream(
    model: Generator | TiltedGenerator | Baseline,
    args: options.Sample,
    batch_size: int | None,
    infos: list[SampleInfo],
) -> Iterator[torch.Tensor]:
    """All samples in order on every process, which draw a block each and exchange them."""
    world, at_once = distributed.world(), _at_once(model, batch_size, args.n)
    with tqdm(total=args.n, unit="sample", disable=args.quiet) as bar:
        for first, n in blocks(args.n, args.start, at_once * world.size):

            def draw(mine: range, first: int = first) -> torch.Tensor:
                indices = range(first + mine.start, first + mine.stop)
                return torch.cat(list(_stream(model, args, batch_size, infos, indices, at_once)))

            x = distributed.rows(n, draw, multiple=at_once)
            yield from x.split(_STREAMED)
            bar.update(n)


def _stream(
    model: Generator | TiltedGenerator | Baseline,
    args: options.Sample,
    batch_size: int | None,
    infos: list[SampleInfo],
    indices: range,
    at_once: int,
) -> Iterator[torch.Tensor]:
    """The samples with these indices, block by block; what the first block's chains tell is left in ``infos``."""
    batches: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
    for first, n in blocks(len(indices), indices.start, at_once):
        if isinstance(model, TiltedGenerator) and not (infos or args.quiet):
            x, info = model.sample(n, seed=args.seed, start=first, return_info=True, **batches)
            infos.append(info)
        else:
            x = model.sample(n, seed=args.seed, start=first, **batches)
        yield x
