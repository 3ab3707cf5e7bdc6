"""A mixture of Gaussians fitted to the codes of an encoder, by scikit-learn."""

from __future__ import annotations

import warnings

import torch

from exptilt.data import DataSet
from exptilt.errors import InputError
from exptilt.generators.mixture import MixtureGenerator

# Images that are encoded at once.
_ENCODED = 500


def fit_mixture(
    model: MixtureGenerator, images: torch.Tensor | DataSet, *, seed: int = 0, iterations: int = 100
) -> MixtureGenerator:
    """Fit the prior of ``model`` to one code z ~ q(z|x) of each image x by expectation maximisation; returns the model.

    The start is that of scikit-learn's ``GaussianMixture``, k-means; covariances are full, with 10⁻⁶ added to their
    diagonals. Fewer iterations are made where the likelihood stops growing.

    Args:
        model: A generator with an encoder, and a mixture of K components as its prior.
        images: Training data: images (N, C, H, W) in [−1, 1], points (N, D), or a data set; N ≥ 2K.
        seed: Fixes codes and start.
        iterations: Most iterations.

    Raises:
        InputError: The data do not fit the generator, or are too few.
    """
    # Slow to import, and nothing else here needs it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    data = images if isinstance(images, DataSet) else DataSet("tensor", "train", images, None, "a tensor")
    data.require_shape(model.data_shape)
    prior = model.mixture
    components = len(prior.weights)
    if len(data) < 2 * components:
        raise InputError("images", f"{len(data)} are too few for {components} components", "give more images")
    codes = _codes(model.freeze(), data, seed)
    # NumPy's generator takes 32 bits.
    mixture = GaussianMixture(components, max_iter=iterations, random_state=seed % 2**32)
    with warnings.catch_warnings():
        # Stopped early, it is still a mixture; its likelihood of held-out codes tells how good.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(codes.flatten(1).double().numpy())
    prior.weights.copy_(torch.from_numpy(mixture.weights_))
    prior.means.copy_(torch.from_numpy(mixture.means_))
    prior.factors.copy_(torch.linalg.cholesky(torch.from_numpy(mixture.covariances_)))
    return model


@torch.no_grad()
def _codes(model: MixtureGenerator, data: DataSet, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    parts = [data.batch(slice(first, first + _ENCODED)) for first in range(0, len(data), _ENCODED)]
    return torch.cat([model.encode(x.to(model.device), random).float().cpu() for x in parts])
