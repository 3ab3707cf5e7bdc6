"""Faults from outside: full disks, damaged files, kills, signals. Each is noticed and told, and loses nothing."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import exptilt
from exptilt import cli, storage
from exptilt.energies import make_energy
from exptilt.errors import InputError
from exptilt.evaluation.features import FeatureExtractor
from exptilt.generators.vae import VAE
from exptilt.storage import atomic, read_json, read_tensors, write_bytes, write_json, write_tensors
from exptilt.training.loop import Loop, LoopConfig
from exptilt.training.run_folder import RunFolder

CHECKPOINTS = ("checkpoint.safetensors", "checkpoint-earlier.safetensors", "checkpoint-stopped.safetensors")


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def loop(folder: RunFolder | None, stop_at: int | None = None, how: signal.Signals | None = None) -> Loop:
    """Updates of a small network; at ``stop_at`` comes a signal, or, without one, a kill."""
    torch.manual_seed(3)
    module = make_energy("mlp", (2,), 8)

    def loss(iteration: int):
        if iteration == stop_at:
            if how is None:
                raise SystemExit
            signal.raise_signal(how)
        x = torch.randn(16, 2, generator=torch.Generator().manual_seed(iteration))
        return module(x).sub(x.sum(1)).square().mean(), {}

    settings = LoopConfig(iterations=40, learning_rate=1e-2, schedule="cosine", ema_decay=0.9, check_every=7)
    score = {"check": lambda k: {"kid": abs(k - 20) + 1.0}, "choose": "kid"}
    return Loop(module, settings, loss, folder=folder, **score)  # type: ignore[arg-type]


def run(path: Path, stop_at: int | None = None, how: signal.Signals | None = None) -> dict[str, torch.Tensor]:
    """Train in a folder, or go on there; the weights."""
    with (folder := RunFolder(path, {"seed": 1}, resume=True)).writing():
        (made := loop(folder, stop_at, how)).run()
    return made.module.state_dict()


def log_of(path: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights and log of a run that nothing disturbed."""
    path = tmp_path_factory.mktemp("whole")
    return run(path), log_of(path)


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The folder of a run that was killed in update 30, after checks at 21 and 28."""
    with pytest.raises(SystemExit):
        run(tmp_path / "run", stop_at=30)
    return tmp_path / "run"


# ------------------------------------------------------------------------------------------- kills


@pytest.mark.slow
def test_killed_commands_go_on_to_the_same_files() -> None:
    """A few trials of the matrix in docs/reliability.md: kills at random times and writes, and SIGTERM."""
    command = [sys.executable, str(Path(__file__).with_name("kill_matrix.py")), "--trials", "2", "--only"]
    commands = ["tilt, persistent chains", "tilt, ratio on latents, calibrated", "sample to an archive"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    made = subprocess.run([*command, *commands], env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "trials of 3 commands: 0 faults" in made.stdout


def test_what_a_killed_writer_left_is_removed_and_what_another_writes_is_not(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(storage, "_tidied", set())
    left, foreign = tmp_path / ".x.json.abc.exptilt-tmp", tmp_path / ".x.json.abc.tmp"
    left.write_bytes(b"half")
    foreign.write_bytes(b"of another program")
    with atomic(tmp_path / "y.json") as file:
        file.write(b"1")
        assert not left.exists()
        monkeypatch.setattr(storage, "_tidied", set())
        write_json(tmp_path / "x.json", 2)  # another process would find the file of y.json at work
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "x.json": "2\n",
        "y.json": "1",
        foreign.name: "of another program",
    }


def test_a_lock_does_not_outlive_a_killed_run(tmp_path: Path) -> None:
    code = "import filelock, os, sys; filelock.FileLock(sys.argv[1]).acquire(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / ".lock")], check=False).returncode == -9
    assert (tmp_path / ".lock").exists()
    with RunFolder(tmp_path, {}).writing():
        pass


def test_names_last_through_a_power_failure(tmp_path: Path, monkeypatch) -> None:
    """The content is synced before it gets its name, and the folder after."""
    events = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *names: (events.append("name"), replace(*names)))
    write_bytes(tmp_path / "x", b"1")
    assert events == ["file", "name", "folder"]


# ------------------------------------------------------------------------------------------- signals


@pytest.fixture
def _python_handles_sigterm() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, cli._terminate)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_python_handles_sigterm")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stop_at", [0, 3, 6, 25, 39])
def test_a_run_that_is_stopped_loses_no_update(
    tmp_path: Path, whole, how: signal.Signals, stop_at: int, capsys
) -> None:
    with pytest.raises(KeyboardInterrupt) as stop:
        run(tmp_path, stop_at, how)
    assert isinstance(stop.value, cli.Terminated) == (how == signal.SIGTERM)
    assert "stopping after this update" in capsys.readouterr().err
    names = [name for name in CHECKPOINTS if (tmp_path / name).exists()]
    at_check = stop_at + 1 in (7, 40)
    assert ("checkpoint-stopped.safetensors" in names) != at_check
    newest = tmp_path / (names[0] if at_check else names[-1])
    assert read_tensors(newest)[1]["iteration"] == stop_at + 1
    assert_same(run(tmp_path), whole[0])
    assert log_of(tmp_path) == whole[1]
    assert not (tmp_path / "checkpoint-stopped.safetensors").exists() or stop_at == 39


@pytest.mark.usefixtures("_python_handles_sigterm")
def test_a_second_signal_stops_at_once(tmp_path: Path, whole) -> None:
    with (folder := RunFolder(tmp_path, {"seed": 1})).writing():
        stopped = loop(folder)
        usual = stopped.loss

        def loss(iteration: int):
            if iteration == 25:
                signal.raise_signal(signal.SIGINT)
                with pytest.raises(cli.Terminated):
                    signal.raise_signal(signal.SIGTERM)
                raise cli.Terminated
            return usual(iteration)

        stopped.loss = loss
        with pytest.raises(cli.Terminated):
            stopped.run()
    assert not (tmp_path / "checkpoint-stopped.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same(run(tmp_path), whole[0])


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (cli.Terminated, 143)])
def test_signals_have_exit_codes_and_say_how_to_go_on(stop, code: int, tmp_path: Path, monkeypatch, capsys) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise stop

    monkeypatch.setattr("exptilt.commands.train.pretrain_run", interrupted)
    assert call("pretrain", "toy-gaussians", "--out", tmp_path / "x") == code
    assert capsys.readouterr().err == "exptilt: interrupted; repeat the command with --resume to go on\n"


# ------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("place", range(0, 400, 23))
def test_a_flipped_byte_in_a_file_of_tensors_is_noticed(tmp_path: Path, place: int) -> None:
    write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(20), "b": torch.ones(3).bool()}, {"iteration": 3})
    content = bytearray((tmp_path / "x.safetensors").read_bytes())
    place = place * len(content) // 400
    content[place] ^= 0b100
    (tmp_path / "x.safetensors").write_bytes(content)
    try:
        tensors, metadata = read_tensors(tmp_path / "x.safetensors")
    except InputError as error:
        assert "x.safetensors" in str(error)  # noqa: PT017 - a flipped byte may also be one that carries nothing
    else:
        assert metadata == {"iteration": 3}
        assert_same(tensors, {"a": torch.zeros(20), "b": torch.ones(3).bool()})


def test_every_flipped_bit_of_the_numbers_is_noticed_and_old_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(4, dtype=torch.float16)})
    content = path.read_bytes()
    for bit in range(64):
        damaged = bytearray(content)
        damaged[-8 + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="its bytes have changed since it was written"):
            read_tensors(path)
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.ones(2)}, path)
    assert_same(read_tensors(path)[0], {"a": torch.ones(2)})


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def reshape(path: Path) -> None:
    tensors, state = read_tensors(path)
    write_tensors(path, {name: torch.zeros(3, 3) for name in tensors}, state)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": flip,
    "other shapes": reshape,
    "no state": lambda path: write_tensors(path, read_tensors(path)[0]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(killed: Path, whole, damage: str, capsys) -> None:
    DAMAGE[damage](killed / "checkpoint.safetensors")
    assert_same(run(killed), whole[0])
    assert log_of(killed) == whole[1]
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "checkpoint.safetensors: " in told
    assert "going on with what was written before" in told


def test_where_no_checkpoint_is_whole_nothing_is_thrown_away(killed: Path, whole) -> None:
    for name in CHECKPOINTS[:2]:
        DAMAGE["empty"](killed / name)
    with pytest.raises(InputError, match=r"no checkpoint there is whole .* or remove them to begin anew"):
        run(killed)
    for name in CHECKPOINTS[:2]:
        (killed / name).unlink()
    assert_same(run(killed), whole[0])
    assert log_of(killed) == whole[1]


@pytest.mark.usefixtures("_python_handles_sigterm")
def test_a_damaged_checkpoint_of_a_stopped_run_falls_back_to_the_last_check(tmp_path: Path, whole, capsys) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 25, signal.SIGTERM)
    flip(tmp_path / "checkpoint-stopped.safetensors")
    assert_same(run(tmp_path), whole[0])
    assert "checkpoint-stopped.safetensors: its bytes have changed" in capsys.readouterr().err
    assert log_of(tmp_path) == whole[1]


def test_a_checkpoint_knows_its_settings_where_the_record_is_lost(killed: Path, whole) -> None:
    (killed / "run.json").write_text('{"config": {"se')
    with pytest.raises(InputError, match=r"run.json: not a readable JSON file .* restore it, or remove it and repeat"):
        run(killed)
    (killed / "run.json").unlink()
    with pytest.raises(InputError, match="holds a run already"):
        RunFolder(killed, {"seed": 1})
    with (
        (folder := RunFolder(killed, {"seed": 2}, resume=True)).writing(),
        pytest.raises(InputError, match=r"other settings \(seed\), as checkpoint.safetensors says"),
    ):
        loop(folder).run()
    (killed / "run.json").unlink()
    assert_same(run(killed), whole[0])
    assert read_json(killed / "run.json")["config"] == {"seed": 1}


def test_damaged_lines_of_a_log_are_left_out(killed: Path, whole, capsys) -> None:
    with (killed / "log.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\x00\n{"iteration": "x"}\n[1]\n{"iteration": 12, "lo')
    assert_same(run(killed), whole[0])
    assert log_of(killed) == whole[1]
    assert "log.jsonl: 3 damaged lines are left out" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    VAE(1, 4, 4).save_pretrained(folder)
    return folder


def test_a_full_disk_keeps_what_was_there(small_disk: Path, vae: Path, capsys) -> None:
    kept = small_disk / "samples.npz"
    kept.write_bytes(b"what was there")
    assert call("sample", vae, "-n", 400, "--quiet", "--out", kept) == 1
    told = f"exptilt: {kept}: No space left on device; make room there, and repeat the command\n"
    assert capsys.readouterr().err == told
    assert [path.name for path in small_disk.iterdir()] == ["samples.npz"]
    assert kept.read_bytes() == b"what was there"


def test_a_disk_that_can_only_be_read_is_refused(small_disk: Path, vae: Path, capsys) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert call("pretrain", "toy-gaussians", "--quiet", "--out", small_disk / "run") == 2
    told = f"exptilt: --out {small_disk / 'run'}: cannot be written (Read-only file system); give another folder\n"
    assert capsys.readouterr().err == told
    assert call("sample", vae, "-n", 1, "--quiet", "--out", small_disk / "x.png") == 2
    told = f"exptilt: {small_disk / 'x.png'}: Read-only file system; give another path, or change its permissions\n"
    assert capsys.readouterr().err == told


def test_a_folder_in_a_file_is_refused(tmp_path: Path, vae: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert call("sample", vae, "-n", 1, "--quiet", "--out", tmp_path / "file" / "x.png") == 2
    assert call("pretrain", "toy-gaussians", "--quiet", "--out", tmp_path / "file" / "run") == 2
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith("exptilt: ")
        assert "; give another" in line


@pytest.mark.parametrize("fails_at", [1, 3, 5, 8, 10])
def test_a_run_whose_disk_fills_up_goes_on_when_there_is_room(
    tmp_path: Path, whole, fails_at: int, monkeypatch
) -> None:
    """Whichever write fails: of the record, of a checkpoint, of the log that a resumed run shortens."""
    sync, count = os.fsync, iter(range(1, 1000))

    def full(descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode) and next(count) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        run(tmp_path)
    assert caught.value.filename is not None
    assert not [path for path in tmp_path.iterdir() if path.name.endswith("-tmp")]
    monkeypatch.setattr(os, "fsync", sync)
    assert_same(run(tmp_path), whole[0])
    assert log_of(tmp_path) == whole[1]


# ------------------------------------------------------------------------------------------- memory


class Hungry(VAE):
    """Asks for a memory that nobody has where more than ten latents come at once."""

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        if len(z) > 10:
            torch.empty(1 << 50)
        return super().decode(z)


def test_samples_are_the_same_in_whatever_memory_there_is() -> None:
    torch.manual_seed(0)
    expected, hungry = VAE(1, 4, 4).freeze(), Hungry(1, 4, 4).freeze()
    hungry.load_state_dict(expected.state_dict())
    with pytest.warns(UserWarning, match="the memory does not hold 45 at once: going on with 6") as told:
        x = hungry.sample(45, seed=3, start=7)
    assert len(told) == 1
    torch.testing.assert_close(x, expected.sample(45, seed=3, start=7))
    energy = make_energy("small", (1, 32, 32), 4)
    settings = {"sampler": exptilt.SamplerConfig(steps=3), "precision": "float32"}
    tilted = exptilt.TiltedGenerator(hungry, energy, **settings)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="the memory does not hold 25 at once: going on with 7") as told:
        z, info = tilted.sample(25, seed=3, return_latents=True, return_info=True)
    assert len(told) == 1
    assert tilted.batch_size == 7
    torch.testing.assert_close(
        z, exptilt.TiltedGenerator(expected, energy, **settings).sample(25, seed=3, return_latents=True)
    )
    assert len(info.acceptance) == 25
    tilted.sample(12, seed=3)  # Said once: another warning would fail the test.


def test_where_not_even_one_fits_the_command_says_so(monkeypatch, vae: Path, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(VAE, "decode", lambda *_: torch.empty(1 << 50))
    assert call("sample", vae, "-n", 20, "--quiet", "--out", tmp_path / "x.npz") == 1
    told = capsys.readouterr().err
    assert told.startswith("exptilt: out of memory (")
    assert told.endswith("; use a smaller --batch-size\n")
    assert list(tmp_path.iterdir()) == []


def test_features_are_the_same_in_whatever_memory_there_is() -> None:
    class Features(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.empty(1 << 50) if len(x) > 100 else x.flatten(1)

    images = torch.randint(0, 256, (300, 1, 4, 4), dtype=torch.uint8)
    with pytest.warns(UserWarning, match="does not hold 300 at once: going on with 75"):
        features = FeatureExtractor(Features(), "few")(images)
    assert torch.equal(features, FeatureExtractor(nn.Flatten(), "all")(images))


# ------------------------------------------------------------------------------------------- clocks


def test_a_clock_that_jumps_changes_nothing(killed: Path, whole, monkeypatch) -> None:
    """Durations are of the monotonic clock; which checkpoint is newer, names tell and not times."""
    wall = iter(range(0, -10_000_000, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(wall)))
    for age, name in enumerate(CHECKPOINTS[:2]):
        os.utime(killed / name, (1e9 - 1e8 * (1 - age),) * 2)
    assert_same(run(killed), whole[0])
    assert log_of(killed) == whole[1]
    seconds = [json.loads(line)["seconds"] for line in (killed / "log.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)
    assert 0 <= seconds[-1] < 60
