"""Hostile input: a slice of the fuzzer of ``tests/fuzz.py``, and each fault that it has found."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import exptilt
from exptilt import cli, storage
from exptilt.data import images, load_dataset, load_images
from exptilt.errors import InputError
from exptilt.evaluation.comparison import read_result
from exptilt.evaluation.features import load_features, save_features
from exptilt.evaluation.network import FeatureNetwork
from exptilt.generators import GENERATORS
from exptilt.report.card import write_card
from exptilt.report.run_report import write_run_report
from exptilt.storage import read_json, read_tensors
from fuzzing.data import encoded, png_of, table
from fuzzing.harness import Case, judge, require_refused, write
from fuzzing.kinds import KINDS
from fuzzing.models import model_files

# Those that draw or parse much take longer.
_SLOW = {"command lines": 3, "run.json, log.jsonl, result.json of a report": 4, "names of data sets": 4}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("EXPTILT_DATA", raising=False)


@pytest.mark.parametrize("name", KINDS)
def test_a_slice_of_each_kind_of_hostile_input_is_taken_or_refused_in_a_line(name: str) -> None:
    @seed(1)
    @settings(
        max_examples=_SLOW.get(name, 20),
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(KINDS[name][1])
    def try_one(case: Case) -> None:
        require_refused(case)

    try_one()


def test_the_judge_tells_what_is_wrong() -> None:
    """A fuzzer that finds nothing must be one that would."""

    def unbounded(_: Path) -> None:
        bytearray(600 << 20)

    def too_large(_: Path) -> None:
        np.ones(1 << 40)

    def many_lines(_: Path) -> None:
        error = InputError("x", "y", "z")
        error.args = ("two\nlines",)
        raise error

    assert "took" in judge(Case(unbounded)).fault
    assert "MemoryError" in judge(Case(too_large)).fault or "ArrayMemoryError" in judge(Case(too_large)).fault
    assert "not one line" in judge(Case(many_lines)).fault
    assert "KeyError" in judge(Case(lambda _: {}["x"])).fault
    told = judge(Case(lambda folder: read_json(folder / "x"), {"x": b"{"}))
    assert told.refused
    assert not told.fault


def refused(words: str, call: Any, *values: Any) -> None:
    with pytest.raises(InputError, match=words) as error:
        call(*values)
    assert str(error.value).isprintable()


@given(st.text(max_size=50), st.text(max_size=50))
@settings(max_examples=50, deadline=None, database=None, derandomize=True)
def test_an_error_is_one_line_that_a_terminal_can_show(subject: str, fault: str) -> None:
    told = str(InputError(subject, fault, "mend it"))
    assert told.isprintable()
    told.encode("utf-8")


def test_a_long_value_is_cut_in_an_error() -> None:
    told = str(InputError("x" * 100_000, "y" * 100_000, "mend it"))
    assert len(told) < 2000
    assert told.endswith("; mend it")


# --- models -----------------------------------------------------------------------------------------------


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    write(tmp_path, model_files("VAE"))
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to("config.json")
    refused("holds no model", exptilt.load, tmp_path)
    write(tmp_path / "t", model_files("tilted"))
    (tmp_path / "t" / "generator" / "config.json").unlink()
    (tmp_path / "t" / "generator" / "config.json").symlink_to("config.json")
    refused("config.json: ", exptilt.load, tmp_path / "t")


@pytest.mark.parametrize(("kind", "buffer"), [("GLF", "mask"), ("Glow", "permutation")])
def test_masks_and_permutations_that_are_none_are_refused(tmp_path: Path, kind: str, buffer: str) -> None:
    """Their values are no weights: a wrong one would end in the middle of a sample."""
    write(tmp_path, model_files(kind))
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith(buffer))
    turned = {**tensors, name: tensors[name].flip(0)}  # another order is one
    safetensors.torch.save_file(turned, tmp_path / "model.safetensors")
    assert isinstance(exptilt.load(tmp_path), GENERATORS[kind])
    safetensors.torch.save_file({**tensors, name: torch.ones_like(tensors[name])}, tmp_path / "model.safetensors")
    refused("is no order or mask of the model's", exptilt.load, tmp_path)


def test_names_that_no_file_can_have_are_refused() -> None:
    for name in ("a" * 5000, "a\0b", "x/" * 5000):
        refused("no such folder", exptilt.load, name)
        refused("not found", load_dataset, name)


def test_a_revision_makes_no_path() -> None:
    for revision in ("../../x", "/etc/passwd", "a//b", "..\\x", "a b", "-x"):
        with pytest.raises(InputError, match="is no branch, tag or commit"):
            exptilt.load("user/name", revision=revision, local_files_only=True)


def test_a_feature_network_larger_than_its_weights_is_refused(tmp_path: Path) -> None:
    save_features(FeatureNetwork(1, width=4, feature_size=8), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for changes in ({"width": 1 << 15}, {"feature_size": 1 << 40}, {"width": 10**30}):
        (tmp_path / "config.json").write_text(json.dumps({**config, "arguments": {**config["arguments"], **changes}}))
        require_refused(Case(lambda folder: load_features(tmp_path)))
        refused("config.json", load_features, tmp_path)


def test_small_files_are_loaded_without_a_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors keeps 57 bytes of each tensor that it reads from a mapped file."""
    tensors = {f"x{i}": torch.full((3, 2), i, dtype=torch.bfloat16) for i in range(50)} | {"none": torch.empty(0, 3)}
    storage.write_tensors(tmp_path / "x.safetensors", tensors, {"a": 1})

    def read() -> None:
        found, told = read_tensors(tmp_path / "x.safetensors")
        assert told == {"a": 1}
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())

    for _ in range(3):
        read()
    tracemalloc.start()
    try:
        read()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(40):
            read()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 40 * 50 * 20, f"{grown / 40 / 50:.0f} bytes a tensor"
    monkeypatch.setattr(storage, "_MAPPED_FROM", 0)
    read()


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("run.json", "result.json", "x.parquet", "x.npy", "x.safetensors"):
        os.mkfifo(tmp_path / name)
    refused("is no regular file", read_json, tmp_path / "run.json")
    refused("is no regular file", read_tensors, tmp_path / "x.safetensors")
    refused("is no regular file", read_json, Path("/dev/zero"))
    refused("is no regular file", read_result, tmp_path / "result.json")
    for path in (tmp_path / "pipe", tmp_path / "x.parquet", tmp_path / "x.npy", Path("/dev/zero")):
        refused("is neither a file nor a folder", load_dataset, path)
        refused("is neither a file nor a folder", load_images, path)
    refused("holds no data", load_dataset, tmp_path)


def test_records_of_a_run_may_be_anything(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"seconds": 1' + "0" * 400 + ', "config": {"data": 3}}')
    told = {"n_train": "many", "n_held_out": [1], "tilted": {"median_ratio": 10**400, "share_below": {}}}
    (tmp_path / "result.json").write_text(json.dumps({"protocol": [], "neighbours": told, "base": {"fid": 10**400}}))
    (tmp_path / "log.jsonl").write_text('{"iteration": 1' + "0" * 400 + "}\n[]\nnull\n")
    assert write_run_report(tmp_path, n=1, quiet=True).is_file()
    refused("has no FID|is no result", read_result, tmp_path)
    write(tmp_path, model_files("VAE"))
    for record, result in (({"exported": {}, "config": []}, {}), ({"exported": {}}, {"base": 3}), ([], {})):
        (tmp_path / "run.json").write_text(json.dumps(record))
        (tmp_path / "result.json").write_text(json.dumps(result))
        refused("malformed|was not written by", write_card, tmp_path)


# --- data -------------------------------------------------------------------------------------------------


def test_pictures_that_unpack_to_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(png_of(4100, 4100, rows=1))
    refused("has more than 16,777,216 pixels", load_images, tmp_path)
    # A picture of one colour is none to refuse, many large ones are.
    monkeypatch.setattr(images, "_SUSPICIOUS", 1 << 22)
    write(tmp_path, dict.fromkeys(("a.png", "b.png"), png_of(1000, 1000)))
    assert load_images(tmp_path).shape == (1, 1000, 1000)
    write(tmp_path, dict.fromkeys([f"{i}.png" for i in range(9)], png_of(1000, 1000)))
    refused("more than 200 times its size", load_images, tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 20))
    refused("11 images of this size need", load_images, tmp_path)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((10_000, 28, 28), np.uint8))
    assert len(load_images(tmp_path / "x.npz")) == 10_000
    monkeypatch.setattr(images, "_SUSPICIOUS", 1 << 22)
    refused("unpacks to 7 MiB, more than 200 times its size", load_images, tmp_path / "x.npz")


def test_a_value_that_repeats_in_a_table_takes_its_memory_once(tmp_path: Path) -> None:
    rows = 2000
    content = encoded("PNG") + bytes(4 << 20)  # 8 GiB, row by row
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([content], pa.binary()))
    structs = pa.StructArray.from_arrays([column], names=["bytes"])
    for name, image in (("plain", column), ("structs", structs)):
        file = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"image": image, "label": [0] * rows}), file, compression="zstd", store_schema=False)
        outcome = judge(Case(lambda folder, file=file: load_dataset(file, "train", limit=2)))
        assert not outcome.fault


def test_what_a_table_says_of_itself_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_table(columns: dict[str, Any], **options: Any) -> Path:
        (tmp_path / "x.parquet").write_bytes(table(columns, **options))
        return tmp_path / "x.parquet"

    pictures = [encoded("PNG")] * 3
    refused("claims 3,000,000 rows", load_images, write_table({"image": pa.nulls(3_000_000, pa.binary())}))
    monkeypatch.setattr(images, "_SUSPICIOUS", 1 << 22)
    refused(
        "more than 200 times its size", load_images, write_table({"image": [bytes(1 << 21)] * 2}, compression="zstd")
    )
    large = pa.array([2**64 - 1] * 3, pa.uint64())
    refused("its column 'label' is wrong", load_images, write_table({"image": pictures, "label": large}))
    column = pa.array(pictures)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([column, column], names=["image", "image"]), buffer)
    (tmp_path / "x.parquet").write_bytes(buffer.getvalue())
    refused("has several columns 'image'", load_images, tmp_path / "x.parquet")


# --- the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("bench", "--threads", "2147483648"),
        ("demo", "--web", "--host", "../../etc/passwd"),
        ("tilt", "x", "--data", "digits", "--out", "y", "--normalization", "b" * 5000),
        ("report", "x" * 5000),
        ("sample", "/dev/zero", "--out", "x.png"),
        ("compare", "/dev/zero", "/dev/zero"),
    ],
    ids=lambda words: " ".join(words)[:30],
)
def test_a_hostile_command_is_one_line_and_exit_code_2(words: tuple[str, ...], capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*words])
    told = capsys.readouterr().err
    assert stop.value.code == 2, told
    assert told.count("\n") == 1
    assert len(told) < 2000
    assert "--debug shows the traceback" not in told
