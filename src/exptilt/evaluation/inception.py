"""Inception-v3 as a feature network, through the library torch-fidelity, which the extra ``eval`` installs.

The library is imported here only, and only when a network is asked for: it needs torchvision, which the rest of
exptilt does not.
"""

from __future__ import annotations

import importlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exptilt.errors import InputError, one_line
from exptilt.evaluation.images import as_rgb

NAME = "inception"
"""What stands after ``--features``; ``inception:FILE`` names a file of weights."""

_FEATURES = "2048"
_MODULE = "torch_fidelity.feature_extractor_inceptionv3"
_EXTRA = "pip install 'exptilt[eval]' (torch-fidelity and torchvision)"
# Images that pass through the network at once: at 299×299 one takes about 10 MB.
_AT_ONCE = 32


class Inception(nn.Module):
    """The network of the published FID (Heusel et al. 2017): 2,048 features after the last pooling.

    Args:
        network: Maps uint8 images (N, 3, H, W) to a tuple whose first element is (N, F); it resizes by itself.
        version: Version of the library that it comes from.
    """

    num_features = int(_FEATURES)
    preparation = "grey repeated to 3 channels, then bilinear to 299x299 as TensorFlow 1 does (torch-fidelity)"

    def __init__(self, network: nn.Module, version: str) -> None:
        super().__init__()
        self.network = network
        self.code = f"torch-fidelity {version}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (N, F) of images (N, C, H, W) in [−1, 1], C 1 or 3.

        Raises:
            InputError: The images have another number of channels.
        """
        # Exact: the values were whole numbers before they were scaled to [−1, 1].
        stored = as_rgb(x.add(1).mul(127.5).round().to(torch.uint8), NAME)
        return torch.cat([self.network(part)[0] for part in stored.split(_AT_ONCE)])


def load_inception(weights: str | Path | None = None) -> Inception:
    """The network with its weights.

    No pickled object is ever run: a file is read as tensors only (``weights_only``), a download's hash is checked,
    and the library is handed those tensors in place of the file, which it would unpickle.

    Args:
        weights: A .pth file of the library's weights (``weights-inception-2015-12-05-6726825d.pth`` of its release
            0.2.0). Without it that file is downloaded, 91 MiB, into torch's hub cache, where the library looks too.

    Raises:
        InputError: The library is not installed, the file is missing or holds something else, or the download failed.
    """
    library, version = _library()
    state = _download(library.URL_INCEPTION_V3) if weights is None else _read(Path(weights).expanduser())
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    try:
        network = library.FeatureExtractorInceptionV3(NAME, [_FEATURES], feature_extractor_weights_path=file)
    except (RuntimeError, TypeError, AttributeError) as error:  # What load_state_dict raises for other tensors.
        fault = f"does not hold the weights of this network ({one_line(error, 120)})"
        raise InputError(_subject(weights), fault, "give torch-fidelity's own file") from None
    return Inception(network.requires_grad_(False), version)


def _library() -> tuple[Any, str]:
    try:
        version = getattr(importlib.import_module("torch_fidelity"), "__version__", "of unknown version")
        return importlib.import_module(_MODULE), str(version)
    except ImportError as error:
        fault = f"needs a library that is missing ({one_line(error, 120)})"
        raise InputError(f"--features {NAME}", fault, _EXTRA) from None
    except RuntimeError as error:  # torchvision beside a torch of another build.
        fault = f"torchvision does not fit the installed torch ({one_line(error, 120)})"
        raise InputError(f"--features {NAME}", fault, "install torch and torchvision from one index") from None


def _read(path: Path) -> Any:
    if path.exists() and not path.is_file():  # A pipe would be waited for.
        raise InputError(_subject(path), "is no regular file", "give torch-fidelity's own file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(
            _subject(path), "no such file", f"give the file, or --features {NAME} to download it"
        ) from None
    except pickle.UnpicklingError:
        fault = "is damaged, or holds pickled objects, which are not read"
    except Exception as error:  # A damaged file gets nearly anything out of torch's reader.
        fault = f"is no file of weights ({one_line(error, 120)})"
    raise InputError(_subject(path), fault, "give torch-fidelity's own file")


def _download(url: str) -> Any:
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # A network, a disk, a hash or a reader may have failed.
        fault = f"its weights cannot be downloaded ({one_line(error, 120)})"
        mend = f"download {url} elsewhere and give --features {NAME}:FILE"
        raise InputError(f"--features {NAME}", fault, mend) from None


def _subject(weights: object) -> str:
    return f"--features {NAME}" + ("" if weights is None else f":{weights}")
