"""Errors that several floors raise or catch."""


class MediaError(ValueError):
    """A file that holds no readable video or sound; the message says which and what to do."""
