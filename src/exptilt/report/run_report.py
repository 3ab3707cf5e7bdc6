"""The page of a run: what ``exptilt report`` writes from the files that a run has left."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exptilt.errors import InputError, RunError
from exptilt.report.likelihood import likelihood_section
from exptilt.report.log import read_log
from exptilt.report.nearest import NEIGHBOURS, nearest_section
from exptilt.report.numbers import metric_table, number, result_section, training_curves
from exptilt.report.page import Block, Code, KeyValues, Row, Section, Table, write_page
from exptilt.report.samples import Drawings, chain_section, collect, sample_section
from exptilt.storage import LIKELIHOOD, LOG, RESULT, RUN, read_json

if TYPE_CHECKING:
    import torch

__all__ = ["build_sections", "metric_table", "read_log", "write_run_report"]

PAGE = "report.html"
_LARGEST_PICTURE = 1 << 25
# What a calibration tells, by the names in run.json.
_CALIBRATED = {
    "strength": "λ",
    "floor": "floor, nats",
    "iteration": "iteration",
    "steps": "steps",
    "fid": "FID ↓",
    "kid": "KID ↓",
    "recall": "recall ↑",
    "coverage": "coverage ↑",
    "entropy": "class entropy",
    "acceptance": "acceptance",
}


def write_run_report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    seed: int = 0,
    n: int = 64,
    device: str | torch.device | None = None,
    quiet: bool = False,
) -> Path:
    """Write the page of a generator's or a tilted generator's folder.

    Args:
        run: The folder; ``run.json``, ``log.jsonl``, ``result.json`` and ``likelihood.json`` are read where they exist.
        out: The page (default: ``report.html`` in the folder).
        seed: Of the samples on the page.
        n: Number of samples on the page.
        device: Where they are drawn; the CPU unless given.
        quiet: No line on standard error.

    Returns:
        The path of the page.

    Raises:
        InputError: The folder is missing or has nothing to report, or a file in it is damaged.
    """
    from exptilt import hub

    run = Path(run)
    if n < 1:
        raise InputError(f"-n {n}", "is out of range", "give a whole number ≥ 1")
    if not run.is_dir():
        raise InputError(run, "no such folder", "give a folder that pretrain or tilt has written")
    run_info, result, likelihood = (_object(run / name) for name in (RUN, RESULT, LIKELIHOOD))
    log, damaged = read_log(run / LOG)
    drawings, trouble = None, ""
    try:
        drawings = collect(hub.load(run, device=device), seed=seed, n=n, quiet=quiet)
    except (InputError, RunError) as error:
        if not (run_info or result or log):
            raise
        trouble = str(error)
    picture = run / NEIGHBOURS
    nearest = picture.read_bytes() if picture.is_file() and picture.stat().st_size <= _LARGEST_PICTURE else None
    sections = build_sections(
        run_info,
        log,
        result,
        drawings,
        run=run,
        trouble=trouble,
        damaged=damaged,
        n=n,
        nearest=nearest,
        likelihood=likelihood,
    )
    path = Path(out) if out is not None else run / PAGE
    if path.is_dir():
        path = path / PAGE
    write_page(path, title=_title(run, drawings), intro=_intro(drawings), sections=sections)
    if not quiet:
        print(f"exptilt: report in {path}", file=sys.stderr)
    return path


def build_sections(
    run_info: Mapping[str, Any] | None,
    log: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any] | None,
    drawings: Drawings | None,
    *,
    run: str | Path = "RUN",
    trouble: str = "",
    damaged: int = 0,
    n: int = 64,
    nearest: bytes | None = None,
    likelihood: Mapping[str, Any] | None = None,
) -> list[Section]:
    """The sections of a run's page, from what its files say.

    Args:
        run_info: ``run.json``, or None.
        log: Lines of ``log.jsonl``.
        result: What ``exptilt evaluate --json`` wrote, or None.
        drawings: Samples, or None.
        run: The folder, for the commands on the page.
        trouble: Why there are no samples.
        damaged: Lines of the log that could not be read.
        n: Number of samples that the command on the page asks for.
        nearest: Picture of samples and their nearest training images, if the run has one.
        likelihood: What ``exptilt likelihood`` wrote, or None.
    """
    info, name = dict(run_info or {}), shlex.quote(str(run))
    evaluate = (
        f"exptilt evaluate {name} --data {_data_name(info)} -n 10000 --json {shlex.quote(str(Path(run) / RESULT))}"
    )
    sections = []
    if result:
        sections.append(result_section(result))
    else:
        sections.append(Section("Result", "No evaluation was run yet. This command runs one:", [Code(evaluate)]))
    if drawings is None:
        text = f"There are no samples on this page: {trouble}." if trouble else "There are no samples on this page."
        sections.append(Section("Samples", text))
    else:
        count, file = (n, "grid.png") if drawings.are_images else (len(drawings.base), "points.npz")
        again = f"exptilt sample {name} -n {count} --seed {drawings.seed} --out {file}"
        sections.append(sample_section(drawings, command=again))
        if (chains := chain_section(drawings)) is not None:
            sections.append(chains)
    if result and (neighbours := nearest_section(result, nearest)) is not None:
        sections.append(neighbours)
    if likelihood:
        sections.append(likelihood_section(likelihood, Path(run) / LIKELIHOOD))
    sections.append(_training(info, log, damaged))
    if info:
        sections.append(_settings(info))
    return sections


def _training(info: Mapping[str, Any], log: Sequence[Mapping[str, Any]], damaged: int) -> Section:
    if not log:
        return Section("Training", "This folder has no training log.")
    chosen = next(
        (value for line in (info, *reversed(log)) if math.isfinite(value := number(line.get("chosen_iteration")))), None
    )
    last = max((number(line.get("iteration")) for line in log if "iteration" in line), default=math.nan)
    facts = [
        f"{last:,.0f} iterations are logged." if math.isfinite(last) else "",
        f"The weights of iteration {chosen:,.0f} were kept; a vertical line marks it." if chosen is not None else "",
    ]
    if isinstance(encoder := info.get("encoder"), str):
        facts.append(f"Of two tilts, by codes of the own and of a learned encoder, that by the {encoder} one was kept.")
    if rollbacks := [line for line in log if "rollback_from" in line]:
        times = "once" if len(rollbacks) == 1 else f"{len(rollbacks)} times"
        rate = number(rollbacks[-1].get("learning_rate_factor"))
        facts.append(f"The run was rolled back {times} after a failed update, to {rate:g} of its learning rate.")
        if math.isfinite(shorter := number(rollbacks[-1].get("step_size_factor"))):
            facts.append(f"Its chains diverged, and went on with {shorter:g} of their step size.")
    if damaged:
        lines = "1 line of the log is" if damaged == 1 else f"{damaged} lines of the log are"
        facts.append(f"{lines} not readable and left out.")
    drawings = training_curves(log, chosen)
    blocks: list[Block] = [Row(drawings)] if len(drawings) > 1 else list(drawings)
    return Section("Training", " ".join(fact for fact in facts if fact), [*blocks, *_calibration(info)])


def _calibration(info: Mapping[str, Any]) -> list[Block]:
    """The strengths of the tilt that were tried after training, and the one that was kept."""
    tried = info.get("calibration")
    trials = [trial for trial in tried if isinstance(trial, dict)] if isinstance(tried, list) else []
    if not trials:
        return []
    names = [name for name in _CALIBRATED if all(name in trial for trial in trials)]
    if all(trial.get("floor") is None for trial in trials):
        names = [name for name in names if name != "floor"]

    rows = [_calibrated(trial, names) for trial in trials]
    for label, key in (("before", "before"), ("at least", "least"), ("5 × the steps", "longer")):
        if isinstance(figures := info.get(key), dict) and figures:
            rows.append([label, *_calibrated(figures, names[1:])])
    sampler = info.get("sampler")
    steps = sampler.get("steps") if isinstance(sampler, dict) else None
    strength, floor, iteration = (info.get(name) for name in ("strength", "floor", "chosen_iteration"))
    kept = [
        index
        for index, trial in enumerate(trials)
        if (trial.get("strength"), trial.get("floor")) == (strength, floor)
        # Runs of earlier versions do not tell these.
        and (trial.get("iteration", iteration), trial.get("steps", steps)) == (iteration, steps)
    ]
    note = "Against held-out training images, N = 1,000: these figures do not compare with those of the result above."
    if isinstance(info.get("longer"), dict):
        note += " The last row is the best without a floor, by chains five times as long."
    header = [_CALIBRATED[name] for name in names]
    return [Table("Strength λ and steps of the tilt, calibrated after training", header, rows, note, strong=kept)]


def _calibrated(figures: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The cells of a row; a dash for what is not known."""
    values = {name: number(figures.get(name)) for name in names}
    return [
        "–" if math.isnan(value) else f"{value:,.0f}" if name in ("iteration", "steps") else f"{value:.3g}"
        for name, value in values.items()
    ]


def _settings(info: Mapping[str, Any]) -> Section:
    blocks: list[Block] = []
    if isinstance(command := info.get("command"), str) and command:
        blocks.append(Code(command, caption="Command of the run"))
    plain = {key: value for key, value in info.items() if key not in ("command", "config", "seconds")}
    items = [
        (key.replace("_", " "), _plain(value)) for key, value in plain.items() if not isinstance(value, (dict, list))
    ]
    if math.isfinite(seconds := number(info.get("seconds"))):
        items.append(("duration", _duration(seconds)))
    if items:
        blocks.append(KeyValues(items))
    for key, value in info.items():
        if isinstance(value, (dict, list)) and value:
            summary = "Configuration in full" if key == "config" else key.replace("_", " ").capitalize()
            blocks.append(Code(json.dumps(value, indent=2, ensure_ascii=False), summary=summary))
    return Section("Settings", "", blocks)


def _title(run: Path, drawings: Drawings | None) -> str:
    name = run.resolve().name
    if drawings is None:
        return f"{name}: a run of exptilt"
    return f"{name}: a generator" if drawings.tilted is None else f"{name}: a tilted generator"


def _intro(drawings: Drawings | None) -> str:
    if drawings is None:
        return ""
    if drawings.tilted is None:
        return "A generative model as it was trained: latents from p(z), decoded by G."
    density = drawings.captions[1].removeprefix("after: z ~ ").replace(" ", "\N{NO-BREAK SPACE}")
    return (
        f"The generator G is frozen. Its latents are drawn from {density} by a Markov chain that starts at p(z); "
        "E is the learned energy."
    )


def _object(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file, or None where there is no file."""
    if not path.is_file():
        return None
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(path, "is no JSON object", "restore it or remove it")
    return value


def _data_name(info: Mapping[str, Any]) -> str:
    """The data set that a run names in its configuration, or DATA."""
    config = info.get("config")
    nested = [config, *(v for v in config.values() if isinstance(v, dict))] if isinstance(config, dict) else []
    return next((shlex.quote(c["data"]) for c in nested if isinstance(c.get("data"), str)), "DATA")


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
