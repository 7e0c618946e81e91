"""What a user can mend."""


class UserError(Exception):
    """Something the user can mend: shown as one line, without a traceback."""
