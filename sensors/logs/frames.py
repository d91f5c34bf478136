"""Which frame of a log is the ego's, and which one the ego moves in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

_EGO_FRAMES = ("base_link", "base_footprint", "ego_vehicle", "ego", "vehicle", "base")
_GLOBAL_FRAMES = ("map", "odom", "world", "earth", "global", "local")


def propose_frames(
    parents: Mapping[str, Collection[str]], sensor_frames: Sequence[str]
) -> tuple[str, str | None, tuple[str, str]]:
    """(ego frame, global frame, why each) by climbing from the sensors' frames. `parents`: frame -> those that it stands in.

    A global frame is one that the ego stands in, or else, in a tree the other way round, one that stands in the ego's. None: no
    transform leads to any.
    """
    chains = [_above(parents, frame) for frame in sensor_frames]
    above = [frame for chain in chains for frame in chain]
    known = [frame for frame in _EGO_FRAMES if frame in above]
    ego = known[0] if known else next((chain[1] for chain in chains if len(chain) > 1), "base_link")
    why = f"ego_frame {ego}: " + ("sensors stand in it" if ego in above else "by default, no transform tells")
    higher = _above(parents, ego)[1:]
    beside = _above(_either_way(parents), ego)  # where a global frame stands in the ego's
    found = [frame for frames in (higher, beside) for frame in _GLOBAL_FRAMES if frame in frames]
    best = found[0] if found else (higher[-1] if higher else None)
    if best is None:
        return ego, None, (why, "global_frame null: no transform moves the ego, and so no motion can be compensated")
    return ego, best, (why, f"global_frame {best}: the ego moves in it")


def _above(parents: Mapping[str, Collection[str]], frame: str) -> list[str]:
    """The frame and all that it stands in, nearest first."""
    found, known = [frame], {frame}
    for one in found:
        found += [parent for parent in parents.get(one, ()) if parent not in known]
        known.update(found[len(known) :])
    return found


def _either_way(parents: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """Frame -> the frames that a transform connects it with."""
    out: dict[str, list[str]] = {}
    for child, above in parents.items():
        for parent in above:
            out.setdefault(child, []).append(parent)
            out.setdefault(parent, []).append(child)
    return out
