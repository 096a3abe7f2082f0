"""Errors whose messages are written for users."""


class SettingError(Exception):
    """An invalid setting, file or name.

    The message is one line that names the setting, its value and the remedy. The command line prints the message
    without a traceback and exits with status 2, usually before training starts. Not a ValueError: jsonargparse would
    treat that as a type mismatch and bury the message in a list of the types that it has tried.
    """


class RunFailedError(Exception):
    """A failure of a run not caused by the settings. The message is one line; the exit status is 1."""


class NonFiniteError(RunFailedError):
    """A NaN or infinite loss term or gradient norm. The message names the term, the step and the rank."""
