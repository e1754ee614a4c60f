"""The exceptions that the command line handles: a mistake that the user can fix, and a request to stop."""

import signal


class KitsattnError(Exception):
    """A mistake the user can fix; the message is one line that says what is wrong and what to do.

    The command line prints it without a traceback and exits with code 1.
    """


class Interrupted(KeyboardInterrupt):
    """The user or the system asked the command to stop, and it has saved what it was doing.

    Args:
        number: The signal that said so.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        """Keep the signal."""
        super().__init__()
        self.number = number
