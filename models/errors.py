"""The one error that bad model input raises."""


class ModelError(ValueError):
    """A model folder, architecture or option that cannot be used: one line with culprit and remedy."""
