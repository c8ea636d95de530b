"""The one exception for what a user can put right."""


class UserError(ValueError):
    """A mistake in what the user gave, not in Serpentine.

    The message is a single line that names the file, the record in it, and the remedy. The command line prints it
    without a traceback and exits with code 2; a library caller catches it as a ``ValueError``.
    """
