"""The errors that a user is meant to see: a bad input (exit code 2), and a run that failed (exit code 1)."""

import errno

# What a file system says of a path that was a mistake; anything else that it says is a failure.
NOT_ACCESSIBLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class InputError(ValueError):
    """A wrong input, told in one line: what was given, what is wrong with it, what would be right.

    Args:
        subject: The input as the user gave it, for example ``"--data foo"``.
        fault: What is wrong with it.
        mend: What would be right.
    """

    def __init__(self, subject: object, fault: str, mend: str) -> None:
        self.subject = str(subject)
        self.fault = fault
        self.mend = mend
        super().__init__(f"{self.subject}: {fault}; {mend}")


class RunError(RuntimeError):
    """A run that was set up correctly and failed all the same, for example because the chains diverged."""


class ProcessLostError(Exception):
    """Another process of a distributed run has ended, or cannot be reached: this one cannot go on."""


def of_files(error: OSError) -> InputError | RunError:
    """What a file system or a network refused, as one of the two errors: the path, the fault, the mend."""
    if error.errno is None or error.filename is None:
        return RunError(str(error))
    fault = error.strerror or str(error)
    if error.errno in NOT_ACCESSIBLE:
        return InputError(error.filename, fault, "give another path, or change its permissions")
    mend = "; make room there, and repeat the command" if error.errno in _FULL else ""
    return RunError(f"{error.filename}: {fault}{mend}")
