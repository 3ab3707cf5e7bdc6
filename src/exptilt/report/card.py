"""The model card: what a folder with a model says of itself, as the Markdown that the Hugging Face Hub shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exptilt import hub
from exptilt.errors import InputError
from exptilt.generators.base import Generator
from exptilt.presets import PRESETS
from exptilt.report.card_header import card_header
from exptilt.report.numbers import metric_table, number
from exptilt.storage import CARD, GRID, MODULE_WEIGHTS, RESULT, RUN, read_json, write_bytes
from exptilt.tilted import TiltedGenerator
from exptilt.vetting import read_shapes

_LIKELIHOODS = {
    "elbo": "ELBO, nats",
    "bits_per_dim": "bits per dimension (upper bound, by uniform dequantisation)",
    "reconstruction": "reconstruction loss, summed over pixels (nats, or squared error)",
    "code_nll": "negative log-density of the code under the flow, nats",
}
_PRECISIONS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class Facts:
    """What a card tells of a model's files.

    Attributes:
        kind: Class of the generator.
        parameters: Number of them, energies included.
        shape: Shape of one sample.
        size: Bytes of the weights.
        precision: Types of the weights in the files.
        tilted: Whether the model is tilted.
        whole: Whether the generator is among the files; a wrapped decoder is not.
    """

    kind: str
    parameters: int
    shape: tuple[int, ...]
    size: int
    precision: str
    tilted: bool
    whole: bool

    @property
    def are_images(self) -> bool:
        """Whether samples are images (else points)."""
        return len(self.shape) == 3


def read_facts(model: Generator | TiltedGenerator, files: Mapping[str, Path]) -> Facts:
    """The facts of a model and of its files, as :func:`exptilt.hub.model_files` names them."""
    weights = {name: path for name, path in files.items() if name.endswith(MODULE_WEIGHTS)}
    types = {kind for path in weights.values() for kind, _ in read_shapes(path).values()}
    tilted = isinstance(model, TiltedGenerator)
    return Facts(
        kind=type(model.generator if tilted else model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        shape=model.data_shape,
        size=sum(path.stat().st_size for path in weights.values()),
        precision=", ".join(sorted(_PRECISIONS[kind] for kind in types & _PRECISIONS.keys())) or "integers",
        tilted=tilted,
        whole=not tilted or f"generator/{MODULE_WEIGHTS}" in files,
    )


def write_card(folder: Path, name: str | None = None) -> None:
    """Write the card of an exported model, ``README.md``, from the files in its folder.

    Raises:
        InputError: The folder holds no exported model.
    """
    model, record = hub.load(folder), read_json(folder / RUN)
    if not isinstance(record, dict) or not isinstance(record.get("exported"), dict):
        raise InputError(folder, "was not written by exptilt export", "export the run first")
    result = read_json(folder / RESULT) if (folder / RESULT).exists() else None
    facts = read_facts(model, hub.model_files(folder))
    card = model_card(name or folder.name, facts, record, result, has_grid=(folder / GRID).exists())
    write_bytes(folder / CARD, card.encode())


def model_card(
    name: str,
    facts: Facts,
    record: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    *,
    revision: str | None = None,
    weights_license: str = "apache-2.0",
    has_grid: bool = True,
) -> str:
    """The card as Markdown with the Hub's YAML header.

    Args:
        name: Name of the model, as a title and in the example: a folder, or ``user/name`` on the Hub.
        facts: Of the published files.
        record: ``run.json`` of the training: command, commit, configuration, seconds; may be empty.
        result: What ``exptilt evaluate`` measured of the published files, or None.
        revision: Branch of the Hub that holds the model, for the example.
        weights_license: The Hub's name of a licence.
        has_grid: Whether ``samples.png`` stands beside the card.

    Raises:
        InputError: ``record`` or ``result`` is not what exptilt writes.
    """
    try:
        return _model_card(name, facts, record, result, revision, weights_license, has_grid)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        fault = f"its {RUN} or {RESULT} is malformed ({type(error).__name__}: {error})"
        raise InputError(name, fault, "restore or remove it") from None


def _model_card(
    name: str,
    facts: Facts,
    record: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    revision: str | None,
    weights_license: str,
    has_grid: bool,
) -> str:
    config, test = record.get("config") or {}, (record.get("exported") or {}).get("test") or {}
    shape = "×".join(map(str, facts.shape))
    kind = f"{facts.kind}, tilted by an energy" if facts.tilted else facts.kind
    title = name.split("/")[-1]
    parts = [
        card_header(title, facts.kind, facts.tilted, str(config.get("data", "")), result, weights_license),
        f"# {title}\n",
        f"{kind}: samples of shape {shape}, {facts.parameters:,} parameters, weights in {facts.precision} "
        f"({facts.size / 2**20:.2f} MiB), written by exptilt ([paper](https://arxiv.org/abs/2006.08100)).\n",
    ]
    if has_grid:
        what = "The first 64 samples of seed 0, not chosen" if facts.are_images else "2,000 samples of seed 0"
        parts += [
            f"![Samples]({GRID})\n",
            what + ("; left the generator, right the same latents after the chain.\n" if facts.tilted else ".\n"),
        ]
    parts += [_example(name, facts, revision), "## Training\n"]
    parts.append(_table(_training_rows(config, record)) if config else "Not recorded.\n")
    if test:
        rows = [(_LIKELIHOODS.get(key, key), f"{value:.4g}") for key, value in test.items()]
        parts += ["## Likelihood\n", "Means over the whole test set, of the weights in this folder.\n", _table(rows)]
    if result is not None:
        parts += ["## Samples\n", *_measured(result)]
    return "\n".join(parts)


def _example(name: str, facts: Facts, revision: str | None) -> str:
    on_hub = "/" in name
    given = f'"{name}"' + (f', revision="{revision}"' if revision is not None else "")
    lines = ["import exptilt", ""]
    if not facts.whole:
        lines.append("generator = exptilt.wrap(decoder, latent_shape)  # the decoder is not part of this model")
        given += ", generator=generator"
    lines.append(f"model = exptilt.load({given})" + ("" if on_hub else "  # the folder's path"))
    bounds = " in [-1, 1]" if facts.are_images else ""
    lines.append(f"x = model.sample(64, seed=0)  # (64, {', '.join(map(str, facts.shape))}){bounds}")
    return "\n".join(["```python", *lines, "```\n"])


def _training_rows(config: Mapping[str, Any], record: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("command", f"`{record.get('command', '')}`"), ("commit", f"`{record.get('commit') or 'not recorded'}`")]
    rows.append(("data", f"{config.get('data')}, {config.get('n_train')} training images"))
    if "epochs" in config:
        paper = PRESETS[config["preset"]].epochs if config.get("preset") in PRESETS else config["epochs"]
        shortened = f" (shortened: the preset's paper scale has {paper})" if config["epochs"] < paper else ""
        rows.append(("epochs", f"{config['epochs']}{shortened}"))
        rows.append(("arguments", ", ".join(f"{key} {value}" for key, value in config.get("arguments", {}).items())))
    else:
        energy = f"{config.get('energy')} of width {config.get('energy_width')} on {config.get('space')}"
        rows.append(("generator", f"`{config.get('generator')}`"))
        rows.append(("recipe", f"{config.get('recipe')}: {config.get('objective')}, {energy}"))
        updates = record.get("updates", config.get("iterations"))
        rows.append(("updates", f"{updates:,} (kept: {record.get('chosen_iteration')})"))
        if encoder := record.get("encoder"):
            rows.append(("encoder", f"{encoder}, which was the better of the generator's own and a learned one"))
        rows.append(("gradients of U in training", f"{record.get('gradient_evaluations', 0):,}"))
        sampler = record.get("sampler") or config.get("sampler") or {}
        rows.append(("sampler", f"{sampler.get('kernel')}, {sampler.get('steps')} steps, ε {sampler.get('step_size')}"))
    rate = f"batch {config.get('batch_size')}, learning rate {config.get('learning_rate')} ({config.get('schedule')})"
    optimizer = f"AdamW of weight decay {config['weight_decay']}" if config.get("weight_decay") else "Adam"
    rows.append(("optimizer", f"{optimizer}, {rate}, EMA of weights {config.get('ema_decay') or 'off'}"))
    rows.append(("seed", str(config.get("seed"))))
    if (seconds := number(record.get("seconds"))) == seconds:
        rows.append(("wall time", f"{seconds / 60:.1f} min, {record.get('threads')} CPU threads"))
    return rows


def _measured(result: Mapping[str, Any]) -> list[str]:
    table = metric_table(result)
    lines = [_table(table.rows, table.header), f"{table.note}.\n"]
    for key in ("base", "tilted"):
        if (figures := result.get(key)) is not None:
            seconds = 1000 * figures["seconds"] / (result["n"] * len(result["seeds"]))
            lines.append(f"Drawing 1,000 samples ({key}) took {seconds:.2f} s on the machine of the evaluation.\n")
    protocol = result["protocol"]
    network = f", feature network `{protocol['feature_network']}`" if "feature_network" in protocol else ""
    how = f"; measured by\n\n```\n{result['command']}\n```\n" if result.get("command") else ".\n"
    lines.append(f"Protocol `{protocol['hash']}`{network}{how}")
    fields = [(name, f"`{value}`") for name, value in protocol.items()]
    lines.append(f"<details><summary>Protocol in full</summary>\n\n{_table(fields)}\n</details>\n")
    return lines


def _table(rows: Any, header: Any = ("", "")) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
