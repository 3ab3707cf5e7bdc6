"""The command that makes the paper's table and figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exptilt.commands.common import find_device, say
from exptilt.errors import InputError, RunError
from exptilt.reproduce import ablation
from exptilt.reproduce.b2 import check_statements, markdown
from exptilt.reproduce.cells import Cells, Settings
from exptilt.reproduce.grids import IN_APPENDIX, IN_TEXT, draw_chains, draw_grids
from exptilt.reproduce.models import tilted_folders
from exptilt.reproduce.overfitting import draw_overfitting
from exptilt.reproduce.quality_cost import STEPS, draw_cost
from exptilt.reproduce.reach import markdown as reach_markdown
from exptilt.reproduce.reach import measure_reach
from exptilt.reproduce.results import publish
from exptilt.reproduce.table1 import entries, make_table
from exptilt.reproduce.table_text import print_table1
from exptilt.reproduce.toys import draw_toys

if TYPE_CHECKING:
    from exptilt import options

_PUBLISHED = Path("checkpoints")
_SAMPLES, _FEWER_SAMPLES = 10_000, 2000


def reproduce(args: options.Reproduce) -> None:
    """Make what is asked for, and say where it is."""
    for name in ("n", "epochs", "iterations", "steps", "limit"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise InputError(f"--{name} {value}", "is out of range", "give a whole number ≥ 1")
    if args.what == "table1":
        _table1(args)
    elif args.what == "b2":
        _b2(args)
    elif args.what == "ablation":
        _ablation(args)
    else:
        _figure(args)


def _table1(args: options.Reproduce) -> None:
    cells = _cells(args, args.n or _SAMPLES)
    made = make_table(cells, args.only, args.data_sets)
    print_table1(made)
    say(f"{cells.out}: table1.md, table1.json, and results.json for docs", args.quiet)
    if args.publish:
        publish([row for row in entries(made) if row["dataset"] != "digits"], Path("docs"))
    if made["failed"]:
        told = "; ".join(f"{name}: {reason}" for name, reason in made["failed"].items())
        raise RunError(f"{len(made['failed'])} cells failed: {told}")


def _b2(args: options.Reproduce) -> None:
    cells = _cells(args, args.n or _FEWER_SAMPLES)
    made = check_statements(cells, args.data_sets[0], only=args.only)
    print(markdown(made))
    say(f"{cells.out}: b2.md, b2.json", args.quiet)


def _ablation(args: options.Reproduce) -> None:
    cells = _cells(args, args.n or _FEWER_SAMPLES)
    kinds = {"generators": args.kinds, "seeds": args.training_seeds, "only": args.only}
    made = ablation.run_ablation(cells, args.data_sets, **kinds)
    print(ablation.markdown(made))
    say(f"{cells.out / 'ablation'}: ablation.md, ablation.json", args.quiet)


def _figure(args: options.Reproduce) -> None:
    out, device = args.out / args.scale, find_device(args.device)
    if args.what == "fig5.1":
        draw_toys(out, seed=args.seed, device=device, epochs=args.epochs, changes=_changes(args))
    else:
        folders = tilted_folders(args.models, (out,) if args.what in ("overfitting", "reach") else (out, _PUBLISHED))
        if args.what == "fig5.3":
            draw_chains(folders, out, seed=args.seed, device=device)
        elif args.what == "overfitting":
            draw_overfitting(folders, out)
        elif args.what == "reach":
            made = measure_reach(folders, out, levels=args.levels, device=device)
            print(reach_markdown(made))
        elif args.what == "cost":
            steps = args.steps or STEPS
            n = args.n or _FEWER_SAMPLES
            draw_cost(folders, out, kernels=args.kernels, n=n, seed=args.seed, device=device, steps=steps)
        else:
            n = args.n or (IN_TEXT if args.what == "fig5.2" else IN_APPENDIX)
            draw_grids(args.what, folders, out, n=n, seed=args.seed, device=device)
    say(f"{out}: {args.what}.json and its pictures", args.quiet)


def _cells(args: options.Reproduce, n: int) -> Cells:
    settings = Settings(
        scale=args.scale,
        n=n,
        seeds=args.seeds,
        seed=args.seed,
        generators=args.generators,
        epochs=args.epochs,
        limit=args.limit,
        changes=_changes(args),
        sampling_steps=args.steps,
        device=find_device(args.device),
        quiet=args.quiet,
    )
    return Cells(args.out / args.scale, settings, lambda line: say(line, args.quiet))


def _changes(args: options.Reproduce) -> dict[str, int]:
    return {} if args.iterations is None else {"iterations": args.iterations}
