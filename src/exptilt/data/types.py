"""What a data set is to the rest of exptilt."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from exptilt.errors import InputError


@dataclass(frozen=True)
class DataSet:
    """One split of a data set, decoded once and held in memory as it was stored.

    Attributes:
        name: Canonical name, for example ``"mnist"``; for a user's folder, the folder's name.
        split: ``"train"`` or ``"test"``.
        stored: Images as uint8 (N, C, H, W), or points as float32 (N, D).
        labels: Class indices, int64 (N,), where the set has them.
        source: Where it was read from (a path or a Hub id), for the record.
    """

    name: str
    split: str
    stored: torch.Tensor
    labels: torch.Tensor | None
    source: str

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one element: (C, H, W) or (D,)."""
        return tuple(self.stored.shape[1:])

    def batch(self, indices: torch.Tensor | slice) -> torch.Tensor:
        """The chosen elements as float32: images in [−1, 1], points as they are."""
        chosen = self.stored[indices]
        return chosen.float().div_(127.5).sub_(1) if chosen.dtype == torch.uint8 else chosen

    def require_shape(self, expected: tuple[int, ...]) -> None:
        """Check that a model for elements of shape ``expected`` can take these.

        Raises:
            InputError: It cannot.
        """
        if self.shape != tuple(expected):
            mend = f"the model needs {tuple(expected)}"
            if self.shape[1:] == (28, 28):
                mend += "; wrap pads a decoder of 28×28 to 32×32: wrap(…, pad=0) leaves it as it is"
            raise InputError(f"data {self.name!r}", f"has elements of shape {self.shape}", mend)

    def require_finite(self) -> None:
        """Check that no value is NaN or infinite.

        Raises:
            InputError: One is.
        """
        if self.stored.is_floating_point() and not bool(self.stored.isfinite().all()):
            count = int((~self.stored.isfinite()).flatten(1).any(1).sum())
            raise InputError(f"data {self.name!r}", f"{count} elements hold NaN or infinite values", "remove them")

    def select(self, indices: torch.Tensor | slice) -> DataSet:
        """The chosen elements as a data set of their own."""
        labels = None if self.labels is None else self.labels[indices]
        return DataSet(self.name, self.split, self.stored[indices], labels, self.source)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images in [−1, 1] rounded to uint8, as a file would store them; values outside are clipped."""
    return images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
