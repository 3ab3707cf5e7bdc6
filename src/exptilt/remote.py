"""The Hugging Face Hub: a model's files come and go, and what fails is told in one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from exptilt.errors import InputError, RunError, one_line

Token = str | bool | None

_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\S+))?", re.ASCII)
# Roughly what git allows of a branch's or a tag's name: the cache makes a path of it, which must not lead out.
_REVISION = re.compile(r"(?!.*(?:\.\.|//))\w[\w./+-]*", re.ASCII)
_REACHABLE_SECONDS = 10.0


def split_id(text: str) -> tuple[str, str | None] | None:
    """``user/name`` and the revision of ``user/name`` or ``user/name@revision``; None if it is neither."""
    match = _ID.fullmatch(text)
    return None if match is None else (match[1], match[2])


def download(
    repo_id: str,
    limits: Mapping[str, int],
    check: Callable[[Path], object],
    *,
    revision: str | None = None,
    token: Token = None,
    local_files_only: bool = False,
    progress: bool = False,
) -> Path:
    """Download files of a model, or find them where an earlier download left them.

    The JSON files come first, and the others only if these pass.

    Args:
        repo_id: ``user/name``.
        limits: Names of the files, and how many bytes each may have; what the model lacks is left out.
        check: Raises an :class:`InputError` if the folder with the JSON files holds no model.
        revision: Branch, tag or commit; the main branch unless given.
        token: Access token; the one that is stored on this machine unless given.
        local_files_only: Ask nobody: take what an earlier download left.
        progress: Show progress bars.

    Returns:
        The folder in the Hub's cache; its name is the commit.

    Raises:
        InputError: There is no such model or revision, this account may not read it, or a file is too large.
        RunError: The Hub does not answer, and there is no earlier download.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot(names: Collection[str], revision: str | None, local: bool = False) -> Path:
        found = snapshot_download(
            repo_id, allow_patterns=list(names), revision=revision, token=token, local_files_only=local
        )
        return Path(found)

    _require_revision(revision)
    with _told_in_one_line(repo_id, revision), _progress_bars(progress):
        info, trouble = None, None
        if not local_files_only:
            try:
                info = HfApi().model_info(
                    repo_id, revision=revision, files_metadata=True, token=token, timeout=_REACHABLE_SECONDS
                )
            except Exception as error:
                if not _is_unreachable(error):
                    raise
                trouble = error
        if info is None:
            try:
                return snapshot(limits, revision, local=True)
            except LocalEntryNotFoundError:
                if trouble is not None:
                    raise trouble from None
                fault = "is no folder here and was not downloaded before"
                raise InputError(_named(repo_id, revision), fault, "leave local_files_only out") from None
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if file.rfilename in limits}
        for name, size in sizes.items():
            if size > limits[name]:
                raise InputError(repo_id, f"its {name} has {size:,} bytes", f"at most {limits[name]:,} are loaded")
        described = [name for name in sizes if name.endswith(".json")]
        if not described:
            raise InputError(repo_id, "is on the Hub, but no model of exptilt", "give one that exptilt has pushed")
        # By the name that was asked for: the cache keeps which commit it stood for.
        folder = snapshot(described, revision)
        if folder.name != info.sha:
            raise RunError(f"{repo_id}: was changed while it was read; try again")
        check(folder)
        return snapshot(sizes, info.sha)


def upload(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    managed: Collection[str],
    *,
    private: bool = False,
    revision: str | None = None,
    token: Token = None,
    progress: bool = False,
) -> str:
    """Upload files to a model on the Hub in one commit.

    Args:
        repo_id: ``user/name``; made if it is not there.
        files: Names in the repository, and the files or their contents.
        managed: Names that are deleted where the repository has them and ``files`` does not.
        private: Make the repository private.
        revision: Branch, made if it is not there; the main branch unless given.
        token: Access token; the one that is stored on this machine unless given.
        progress: Show progress bars.

    Returns:
        Address of the commit.

    Raises:
        InputError: The id is malformed, the account may not write there, or a repository that is to be private is
            public already.
        RunError: The Hub does not answer, or refuses the upload.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    _require_revision(revision)
    api = HfApi(token=token)
    with _told_in_one_line(repo_id, None, writing=True), _progress_bars(progress):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise InputError(repo_id, "is public already", "make it private on the Hub, or push without --private")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        present = api.list_repo_files(repo_id, revision=revision)
        operations: list[Any] = [
            CommitOperationDelete(name) for name in present if name in managed and name not in files
        ]
        for name, content in files.items():
            # The target of a link, not the link.
            operations.append(CommitOperationAdd(name, content.resolve() if isinstance(content, Path) else content))
        message = "Upload a model with exptilt"
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision).commit_url


def _require_revision(revision: str | None) -> None:
    if revision is not None and not _REVISION.fullmatch(revision):
        raise InputError(f"revision {revision!r}", "is no branch, tag or commit", "give the name of one")


def _named(repo_id: str, revision: str | None) -> str:
    return repo_id if revision is None else f"{repo_id}, revision {revision!r}"


def _is_unreachable(error: Exception) -> bool:
    """Whether the Hub gave no answer, or none for now: an earlier download may serve."""
    from huggingface_hub.errors import HFValidationError

    status = _status(error)
    return not isinstance(error, HFValidationError) and (status is None or status >= 500 or status == 429)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


@contextlib.contextmanager
def _told_in_one_line(repo_id: str, revision: str | None, writing: bool = False) -> Iterator[None]:
    """Errors of the Hub's client, and of the HTTP library under it, as ours."""
    from huggingface_hub import errors

    named = _named(repo_id, revision)
    login = "give a token: token=… in Python, HF_TOKEN in the environment, or hf auth login"
    try:
        yield
    except (InputError, RunError):
        raise
    except errors.HFValidationError as error:
        raise InputError(repo_id, f"is no id of the Hub ({one_line(error)})", "give user/name") from None
    except errors.GatedRepoError:
        raise InputError(repo_id, "is gated", f"ask for access on its page on the Hub, then {login}") from None
    except errors.RevisionNotFoundError:
        raise InputError(named, "does not exist", "give a branch, a tag or a commit of it") from None
    except errors.RepositoryNotFoundError:
        fault = "is no model that this account may write" if writing else "is no folder here and no model on the Hub"
        raise InputError(repo_id, fault, f"check the name, or {login}") from None
    except errors.LocalTokenNotFoundError:
        raise InputError(repo_id, "needs an access token", login) from None
    except errors.OfflineModeIsEnabled:
        fault = "cannot be written" if writing else "is no folder here and was not downloaded before"
        raise InputError(named, f"{fault}, and HF_HUB_OFFLINE is set", "unset it") from None
    except Exception as outer:
        error = _told_by_the_hub(outer)
        if _status(error) in (401, 403):
            raise InputError(repo_id, f"the Hub refuses ({_reason(error)})", login) from None
        failed = "the Hub cannot be written" if writing else "is no folder here, and the Hub cannot be read"
        raise RunError(f"{named}: {failed} ({_reason(error)})") from None


def _told_by_the_hub(error: BaseException) -> BaseException:
    """The error that says most: an answer of the Hub, or what lies at the bottom."""
    from huggingface_hub.errors import HfHubHTTPError

    while error.__cause__ is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    answer = getattr(error, "server_message", None)
    return f"{_status(error)}: {answer}" if answer else f"{type(error).__name__}: {one_line(error)}"


@contextlib.contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silenced = not shown and not are_progress_bars_disabled()
    if silenced:
        disable_progress_bars()
    try:
        yield
    finally:
        if silenced:
            enable_progress_bars()
