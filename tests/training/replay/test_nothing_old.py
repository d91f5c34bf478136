"""What was seen before a sensor was lost is on no screen after it, whatever the screen is of.

A viewer shows the last that it was told. So two drives are written: in one the sensors are lost at the second tick, in the
other they never were there. At the second tick both must show the same.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from mcap.reader import make_reader
from numpy.typing import NDArray

from robustbev.results.foxglove.results import FoxgloveResults
from robustbev.results.live_loop import LiveReport
from robustbev.results.rerun import RerunResults
from robustbev.results.result import ResultWriter, TickResult
from robustbev.results.ros2.bag import Ros2Results
from sensors.frames import KINDS
from sensors.logs.ros2.types import make_message, typestore
from sensors.replay.tick import SensorState
from tests.robustbev.results.replay_results import CHANNELS, GRID, boxes, frame, result
from tests.training.pictures.scene.scenes import CONFIG
from training.pictures.film import VideoResults
from training.pictures.film_page import PageResults

LOSSES: dict[str, tuple[str, ...]] = {name: (name,) for name in KINDS} | {"all": KINDS}
NODE = Path(__file__).resolve().parents[3] / "docs" / "ros2" / "robustbev_ros"
Show = Callable[[Path, list[TickResult]], dict[str, Any]]  # what a screen shows at the end, by place


def without(kinds: tuple[str, ...], index: int) -> TickResult:
    """A tick at which these kinds of sensors are stale; with none left there is no perception."""
    states = {name: SensorState.STALE for name, kind in CHANNELS.items() if kind in kinds}
    one = result(index, perceived=kinds != KINDS, states=states)
    given = frame(one.tick.time_us, **{kind: kind not in kinds for kind in KINDS})
    trust = {kind: 0.0 if kind in kinds else 0.5 for kind in KINDS}
    return replace(one, tick=replace(one.tick, frame=given), trust=trust)


def written(writer: ResultWriter, results: list[TickResult]) -> None:
    for one in results:
        writer.write(one)
    writer.close()


def last_of_topics(path: Path) -> dict[str, Any]:
    """The last message of every topic, with its time: where sensors are, and the log, are of before too."""
    with path.open("rb") as file:
        messages = [(channel.topic, (m.log_time, m.data)) for _, channel, m in make_reader(file).iter_messages()]
    return {
        topic: last for topic, last in messages if topic not in ("/tf", "/log") and not topic.endswith("camera_info")
    }


def mcap(path: Path, results: list[TickResult]) -> dict[str, Any]:
    written(FoxgloveResults(path, GRID, inputs=True, truth_at=lambda one: boxes()), results)
    return last_of_topics(path)


def bag(path: Path, results: list[TickResult]) -> dict[str, Any]:
    written(Ros2Results(path, GRID, inputs=True), results)
    return last_of_topics(path)


def recording(path: Path, results: list[TickResult]) -> dict[str, Any]:
    """What is known of every entity at the last tick; what was cleared is not."""
    dataframe = pytest.importorskip("rerun.dataframe", reason="rerun-sdk is an extra of its own: robustbev[rerun]")
    written(RerunResults(path, GRID), results)
    view = dataframe.load_recording(path).view(index="log_time", contents="/**", include_tombstone_columns=True)
    shown: dict[str, Any] = {}
    for row in sorted(view.select().read_all().to_pylist(), key=lambda row: row["log_time"]):
        shown |= {key: value for key, value in row.items() if value is not None}
    past = ("/log:", "/map/ego:", "log_", "/map/ego/CAM_FRONT:")  # the log; where the vehicle and its cameras are
    cleared = {key for key, value in shown.items() if value == [] or key.endswith(":ClearIsRecursive")}
    return {key: shown[key] for key in shown.keys() - cleared if not key.startswith(past) and "Indicator" not in key}


def film(path: Path, results: list[TickResult]) -> dict[str, Any]:
    written(VideoResults(path, CONFIG), results)
    return {"picture": last_picture(path.read_bytes())}


def page(path: Path, results: list[TickResult]) -> dict[str, Any]:
    written(PageResults(path, CONFIG), results)
    (text,) = re.findall(r"id=replay>(.*?)</script>", path.read_text())
    content = json.loads(text)
    return {"words": content["ticks"][-1], "picture": last_picture(base64.b64decode(content["film"]))}


def last_picture(data: bytes) -> NDArray[np.uint8]:
    with av.open(io.BytesIO(data), "r") as container:
        *_, last = (one.to_ndarray(format="rgb24") for one in container.decode(video=0))
    return last.astype(np.uint8)


def node(path: Path, results: list[TickResult]) -> dict[str, Any]:
    """What RViz holds. Detections are no picture: without perception none are sent, which means that nothing is known."""
    store, sent = typestore(), dict[str, Any]()

    def send(output: str, message: Any) -> None:
        sent[output] = bytes(store.serialize_cdr(message, message.__msgtype__))

    perception, settings = (import_module(f"robustbev_ros.{name}") for name in ("perception", "settings"))
    parameters = settings.NodeSettings(checkpoint="model", mapping="mapping.yaml")
    report = perception.Reporter(parameters, "base_link", partial(make_message, store), send, "robustbev")
    for one in results:
        report(LiveReport(one.tick, one, "", 0, 0.0, {}, 0, 0, 0))
    del sent["~/log"]
    sent.pop("~/detections", None)
    return sent


OUTPUTS: dict[str, Show] = {
    "seen.mcap": mcap, "seen.ros2.mcap": bag, "seen.rrd": recording, "seen.mp4": film, "seen.html": page, "node": node,
}  # fmt: skip


@pytest.mark.parametrize("lost", LOSSES)
@pytest.mark.parametrize("output", OUTPUTS)
def test_nothing_that_was_seen_before_a_loss_is_shown_after_it(
    output: str, lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(NODE))
    show, kinds = OUTPUTS[output], LOSSES[lost]
    drives = {
        "lost": [result(0), without(kinds, 1)],
        "never there": [without(kinds, 0), without(kinds, 1)],
        "still there": [result(0), result(1)],
    }
    screens = {name: show(tmp_path / name / output, drive) for name, drive in drives.items()}
    assert not same(screens["still there"], screens["lost"])
    for place in screens["lost"].keys() | screens["never there"].keys():
        old, new = (screens[name].get(place) for name in ("lost", "never there"))
        assert same(old, new), f"{place}: what was seen at the tick before is still shown"


def same(one: Any, other: Any) -> bool:
    """Films lose a little, all else is equal."""
    if isinstance(one, np.ndarray):
        apart = np.abs(one.astype(int) - other).reshape(one.shape[0] // 20, 20, one.shape[1] // 20, 20, 3)
        return float(apart.mean(axis=(1, 3, 4)).max()) < 12
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)
