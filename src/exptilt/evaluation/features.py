"""Images to features: the shipped networks, a folder's, Inception-v3, a random one, or a user's module."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exptilt.data.types import DataSet
from exptilt.errors import InputError
from exptilt.evaluation.images import TENSOR_SOURCE
from exptilt.evaluation.inception import NAME as INCEPTION
from exptilt.evaluation.inception import load_inception
from exptilt.evaluation.network import FeatureNetwork, ImageClassifier
from exptilt.evaluation.random_features import NAME as RANDOM
from exptilt.evaluation.random_features import RandomNetwork
from exptilt.evaluation.whitened import WhitenedNetwork
from exptilt.memory import in_parts
from exptilt.precision import without_autocast
from exptilt.storage import (
    MODULE_CONFIG,
    MODULE_WEIGHTS,
    described,
    load_weights,
    read_tensors,
    write_json,
    write_tensors,
)
from exptilt.vetting import Allotment, check_tensors, member, read_config, read_shapes

SHIPPED = Path(__file__).parent / "weights"
NETWORKS: dict[str, type[ImageClassifier]] = {kind.__name__: kind for kind in (FeatureNetwork, WhitenedNetwork)}
"""Networks that can be trained here and kept in a folder."""
AUTO = "auto"
"""Stands for the data set's own network."""


class FeatureExtractor:
    """Features of uint8 images, always in float32 and in evaluation mode: no figure depends on the machine's type.

    Args:
        module: One of :data:`NETWORKS`, or a module that maps images (N, C, H, W) in [−1, 1] to (N, F). If it has
            them, its attributes ``channels``, ``image_size`` (H, W), ``num_features``, ``preparation`` and ``code``
            are used, and its method ``classify`` (features to logits) for predicted classes. It is put into evaluation
            mode, in float32.
        name: Name in the protocol.

    Attributes:
        name: Name in the protocol.
        digest: SHA-256 of the weights, as hexadecimal digits.
        channels: Channels that the images must have; None where the module does not say.
        image_size: (H, W) that the images must have; None where the module does not say.
        preparation: What the module does to channels and size first, for the protocol; None for nothing.
        code: Name and version of what computes the features, beside the weights; None where the module does not say,
            and then its features are never taken from a cache.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module = module.eval().float()
        self.name = name
        self.digest = weights_digest(module.state_dict())
        self.channels: int | None = getattr(module, "channels", None)
        self.image_size: tuple[int, int] | None = getattr(module, "image_size", None)
        self.preparation: str | None = getattr(module, "preparation", None)
        ours = type(module) in NETWORKS.values()
        self.code: str | None = type(module).__name__ if ours else getattr(module, "code", None)
        self._map = module.features if isinstance(module, ImageClassifier) else module
        self._size: int | None = getattr(module, "feature_size", getattr(module, "num_features", None))

    @property
    def size(self) -> int:
        """F, the length of a feature vector; of a module that does not say, known after the first call."""
        if self._size is None:
            raise InputError(f"--features {self.name}", "F is not known yet", "call it, or set num_features on it")
        return self._size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> FeatureExtractor:
        """Move the weights; returns itself."""
        self.module.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, batch_size: int = 500) -> torch.Tensor:
        """Features of images.

        Args:
            images: uint8 (N, C, H, W).
            batch_size: Images that pass through the network at once, fewer where the memory does not hold them.

        Returns:
            float32 (N, F), on the CPU.

        Raises:
            InputError: Type, channels or size of the images is wrong, or the module's output is not (N, F) or not
                finite.
        """
        self._check(images)
        with _plain_float32(self.device):
            parts = list(in_parts(len(images), 0, batch_size, lambda a, n: self._features(images[a : a + n])))
        return torch.cat(parts) if parts else torch.empty(0, self.size)

    @torch.no_grad()
    def predict(self, features: torch.Tensor) -> tuple[torch.Tensor, int] | None:
        """Predicted classes, int64 (N,), and the number of classes; None where the module classifies nothing."""
        classify = getattr(self.module, "classify", None)
        if classify is None:
            return None
        with _plain_float32(self.device):
            logits = classify(features.to(self.device))
        return logits.argmax(1).cpu(), logits.shape[1]

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        features = self._map(images.to(self.device).float().div_(127.5).sub_(1))
        subject = f"--features {self.name}"
        if not isinstance(features, torch.Tensor) or features.dim() != 2 or len(features) != len(images):
            raise InputError(subject, f"it maps {len(images)} images to {_shape(features)}", "it must give (N, F)")
        if self._size not in (None, features.shape[1]):
            raise InputError(subject, f"it gives {features.shape[1]} features", f"it must give {self._size}")
        if not features.isfinite().all():
            raise InputError(subject, "its features are not finite", "check its weights")
        self._size = features.shape[1]
        return features.float().cpu()

    def _check(self, images: torch.Tensor) -> None:
        subject = f"--features {self.name}"
        shape = tuple(images.shape)
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise InputError(subject, f"the input is {images.dtype} {shape}", "give uint8 images (N, C, H, W)")
        if self.channels is not None and shape[1] != self.channels:
            raise InputError(
                subject,
                f"the images have {_channels(shape[1])} and the network takes {_channels(self.channels)}",
                f"give one trained on images with {_channels(shape[1])}",
            )
        if self.image_size is not None and shape[2:] != tuple(self.image_size):
            right = "×".join(map(str, self.image_size))
            raise InputError(
                subject,
                f"the images are {shape[2]}×{shape[3]} and the network takes {right}",
                f"resize or pad them to {right}, or give another network",
            )


def load_features(spec: str | Path | nn.Module | FeatureExtractor) -> FeatureExtractor:
    """The features that ``spec`` means.

    Args:
        spec: The canonical name of a data set whose network is shipped (such a name comes before a folder of the
            same name; write ``./mnist`` for the folder), ``inception`` or ``inception:FILE`` (see
            :func:`~exptilt.evaluation.inception.load_inception`), ``random`` (see
            :class:`~exptilt.evaluation.random_features.RandomNetwork`), a folder that :func:`save_features` wrote, a
            module that maps images (N, C, H, W) in [−1, 1] to (N, F), or an extractor, which is returned.

    Raises:
        InputError: No such network, its files do not fit each other or are damaged, or Inception's library is missing.
    """
    if isinstance(spec, FeatureExtractor):
        return spec
    if isinstance(spec, nn.Module):
        return FeatureExtractor(spec, type(spec).__name__)
    if isinstance(spec, str) and spec in shipped_names():
        return FeatureExtractor(_load_network(SHIPPED / spec), spec)
    name, _, weights = str(spec).partition(":")
    if isinstance(spec, str) and name == INCEPTION:
        return FeatureExtractor(load_inception(weights or None), INCEPTION)
    if spec == RANDOM:
        return FeatureExtractor(RandomNetwork(), RANDOM)
    folder = Path(spec)
    if folder.is_dir():
        return FeatureExtractor(_load_network(folder), folder.resolve().name)
    known = ", ".join(shipped_names()) or "none is shipped"
    raise InputError(
        f"--features {spec}",
        "no feature network of that name, and no such folder",
        f"use one that is shipped ({known}), {INCEPTION}, {RANDOM}, or a folder that has {MODULE_CONFIG}",
    )


def features_for(spec: str | Path | nn.Module | FeatureExtractor | None, data: DataSet) -> FeatureExtractor:
    """The features that ``spec`` means for a data set: as :func:`load_features`, or the set's own.

    Args:
        spec: See there; None or ``"auto"`` is the network that is shipped for the set.
        data: The data set.

    Raises:
        InputError: As there, or no network is shipped for the set.
    """
    if spec is not None and spec != AUTO:
        return load_features(spec)
    if data.source == TENSOR_SOURCE:
        raise InputError("features", "images in a tensor do not say which network fits", "give features=…")
    if data.name not in shipped_names():
        known = ", ".join(shipped_names()) or "none"
        raise InputError(
            f"data {data.name!r}",
            "no feature network is shipped for it",
            f"give one with --features: the name of one that is shipped ({known}), {INCEPTION}, {RANDOM}, or a folder",
        )
    return load_features(data.name)


def shipped_names() -> list[str]:
    """Names of the data sets whose feature network comes with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{MODULE_CONFIG}"))


def save_features(network: ImageClassifier, folder: str | Path, training: Any = None) -> None:
    """Write a network for :func:`load_features`, its weights in half precision.

    Args:
        network: What to write.
        folder: Gets config.json and model.safetensors.
        training: How it was trained, for the record; any JSON value.
    """
    folder = Path(folder)
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in network.state_dict().items()
    }
    write_tensors(folder / MODULE_WEIGHTS, halves)
    config = {**described(network), "training": training, "digest": weights_digest(halves)}
    write_json(folder / MODULE_CONFIG, config)


def weights_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of named tensors, as hexadecimal digits; half precision counts as the float32 it is widened to."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        tensor = (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _load_network(folder: Path) -> ImageClassifier:
    config_file, weights_file = member(folder, MODULE_CONFIG), member(folder, MODULE_WEIGHTS)
    config, shapes = read_config(config_file), read_shapes(weights_file)
    kind = NETWORKS.get(str(config.get("class")))
    if kind is None:
        raise InputError(
            config_file,
            "it is not the configuration of a feature network",
            f"its class must be {' or '.join(NETWORKS)}",
        )
    try:
        with Allotment(shapes, config_file):
            network = kind(**config["arguments"])
    except (KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise InputError(config_file, f"its arguments are wrong ({error})", "restore it or write it anew") from None
    check_tensors(network, shapes, weights_file)
    tensors, _ = read_tensors(weights_file)
    load_weights(network, tensors, weights_file)
    if "digest" in config and config["digest"] != weights_digest(network.state_dict()):
        raise InputError(weights_file, f"its weights are not those that {MODULE_CONFIG} names", "restore both files")
    return network.requires_grad_(False)


@contextlib.contextmanager
def _plain_float32(device: torch.device) -> Iterator[None]:
    """float32 as it is written: neither a caller's autocast nor TensorFloat-32 in convolutions."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(without_autocast(device))
        if device.type == "cuda":
            enabled = torch.backends.cudnn.enabled
            stack.enter_context(
                torch.backends.cudnn.flags(enabled=enabled, benchmark=False, deterministic=True, allow_tf32=False)
            )
        yield


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__


def _channels(count: int) -> str:
    return f"{count} channel{'' if count == 1 else 's'}"
