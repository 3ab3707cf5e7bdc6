"""Encoded images to one uint8 tensor: decoding, one size for all, zero-padding of 28×28."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import psutil
import torch

from exptilt.errors import InputError, one_line

# Pillow reads dozens of formats; these are the ones that data sets of images come in.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")

LARGEST_FILE = 1 << 26
"""Bytes of an encoded image."""
_LARGEST_IMAGE = 1 << 24
"""Pixels of an image. Sets have one size, that of a model's samples; Pillow's own limit is five times as large."""
# A set of images that takes so many bytes may not take so many times what its files have.
_SUSPICIOUS, _LARGEST_RATIO = 1 << 28, 200

# Where the header of a PNG file tells the bits of a channel.
_PNG_BITS = 24
_GREY_MODES = {"1", "L", "LA", "La"}
_COLOUR_MODES = {"RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr"}


class ImageStack:
    """Images of one size, put one by one into a single array.

    Args:
        count: Number of images to come.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._shape: tuple[int, ...] | None = None
        self._stack = np.empty(0, np.uint8)
        self._padding = 0
        self._encoded = self._decoded = 0

    def put(self, place: int, encoded: bytes, where: str) -> None:
        """Decode an image into a place.

        Args:
            place: Index in the stack.
            encoded: A PNG, JPEG, WebP or BMP file's content.
            where: File or row that it comes from, for errors.

        Raises:
            InputError: It cannot be decoded, or its size or number of channels is not that of the others.
        """
        pixels = decode(encoded, where)
        self._encoded += len(encoded)
        self._decoded += pixels.size
        refuse_bomb(self._decoded, self._encoded, where)
        if self._shape is None:
            self._allocate(pixels.shape, where)
        elif pixels.shape != self._shape:
            raise InputError(
                where,
                f"is {_describe(pixels.shape)} where other images of the set are {_describe(self._shape)}",
                "bring all images to one size and colour mode",
            )
        height, width, _ = pixels.shape
        inner = slice(self._padding, self._padding + height), slice(self._padding, self._padding + width)
        self._stack[place, :, inner[0], inner[1]] = pixels.transpose(2, 0, 1)

    def tensor(self) -> torch.Tensor:
        """All images, uint8 (N, C, H, W)."""
        return torch.from_numpy(self._stack)

    def _allocate(self, shape: tuple[int, ...], where: str) -> None:
        height, width, channels = shape
        self._shape = shape
        self._padding = padding(height, width)
        padded = (self._count, channels, height + 2 * self._padding, width + 2 * self._padding)
        try:
            # Asked for before: an array of zeros takes its memory only as it is filled.
            if math.prod(padded) > psutil.virtual_memory().available:
                raise MemoryError
            self._stack = np.zeros(padded, np.uint8)
        except MemoryError:
            size = f"{math.prod(padded) / 2**30:.0f} GiB"
            raise InputError(
                where, f"{self._count} images of this size need {size}", "give a limit, or smaller images"
            ) from None


def decode(encoded: bytes, where: str) -> np.ndarray:
    """Decode one image; grey stays grey, palettes, CMYK and transparency become RGB.

    Args:
        encoded: A PNG, JPEG, WebP or BMP file's content.
        where: File or row that it comes from, for errors.

    Returns:
        Pixels, uint8 (H, W, C) with C = 1 or 3.

    Raises:
        InputError: It is no image, is cut short, is absurdly large, or has more than 8 bits a channel.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if len(encoded) > LARGEST_FILE:
        raise InputError(where, f"has {len(encoded):,} bytes", f"at most {LARGEST_FILE:,} are decoded")
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(encoded), formats=FORMATS) as image,
        ):
            if math.prod(image.size) > _LARGEST_IMAGE:
                raise Image.DecompressionBombError
            # Pillow gives the higher 8 bits of 16 without a word, but for grey without transparency.
            bits = encoded[_PNG_BITS] if image.format == "PNG" else 8
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode in _GREY_MODES and bits <= 8:
                return np.asarray(image.convert("L"))[:, :, None]
            if image.mode in _COLOUR_MODES and bits <= 8:
                # Pillow warns unless transparency of a palette goes through RGBA.
                opaque = image.convert("RGBA") if "transparency" in image.info else image
                return np.asarray(opaque.convert("RGB"))
            mode = f"{image.mode}, {bits} bits a channel" if bits > 8 else image.mode
    except Image.DecompressionBombError:
        raise InputError(where, f"has more than {_LARGEST_IMAGE:,} pixels", "give smaller images") from None
    except Exception as error:  # A codec raises nearly anything when its input is damaged.
        # Whose message has an object of this process in it.
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise InputError(where, f"not a whole image ({reason})", f"give {', '.join(FORMATS)} images") from error
    raise InputError(where, f"has pixels of mode {mode}", "give images of 8 bits a channel, grey or RGB")


def padding(height: int, width: int) -> int:
    """Zeros to add on each side: 28×28 becomes 32×32, other sizes stay as they are."""
    return 2 if (height, width) == (28, 28) else 0


def pad(images: torch.Tensor) -> torch.Tensor:
    """Zero-pad uint8 images (N, C, 28, 28) to (N, C, 32, 32); other sizes are returned as they are."""
    width = padding(*images.shape[-2:])
    return torch.nn.functional.pad(images, (width,) * 4) if width else images


def refuse_bomb(unpacked: int, packed: int, where: object) -> None:
    """Refuse what takes hundreds of times the memory that it has bytes in its file.

    Args:
        unpacked: Bytes in memory.
        packed: Bytes in the file.
        where: File, for the error.

    Raises:
        InputError: It does, and it is large.
    """
    if unpacked > _SUSPICIOUS and unpacked > _LARGEST_RATIO * packed:
        fault = f"unpacks to {unpacked / 2**20:,.0f} MiB, more than {_LARGEST_RATIO} times its size"
        raise InputError(where, fault, "give it with less compression, if it is what it should be")


def _describe(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{height}×{width} {'grey' if channels == 1 else 'RGB'}"
