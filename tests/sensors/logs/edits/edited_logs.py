"""What becomes of an edited log where it is read, looked over and replayed.

`python -m tests.sensors.logs.edits.edited_logs KIND COUNT [SEED]` reads `COUNT` edited logs of a kind and counts what
became of them.
"""

from __future__ import annotations

import random
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from sensors.frames import SensorFrame
from sensors.logs.log import Damage, LogError
from sensors.logs.mapping.inspect import inspect_log
from sensors.logs.messages import LogMessage, Malformed
from sensors.logs.open import open_log
from sensors.replay.ticks import ticks
from tests.hostile.files import measured
from tests.sensors.logs.edits.edits import Edited, edit
from tests.sensors.logs.edits.sound_logs import Sound, key, mapping, sound
from tests.sensors.replay.drive import CHANNELS, CONFIG

MAX_SECONDS, MAX_MIB, MAX_SHARE = 2.0, 50.0, 20  # of processor time; of memory: so much, and so many times the file


def outcome(log: Sound, edited: Edited, folder: Path, *, replay: bool) -> tuple[str, str]:
    """What the edited file is found to be, and what is wrong with that; "" where nothing is.

    "refused": by name; "damage": told and counted; "malformed": messages named as such; "other": what was edited says something
    else; "equal": nothing is otherwise.
    """
    path = folder / f"edited{log.suffix}"
    path.write_bytes(edited.data)
    try:
        with warnings.catch_warnings(), measured() as cost:
            warnings.simplefilter("ignore")
            result, fault = _read(log, edited, path, replay=replay)
    except Exception:
        return "raised", traceback.format_exc()
    most_mib = MAX_MIB + MAX_SHARE * len(edited.data) / 2**20
    if not fault and (cost.seconds > MAX_SECONDS or cost.mib > most_mib):
        fault = (
            f"expected at most {MAX_SECONDS} s and {most_mib:.0f} MiB, took {cost.seconds:.2f} s and {cost.mib:.0f} MiB"
        )
    return result, fault


def _read(log: Sound, edited: Edited, path: Path, *, replay: bool) -> tuple[str, str]:
    result, fault = "refused", ""
    try:
        opened = open_log(path)
        result, fault = _judged(log, edited, list(opened.messages()), opened.damage)
        inspect_log(opened)
        for tick in ticks(opened, mapping(), CHANNELS, CONFIG) if replay else ():
            fault = fault or _frame_fault(tick.frame)
    except LogError as error:  # it, or its replay: a topic is lost
        if edited.whole or str(path) not in str(error):
            fault = fault or f"expected a file to be refused by name, and only where it is damaged, got {error}"
    return result, fault


def _judged(log: Sound, edited: Edited, messages: list[LogMessage], damage: Damage) -> tuple[str, str]:
    """The messages held against those of the sound log."""
    readable = [message for message in messages if not isinstance(message.payload, Malformed)]
    given = Counter(key(message) for message in readable)
    expected = Counter({one: edited.copies.get(number, 1) for number, one in enumerate(log.keys)})
    untouched = Counter({one: expected[one] for number, one in enumerate(log.keys) if number not in edited.touched})
    strange = [one for one in given.elements() if one not in expected]
    lost, again = untouched - given, given - expected - Counter(strange)
    malformed = len(messages) - len(readable)
    times = [message.log_time_ns for message in messages]
    told = damage.bad_chunks or damage.bad_records or damage.truncated_at_byte is not None
    result = "damage" if told else "malformed" if malformed else "equal" if given == expected else "other"
    fault = ""
    if times != sorted(times):
        fault = f"expected messages in order, got log times {times}"
    elif len(strange) > len(edited.touched):
        fault = f"expected {len(edited.touched)} messages to be otherwise, got {len(strange)}: {strange[0][:300]}"
    elif (lost or again) and not damage:
        fault = f"expected damage to be told, got none, {lost.total()} messages lost, {again.total()} too many"
    elif malformed != sum(damage.malformed.values()):
        fault = f"expected all malformed messages to be counted, got {damage.malformed} for {malformed}"
    return result, fault


def _frame_fault(frame: SensorFrame) -> str:
    """What a model cannot take; "" for a frame that it can."""
    numbers = [frame.global_T_reference]
    for camera in frame.cameras or ():
        numbers += [camera.reference_T_camera, camera.intrinsics] if camera is not None else []
    numbers += [sweep.reference_T_lidar for sweep in frame.lidar or ()]
    numbers += [sweep.reference_T_radar for sweep in frame.radar or ()]
    return "" if all(np.isfinite(one).all() for one in numbers) else "expected finite poses and intrinsics, got others"


def main() -> None:
    """Read edited logs and count; two of each kind of fault are told with the seed that makes them."""
    kind, count, seed = sys.argv[1], int(sys.argv[2]), int((sys.argv[3:] or ["0"])[0])
    log, results, faults = sound(kind), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        outcome(log, Edited("nothing", log.data), Path(folder), replay=True)  # libraries are loaded
        for number in range(seed, seed + count):
            edited = edit(log, random.Random(number))
            result, fault = outcome(log, edited, Path(folder), replay=number % 4 == 0)
            results[f"{result}, WRONG" if fault else result] += 1
            if fault:
                last = fault.strip().splitlines()[-1][:60]
                faults[last] += 1
                if faults[last] <= 2:
                    print(f"--- {kind}, seed {number}: {edited.what}\n{fault[-1500:]}", flush=True)
    print(kind, dict(results), dict(faults.most_common(20)), flush=True)


if __name__ == "__main__":
    main()
