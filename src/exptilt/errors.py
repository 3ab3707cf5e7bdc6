"""The two errors that a user is meant to see: a bad input (exit code 2) and a run that failed (exit code 1)."""

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


class RunError(RuntimeError):
    """A run that was set up correctly and failed all the same, for example because the chains diverged."""


def printable(text: str) -> str:
    """A text on one line, cut in its middle where it is long; what cannot be printed is escaped as in Python."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
