"""Pictures from outside, as files (`files`) or as raw pixels (`raw`), to RGB: the one door, whatever a log or data set holds.

Nothing else here gives foreign bytes to a decoder. A picture that cannot be read is a `PictureError`, and nothing else is raised.
"""

from __future__ import annotations


class PictureError(ValueError):
    """A picture that cannot be read, as "expected ..., got ..."."""
