"""The errors that a user is meant to see: a bad input (exit code 2), and a run that failed (exit code 1)."""

import errno

# What a file system says of a path that was a mistake; anything else that it says is a failure.
NOT_ACCESSIBLE = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Characters of a part of a message: what a file holds may be quoted in it, and may be long.
_LONGEST = 600


class InputError(ValueError):
    """A wrong input, told in one line: what was given, what is wrong with it, what would be right.

    The line can be printed whatever the input is: characters that would move a terminal's cursor, or that no encoding
    has, are escaped, and what is very long is cut in its middle.

    Args:
        subject: The input as the user gave it, for example ``"--data foo"``.
        fault: What is wrong with it.
        mend: What would be right.
    """

    def __init__(self, subject: object, fault: str, mend: str) -> None:
        self.subject = str(subject)
        self.fault = fault
        self.mend = mend
        told = (self.subject, *(" ".join(text.split()) for text in (fault, mend)))
        super().__init__("{}: {}; {}".format(*map(printable, told)))


def require_at_least(least: int, **values: int) -> None:
    """Check whole numbers, given by their names.

    Raises:
        InputError: One is below ``least``.
    """
    for name, value in values.items():
        if value < least:
            raise InputError(name, f"{value} is out of range", f"give a whole number ≥ {least}")


class RunError(RuntimeError):
    """A run that was set up correctly and failed all the same, for example because the chains diverged."""


class ProcessLostError(Exception):
    """Another process of a distributed run has ended, or cannot be reached: this one cannot go on."""


def printable(text: str) -> str:
    """A text on one line, cut in its middle where it is long; what cannot be printed is escaped as in Python."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def of_files(error: OSError) -> InputError | RunError:
    """What a file system or a network refused, as one of the two errors: the path, the fault, the mend."""
    fault = error.strerror or str(error)
    if error.errno in NOT_ACCESSIBLE:
        return InputError(error.filename or "a path", fault, "give another path, or change its permissions")
    if error.errno is None or error.filename is None:
        return RunError(str(error))
    mend = "; make room there, and repeat the command" if error.errno in _FULL else ""
    return RunError(f"{error.filename}: {fault}{mend}")


def reason(error: BaseException) -> str:
    """The first line of what went wrong at first."""
    inner = getattr(error, "inner_exception", None) or error.__cause__
    if inner is not None:
        return reason(inner)
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def one_line(error: BaseException, length: int = 160) -> str:
    """An error's message on one line of at most ``length`` characters; its type where it has no message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else f"{text[: length - 1]}…"
