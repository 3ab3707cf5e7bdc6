"""The whole story on embedded data: train, freeze, tilt, sample, evaluate, report."""

from __future__ import annotations

import dataclasses
import shlex
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import exptilt
from exptilt import hub, provenance
from exptilt.config import override
from exptilt.data import DataSet, load_dataset, to_uint8
from exptilt.evaluation.evaluate import evaluate
from exptilt.evaluation.features import AUTO, load_features
from exptilt.evaluation.metrics import FrechetDistance
from exptilt.evaluation.toy import point_figures
from exptilt.generators import GENERATORS
from exptilt.generators.base import Generator
from exptilt.presets import PRESETS
from exptilt.report.curves import Series, curves
from exptilt.report.figures import before_after, toy_panels
from exptilt.report.files import png
from exptilt.report.numbers import result_section, training_curves
from exptilt.report.page import Code, KeyValues, Section, Svg, Table, write_page
from exptilt.report.samples import chain_section, collect, sample_section, toy_picture
from exptilt.storage import RESULT, write_bytes, write_json
from exptilt.tilted import TiltedGenerator
from exptilt.tilting import held_out_quality
from exptilt.training.fit import resolve_recipe, tilt
from exptilt.training.pretrain import pretrain

# Samples for each of the sampling seeds, and those seeds.
SAMPLES, SEEDS = 2000, (0, 1, 2)
TOYS = {"gaussians": "25 Gaussians", "swissroll": "Swiss roll"}
_TOY_POINTS = 5000
# The recipe's 3,000 updates are for 60,000 images: on 1,297 digits these do, in minutes less.
_DIGITS_CHANGES = {"iterations": 600, "check_every": 100}
_CHAINS_SHOWN = 500

console = Console(stderr=True, highlight=False)


def run(out: Path, *, seed: int = 0, device: torch.device | str = "cpu", quiet: bool = False) -> dict[str, Any]:
    """Run the demo, and leave ``result.json``, ``grid.png``, ``toy.png``, ``report.html`` and both models in ``out``.

    Args:
        out: The folder; what an earlier demo left there is replaced.
        seed: Fixes everything that is trained.
        device: Where to train.
        quiet: No progress.

    Returns:
        What ``result.json`` holds: the figures of ``evaluate`` on held-out digits, and those of the toy sets.
    """
    began = time.monotonic()
    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")

    _stage("1/5  training a VAE on 1,297 handwritten digits", quiet)
    vae = train_preset("vae-digits", train, seed, device, quiet)
    vae.save_pretrained(out / "vae")

    _stage("2/5  tilting it: the VAE is frozen, an energy is learned", quiet)
    log: list[dict[str, Any]] = []
    monitor, fitted, held_out = held_out_quality(AUTO, train)
    config = resolve_recipe("default", vae, seed=seed, **_DIGITS_CHANGES)
    tilted = tilt(
        vae,
        fitted,
        config=config,
        held_out=held_out,
        monitor=monitor,
        tracker=lambda figures, iteration: log.append({"iteration": iteration, **figures}),
        quiet=quiet,
    )
    tilted.save_pretrained(out / "vae-tilted")

    _stage("3/5  the toy sets of the paper's section 5.1", quiet)
    toys = {name: run_toy(name, seed, device, quiet) for name in TOYS}

    _stage("4/5  evaluating on 500 held-out digits", quiet)
    result = evaluate(tilted, test, n=SAMPLES, seeds=SEEDS, train=train, features="digits", progress=not quiet)
    result["toys"] = {name: toy["figures"] for name, toy in toys.items()}
    result |= {
        "command": shlex.join(["exptilt", "demo", "--out", str(out), "--seed", str(seed)]),
        "commit": provenance.commit(),
        "version": exptilt.__version__,
        "seed": seed,
        "recipe": dataclasses.asdict(config),
        **tilted.describe(),
    }

    _stage("5/5  drawing", quiet)
    _draw(out, tilted, toys, result, log, test, seed)
    result["seconds"] = round(time.monotonic() - began, 1)
    write_json(out / RESULT, result)
    return result


def train_preset(name: str, train: DataSet, seed: int, device: torch.device | str, quiet: bool) -> Generator:
    """A generator trained by a preset, frozen."""
    config = override(PRESETS[name], seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator: Generator = hub.build(GENERATORS, config.model, config.arguments, name)
    pretrain(generator, train, config, device=device, quiet=quiet)
    return generator.freeze()


def run_toy(name: str, seed: int, device: torch.device | str, quiet: bool) -> dict[str, Any]:
    """One toy set: its points, those of a VAE and of the tilted VAE, and their figures (paper, figure 5.1)."""
    train, test = load_dataset(name, "train"), load_dataset(name, "test")
    vae = train_preset(f"toy-{name}", train, seed, device, quiet)
    config = resolve_recipe("default", vae, seed=seed)
    tilted = tilt(vae, train, config=config, quiet=quiet)
    points = {
        "data": test.stored[:_TOY_POINTS],
        "VAE": vae.sample(_TOY_POINTS, seed=seed),
        "VAE + EBM": tilted.sample(_TOY_POINTS, seed=seed),
    }
    return {"points": points, "figures": {label: toy_figures(name, x.cpu()) for label, x in points.items()}}


def toy_figures(name: str, points: torch.Tensor) -> dict[str, float]:
    """Share of points within 3σ of a mode (of the curve, for the Swiss roll), and the number of modes found.

    Args:
        name: ``"gaussians"`` or ``"swissroll"``.
        points: (N, 2).
    """
    figures = point_figures(name, points)
    named = {"within_3_sigma": figures["high_quality"], "modes": figures["modes"]}
    return {name: figure for name, figure in named.items() if figure is not None}


def _draw(
    out: Path,
    tilted: TiltedGenerator,
    toys: dict[str, Any],
    result: dict[str, Any],
    log: list[dict[str, Any]],
    test: DataSet,
    seed: int,
) -> None:
    drawings = collect(tilted, seed=seed, n=64)
    assert drawings.tilted is not None
    rows = {TOYS[name]: list(toy["points"].items()) for name, toy in toys.items()}
    write_bytes(out / "grid.png", png(before_after(drawings.base, drawings.tilted, captions=drawings.captions)))
    write_bytes(out / "toy.png", png(toy_panels(rows)))
    chains = chain_section(drawings)
    assert chains is not None
    quality = Section("Quality along the chains", "", [quality_curve(tilted, test, seed)])
    toy_table = Table(
        caption="Share of points within 3σ of a mode, or of the curve; modes found, of 25",
        header=["set", *next(iter(toys.values()))["figures"]],
        rows=[[TOYS[name], *(_toy_cell(f) for f in toy["figures"].values())] for name, toy in toys.items()],
    )
    sections = [
        result_section(result),
        sample_section(drawings),
        chains,
        quality,
        Section("Training of the energy", "Figures of the held-out tenth of the training set.", training_curves(log)),
        Section(
            "Toy sets (paper, section 5.1)", "", [toy_picture(rows, "Data, a VAE, and the same VAE tilted."), toy_table]
        ),
        Section(
            "How this was made",
            "",
            [
                Code(result["command"]),
                KeyValues([("version", exptilt.__version__), ("chain", f"{tilted.sampler}"), ("seed", str(seed))]),
            ],
        ),
    ]
    write_page(
        out / "report.html",
        title="exptilt: a generator before and after tilting",
        intro="A VAE was trained on scikit-learn's handwritten digits and frozen. An energy E was learned, and the "
        "VAE's latents are now drawn from p(z)·exp(−E)/Z in place of p(z).",
        sections=sections,
    )


def quality_curve(tilted: TiltedGenerator, test: DataSet, seed: int) -> Svg:
    """FID of the chains' states against the number of steps."""
    extractor = load_features(test.name)
    distance = FrechetDistance(extractor(test.stored))
    _, info = tilted.sample(_CHAINS_SHOWN, seed=seed, return_latents=True, return_info=True, record_every=10)
    with torch.no_grad():
        fids = [
            distance(extractor(to_uint8(tilted.generator.decode(z.to(tilted.device))).cpu())) for z in info.trajectory
        ]
    line = Series(label="FID", x=info.recorded_steps, y=fids)
    alt = f"FID along the chain, from {fids[0]:.3g} to {fids[-1]:.3g}"
    caption = f"FID of {_CHAINS_SHOWN} chains against their number of steps; step 0 is the VAE."
    return Svg(curves([line], xlabel="chain step", ylabel="FID"), alt, caption)


def _toy_cell(figures: dict[str, float]) -> str:
    modes = f", {figures['modes']:.0f} modes" if "modes" in figures else ""
    return f"{100 * figures['within_3_sigma']:.1f}%{modes}"


def _stage(text: str, quiet: bool) -> None:
    if not quiet:
        console.print(f"[bold]{text}[/bold]")
