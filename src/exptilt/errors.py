"""The errors that a user is meant to see: a bad input (exit code 2), and a run that failed (exit code 1)."""


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
