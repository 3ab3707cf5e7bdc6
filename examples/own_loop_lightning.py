"""The same in a LightningModule: pip install pytorch-lightning, then python examples/own_loop_lightning.py"""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import exptilt

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "vae-mnist"


class Tilt(lightning.LightningModule):
    """An objective is a module: Lightning moves it, and keeps it in its checkpoints with the number of the batch."""

    def __init__(self, objective: exptilt.LogisticRatio, steps: int) -> None:
        super().__init__()
        self.objective, self.steps = objective, steps

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = self.objective.loss(batch[0])
        self.log_dict(self.objective.figures, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.objective.energy.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(steps: int) -> exptilt.TiltedGenerator:
    lightning.seed_everything(0, verbose=False)
    data = exptilt.load_dataset("mnist")
    loader = DataLoader(TensorDataset(data.batch(slice(None))), batch_size=256, shuffle=True, drop_last=True)
    energy = exptilt.GatedEnergy(size=100, dropout=0.3)
    model = Tilt(exptilt.LogisticRatio(exptilt.load(CHECKPOINT), latent_energy=energy), steps)
    trainer = lightning.Trainer(max_steps=steps, logger=False, enable_checkpointing=False)
    trainer.fit(model, loader)
    return model.objective.tilted(exptilt.SamplerConfig("mala", steps=100, step_size=0.1))


if __name__ == "__main__":
    tilted = train(steps=1000)
    tilted.sampler = tilted.adapted_sampler(0.6)
    result = exptilt.evaluate(tilted, exptilt.load_dataset("mnist", "test"), n=2000)
    print(f"FID {result['base']['fid']:.1f} → {result['tilted']['fid']:.1f}")
