"""Faults in data that come from outside, said so that a person can act on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DataRootError(ValueError):
    """The data set as a whole is not there, or not the one that was asked for."""


class SensorDataError(ValueError):
    """One file, row, reading or calibration is broken. The message names file, token and sensor, and what to do."""

    channel: str | None = None
    """Of the sensor whose reading in a frame it is about, see `naming`. Lost on the way from a loader's worker, as all but the
    message is."""


@contextmanager
def naming(channel: str) -> Iterator[None]:
    """What is found wrong inside is of this sensor alone: the frame without it would do."""
    try:
        yield
    except SensorDataError as error:
        error.channel = channel
        raise


class MissingExtraError(ImportError):
    """A part of RobustBEV was asked for whose libraries are not installed; the message names the extra that brings them."""


class SensorDataWarning(UserWarning):
    """A sensor counts as absent: its file is broken and the configuration says so, or nothing that it gave can be used."""


def sensor_fault(*, sensor: str, file: Path | str, token: str, expected: str, got: str, action: str) -> SensorDataError:
    """The one wording of a fault in sensor data.

    A plain message and no fields: exceptions are rebuilt from their message when they cross from a loader's worker.
    """
    return SensorDataError(f"{sensor}: {file} (token {token}): expected {expected}, got {got}. {action}")


class PictureError(ValueError):
    """A picture that cannot be read, as "expected ..., got ..."."""
