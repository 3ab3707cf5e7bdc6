"""Features of a network that is not trained: the same everywhere, for any size, and an order that the eye agrees to."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import exptilt
from exptilt.data import load_dataset, to_uint8
from exptilt.errors import InputError
from exptilt.evaluation.features import load_features
from exptilt.evaluation.monitor import quality_monitor
from exptilt.evaluation.random_features import RandomNetwork


def test_the_weights_are_the_same_whatever_the_callers_seed() -> None:
    torch.manual_seed(1)
    first = load_features("random")
    torch.manual_seed(2)
    second = load_features("random")
    assert first.digest == second.digest
    # As they were when figures by them were first published: a change of them is a change of the protocol.
    assert first.digest.startswith("3b7b1d6f15caa388")  # pragma: allowlist secret


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 32, 32), (1, 300, 130)])
def test_images_of_any_size_have_as_many_features(shape: tuple[int, ...]) -> None:
    images = torch.randint(0, 256, (4, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = load_features("random")
    features = extractor(images)
    assert features.shape == (4, extractor.size) == (4, 352)
    assert (features.std(0) > 0).float().mean() > 0.7
    if shape[0] == 1:
        torch.testing.assert_close(extractor(images.expand(-1, 3, -1, -1)), features)


def test_large_images_are_averaged_first() -> None:
    x = torch.rand(2, 3, 256, 300, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = RandomNetwork()
    torch.testing.assert_close(network(x), network(F.avg_pool2d(x, 4)))


def test_images_are_the_worse_the_more_is_done_to_them() -> None:
    digits = load_dataset("digits", "train").batch(slice(None))
    # The Fréchet distance takes twice as many as the 352 features; of fewer, KID takes its place.
    reference, samples = digits[:704], digits[704:]
    monitor, of_few = (quality_monitor("random", to_uint8(part)) for part in (reference, reference[:500]))
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(0))

    def blurred(width: int) -> torch.Tensor:
        return F.avg_pool2d(samples, width, 1, width // 2)

    def noisy(deviation: float) -> torch.Tensor:
        return (samples + deviation * noise).clamp(-1, 1)

    def few_kinds(share: float) -> torch.Tensor:
        """The share with the most ink, to stand for modes that are lost."""
        order = samples.mean((1, 2, 3)).argsort(descending=True)
        return samples[order[: round(share * len(samples))]].repeat(10, 1, 1, 1)[: len(samples)]

    for worse in (
        [samples, blurred(3), blurred(5), blurred(7)],
        [samples, noisy(0.05), noisy(0.1), noisy(0.2)],
        [samples, few_kinds(0.7), few_kinds(0.4), few_kinds(0.2)],
    ):
        distances = [monitor(images)["fid"] for images in worse]
        assert distances == sorted(distances)
        assert distances[1] > 2 * distances[0]
        figures = [of_few(images) for images in worse]
        assert not any("fid" in each for each in figures)
        by_kernel = [each["kid"] for each in figures]
        assert by_kernel == sorted(by_kernel)


def test_other_channels_are_refused_and_evaluation_names_the_network() -> None:
    with pytest.raises(InputError, match="2 channels; give grey or RGB images"):
        load_features("random")(torch.zeros(2, 2, 8, 8, dtype=torch.uint8))
    digits = load_dataset("digits", "train")
    samples = digits.select(slice(0, 400))
    result = exptilt.evaluate(samples, digits.select(slice(400, 800)), features="random", progress=False, bootstrap=4)
    assert result["protocol"]["feature_network"] == "random"
    assert result["protocol"]["feature_digest"] == load_features("random").digest
    assert result["images"]["class_entropy"] is None
