"""The one exception that means "your input, not our bug"."""


class InputError(ValueError):
    """Something the user gave (a file, a folder, a key, a flag) cannot be used.

    The message is one sentence that names the object, the value found and the value expected, and
    the next step. The command line prints it on stderr and exits with code 2; any other exception
    is a bug and keeps its traceback.
    """
