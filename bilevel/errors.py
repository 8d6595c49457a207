"""The error that a user can mend."""


class InputError(ValueError):
    """Bad input: one line that names the file, the row and the remedy, raised before time is spent."""
