"""The commands that use and measure models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from tqdm import tqdm

from exptilt import demo as demo_story
from exptilt import distributed, hub, provenance
from exptilt.baselines import Baseline
from exptilt.bench.run import bench as benchmark
from exptilt.bench.scaling import scaling, tables
from exptilt.commands.baseline import asks_for_baseline, make_baseline, sampling_options
from exptilt.commands.common import find_device, load, say, show
from exptilt.commands.web import serve_page
from exptilt.data import DataSet, load_dataset
from exptilt.errors import InputError
from exptilt.evaluation.comparison import compare_results, read_result
from exptilt.evaluation.features import weights_digest
from exptilt.evaluation.likelihood import likelihood as measure_likelihood
from exptilt.export import export as export_run
from exptilt.generators.base import Generator, blocks
from exptilt.measure_run import folder_of_results, images_at, measure_run
from exptilt.memory import block_size
from exptilt.push import push_to_hub
from exptilt.remote import split_id
from exptilt.report.files import write_samples
from exptilt.report.run_report import write_run_report
from exptilt.report.shards import Format, plan, write_pictures, write_shards
from exptilt.report.terminal import print_comparison, print_likelihood, print_table
from exptilt.sampling.diagnostics import SampleInfo
from exptilt.storage import LIKELIHOOD, write_json
from exptilt.tilted import TiltedGenerator

if TYPE_CHECKING:
    from exptilt import options

# Samples drawn, rounded and written before the next are drawn: so many, or as many as there are chains side by side.
_STREAMED, _STREAMED_POINTS = 500, 10_000
_SHARD, _COLUMNS = 10_000, 8
_MOST_THREADS = 1024


def demo(args: options.Demo) -> None:
    """Everything on embedded data, or the page to play with what was made."""
    if args.web:
        serve_page(args)
        return
    if args.models:
        raise InputError(args.models[0], "is of no use to the demo", "add --web for a page of it, or leave it out")
    for option, given in (("--host", args.host), ("--port", args.port)):
        if given is not None:
            raise InputError(option, "is for the page only", "add --web, or leave it out")
    result = demo_story.run(args.out, seed=args.seed, device=find_device(args.device), quiet=args.quiet)
    print_table(result)
    say(f"{result['seconds']} s; the page is {args.out / 'report.html'}, the grid {args.out / 'grid.png'}", args.quiet)


def sample(args: options.Sample) -> None:
    """Draw samples into a grid, an archive or a folder."""
    if args.n < 1:
        raise InputError(f"-n {args.n}", "is out of range", "give a whole number ≥ 1")
    kind = args.out.suffix.lower()
    _require_use(args, kind)
    model = _load_for_sampling(args)
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
    batch_size = _prepare_chains(model, args, args.n)
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


def evaluate(args: options.Evaluate) -> None:
    """Measure a model against the test set; print the table and write the result."""
    if args.n < 1:
        raise InputError(f"-n {args.n}", "is out of range", "give a whole number ≥ 1")
    images = images_at(args.model)
    if images is not None and (given := sampling_options(args)):
        raise InputError(given[0], f"is of no use to images, which {args.model} holds", "leave it out")
    model = images or _load_for_sampling(args)
    if not isinstance(model, DataSet) and _prepare_chains(model, args, args.n) is not None:
        raise InputError("--batch-size", f"{args.model} is not sampled by its chain", "leave it out")
    measure_run(
        args.model,
        model,
        args.data,
        n=args.n,
        seeds=args.seeds,
        features=args.features,
        paper=args.protocol == "paper",
        cache=not args.no_cache,
        device=find_device(args.device),
        json=args.json,
        progress=not args.quiet,
        show=lambda settings: show(settings, args.quiet),
        on_result=print_table,
    )


def compare(args: options.Compare) -> None:
    """Print two results side by side."""
    a, b = read_result(args.a), read_result(args.b)
    told = compare_results(a, b)
    if args.json is not None:
        write_json(args.json, told)
    print_comparison((str(args.a), str(args.b)), a, b, told)


def export(args: options.Export) -> None:
    """Publish a run as a small folder with a card."""
    folder = export_run(
        args.run,
        args.out,
        data=args.data,
        n=args.n,
        seeds=args.seeds,
        features=args.features,
        precision=args.precision,
        link_generator=args.link_generator,
        device=find_device(args.device),
        progress=not args.quiet,
    )
    say(f"{folder}: weights, card and grid", args.quiet)


def push(args: options.Push) -> None:
    """Upload a run with a card to the Hugging Face Hub."""
    address = push_to_hub(
        args.run,
        args.repo,
        private=args.private,
        revision=args.revision,
        weights_license=args.license,
        progress=not args.quiet,
    )
    print(address)


def likelihood(args: options.Likelihood) -> None:
    """Estimate log Z and store it in the model's index; of flows, bits per dimension of the test set too."""
    if args.limit is not None and args.data is None:
        raise InputError("--limit", "limits test images, and there are none", "give --data, or leave it out")
    model = load(args.model, args.device, progress=not args.quiet)
    if not isinstance(model, TiltedGenerator):
        raise InputError(args.model, "is not tilted", "give the folder of a tilted generator")
    folder = folder_of_results(args.model, args.json)
    test = None if args.data is None else load_dataset(args.data, "test", args.limit)
    result = measure_likelihood(model, test, method=args.method, n=args.n, seed=args.seed, progress=not args.quiet) | {
        "model": str(args.model),
        **provenance.origin(),
        **model.describe(),
    }
    if args.json is not None:
        write_json(args.json, result)
    print_likelihood(result)
    if folder is not None:
        hub.save_log_z(folder, model)
        write_json(folder / LIKELIHOOD, result)


def report(args: options.Report) -> None:
    """Write the page about a run."""
    on_hub = not args.run.exists() and split_id(args.run.as_posix()) is not None
    if on_hub and args.out is None:
        raise InputError(args.run, "is no folder here to write the page to", "give --out")
    device = find_device(args.device)
    run = hub.locate(args.run, progress=not args.quiet) if on_hub else args.run
    write_run_report(run, args.out, seed=args.seed, n=args.n, device=device, quiet=args.quiet)


def bench(args: options.Bench) -> None:
    """Time chains against other ways of running them; print the tables and write the figures."""
    if args.rounds < 1:
        raise InputError(f"--rounds {args.rounds}", "is out of range", "give a whole number ≥ 1")
    if args.threads is not None:
        if not 1 <= args.threads <= _MOST_THREADS:
            raise InputError(f"--threads {args.threads}", "is out of range", f"give a number from 1 to {_MOST_THREADS}")
        torch.set_num_threads(args.threads)
    how: dict[str, Any] = {"device": find_device(args.device), "rounds": args.rounds, "quick": args.quick}
    how |= {"seed": args.seed, "say": lambda text: say(text, args.quiet), "warn": lambda text: say(text, False)}
    records = scaling(**how) if args.scaling else benchmark(args.workload, args.method, **how)
    for table in tables(records):
        Console(highlight=False).print(table)
    if args.json is not None:
        write_json(args.json, records)


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


def _load_for_sampling(args: options.Sample | options.Evaluate) -> Generator | TiltedGenerator | Baseline:
    """The model, its chain changed as the options say, or the baseline that they ask for in its place."""
    for_baseline = asks_for_baseline(args)
    model, changes = load(args.model, args.device, progress=not args.quiet), args.chain_changes()
    if for_baseline:
        return make_baseline(model, args)
    if isinstance(model, TiltedGenerator):
        model.sampler = model.sampler.change(**changes)
        if args.adapt is not None:
            model.sampler = model.adapted_sampler(args.adapt, seed=args.seed)
    elif changes or args.adapt is not None:
        name = next(iter(changes), "adapt").replace("_", "-")
        raise InputError(f"--{name}", f"{args.model} is not tilted, so it has no chain", "leave it out")
    return model


def _prepare_chains(
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


def _sample_to_folder(model: Generator | TiltedGenerator | Baseline, args: options.Sample, kind: Format | None) -> None:
    """Draw samples into a folder, each file by one process: shards of a format, or else a PNG file of each."""
    size = _SHARD if args.shard_size is None else args.shard_size
    shards = [] if kind is None else plan(args.n, args.start, size, kind)
    batch_size = _prepare_chains(model, args, args.n if kind is None else min(args.n, size))
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
