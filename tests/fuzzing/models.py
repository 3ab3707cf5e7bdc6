"""A model's folder as a stranger might give it: weights, configurations, what stands in the place of files."""

from __future__ import annotations

import functools
import json
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

import exptilt
from exptilt.config import SamplerConfig
from exptilt.energies import ENERGIES
from exptilt.evaluation.comparison import compare_results, read_result
from exptilt.evaluation.features import load_features, save_features
from exptilt.evaluation.network import FeatureNetwork
from exptilt.generators import GENERATORS
from exptilt.generators.code_flow import CodeFlow
from exptilt.report.card import write_card
from exptilt.report.run_report import write_run_report
from exptilt.training.run_folder import CHECKPOINT, RunFolder
from fuzzing.harness import Case, Entry, FaultError, Link, Special
from fuzzing.values import TEXTS, changed, dumps, json_files, mutated, values

Files = dict[str, bytes]


@functools.cache
def model_files(name: str) -> Files:
    """The files of a small model of a class that a file may name, or of a tilted one, by their names."""
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _MODELS[name]().save_pretrained(folder)
        return _files_in(Path(folder))


def _files_in(folder: Path) -> Files:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _vae() -> Any:
    return exptilt.VAE(latent_size=4, width=4)


_MODELS: dict[str, Callable[[], Any]] = {
    "VAE": _vae,
    "Glow": lambda: GENERATORS["Glow"](size=8, levels=1, steps=1, hidden=4),
    "GLF": lambda: GENERATORS["GLF"](latent_size=4, width=4, flow_width=8),
    "TwoStageVAE": lambda: GENERATORS["TwoStageVAE"](latent_size=4, width=4, second_width=8, second_depth=1),
    "LatentFlowVAE": lambda: GENERATORS["LatentFlowVAE"](latent_size=4, width=4, flow_width=8),
    "MixtureGenerator": lambda: GENERATORS["MixtureGenerator"](_vae(), components=2),
    "PixelSpace": lambda: GENERATORS["PixelSpace"](GENERATORS["Glow"](size=8, levels=1, steps=1, hidden=4)),
    "ToyVAE": lambda: GENERATORS["ToyVAE"](width=8),
    "UniformPixels": lambda: GENERATORS["UniformPixels"](1, 8, 8),
    "tilted": lambda: exptilt.TiltedGenerator(
        _vae(), latent_energy=ENERGIES["MLPEnergy"](4, width=8), sampler=SamplerConfig(steps=2)
    ),
    "tilted by images": lambda: exptilt.TiltedGenerator(
        _vae(), ENERGIES["SmallEnergy"](width=4), sampler=SamplerConfig(steps=2)
    ),
}
_RUN = {
    "command": "exptilt tilt runs/vae",
    "commit": "0123456789ab",
    "started": "2026-01-01T00:00:00+00:00",
    "version": "0.1.0",
    "seconds": 12.5,
    "threads": 1,
    "config": {"data": "digits", "recipe": "default", "seed": 0, "iterations": 20, "sampler": {"kernel": "mala"}},
    "exported": {"precision": "float16", "test": {"elbo": -97.0}},
    "calibration": [{"strength": 1.0, "fid": 3.0, "kid": 0.1, "recall": 0.9, "coverage": 0.9, "entropy": 2.3}],
    "strength": 1.0,
    "chosen_iteration": 20,
}
_LOG = [{"iteration": i, "loss": 1 / i, "energy_data": 0.1, "energy_negatives": -0.1, "seconds": i} for i in (10, 20)]
_FIGURES = {
    "n": 100,
    "fid": 3.0,
    "fid_ci": [2.5, 3.5],
    "kid": 0.1,
    "precision": 0.9,
    "recall": 0.9,
    "density": 1.0,
    "coverage": 0.9,
    "class_entropy": 2.2,
    "class_histogram": [0.1] * 10,
    "fid_per_seed": [3.0, 3.0],
    "fid_ci_per_seed": [[2.5, 3.5], [2.5, 3.5]],
    "seconds": 1.0,
}
_RESULT = {
    "protocol": {"data": "digits", "feature_network": "digits", "seeds": [0, 1], "n": 100, "hash": "0123456789ab"},
    "n": 100,
    "seeds": [0, 1],
    "data": {"name": "digits", "n": 500, "class_entropy": 2.3},
    "base": _FIGURES,
    "tilted": _FIGURES,
    "images": None,
    "floor": _FIGURES,
    "reconstruction": None,
    "neighbours": {"n_train": 1297, "n_held_out": 500, "tilted": {"median_ratio": 1.0, "share_below": 0.01}},
    "model": "runs/vae",
    "command": "exptilt evaluate",
}


def _sampled(folder: Path) -> None:
    """Load, and draw where that is cheap: what was taken must also work."""
    model = exptilt.load(folder)
    sampler = getattr(model, "sampler", SamplerConfig(steps=0))
    if sampler.gradients + sampler.evaluations <= 100:
        model.sample(1, seed=0)


def _header(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _with_header(header: Any, data: bytes, claimed: int | None = None) -> bytes:
    text = dumps(header)
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


@st.composite
def safetensors_files(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file with a header that lies, or that is damaged."""
    way = draw(st.sampled_from(("header", "header", "length", "bytes", "truth")))
    header, data = _header(content)
    if way == "bytes":
        return draw(mutated(content))
    if way == "length":
        return _with_header(header, data, draw(st.sampled_from((0, 1, 2**20, 2**31, 2**63, 2**64 - 1))))
    if way == "truth":  # whole, and of other tensors than the model's
        names = draw(st.lists(st.sampled_from([*header, *TEXTS[:12]]), min_size=1, max_size=4, unique=True))
        kind, size = draw(st.sampled_from((("F32", 4), ("F16", 2), ("U8", 1), ("I64", 8), ("BOOL", 1), ("F64", 8))))
        entries = {
            name: {"dtype": kind, "shape": [3], "data_offsets": [3 * size * i, 3 * size * (i + 1)]}
            for i, name in enumerate(names)
        }
        return _with_header(entries, bytes(3 * size * len(names)))
    return _with_header(draw(changed(header)), data)


@st.composite
def weights(draw: st.DrawFn) -> Case:
    """Weights that are damaged, or that lie about themselves."""
    files = dict(model_files(draw(st.sampled_from(sorted(_MODELS)))))
    name = draw(st.sampled_from(sorted(name for name in files if name.endswith(".safetensors"))))
    files[name] = draw(safetensors_files(files[name]))
    return Case(_sampled, files)


@st.composite
def configurations(draw: st.DrawFn) -> Case:
    """A config.json or model_index.json that something has changed."""
    files = dict(model_files(draw(st.sampled_from(sorted(_MODELS)))))
    name = draw(st.sampled_from(sorted(name for name in files if name.endswith(".json"))))
    files[name] = draw(json_files(json.loads(files[name])))
    return Case(_sampled, files)


@st.composite
def places(draw: st.DrawFn) -> Case:
    """Links, pipes and folders in the place of a model's files, and links that leave the folder."""
    files: dict[str, Entry] = {f"models/m/{name}": content for name, content in model_files("tilted").items()}
    files["elsewhere/model.safetensors"] = model_files("VAE")["model.safetensors"]
    files["elsewhere/config.json"] = model_files("VAE")["config.json"]
    targets = (
        "/etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/mem",
        "/proc/self/environ",
        "../../elsewhere",
        "..",
    )
    targets += (
        ".",
        "../../elsewhere/config.json",
        "../../../elsewhere/model.safetensors",
        "nowhere",
        "config.json",
        "/",
    )
    whole = ("models/m/generator", "models/m/latent_energy", "models/m")
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from([*sorted(name for name in files if name.startswith("models")), *whole]))
        for inner in [inner for inner in files if inner == name or inner.startswith(f"{name}/")]:
            del files[inner]
        entries: list[Entry | None] = [None, Special("folder"), Special("pipe"), *map(Link, targets)]
        if (entry := draw(st.sampled_from(entries))) is not None:
            files[name] = entry

    def call(folder: Path) -> None:
        _sampled(folder / "models" / "m")
        escaped = [
            path
            for path in (folder / "models" / "m").rglob("*")
            if path.name in ("config.json", "model.safetensors") and path.is_file()
            if not path.resolve().is_relative_to((folder / "models").resolve())
        ]
        if escaped:
            raise FaultError(f"read {escaped[0]} through a link that leaves the folder")

    return Case(call, files, str({name: entry for name, entry in files.items() if not isinstance(entry, bytes)}))


@st.composite
def names(draw: st.DrawFn) -> Case:
    """What may be given in the place of a folder's name or a Hub id."""
    name = draw(st.one_of(st.sampled_from(TEXTS), st.text(max_size=60)))

    def call(folder: Path) -> None:
        here = Path.cwd()
        os.chdir(folder)
        try:
            exptilt.load(name, local_files_only=True)
        finally:
            os.chdir(here)

    return Case(call, {}, repr(name))


@st.composite
def records(draw: st.DrawFn) -> Case:
    """run.json, log.jsonl and result.json that something has changed: the page of the run is made of them."""
    run, result = draw(json_files(_RUN)), draw(json_files(_RESULT))
    lines = [draw(st.one_of(st.just(dumps(line)), json_files(line))) for line in _LOG]
    files: dict[str, Entry] = {"run.json": dumps(_RUN), "result.json": dumps(_RESULT), "log.jsonl": b"\n".join(lines)}
    files |= draw(
        st.sampled_from(({"run.json": run}, {"result.json": result}, {"run.json": run, "result.json": result}))
    )
    name = draw(st.sampled_from(sorted(files)))
    if draw(st.integers(0, 9)) == 0:
        files[name] = draw(
            st.sampled_from((Special("pipe"), Special("folder"), Link("/dev/zero"), Link("/etc/passwd")))
        )

    def call(folder: Path) -> None:
        page = write_run_report(folder, n=1, quiet=True).read_text(encoding="utf-8")
        if "<script>alert" in page or "<img src=x" in page or "root:x:0" in page:
            raise FaultError("the page holds a stranger's HTML, or a file of this machine")

    return Case(call, files)


@st.composite
def cards(draw: st.DrawFn) -> Case:
    """The card of a model whose run.json or result.json something has changed."""
    files: dict[str, Entry] = {**model_files("VAE"), "run.json": dumps(_RUN), "result.json": dumps(_RESULT)}
    name = draw(st.sampled_from(("run.json", "result.json")))
    files[name] = draw(json_files(_RUN if name == "run.json" else _RESULT))
    return Case(lambda folder: write_card(folder, "user/name"), files)


@st.composite
def results(draw: st.DrawFn) -> Case:
    """A result.json that something has changed, compared with a whole one."""
    content = draw(json_files(_RESULT))

    def call(folder: Path) -> None:
        compare_results(read_result(folder / "result.json"), json.loads(dumps(_RESULT)))

    return Case(call, {"result.json": content})


@functools.cache
def _feature_files() -> Files:
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_features(FeatureNetwork(1, width=4, feature_size=8), Path(folder), {})
        return _files_in(Path(folder))


@st.composite
def feature_networks(draw: st.DrawFn) -> Case:
    """A folder of a feature network that something has changed."""
    files = dict(_feature_files())
    if draw(st.booleans()):
        files["config.json"] = draw(json_files(json.loads(files["config.json"])))
    else:
        files["model.safetensors"] = draw(safetensors_files(files["model.safetensors"]))
    return Case(lambda folder: load_features(folder), files)


@functools.cache
def _code_flow() -> bytes:
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CodeFlow((4,), 2, 8).save(Path(folder) / "flow.safetensors")
        return (Path(folder) / "flow.safetensors").read_bytes()


@st.composite
def code_flows(draw: st.DrawFn) -> Case:
    """A flow of codes whose file, or what its header says of itself, something has changed."""
    content = _code_flow()
    if draw(st.booleans()):
        header, data = _header(content)
        header["__metadata__"] = {"exptilt": draw(json_files({"code_shape": [4]})).decode("utf-8", "replace")}
        content = _with_header(header, data)
    else:
        content = draw(safetensors_files(content))
    return Case(lambda folder: CodeFlow.load(folder / "flow.safetensors"), {"flow.safetensors": content})


@st.composite
def checkpoints(draw: st.DrawFn) -> Case:
    """A checkpoint that something has changed: a run is resumed from it."""
    content = safetensors_header({"state": draw(values)}, draw(st.booleans()))
    files: dict[str, Entry] = {CHECKPOINT: draw(st.one_of(st.just(content), mutated(content)))}
    files["run.json"] = draw(json_files({"config": {"seed": 0}}))

    def call(folder: Path) -> None:
        RunFolder(folder, {"seed": 0}, resume=True).load_checkpoint()

    return Case(call, files)


def safetensors_header(state: Any, well_formed: bool) -> bytes:
    """A safetensors file of one number, with a JSON value in its header, or what is none."""
    told = json.dumps(state) if well_formed else "{" * 2000
    entries = {"__metadata__": {"exptilt": told}, "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    return _with_header(entries, bytes(4))
