"""Tables of nuScenes' size: `python -m tests.benchmarks.tables`, opened by the devkit and by the index, in turn.

One simulated scene (40 keyframes, all sweeps of twelve sensors) is written many times, with tokens of its own each time.
850 scenes take 2.6 GB of disk, four minutes and 16 GB of memory, nearly all of it the devkit's.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.index import build_index
from sensors.simulation import SimulationConfig, simulate

SCENE = SimulationConfig(
    scenes_train=1,
    scenes_val=0,
    keyframes_per_scene=40,
    lidar_sweeps_between_keyframes=9,
    radar_sweeps_between_keyframes=5,
    camera_sweeps_between_keyframes=5,
    image_width_px=32,  # nobody looks at the pictures
    image_height_px=18,
    lidar_azimuth_steps=16,
    agent_density=0.5,
)
_SHARED = ("attribute", "category", "log", "map", "sensor", "visibility")  # tables that all scenes have in common


def write_tables(root: Path, scenes: int) -> NuScenesConfig:
    """The tables of so many scenes under `root`, with their index."""
    simulate(SCENE, root, workers=1)
    folder, token = root / SCENE.version, r"[0-9a-f]{28}(?=[0-9a-f]{4}\")"
    shared = {t for name in _SHARED for t in re.findall(token, (folder / f"{name}.json").read_text("utf-8"))}
    for path in folder.glob("*.json"):
        if path.stem in (*_SHARED, "splits"):
            continue
        rows = path.read_text("utf-8").strip()[1:-1].replace("sim-0000", "sim-@@@@")
        rows = re.sub(
            r"\"([0-9a-f]{28})([0-9a-f]{4})\"",
            lambda t: t[0] if t[1] in shared else f'"{t[1]}@@@@"',
            rows,
        )
        with path.open("w", encoding="utf-8") as file:
            for scene in range(scenes):
                file.write("," if scene else "[")
                file.write(rows.replace("@@@@", f"{scene:04d}"))
            file.write("]")
    names = [f"sim-{scene:04d}" for scene in range(scenes)]
    (folder / "splits.json").write_text(json.dumps({SCENE.split_train: names}), "utf-8")
    data = NuScenesConfig(root=root, version=SCENE.version, train_split=SCENE.split_train)
    build_index(data)
    return data


_OPEN = """
import sys, time
from pathlib import Path
from nuscenes import NuScenes
from sensors.nuscenes.config import NuScenesConfig
from sensors.nuscenes.index import open_index
from training.loop.memory import resident_memory_bytes
root, version, who = sys.argv[1:]
data = NuScenesConfig(root=Path(root), version=version)
before, started = resident_memory_bytes(), time.process_time()
opened = open_index(data) if who == "index" else NuScenes(version, root, verbose=False)
print(time.process_time() - started, resident_memory_bytes() - before)
"""


def main() -> None:
    """Print processor seconds and memory of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=850)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        data = write_tables(Path(folder), arguments.scenes)
        for _ in range(arguments.rounds):
            seconds = {}
            for who in ("index", "devkit"):
                command = [sys.executable, "-c", _OPEN, str(data.root), data.version, who]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                seconds[who], bytes_held = map(float, said.split())
                print(f"{who:<8} {seconds[who] * 1e3:>10.1f} ms {bytes_held / 2**20:>8.0f} MiB", flush=True)
            ratios.append(seconds["devkit"] / seconds["index"])
    print(f"{arguments.scenes} scenes: {statistics.median(ratios):.0f}x ({min(ratios):.0f} to {max(ratios):.0f})")


if __name__ == "__main__":
    main()
