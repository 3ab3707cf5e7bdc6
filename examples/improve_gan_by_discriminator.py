"""A GAN and its discriminator, which is an energy as it is: python examples/foreign/train_gan.py first."""

import torch
from foreign.train_gan import GAN

import exptilt

model = GAN()
model.load_state_dict(torch.load("runs/foreign/gan.pt", weights_only=True))
gan = exptilt.from_gan(model.generator, 64, data_shape=(1, 28, 28))
energy = exptilt.DiscriminatorEnergy(gan.native(model.discriminator))
tilted = exptilt.TiltedGenerator(gan, energy, sampler=exptilt.SamplerConfig("mala", step_size=0.3))
result = exptilt.evaluate(tilted, exptilt.load_dataset("mnist", "test"), n=2000)
print(f"FID {result['base']['fid']:.1f} → {result['tilted']['fid']:.1f}")
