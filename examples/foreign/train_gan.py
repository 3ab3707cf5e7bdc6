"""A fully connected GAN on 28×28 MNIST in plain torch: latent 64, tanh output, a discriminator with a logit.

Batch normalisation in the generator, dropout in the discriminator, and a running mean of the generator's weights, which
is what is kept, hold it from collapsing.

python examples/foreign/train_gan.py          # about four minutes on one core; writes runs/foreign/gan.pt
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

EPOCHS, BATCH = 20, 128


class GAN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            *(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.LeakyReLU(0.2)),
            *(nn.Linear(256, 512), nn.BatchNorm1d(512), nn.LeakyReLU(0.2)),
            *(nn.Linear(512, 784), nn.Tanh()),
        )
        self.discriminator = nn.Sequential(
            *(nn.Linear(784, 512), nn.LeakyReLU(0.2), nn.Dropout(0.3)),
            *(nn.Linear(512, 256), nn.LeakyReLU(0.2), nn.Dropout(0.3)),
            nn.Linear(256, 1),
        )


def main() -> None:
    from mnist import training_images

    torch.manual_seed(0)
    images, model = training_images() * 2 - 1, GAN()
    generator, discriminator = model.generator, model.discriminator
    average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)
    optimizer_g, optimizer_d = (
        torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True)
        for part in (generator, discriminator)
    )
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            fake = generator(torch.randn(len(batch), 64))
            loss_d = F.softplus(-discriminator(images[batch])).mean() + F.softplus(discriminator(fake.detach())).mean()
            optimizer_d.zero_grad()
            loss_d.backward()
            optimizer_d.step()
            loss_g = F.softplus(-discriminator(fake)).mean()
            optimizer_g.zero_grad()
            loss_g.backward()
            optimizer_g.step()
            average.update_parameters(generator)
        print(f"epoch {epoch + 1}: discriminator {float(loss_d.detach()):.2f}, generator {float(loss_g.detach()):.2f}")
    generator.load_state_dict(average.module.state_dict())
    Path("runs/foreign").mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), "runs/foreign/gan.pt")


if __name__ == "__main__":
    main()
