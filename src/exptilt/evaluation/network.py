"""The classifiers whose penultimate activations are the features that samples are judged by."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from exptilt.errors import InputError

IMAGE_SIZE = 32
BLOCKS_PER_STAGE = 2


class ImageClassifier(nn.Module):
    """A classifier of 32×32 images; a subclass gives :meth:`features` and the layer ``head``.

    Args:
        arguments: Arguments of the subclass's constructor, each a whole number ≥ 1; ``channels`` and
            ``feature_size`` are among them.

    Raises:
        InputError: An argument is not a whole number ≥ 1.
    """

    image_size = (IMAGE_SIZE, IMAGE_SIZE)
    head: nn.Linear

    def __init__(self, **arguments: int) -> None:
        super().__init__()
        self._arguments = arguments
        for name, value in arguments.items():
            if not isinstance(value, int) or value < 1:
                raise InputError(
                    f"{type(self).__name__}: {name}", f"{value!r} is out of range", "give a whole number ≥ 1"
                )
        self.channels = arguments["channels"]
        self.feature_size = arguments["feature_size"]

    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor, as JSON values."""
        return dict(self._arguments)

    def fit_data(self, images: torch.Tensor) -> None:
        """Set what is computed from training images and not learned; called once, before training.

        Args:
            images: Training images (N, C, 32, 32) in [−1, 1].
        """

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Penultimate activations (N, F) of images (N, C, 32, 32) in [−1, 1]."""
        raise NotImplementedError

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of features (N, F)."""
        return self.head(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of images (N, C, 32, 32) in [−1, 1]."""
        return self.classify(self.features(x))

    def training_loss(
        self, x: torch.Tensor, labels: torch.Tensor | None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Cross entropy of each image in nats, (N,).

        Args:
            x: Images (N, C, 32, 32) in [−1, 1].
            labels: Class indices, int64 (N,).
            generator: Not used.

        Raises:
            InputError: There are no labels.
        """
        return functional.cross_entropy(self(x), _labels(labels), reduction="none")

    @torch.no_grad()
    def metrics(
        self, x: torch.Tensor, labels: torch.Tensor | None, generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """``{"accuracy": (N,)}``, 1 where the predicted class is the label and 0 elsewhere; arguments as above."""
        return {"accuracy": (self(x).argmax(1) == _labels(labels)).float()}


class FeatureNetwork(ImageClassifier):
    """A residual classifier of 32×32 images (He et al. 2016), three stages of two blocks.

    Half the resolution goes in the stem, so most of the arithmetic happens at 16×16 and below. It is trained without
    label smoothing, which would erase differences within a class from the features (Müller et al. 2019,
    "When does label smoothing help?"), and those are what a comparison of samples needs.

    Args:
        channels: Channels of the images.
        width: Channels of the first stage; the next ones have twice and four times as many.
        classes: Number of classes.
        feature_size: Length F of a feature vector.

    Raises:
        InputError: An argument is not a whole number ≥ 1.
    """

    def __init__(self, channels: int, width: int = 32, classes: int = 10, feature_size: int = 128) -> None:
        super().__init__(channels=channels, width=width, classes=classes, feature_size=feature_size)
        self.stem = nn.Sequential(_convolution(channels, width), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2))
        self.stages = nn.Sequential(
            _stage(width, width, stride=1),
            _stage(width, 2 * width, stride=2),
            _stage(2 * width, 4 * width, stride=2),
        )
        self.project = nn.Linear(4 * width, feature_size)
        self.head = nn.Linear(feature_size, classes)
        # One and a half times the speed of the default layout in convolutions on CPUs.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Penultimate activations (N, F), each ≥ 0, of images (N, C, 32, 32) in [−1, 1]."""
        pooled = self.stages(self.stem(x)).mean((2, 3))
        return functional.relu(self.project(pooled))


def _labels(labels: torch.Tensor | None) -> torch.Tensor:
    if labels is None:
        raise InputError("FeatureNetwork", "the images have no labels", "train it on a data set with labels")
    return labels


class _Block(nn.Module):
    """x + F(x) with two convolutions in F (He et al. 2016, fig. 2); F is 0 at the start of training."""

    def __init__(self, size_in: int, size_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.convolution1, self.norm1 = _convolution(size_in, size_out, stride), nn.BatchNorm2d(size_out)
        self.convolution2, self.norm2 = _convolution(size_out, size_out), nn.BatchNorm2d(size_out)
        nn.init.zeros_(self.norm2.weight)
        same_shape = size_in == size_out and stride == 1
        self.shortcut = (
            nn.Identity()
            if same_shape
            else nn.Sequential(nn.Conv2d(size_in, size_out, 1, bias=False), nn.BatchNorm2d(size_out))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.convolution1(x)))
        # Not by the stride of a 1×1 convolution: in its backward pass on a CPU, torch 2.13 writes past the end of a
        # buffer where the channels are fewer than a vector register holds (8 with AVX2, 16 with AVX-512).
        passed_by = self.shortcut(x[:, :, :: self.stride, :: self.stride])
        return functional.relu(passed_by + self.norm2(self.convolution2(y)))


def _stage(size_in: int, size_out: int, stride: int) -> nn.Sequential:
    first = _Block(size_in, size_out, stride)
    return nn.Sequential(first, *(_Block(size_out, size_out, 1) for _ in range(BLOCKS_PER_STAGE - 1)))


def _convolution(size_in: int, size_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(size_in, size_out, 3, stride, padding=1, bias=False)
