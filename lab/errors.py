"""What stood in the way of something that the lab was asked for."""


class LabError(Exception):
    """It was not done; the message says why."""
