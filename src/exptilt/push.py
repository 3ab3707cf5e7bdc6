"""Publishing on the Hugging Face Hub: a model's files, its figures, a picture and a card, in one commit."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exptilt import hub, remote
from exptilt.errors import InputError
from exptilt.generators.base import Generator
from exptilt.report.card import model_card, read_facts
from exptilt.report.card_picture import card_picture
from exptilt.report.files import png
from exptilt.storage import CARD, GRID, LIKELIHOOD, RESULT, RUN, read_json
from exptilt.tilted import TiltedGenerator
from exptilt.vetting import member


def push_to_hub(
    model: Generator | TiltedGenerator | str | Path,
    repo_id: str,
    *,
    result: Mapping[str, Any] | None = None,
    private: bool = False,
    revision: str | None = None,
    token: remote.Token = None,
    weights_license: str = "apache-2.0",
    progress: bool = False,
) -> str:
    """Upload a model with a card that carries its measured table, the protocol and a grid of samples, in one commit.

    The weights go as they are: ``exptilt export`` makes them half as large first. Links are followed: what they point
    to is uploaded. Of a folder, ``run.json``, ``result.json`` and ``likelihood.json`` go too, where it has them; they
    hold the commands as they were typed. Files of an earlier model in the repository are replaced or deleted, all
    others are left.

    Args:
        model: A model, or the folder of one (or its id on the Hub).
        repo_id: ``user/name``; made if it is not there.
        result: What :func:`exptilt.evaluate` measured of it; of a folder, its ``result.json`` unless given.
        private: Make the repository private.
        revision: Branch, made if it is not there; the main branch unless given.
        token: Access token; the one that is stored on this machine unless given.
        weights_license: The Hub's name of the weights' licence.
        progress: Show progress bars.

    Returns:
        Address of the commit.

    Raises:
        InputError: The model is not whole or cannot be written down, the result is of another model, the id is
            malformed, or the account may not write there.
        RunError: The Hub does not answer.
    """
    if remote.split_id(repo_id) != (repo_id, None):
        raise InputError(repo_id, "is no id of the Hub", "give user/name")
    with tempfile.TemporaryDirectory(prefix="exptilt-push-") as temporary:
        if isinstance(model, (str, Path)):
            folder = hub.locate(model, token=token, progress=progress)
            model = hub.load(folder)
        else:
            folder = Path(temporary)
            model.save_pretrained(folder)
            # As it is read back: in evaluation mode, and proof that it can be.
            is_saved = (folder / "generator").exists()
            given = model.generator if isinstance(model, TiltedGenerator) and not is_saved else None
            model = hub.load(folder, generator=given, device=model.device)
        model_files = hub.model_files(folder)
        records = {
            name: read_json(member(folder, name)) for name in (RUN, RESULT, LIKELIHOOD) if (folder / name).is_file()
        }
        if result is not None:
            records[RESULT] = dict(result)
        if RESULT in records:
            _check_result(records[RESULT], model)
        files: dict[str, Path | bytes] = {**model_files, **{name: _json(record) for name, record in records.items()}}
        if (picture := card_picture(model)) is not None:
            files[GRID] = png(picture)
        card = model_card(
            repo_id,
            read_facts(model, model_files),
            records.get(RUN, {}),
            records.get(RESULT),
            revision=revision,
            weights_license=weights_license,
            has_grid=GRID in files,
        )
        files[CARD] = card.encode()
        return remote.upload(
            repo_id, files, hub.MANAGED, private=private, revision=revision, token=token, progress=progress
        )


def _check_result(result: Any, model: Generator | TiltedGenerator) -> None:
    """Refuse figures of another model or chain: the card would tell something wrong.

    Raises:
        InputError: The result is none, or not of this model.
    """
    mend = f"evaluate the model again, or remove {RESULT}"
    if not isinstance(result, dict) or not isinstance(result.get("protocol"), dict):
        raise InputError(RESULT, "is not what exptilt evaluate writes", mend)
    if bool(result.get("tilted")) != isinstance(model, TiltedGenerator):
        raise InputError(RESULT, f"was not measured on this {type(model).__name__}", mend)
    for name, value in model.describe().items():
        if name in result and not _agree(result[name], value):
            raise InputError(RESULT, f"was measured with another {name} than the model has", mend)


def _agree(recorded: Any, own: Any) -> bool:
    """Whether two settings are equal; those that one of two versions of exptilt did not have do not count."""
    if isinstance(recorded, dict) and isinstance(own, dict):
        return all(recorded[name] == own[name] for name in recorded.keys() & own.keys())
    return recorded == own


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
