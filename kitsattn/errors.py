"""The one exception for mistakes that the user can mend."""


class KitsattnError(Exception):
    """A mistake the user can mend; the message is one line that says what is wrong and what to do.

    The command line prints it without a traceback and exits with code 1.
    """
