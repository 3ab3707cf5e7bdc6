"""The commands that measure models, publish them and show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from exptilt import demo as demo_story
from exptilt import hub, provenance
from exptilt.bench.run import bench as benchmark
from exptilt.bench.scaling import scaling, tables
from exptilt.commands.baseline import sampling_options
from exptilt.commands.common import find_device, load, say, show
from exptilt.commands.draw import load_for_sampling, prepare_chains
from exptilt.commands.web import serve_page
from exptilt.data import DataSet, load_dataset
from exptilt.errors import InputError
from exptilt.evaluation.comparison import compare_results, read_result
from exptilt.evaluation.likelihood import likelihood as measure_likelihood
from exptilt.export import export as export_run
from exptilt.measure_run import folder_of_results, images_at, measure_run
from exptilt.push import push_to_hub
from exptilt.remote import split_id
from exptilt.report.run_report import write_run_report
from exptilt.report.terminal import print_comparison, print_likelihood, print_table
from exptilt.storage import LIKELIHOOD, require_place, write_json
from exptilt.tilted import TiltedGenerator

if TYPE_CHECKING:
    from exptilt import options

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


def evaluate(args: options.Evaluate) -> None:
    """Measure a model against the test set; print the table and write the result."""
    if args.n < 1:
        raise InputError(f"-n {args.n}", "is out of range", "give a whole number ≥ 1")
    images = images_at(args.model)
    if images is not None and (given := sampling_options(args)):
        raise InputError(given[0], f"is of no use to images, which {args.model} holds", "leave it out")
    model = images or load_for_sampling(args)
    if not isinstance(model, DataSet) and prepare_chains(model, args, args.n) is not None:
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
    if args.data is not None and not (model.generator.has_density and len(model.data_shape) == 3):
        raise InputError(f"--data {args.data}", f"{args.model} is no flow of images", "leave it out")
    folder = folder_of_results(args.model, args.json)
    if args.json is not None:
        require_place(args.json)
    test = None if args.data is None else load_dataset(args.data, "test", args.limit)
    result = measure_likelihood(model, test, method=args.method, n=args.n, seed=args.seed, progress=not args.quiet) | {
        "model": str(args.model),
        **provenance.origin(),
        **model.describe(),
    }
    try:
        if args.json is not None:
            write_json(args.json, result)
        if folder is not None:
            hub.save_log_z(folder, model)
            write_json(folder / LIKELIHOOD, result)
    finally:
        # As in measure_run.
        print_likelihood(result)


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
