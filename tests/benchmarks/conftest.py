"""`make bench`: every contender of a comparison takes its turn in every round, on one thread, and the ratios are printed.

Contenders are compared within a round, so that a machine that slows down for a while slows all of them. Processor time is what
counts: on one thread it is the wall clock's time, less what other processes took.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

Contender = Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """Processor seconds of each round, by contender; the first one is ours."""

    case: str
    seconds: Mapping[str, list[float]]

    def ratios(self, peer: str) -> list[float]:
        """How many times as long as ours the peer took, round by round."""
        ours = next(iter(self.seconds.values()))
        return [theirs / own for theirs, own in zip(self.seconds[peer], ours, strict=True)]

    def ratio(self, peer: str) -> float:
        """The median over rounds."""
        return statistics.median(self.ratios(peer))

    def rows(self) -> Iterator[str]:
        """One line a contender: its median milliseconds, and the median, least and greatest ratio to ours."""
        ours = next(iter(self.seconds))
        for name, times in self.seconds.items():
            line = f"{self.case:<40} {name:<36} {statistics.median(times) * 1e3:>10.2f} ms"
            ratios = self.ratios(name)
            yield (
                line if name == ours else f"{line} {self.ratio(name):>8.1f}x  ({min(ratios):.1f} to {max(ratios):.1f})"
            )


Compare = Callable[..., Comparison]
_RESULTS: list[Comparison] = []


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def compare(benchmark: BenchmarkFixture) -> Compare:
    """`compare(case, rounds, ours=..., peer=...)`: time the contenders in turn; the first named is ours."""

    def run(case: str, rounds: int, **contenders: Contender) -> Comparison:
        seconds: dict[str, list[float]] = {name.replace("_", " "): [] for name in contenders}

        def one_round() -> None:
            for times, contender in zip(seconds.values(), contenders.values(), strict=True):
                started = time.process_time()
                contender()
                times.append(time.process_time() - started)

        benchmark.group = case
        benchmark.pedantic(one_round, rounds=rounds, iterations=1, warmup_rounds=1)  # type: ignore[no-untyped-call]
        for times in seconds.values():
            del times[:-rounds]  # the warm-up round
        comparison = Comparison(case, seconds)
        for name in seconds:
            benchmark.extra_info[name] = {
                "median_s": statistics.median(seconds[name]),
                "ratio": comparison.ratio(name),
                "ratios": comparison.ratios(name),
            }
        _RESULTS.append(comparison)
        return comparison

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _RESULTS:
        return
    terminalreporter.section(f"one thread, median of rounds; torch {torch.__version__}")
    terminalreporter.line(f"{'case':<40} {'contender':<36} {'median':>13} {'ratio':>9}  (least to greatest)")
    for comparison in _RESULTS:
        for row in comparison.rows():
            terminalreporter.line(row)
        terminalreporter.line("")
