"""An energy for a published VAE, trained in a plain PyTorch loop: python examples/own_loop.py"""

from __future__ import annotations

from pathlib import Path

import torch

import exptilt

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "vae-mnist"


def train(steps: int) -> exptilt.TiltedGenerator:
    """The loss is ``objective.loss(batch)``; all else is yours."""
    torch.manual_seed(0)
    data = exptilt.load_dataset("mnist")
    objective = exptilt.LogisticRatio(
        exptilt.load(CHECKPOINT), latent_energy=exptilt.GatedEnergy(size=100, dropout=0.3)
    )
    optimizer = torch.optim.AdamW(objective.energy.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        loss = objective.loss(data.batch(torch.randint(len(data), (256,))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {float(loss.detach()):.3f}, accuracy {objective.figures['accuracy']:.2f}")
    return objective.tilted(exptilt.SamplerConfig("mala", steps=100, step_size=0.1))


if __name__ == "__main__":
    tilted = train(steps=1000)
    tilted.sampler = tilted.adapted_sampler(0.6)
    result = exptilt.evaluate(tilted, exptilt.load_dataset("mnist", "test"), n=2000)
    print(f"FID {result['base']['fid']:.1f} → {result['tilted']['fid']:.1f}")
