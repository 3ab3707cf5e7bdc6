"""The latents of a zuko flow."""

from __future__ import annotations

from typing import Any

import torch
from zuko.distributions import NormalizingFlow
from zuko.lazy import LazyDistribution

from exptilt.errors import InputError
from exptilt.generators.checks import attempt
from exptilt.generators.latent_map import LatentMap, of_distribution
from exptilt.precision import without_autocast


class ZukoMap(LatentMap):
    """Codes of a zuko flow: z = f(code) has the flow's base distribution.

    It computes in the precision of its weights, also under autocast.

    Args:
        flow: A zuko flow, lazy or built.
        context: c of a conditional flow p(code|c), (C,).

    Raises:
        InputError: It is no flow, it has a context and none is given, or the context does not fit.
    """

    context: torch.Tensor | None

    def __init__(self, flow: LazyDistribution | NormalizingFlow, context: torch.Tensor | None = None) -> None:
        super().__init__()
        if not isinstance(flow, (LazyDistribution, NormalizingFlow)):
            raise InputError("flow", f"is a {type(flow).__name__}", "give a zuko flow")
        self.flow = flow
        self.register_buffer("context", context)
        mend = "give the context that it takes, and no other"
        distribution = attempt("flow", self._distribution, "to be built", mend)
        if not isinstance(distribution, NormalizingFlow):
            raise InputError("flow", f"gives a {type(distribution).__name__}", "give a zuko flow, or wrap(…, prior=…)")
        if len(distribution.batch_shape):
            shape = tuple(distribution.batch_shape)
            raise InputError("context", f"makes {shape} distributions", "give one context, of shape (C,)")
        self.code_shape = tuple(distribution.event_shape)
        # A flow that lacks its context is built all the same, and fails at its first use.
        zeros = torch.zeros(1, *self.code_shape, device=next((p.device for p in self.parameters()), None))
        attempt("flow", lambda: distribution.transform(zeros), "at a first use", mend)
        self.base = of_distribution(distribution.base, tuple(distribution.base.event_shape))
        self.prior, self.latent_shape = self.base.prior, self.base.latent_shape

    def code(self, z: torch.Tensor) -> torch.Tensor:
        """f⁻¹(z), (N, *code_shape)."""
        with without_autocast(z.device):
            return self._distribution().transform.inv(self.base.code(self._in_own_precision(z)))

    def latent(self, code: torch.Tensor) -> torch.Tensor:
        """f(code), (N, *latent_shape)."""
        with without_autocast(code.device):
            return self.base.latent(self._distribution().transform(self._in_own_precision(code)))

    def code_log_prob(self, code: torch.Tensor) -> torch.Tensor:
        """The flow's log-density, (N,)."""
        with without_autocast(code.device):
            return self._distribution().log_prob(self._in_own_precision(code))

    def _distribution(self) -> Any:
        return self.flow if isinstance(self.flow, NormalizingFlow) else self.flow(self.context)

    def _in_own_precision(self, z: torch.Tensor) -> torch.Tensor:
        return z.to(next((p.dtype for p in self.parameters()), z.dtype))
