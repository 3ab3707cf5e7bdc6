"""log Z of a tilted generator: estimates with error bars, and stochastic bounds on both sides."""

from __future__ import annotations

import math
import time
from typing import Literal

import torch
from scipy.special import stdtrit
from tqdm import tqdm

from exptilt.config import require_known
from exptilt.density import LogZ
from exptilt.errors import InputError, require_at_least
from exptilt.evaluation.annealing import Annealing, Schedule
from exptilt.generators.base import require_float32
from exptilt.sampling.weights import effective_size, log_mean_exp, resample
from exptilt.tilted import TiltedGenerator

Method = Literal["smc", "ais", "importance"]

# ESS of one step of the schedule, as a share. Without resampling the variances of all steps add up.
_CONDITIONAL_ESS = {"smc": 0.9, "ais": 0.98, "importance": 0.9}
_BATCH_IMAGES, _BATCH_OTHERS = 64, 2000
# Groups that particles without a population are divided into, from each of which chains of the bound start.
_GROUPS = 10
# A GPU is busy only with so many times as many.
_ON_GPU = 16


@torch.inference_mode(False)
def estimate_log_z(
    tilted: TiltedGenerator,
    method: Method = "smc",
    *,
    n: int = 2000,
    seed: int = 0,
    repetitions: int = 10,
    transitions: int = 3,
    conditional_ess: float | None = None,
    resample_below: float = 0.5,
    schedule: Schedule | None = None,
    bound_chains: int = 200,
    chain_steps: int = 200,
    exact: torch.Tensor | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> LogZ:
    r"""Estimate log Z, :math:`Z = E_{z∼p}[\exp(−λE(G(z)) − λE_z(z))]`, and set ``tilted.log_z``.

    Methods. ``importance``: the mean of exp(−λE) over n samples of the prior; its weights are spread like
    exp(KL), so it is for weak tilts only. ``ais``: annealed importance sampling (Neal 2001), n chains along
    p(z)·exp(−βλE) with MALA as their transitions. ``smc``: the same with resampling (sequential Monte Carlo, Del Moral
    et al. 2006), in ``repetitions`` independent populations. A pilot run of 100 chains chooses β and step sizes
    (:meth:`~exptilt.evaluation.annealing.Annealing.pilot`), and its samples are not used, so Ẑ is unbiased.

    Error. Ẑ is a mean of independent Ẑ_g: one for each sample (``importance``, ``ais``) or population (``smc``). The
    standard error of log Ẑ is their jackknife's (Efron 1982), on the log scale; the interval is log Ẑ ± t × that, with
    Student's t for one less than the number of Ẑ_g. Where one weight outweighs all others (an ESS below 10, say), no
    interval from the weights is to be believed; look at the bounds.

    Bounds. E[log Ẑ_g] ≤ log Z (Jensen), and backward annealing from samples of the tilted distribution has
    E[log Ẑ_g] ≥ log Z (Grosse et al. 2015). ``lower`` and ``upper`` are these means less and plus what makes them
    one-sided 95% confidence bounds. ``lower`` holds without any condition on mixing. ``upper`` needs samples of the
    tilted distribution: ``exact`` ones, or else (approximately) particles of the forward run, drawn by their weights
    within each population (of ``importance`` and ``ais``, within each tenth), after ``chain_steps`` more MALA steps. A
    mode that no chain has found is missing in the estimate and in that ``upper``.

    Args:
        tilted: The tilted generator.
        method: ``"smc"``, ``"ais"`` or ``"importance"``.
        n: Samples of the prior, ≥ 2. For ``smc`` a multiple of ``repetitions``, two or more in each.
        seed: Fixes everything. Particle i draws from stream (seed, i), whatever the batch size.
        repetitions: Populations of ``smc``, ≥ 2.
        transitions: MALA steps at each β.
        conditional_ess: ESS of each step of the schedule, a share in (0, 1); 0.9 for ``smc``, 0.98 for ``ais``.
        resample_below: ``smc`` resamples a population whose ESS is below this share.
        schedule: In place of the pilot's.
        bound_chains: Chains behind ``upper``; 0 leaves it out.
        chain_steps: See above.
        exact: Exact samples of the tilted distribution, latents (N, *latent_shape), for ``upper``.
        batch_size: Latents that the networks see at once. Beside them, memory holds the latents of one population; of
            ``importance`` and ``ais`` all n, where ``upper`` is to be made of them.
        progress: Show a progress bar on standard error.

    Raises:
        InputError: An argument is out of range or of the wrong shape.
        RunError: An energy is not finite, or the schedule gets too long.
    """
    _check(method, n, repetitions, transitions, conditional_ess, bound_chains, chain_steps, batch_size)
    require_float32(tilted)
    if exact is not None and (exact.dim() == 0 or exact.shape[1:] != tilted.generator.latent_shape or not len(exact)):
        shape = ", ".join(map(str, ("N", *tilted.generator.latent_shape)))
        raise InputError("exact", f"has shape {tuple(exact.shape)}", f"give latents ({shape}), or none")
    began = time.perf_counter()
    if batch_size is None:
        batch_size = _BATCH_IMAGES if tilted.energy is not None and len(tilted.data_shape) == 3 else _BATCH_OTHERS
        batch_size *= _ON_GPU if tilted.device.type == "cuda" else 1
    populations, size = (repetitions, n // repetitions) if method == "smc" else (n, 1)
    with tqdm(unit=" gradients", desc="log Z", disable=not progress, leave=False) as bar:
        annealing = Annealing(tilted, seed, transitions, batch_size, bar)
        if schedule is None and (method != "importance" or (bound_chains and exact is None)):
            schedule = annealing.pilot(conditional_ess or _CONDITIONAL_ESS[method])
        if method == "importance":
            schedule = Schedule((0.0, 1.0), (1.0,) if schedule is None else schedule.step_sizes[-1:])
        assert schedule is not None

        log_z, ess, ends = [], [], []
        # Chains of the upper bound from each population, or group of particles, and how many of these give any.
        groups = min(populations if size > 1 else _GROUPS, n, bound_chains) if exact is None else 0
        share = bound_chains // max(1, groups)
        at_once = max(1, batch_size // size)
        for first in range(0, populations, at_once):
            count = min(at_once, populations - first)
            values, z, log_weights = annealing.forward(schedule, first, count, size, resample_below)
            log_z.append(values)
            ess.append(effective_size(log_weights))
            if groups and size > 1:
                ends += [_by_weight(*pair, share) for pair in zip(z.split(size), log_weights, strict=True)]
            elif groups:
                ends.append(z)
        log_z = torch.cat(log_z)
        if groups and size == 1:
            parts = zip(torch.cat(ends).tensor_split(groups), log_z.tensor_split(groups), strict=True)
            ends = [_by_weight(z, log_weights, share) for z, log_weights in parts]
        ends = ends[:groups]

        steps = chain_steps
        if exact is not None:
            # A copy, as a tensor of torch's inference mode could not have a gradient.
            ends, share, steps = [exact.to(tilted.device, torch.float32, copy=True)], 1, 0
        upper = None
        if ends:
            backward = [
                annealing.backward(schedule, part, i * batch_size, steps)
                for i, part in enumerate(torch.cat(ends).split(batch_size))
            ]
            upper = _confidence_bound(torch.cat(backward).view(-1, share).mean(1), above=True)
    value, error = jackknife_log_mean(log_z)
    half = float(stdtrit(populations - 1, 0.975)) * error
    tilted.log_z = LogZ(
        value=value,
        standard_error=error,
        interval=(value - half, value + half),
        ess=float(torch.cat(ess).sum()) if method == "smc" else float(effective_size(log_z)),
        lower=_confidence_bound(log_z, above=False),
        upper=upper,
        method=method,
        n=n,
        steps=len(schedule.betas) - 1,
        gradient_evaluations=annealing.gradients,
        seconds=time.perf_counter() - began,
        strength=tilted.strength,
    )
    return tilted.log_z


def _by_weight(z: torch.Tensor, log_weights: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` of the latents (N, *latent), by weight."""
    # Any fixed place in [0, 1) will do: the chains that follow forget it.
    return z[resample(log_weights[None], log_weights.new_full((1,), 0.5), count)[0]]


def jackknife_log_mean(log_values: torch.Tensor) -> tuple[float, float]:
    """Logarithm of the mean of independent values given as logarithms, (G,), and its jackknife standard error."""
    g, log_values = len(log_values), log_values.double()
    # Where one value is all of the sum, what is left without it drowns in rounding: 1e-15 of it stays.
    shares = (log_values - log_values.logsumexp(0)).exp().clamp(max=1 - 1e-15)
    without = torch.log1p(-shares)
    error = ((without - without.mean()).square().sum() * (g - 1) / g).sqrt()
    return float(log_mean_exp(log_values)), float(error)


def _confidence_bound(values: torch.Tensor, above: bool) -> float | None:
    """One-sided 95% confidence bound of the mean of independent values (G,); None for one value."""
    if len(values) < 2:
        return None
    half = float(stdtrit(len(values) - 1, 0.95)) * float(values.std()) / math.sqrt(len(values))
    return float(values.mean()) + (half if above else -half)


def _check(
    method: str,
    n: int,
    repetitions: int,
    transitions: int,
    conditional_ess: float | None,
    bound_chains: int,
    chain_steps: int,
    batch_size: int | None,
) -> None:
    require_known("method", method, Method)
    require_at_least(2, n=n, repetitions=repetitions)
    require_at_least(1, transitions=transitions, batch_size=1 if batch_size is None else batch_size)
    require_at_least(0, bound_chains=bound_chains, chain_steps=chain_steps)
    if conditional_ess is not None and not 0 < conditional_ess < 1:
        raise InputError("conditional_ess", f"{conditional_ess} is out of range", "give a share in (0, 1)")
    if method == "smc" and (n % repetitions or n < 2 * repetitions):
        mend = f"give a multiple of {repetitions}, the number of populations, at least twice that"
        raise InputError("n", f"{n} does not fill the populations of smc", mend)
