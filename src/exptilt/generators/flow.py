"""Normalizing flows of other libraries as generators with an exact density."""

from __future__ import annotations

import math

import torch
from torch import nn

from exptilt import rows
from exptilt.errors import InputError
from exptilt.generators.checks import CHECKED, check_inverse
from exptilt.generators.latent_map import LatentMap
from exptilt.generators.wrap import WrappedGenerator


class FlowGenerator(WrappedGenerator):
    """A normalizing flow over samples: z = f(x), x = f⁻¹(z), and log p(x) in closed form.

    The density is one of continuous x in the units of exptilt, images in [−1, 1]; the border of an image, which is no
    part of the flow, is no part of the density either.

    Args:
        flow: The map between latents and what the flow gives.
        code_shape: Shape of the latter.
        output_range: As in :func:`exptilt.wrap`.
        data_shape: As there.
        pad: As there.
        dequantize: Whether :meth:`encode` adds uniform noise, as wide as a byte's bin, to images.

    Raises:
        InputError: A check of :func:`exptilt.wrap` fails, or the flow's two directions do not undo each other.
    """

    def __init__(
        self,
        flow: LatentMap,
        code_shape: tuple[int, ...],
        output_range: tuple[float, float] = (-1.0, 1.0),
        data_shape: tuple[int, ...] | None = None,
        pad: int | None = None,
        dequantize: bool = True,
    ) -> None:
        super().__init__(nn.Identity(), code_shape, None, flow, output_range, data_shape, pad)
        self.has_encoder = True
        self.dequantize = dequantize and self.format.is_image
        check_inverse(self.decode, self.latent, self.sample_prior(CHECKED))
        if self.format.is_image:
            self._check_black()

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) in nats of continuous points, or of continuous images in the units of [−1, 1], (N,)."""
        return self.latent_map.code_log_prob(self.format.native(x)) + self.format.log_volume

    @property
    def dimensions(self) -> int:
        """Number of variables that the density is one of."""
        return math.prod(self.format.shape)

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """z = f(x) of continuous x, (N, *latent_shape): the inverse of :meth:`decode`."""
        return self.latent_map.latent(self.format.native(x))

    def encode(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """z = f(x), (N, *latent_shape); of images, with noise between −½ and ½ of a byte's step, as a draw of q(z|x).

        Args:
            x: Images in [−1, 1] or points.
            generator: Source of the noise, on the CPU; torch's global one unless given.
        """
        if not self.dequantize:
            return self.latent(x)
        noise = rows.uniform(x.shape, generator).to(x)
        return self.latent(x + (noise - 0.5) / 127.5)

    def _check_black(self) -> None:
        black = torch.full((CHECKED, *self.data_shape), -1.0, device=self.device)
        with torch.no_grad():
            z = self.encode(black, torch.Generator().manual_seed(0))
        if not bool(torch.isfinite(z).all()):
            mend = "give output_range=(1/512, 511/512) for one of (byte + noise)/256, or dequantize=False"
            raise InputError("flow", "gives no finite latent to a black image", mend)
