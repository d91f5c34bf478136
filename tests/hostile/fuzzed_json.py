"""JSON documents with any value in any place, for readers that must refuse them by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fusion.runtime import ArtifactError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5) | st.just("B"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def named(error: ArtifactError, path: Path) -> None:
    assert str(path) in str(error), error


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in nested JSON."""
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, key) for key, _ in pairs] + [place for _, inner in pairs for place in places(inner)]
