"""Synthetic drives in nuScenes format: LiDAR, cameras and radars that see one and the same world, each in its own way.

    from sensors.simulation import SimulationConfig, simulate
    simulate(SimulationConfig(), "data/sim")

The unmodified nuscenes-devkit loads and evaluates the result. Needs the `data` extra (embreex, simplejpeg, OpenCV).
"""

from sensors.simulation.config import SimulationConfig
from sensors.simulation.generate import simulate

__all__ = ["SimulationConfig", "simulate"]
