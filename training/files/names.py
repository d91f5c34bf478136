"""Names of files that are made of what data say."""

from __future__ import annotations

import hashlib
import re

_LONGEST = 100  # characters; a file system takes 255 bytes with what comes behind
_OTHER = re.compile(r"[^\w.+:=,-]", re.ASCII)


def file_name(text: str) -> str:
    """`text` as the name of a file, or its begin: itself where it can be one, else what can be, and some letters of its own.

    No two texts get one name. A name has no folders in it, is hidden nowhere, and prints as it is.
    """
    name = _OTHER.sub("_", text)[:_LONGEST].lstrip(".-")
    return (
        name
        if name and name == text
        else f"{name}_{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    )
