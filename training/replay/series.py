"""A replay as numbers over time: what was found of what was there, whom the fusion trusted, how the sensors stood.

Letters: N ticks, W windows, K found boxes, M modalities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robustbev.results.result import ResultWriter, TickResult
from sensors.replay.tick import GIVEN, SensorState
from training.replay.truth import TruthScore

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class ReplaySeries:
    """One replay. NaN where the truth is not known, or where there was nothing to find."""

    name: str
    modalities: tuple[str, ...]
    time_s: Float64  # [N] since the first tick
    found: NDArray[np.int64]  # [N] boxes scored at least `min_score`
    there: Float64  # [N] truth boxes in the grid
    hits: Float64  # [N] truth boxes that were found
    perceived: NDArray[np.bool_]  # [N]
    shares: Mapping[str, Float64]  # modality -> [N], as `Detections.trust`
    states: Mapping[str, tuple[SensorState, ...]]  # channel -> N states
    window_s: Float64  # [W + 1] edges of the windows
    window_map: Float64  # [W] mAP of each window's ticks together
    mean_ap: float  # of all ticks together
    min_score: float

    @property
    def recall(self) -> Float64:
        """[N] share of the truth that was found."""
        return _share(self.hits, self.there)

    @property
    def precision(self) -> Float64:
        """[N] share of the found boxes that are there."""
        return _share(self.hits, np.where(np.isnan(self.there), np.nan, self.found))

    def given_share(self, channel: str) -> float:
        """In which share of the ticks the model was given this sensor."""
        states = self.states[channel]
        return sum(state in GIVEN for state in states) / len(states) if states else math.nan


def _share(part: Float64, whole: Float64) -> Float64:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


class SeriesRecorder(ResultWriter):
    """Listens to a replay like a file's writer, and keeps the numbers.

    Args:
        name: of the replay, in tables and pictures.
        score: counts against what was really there, fed from here alone; None where that is not known.
        min_score: boxes scored lower count as found in mAP alone, which looks at every score.
        window_s: mAP is taken over the ticks of windows this long.
    """

    def __init__(
        self, name: str, score: TruthScore | None = None, *, min_score: float = 0.3, window_s: float = 2.0
    ) -> None:
        if not window_s > 0:
            raise ValueError(f"window_s: expected more than 0 seconds, got {window_s}")
        self._name, self._score, self._min_score, self._window_s = name, score, min_score, window_s
        self._time_us: list[int] = []
        self._counts: list[tuple[int, float, float, bool]] = []  # found, there, hits, perceived
        self._shares: list[Mapping[str, float]] = []
        self._states: dict[str, list[SensorState]] = {}
        self._modalities: tuple[str, ...] = ()

    def write(self, result: TickResult) -> None:
        tick = result.tick
        self._time_us.append(tick.time_us)
        self._modalities = result.modalities
        self._shares.append(result.trust)
        for channel, status in tick.sensors.items():
            self._states.setdefault(channel, []).append(status.state)
        found = int((result.boxes.score >= self._min_score).sum())
        known = None if self._score is None else self._score.add(result)
        there, hits = (math.nan, math.nan) if known is None else (float(known.there), float(known.found))
        self._counts.append((found, there, hits, result.perceived))

    def series(self) -> ReplaySeries:
        """What was written so far.

        Raises:
            ValueError: nothing was.
        """
        if not self._time_us:
            raise ValueError(f"replay {self._name}: expected at least one tick, got none")
        time_s = (np.array(self._time_us) - self._time_us[0]) / 1e6
        first, last = (math.floor(t / self._window_s) for t in (time_s.min(), time_s.max()))
        found, there, hits, perceived = (np.array(column) for column in zip(*self._counts, strict=True))
        return ReplaySeries(
            name=self._name,
            modalities=self._modalities,
            time_s=time_s,
            found=found,
            there=there,
            hits=hits,
            perceived=perceived,
            shares={m: np.array([shares[m] for shares in self._shares]) for m in self._modalities},
            states={channel: tuple(states) for channel, states in self._states.items()},
            window_s=self._window_s * np.arange(first, last + 2),
            window_map=np.array([self._mean_ap(k, k + 1) for k in range(first, last + 1)]),
            mean_ap=self._mean_ap(),
            min_score=self._min_score,
        )

    def _mean_ap(self, first: int | None = None, last: int | None = None) -> float:
        """Of the windows first..last - 1, or of all ticks."""
        if self._score is None:
            return math.nan
        since_us, until_us = (
            None if k is None else self._time_us[0] + round(k * self._window_s * 1e6) for k in (first, last)
        )
        return self._score.score(since_us=since_us, until_us=until_us).mean_ap


def check_comparable(series: Sequence[ReplaySeries]) -> None:
    """ValueError for replays that cannot stand side by side: none, two of one name, or of different models."""
    if not series:
        raise ValueError("expected at least one replay to compare, got none")
    names = [one.name for one in series]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"expected a name of its own for every replay, got {twice[0]!r} twice")
    for one in series:
        if (one.modalities, one.min_score) != (series[0].modalities, series[0].min_score):
            raise ValueError(
                f"replays {names[0]!r} and {one.name!r}: expected the same modalities and least score, got "
                f"{', '.join(series[0].modalities)} from {series[0].min_score:g} and "
                f"{', '.join(one.modalities)} from {one.min_score:g}"
            )
