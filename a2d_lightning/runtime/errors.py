"""The errors that a user is meant to read."""


class SettingError(Exception):
    """A setting, file or name that cannot work.

    The message is one line that names the setting, its value and what to do. The command line prints it without a
    traceback and ends with exit status 2, before any training starts. No ValueError: jsonargparse would take that for a
    type that does not fit and bury the line in a list of its tries.
    """


class RunFailedError(Exception):
    """A run cannot go on, by no mistake of the settings: the message is one line; exit status 1."""


class NonFiniteError(RunFailedError):
    """A loss term became NaN or infinite: names the term, the step and the rank."""
