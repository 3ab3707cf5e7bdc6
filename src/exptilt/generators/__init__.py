"""Generators by name."""

from __future__ import annotations

from typing import Any

from exptilt.generators.base import Generator
from exptilt.generators.vae import VAE, ToyVAE
from exptilt.generators.wrap import wrap

# The classes that a saved model may name; nothing else is ever built from a file.
GENERATORS: dict[str, type[Any]] = {"VAE": VAE, "ToyVAE": ToyVAE}

__all__ = ["GENERATORS", "VAE", "Generator", "ToyVAE", "wrap"]
