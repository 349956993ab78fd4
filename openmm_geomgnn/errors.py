"""The error a user sees: one paragraph that says what was wrong and what to do."""


class GeomGNNError(ValueError):
    """Bad input, a file that does not fit, or a simulation that had to be stopped."""
