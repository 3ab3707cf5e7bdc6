"""What the processes of a distributed run do in ``test_distributed.py``; run by itself, one of several processes.

The figures that a story leaves are the same for any number of processes, up to the rounding of sums.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from exptilt import cli, distributed
from exptilt.config import PretrainConfig, SamplerConfig, TiltConfig, override
from exptilt.data import DataSet, load_dataset
from exptilt.evaluation.features import weights_digest
from exptilt.evaluation.network import FeatureNetwork
from exptilt.generators import Glow
from exptilt.generators.vae import ToyVAE
from exptilt.storage import write_json
from exptilt.training.fit import tilt
from exptilt.training.pretrain import pretrain
from exptilt.training.run_folder import RunFolder

# Odd, so that shares differ.
BATCH, UPDATES = 25, 6
MALA = SamplerConfig(kernel="mala", steps=3, step_size=0.1)


def story(out: Path, before: Path) -> None:
    """The commands one after the other, then what the digits' recipe does not use.

    Each command takes the models that the story in ``before`` has left, so that rounding does not add up.
    """
    for command in commands(out, before):
        assert call(*command) == 0, command
    figures: dict[str, object] = {"exit codes": codes(out)}
    for name, train in {"features": _features, "glow": _glow, **_CHAINS}.items():
        figures[name] = train(out / name)
    if distributed.is_main():
        write_json(out / "figures.json", figures)


def commands(out: Path, before: Path) -> list[list[str]]:
    """Pretrain, tilt (with dropout, codes, held-out choice and calibration), sample in each kind, evaluate."""
    vae, tilted, few = f"{before}/vae", f"{before}/tilted", ["--quiet", "--seed", "1"]
    short = ["--precision", "float32", "--limit", "1200", *few]
    updates = ["--iterations", "20", "--batch-size", "50", "--check-every", "10", "--strengths", "1"]
    # After two epochs its codes lack diversity, and an encoder would be learned as well.
    updates += ["--encoder", "own"]
    chain = ["--steps", "5", "--step-size", "0.05"]
    return [
        ["pretrain", "vae-digits", "--epochs", "2", "--batch-size", "100", "--out", f"{out}/vae", *short],
        ["tilt", vae, "--data", "digits", "--out", f"{out}/tilted", *updates, *chain, *short],
        ["sample", tilted, "-n", "30", "--out", f"{out}/samples.npz", *few],
        ["sample", tilted, "-n", "30", "--format", "parquet", "--shard-size", "8", "--out", f"{out}/shards", *few],
        ["evaluate", tilted, "--data", "digits", "-n", "150", "--seeds", "0", "--json", f"{out}/result.json", *few],
    ]


def codes(out: Path) -> list[int]:
    """Exit codes of bad inputs: one that each process finds, and one that only the main process can see."""
    again = ["pretrain", "vae-digits", "--out", f"{out}/vae", "--quiet"]
    return [call("sample", f"{out}/nothing", "--out", f"{out}/x.npz"), call(*again)]


def call(*arguments: str) -> int:
    """Run a command as the shell would, but for the end of the process."""
    try:
        cli.main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def _digits(n: int = 4 * BATCH) -> DataSet:
    return load_dataset("digits", "train", n)


def _features(folder: Path) -> list[float]:
    """BatchNorm, labels and augmentation."""
    torch.manual_seed(0)
    config = PretrainConfig("features", "FeatureNetwork", {}, "digits", 1, batch_size=BATCH, augment="shift-flip")
    return _pretrained(FeatureNetwork(1, width=4, feature_size=8), config, folder)


def _glow(folder: Path) -> list[float]:
    """ActNorms that the first batch initialises, and dequantisation."""
    torch.manual_seed(0)
    config = PretrainConfig("glow", "Glow", {}, "digits", 1, batch_size=BATCH, precision="float32")
    return _pretrained(Glow(steps=1, hidden=8), config, folder)


def _pretrained(module: torch.nn.Module, config: PretrainConfig, folder: Path) -> list[float]:
    config = override(config, precision="float32")
    figures = pretrain(module, _digits(), config, test=_digits(7), folder=_folder(folder))
    return [*_weights(module), *figures.values()]


def _chains(**settings: object):
    def train(folder: Path) -> list[float]:
        torch.manual_seed(0)
        config = TiltConfig(energy="mlp", energy_width=16, iterations=UPDATES)
        config = override(config, batch_size=BATCH, chain=MALA, check_every=4, ema_decay=0.9, **settings)
        data = load_dataset("gaussians", "train", 200)
        tilted = tilt(ToyVAE(width=16), data.stored, config=config, folder=_folder(folder))
        assert tilted.energy is not None
        return _weights(tilted.energy)

    return train


_CHAINS = {
    "short run": _chains(),
    "persistent": _chains(chains="persistent", walkers=41, restart=0.3),
    "replay": _chains(chains="replay", walkers=41, restart=0.3),
    "jarzynski": _chains(chains="jarzynski", walkers=41, learning_rate=0.1),
}


def _folder(path: Path) -> RunFolder | None:
    path.mkdir(parents=True, exist_ok=True)
    return distributed.on_main(lambda: RunFolder(path, {}))


def _weights(module: torch.nn.Module) -> list[float]:
    """Norms of the weights, which are the same in every process."""
    digest = weights_digest(module.state_dict())
    assert distributed.same(digest) == digest
    return [float(np.linalg.norm(value.detach().double().numpy())) for value in module.state_dict().values()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    story(Path(sys.argv[1]), Path(sys.argv[2]))
