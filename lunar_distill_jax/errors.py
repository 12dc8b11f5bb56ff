"""The one exception that means "your input, not our bug"."""

from collections.abc import Sequence


class InputError(ValueError):
    """Something the user gave (a file, a folder, a key, a flag) cannot be used.

    The message is one sentence that names the object, the value found and the value expected, and
    the next step. The command line prints it on stderr and exits with code 2; any other exception
    is a bug and keeps its traceback.
    """


def raise_all(problems: Sequence[str], what: str) -> None:
    """Raises one `InputError` with every problem of a list (the first 40); an empty one is fine."""
    if problems:
        count = f"{len(problems)} problem{'s'[: len(problems) > 1]}"
        rest = f"; and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise InputError(f"{what} ({count}): {'; '.join(problems[:40])}{rest}.")
