"""The model card: what a folder with a model says of itself, as the Markdown that the Hugging Face Hub shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from exptilt import hub
from exptilt.errors import InputError
from exptilt.presets import PRESETS
from exptilt.report.numbers import metric_table, number
from exptilt.report.progress import GRID
from exptilt.storage import MODULE_WEIGHTS, RESULT, RUN, read_json, write_bytes
from exptilt.tilted import PARTS, TiltedGenerator

CARD = "README.md"

_HUB_NAMES = {"mnist": "ylecun/mnist", "fashion": "zalando-datasets/fashion_mnist", "cifar10": "uoft-cs/cifar10"}
_LIKELIHOODS = {
    "elbo": "ELBO, nats",
    "bits_per_dim": "bits per dimension (upper bound, by uniform dequantisation)",
    "reconstruction": "reconstruction loss, summed over pixels (nats, or squared error)",
    "code_nll": "negative log-density of the code under the flow, nats",
}


def write_card(folder: Path, name: str | None = None) -> None:
    """Write the card of an exported model, ``README.md``, from the files in its folder.

    Raises:
        InputError: The folder holds no exported model.
    """
    model, record = hub.load(folder), read_json(folder / RUN)
    exported = record.get("exported")
    if not isinstance(exported, dict):
        raise InputError(folder, "was not written by exptilt export", "export the run first")
    result = read_json(folder / RESULT) if (folder / RESULT).exists() else None
    tilted = isinstance(model, TiltedGenerator)
    weights = [path for part in ("", *PARTS) if (path := folder / part / MODULE_WEIGHTS).exists()]
    facts = {
        "class": type(model.generator if tilted else model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "shape": model.data_shape,
        "bytes": sum(path.stat().st_size for path in weights),
        "precision": exported["precision"],
        "tilted": tilted,
    }
    card = model_card(name or folder.name, facts, record, result, exported["test"])
    write_bytes(folder / CARD, card.encode())


def model_card(
    name: str,
    model: Mapping[str, Any],
    record: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    test: Mapping[str, float],
) -> str:
    """The card as Markdown with the Hub's YAML header.

    Args:
        name: Name of the model, as a title and in the example.
        model: ``{"class", "parameters", "shape", "bytes", "precision", "tilted"}`` of the published files.
        record: ``run.json`` of the training: command, commit, configuration, seconds.
        result: What ``exptilt evaluate`` measured of the published files, or None.
        test: Likelihood figures of the published weights on the test set; may be empty.
    """
    config = record.get("config") or {}
    data = str(config.get("data", ""))
    header = ModelCardData(
        license="apache-2.0",
        library_name="exptilt",
        pipeline_tag="unconditional-image-generation",
        datasets=[_HUB_NAMES[data]] if data in _HUB_NAMES else None,
        tags=["exptilt", str(model["class"]).lower(), *(["energy-based-model"] if model["tilted"] else [])],
    )
    shape = "×".join(map(str, model["shape"]))
    kind = f"{model['class']}, tilted by an energy" if model["tilted"] else str(model["class"])
    parts = [
        f"---\n{header.to_yaml()}\n---\n",
        f"# {name}\n",
        f"{kind}: samples of shape {shape}, {model['parameters']:,} parameters, weights in {model['precision']} "
        f"({model['bytes'] / 2**20:.2f} MiB), written by [exptilt](https://arxiv.org/abs/2006.08100).\n",
        f"![Samples]({GRID})\n",
        "The first 64 samples of seed 0, not chosen"
        + ("; left the generator, right the same latents after the chain.\n" if model["tilted"] else ".\n"),
        f'```python\nimport exptilt\n\nmodel = exptilt.load("{name}")  # the folder\'s path\n'
        f"x = model.sample(64, seed=0)  # (64, {', '.join(map(str, model['shape']))}) in [-1, 1]\n```\n",
        "## Training\n",
        _table(_training_rows(config, record)) if config else "Not recorded.\n",
    ]
    if test:
        rows = [(_LIKELIHOODS.get(key, key), f"{value:.4g}") for key, value in test.items()]
        parts += ["## Likelihood\n", "Means over the whole test set, of the weights in this folder.\n", _table(rows)]
    if result is not None:
        parts += ["## Samples\n", *_measured(result)]
    return "\n".join(parts)


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
        rows.append(("updates", f"{config.get('iterations'):,} (kept: {record.get('chosen_iteration')})"))
        rows.append(("gradients of U in training", f"{record.get('gradient_evaluations', 0):,}"))
        sampler = record.get("sampler") or config.get("sampler") or {}
        rows.append(("sampler", f"{sampler.get('kernel')}, {sampler.get('steps')} steps, ε {sampler.get('step_size')}"))
    rate = f"batch {config.get('batch_size')}, learning rate {config.get('learning_rate')} ({config.get('schedule')})"
    rows.append(("optimizer", f"Adam, {rate}, mean of weights {config.get('ema_decay') or 'off'}"))
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
    lines.append(f"Protocol `{protocol['hash']}`, feature network `{protocol['feature_network']}`; measured by\n")
    lines.append(f"```\n{result.get('command', '')}\n```\n")
    return lines


def _table(rows: Any, header: Any = ("", "")) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
