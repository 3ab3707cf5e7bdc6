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
from exptilt.commands.baseline import asks_for_baseline, make_baseline
from exptilt.commands.common import find_device, load, say, show
from exptilt.commands.web import serve_page
from exptilt.data import DataSet, load_dataset
from exptilt.errors import InputError
from exptilt.evaluation.comparison import compare_results, read_result
from exptilt.evaluation.features import weights_digest
from exptilt.evaluation.likelihood import likelihood as measure_likelihood
from exptilt.export import export as export_run
from exptilt.generators.base import Generator, blocks
from exptilt.measure_run import images_at, measure_run
from exptilt.push import push_to_hub
from exptilt.remote import split_id
from exptilt.report.files import write_samples
from exptilt.report.run_report import write_run_report
from exptilt.report.shards import Format, plan, write_shards
from exptilt.report.terminal import print_comparison, print_likelihood, print_table
from exptilt.sampling.diagnostics import SampleInfo
from exptilt.storage import LIKELIHOOD, write_json
from exptilt.tilted import TiltedGenerator

if TYPE_CHECKING:
    from exptilt import options

# Samples drawn, rounded and written before the next are drawn.
_STREAMED, _STREAMED_POINTS = 500, 10_000
_MOST_THREADS = 1024


def demo(args: options.Demo) -> None:
    """Everything on embedded data, or the page to play with what was made."""
    if args.web:
        serve_page(args)
        return
    if args.models:
        raise InputError(args.models[0], "is of no use to the demo", "add --web for a page of it, or leave it out")
    result = demo_story.run(args.out, seed=args.seed, device=find_device(args.device), quiet=args.quiet)
    print_table(result)
    say(f"{result['seconds']} s; the page is {args.out / 'report.html'}, the grid {args.out / 'grid.png'}", args.quiet)


def sample(args: options.Sample) -> None:
    """Draw samples into a grid, an archive or a folder."""
    if args.n < 1:
        raise InputError(f"-n {args.n}", "is out of range", "give a whole number ≥ 1")
    model = _load_for_sampling(args)
    if args.base and isinstance(model, (TiltedGenerator, Baseline)):
        model = model.generator
    if args.format is not None:
        _sample_shards(model, args, args.format)
        return
    if args.resume:
        raise InputError("--resume", "goes on with shards only", "give --format, or leave it out")
    kind = args.out.suffix.lower()
    if kind not in ("", ".png", ".npz"):
        raise InputError(f"--out {args.out}", "has an unknown ending", "use .png, .npz, or a folder's name")
    if kind != ".npz" and len(model.data_shape) != 3:
        raise InputError(f"--out {args.out}", "cannot hold points", "use .npz for a generator of points")
    if kind == "" and args.out.is_dir() and any(args.out.iterdir()):
        raise InputError(f"--out {args.out}", "is not empty", "give a new folder")
    batch_size = _prepare_chains(model, args)
    show(model.describe(), args.quiet)
    infos: list[SampleInfo] = []
    samples = _shared_stream(model, args, batch_size, infos)
    if distributed.is_main():
        write_samples(args.out, samples, args.n, start=args.start, columns=args.columns)
    else:
        for _ in samples:
            pass
    distributed.wait()
    say(". ".join([f"{args.n} samples in {args.out}", *(info.sentence for info in infos)]), args.quiet)


def evaluate(args: options.Evaluate) -> None:
    """Measure a model against the test set; print the table and write the result."""
    if args.n < 1:
        raise InputError(f"-n {args.n}", "is out of range", "give a whole number ≥ 1")
    model = images_at(args.model) or _load_for_sampling(args)
    if not isinstance(model, DataSet) and _prepare_chains(model, args) is not None:
        raise InputError("--batch-size", f"{args.model} is not sampled by its chain", "leave it out")
    result = measure_run(
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
    )
    print_table(result)


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
    model = load(args.model, args.device, progress=not args.quiet)
    if not isinstance(model, TiltedGenerator):
        raise InputError(args.model, "is not tilted", "give the folder of a tilted generator")
    test = None if args.data is None else load_dataset(args.data, "test", args.limit)
    result = measure_likelihood(model, test, method=args.method, n=args.n, seed=args.seed, progress=not args.quiet) | {
        "model": str(args.model),
        **provenance.origin(),
        **model.describe(),
    }
    # A model on the Hub has no folder here to write to.
    if args.model.is_dir():
        hub.save_log_z(args.model, model)
        write_json(args.model / LIKELIHOOD, result)
    if args.json is not None:
        write_json(args.json, result)
    print_likelihood(result)


def report(args: options.Report) -> None:
    """Write the page about a run."""
    on_hub = not args.run.exists() and split_id(args.run.as_posix()) is not None
    if on_hub and args.out is None:
        raise InputError(args.run, "is no folder here to write the page to", "give --out")
    run = hub.locate(args.run, progress=not args.quiet) if on_hub else args.run
    write_run_report(run, args.out, seed=args.seed, n=args.n, quiet=args.quiet)


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
    model: Generator | TiltedGenerator | Baseline, args: options.Sample | options.Evaluate
) -> int | None:
    """Set how a tilted model's chains run, and how many side by side; of another model, return the latter."""
    if not isinstance(model, TiltedGenerator):
        for option, given in (("--compile", args.compile), ("--batch-size auto", args.batch_size == "auto")):
            if given:
                raise InputError(option, "there is no chain here that it is for", "leave it out")
        return None if args.batch_size == "auto" else args.batch_size
    model.compile_chains = args.compile
    if args.batch_size == "auto":
        model.batch_size = model.fastest_batch_size(min(args.n, _STREAMED))
        say(f"{model.batch_size} chains side by side, the fastest number here", args.quiet)
    else:
        model.batch_size = args.batch_size
    return None


def _sample_shards(model: Generator | TiltedGenerator | Baseline, args: options.Sample, kind: Format) -> None:
    """Draw samples into shards, each by one process."""
    shards = plan(args.n, args.start, args.shard_size, kind)
    batch_size = _prepare_chains(model, args)
    described = {
        "model": str(args.model),
        "weights": weights_digest(_weights(model)),
        "base": args.base,
        "seed": args.seed,
        "start": args.start,
        "n": args.n,
        "shard_size": args.shard_size,
        "sample_shape": list(model.data_shape),
        **model.describe(),
    }
    show(described, args.quiet)
    infos: list[SampleInfo] = []
    mine = shards[distributed.world().rank :: distributed.world().size]
    with tqdm(total=sum(len(shard.indices) for shard in mine), unit="sample", disable=args.quiet) as bar:

        def draw(indices: range) -> Iterator[torch.Tensor]:
            for x in _stream(model, args, batch_size, infos, indices):
                yield x
                bar.update(len(x))

        kept = write_shards(args.out, shards, draw, kind, described, resume=args.resume)
    found = f", {kept} of which were there" if kept else ""
    told = [f"{args.n} samples in {args.out}, {len(shards)} shards{found}", *(info.sentence for info in infos)]
    say(". ".join(told), args.quiet)


def _weights(model: Generator | TiltedGenerator | Baseline) -> dict[str, torch.Tensor]:
    """Those that the samples depend on."""
    module: torch.nn.Module = getattr(model, "tilted", model.generator) if isinstance(model, Baseline) else model
    return module.state_dict()


def _shared_stream(
    model: Generator | TiltedGenerator | Baseline,
    args: options.Sample,
    batch_size: int | None,
    infos: list[SampleInfo],
) -> Iterator[torch.Tensor]:
    """All samples in order on every process, which draw a block each and exchange them."""
    world = distributed.world()
    with tqdm(total=args.n, unit="sample", disable=args.quiet) as bar:
        for first, n in blocks(args.n, args.start, _STREAMED * world.size):

            def draw(mine: range, first: int = first) -> torch.Tensor:
                indices = range(first + mine.start, first + mine.stop)
                return torch.cat(list(_stream(model, args, batch_size, infos, indices)))

            x = distributed.rows(n, draw, multiple=_STREAMED)
            yield from x.split(_STREAMED)
            bar.update(n)


def _stream(
    model: Generator | TiltedGenerator | Baseline,
    args: options.Sample,
    batch_size: int | None,
    infos: list[SampleInfo],
    indices: range,
) -> Iterator[torch.Tensor]:
    """The samples with these indices, block by block; what the first block's chains tell is left in ``infos``."""
    batches: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
    # Points are small, and many chains side by side are fastest.
    at_once = _STREAMED if len(model.data_shape) == 3 else _STREAMED_POINTS
    for first, n in blocks(len(indices), indices.start, at_once):
        if isinstance(model, TiltedGenerator) and not (infos or args.quiet):
            x, info = model.sample(n, seed=args.seed, start=first, return_info=True, **batches)
            infos.append(info)
        else:
            x = model.sample(n, seed=args.seed, start=first, **batches)
        yield x
