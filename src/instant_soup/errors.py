"""The one error that a user sees: what is wrong, in a line."""


class UserError(Exception):
    """Something the user can mend: shown as one line, without a traceback."""
