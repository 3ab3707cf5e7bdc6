"""Ex²MCMC: global moves by i-SIR, local ones by MALA (Samsonov et al. 2022, "Local-Global MCMC kernels")."""

from __future__ import annotations

import torch

from exptilt.sampling.isir import ISIR, ISIRState
from exptilt.sampling.kernel import Info, Noise, Potential, Proposal
from exptilt.sampling.mala import MALA


class Ex2MCMC:
    """One step of i-SIR, then one of MALA: crosses between modes, and explores each.

    Samples exp(−U) without bias. A step costs ``candidates − 1`` values of U and two gradients.

    Args:
        potential: U, (N, *latent) to (N,).
        prior: p(z), from which i-SIR's candidates are drawn.
        step_size: ε of MALA.
        candidates: Latents that i-SIR chooses from, the chain's own among them, ≥ 2.
    """

    def __init__(self, potential: Potential, prior: Proposal, step_size: float, candidates: int) -> None:
        self._global = ISIR(potential, prior, candidates)
        self._local = MALA(potential, step_size)

    @property
    def step_size(self) -> float:
        """ε of MALA."""
        return self._local.step_size

    @step_size.setter
    def step_size(self, step_size: float) -> None:
        self._local.step_size = step_size

    def init(self, position: torch.Tensor) -> ISIRState:
        """Chains that stand at ``position``, (N, *latent). Costs one value of U."""
        return self._global.init(position)

    def step(self, state: ISIRState, noise: Noise) -> tuple[ISIRState, Info]:
        """One transition; the info is that of MALA's part."""
        state, _ = self._global.step(state, noise)
        point, info = self._local.step(self._local.init(state.position), noise)
        return ISIRState(point.position, point.potential), info
