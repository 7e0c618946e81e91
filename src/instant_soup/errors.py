"""The one error that a user sees: a line that says what is wrong."""


class UserError(Exception):
    """Something that the user can correct; shown as one line, without a traceback."""
