"""The two ways in which Cutaway says no: the user's mistake, and the world's."""


class UserError(Exception):
    """What was asked cannot be honoured as asked: one sentence says what, where, and what to do. Exit code
    2.
    """


class OperationalError(Exception):
    """What was asked is fine, but the network, the disk or another program failed. Exit code 1."""
