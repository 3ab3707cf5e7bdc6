"""A prior of codes where a model has none: a flow that is fitted to the codes of data."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch

from exptilt.errors import InputError, require_at_least
from exptilt.generators.latent_flow import LatentFlow
from exptilt.generators.latent_map import LatentMap
from exptilt.generators.prior import StandardNormal
from exptilt.storage import load_weights, read_tensors, write_tensors

# Share of the codes that tells when the flow fits the others too well, and updates between two looks at it.
_HELD_OUT, _LOOK_EVERY = 0.1, 100
_BATCH, _LEARNING_RATE, _LARGEST_GRADIENT = 256, 1e-3, 10.0
_FEWEST_CODES = 20

# Name of a coupling's first weight matrix, (width, size), in a state dict.
_FIRST_LAYER = ".hyper.0.weight"


class CodeFlow(LatentMap):
    """Codes of z ~ N(0, I) by a latent flow (RealNVP, Dinh et al. 2017), of standardised codes.

    Args:
        code_shape: Shape of one code.
        couplings: Affine couplings of the flow, ≥ 2.
        width: Units of the hidden layer of a coupling.

    Attributes:
        mean: Of each number of a code.
        deviation: Of each number of a code.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, code_shape: tuple[int, ...], couplings: int = 6, width: int = 256) -> None:
        super().__init__()
        size = math.prod(code_shape)
        self.prior, self.latent_shape, self.code_shape = StandardNormal(), (size,), tuple(code_shape)
        self.flow = LatentFlow(size, couplings, width)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))

    def code(self, z: torch.Tensor) -> torch.Tensor:
        """The code of latents (N, D), (N, *code_shape)."""
        return (self.mean + self.deviation * self.flow.inverse(z)).reshape(len(z), *self.code_shape)

    def latent(self, code: torch.Tensor) -> torch.Tensor:
        """z of codes (N, *code_shape), (N, D)."""
        return self.flow(self._standardised(code))[0]

    def code_log_prob(self, code: torch.Tensor) -> torch.Tensor:
        """Log-density of codes (N, *code_shape) in nats, (N,)."""
        return self.flow.log_prob(self._standardised(code)) - self.deviation.log().sum()

    def save(self, path: str | Path) -> None:
        """Write the flow as one safetensors file, atomically; :meth:`load` reads it."""
        write_tensors(path, self.state_dict(), {"code_shape": list(self.code_shape)})

    @classmethod
    def load(cls, path: str | Path) -> CodeFlow:
        """The flow that :meth:`save` wrote.

        Raises:
            InputError: The file is missing, damaged, or holds something else.
        """
        tensors, header = read_tensors(path)
        # Sizes are those of the tensors: a file from a stranger must not fill the memory by what its header says.
        widths = [len(tensor) for name, tensor in tensors.items() if name.endswith(_FIRST_LAYER)]
        sides = header.get("code_shape") if isinstance(header, dict) else None
        shape = tuple(sides) if isinstance(sides, list) and all(type(side) is int for side in sides) else ()
        if (
            not shape
            or min(shape) < 1
            or "mean" not in tensors
            or math.prod(shape) != tensors["mean"].numel()
            or len(widths) < 2
        ):
            raise InputError(path, "holds no flow of codes", "give a file that CodeFlow.save wrote")
        flow = cls(shape, len(widths), min(widths))
        load_weights(flow, tensors, path)
        flow.eval().requires_grad_(False)
        return flow

    def _standardised(self, code: torch.Tensor) -> torch.Tensor:
        return (code.flatten(1) - self.mean) / self.deviation


def fit_code_flow(
    codes: torch.Tensor,
    *,
    draws: int = 1,
    seed: int = 0,
    iterations: int = 1500,
    couplings: int = 6,
    width: int = 256,
) -> CodeFlow:
    """Fit a flow to codes by maximum likelihood (Adam, cosine), the best state on a tenth of them held out kept.

    Args:
        codes: (N, *code), N ≥ 20; several draws of q(z|x) of each image are worth more than one.
        draws: How many there are of each image, pass after pass of all images in one order. An image is held out with
            all of its codes: one that is like those that were kept would not tell when the flow fits them too well.
        seed: Fixes initialisation, held-out codes and batches.
        iterations: Updates of 256 codes; 1,500 take about half a minute on one core for codes of 64 numbers.
        couplings: Affine couplings of the flow, ≥ 2.
        width: Units of the hidden layer of a coupling.

    Raises:
        InputError: There are too few codes, they are not finite, or an argument is out of range.
    """
    require_at_least(1, iterations=iterations, draws=draws)
    if len(codes) < _FEWEST_CODES:
        raise InputError("images", f"are {len(codes)}", f"a prior of codes needs {_FEWEST_CODES} or more")
    if not bool(torch.isfinite(codes).all()):
        raise InputError("codes", "hold values that are not finite", "check the encoder")
    if len(codes) % draws or len(codes) == draws:
        raise InputError("draws", f"{draws} of each image do not make {len(codes)} codes", "give as many of each")
    random = torch.Generator().manual_seed(seed)
    codes = codes.detach().float().cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = CodeFlow(tuple(codes.shape[1:]), couplings, width)
    of_images = codes.unflatten(0, (draws, -1))
    order = torch.randperm(of_images.shape[1], generator=random)
    count = max(1, round(_HELD_OUT * len(order)))
    held_out, kept = (of_images[:, chosen].flatten(0, 1) for chosen in (order[:count], order[count:]))
    flow.mean.copy_(kept.flatten(1).mean(0))
    # A number that never changes keeps a little width: a density needs some.
    flow.deviation.copy_(kept.flatten(1).std(0).clamp(min=1e-3))
    return _fit(flow, kept, held_out, random, iterations)


def _fit(
    flow: CodeFlow, codes: torch.Tensor, held_out: torch.Tensor, random: torch.Generator, iterations: int
) -> CodeFlow:
    @torch.no_grad()
    def nll() -> float:
        return float(-flow.code_log_prob(held_out).mean())

    optimizer = torch.optim.Adam(flow.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    # The start counts too: to few codes, the independent Gaussians that it is may be all that can be fitted.
    best, chosen = nll(), copy.deepcopy(flow.state_dict())
    with torch.enable_grad():
        for iteration in range(1, iterations + 1):
            batch = codes[torch.randint(len(codes), (_BATCH,), generator=random)]
            loss = -flow.code_log_prob(batch).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), _LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            if (iteration % _LOOK_EVERY == 0 or iteration == iterations) and (reached := nll()) < best:
                best, chosen = reached, copy.deepcopy(flow.state_dict())
    flow.load_state_dict(chosen)
    return flow.eval().requires_grad_(False)
