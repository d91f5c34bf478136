"""How colcon builds the package."""

from setuptools import setup

NAME = "robustbev_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/robustbev.launch.py"]),
        (f"share/{NAME}/config", ["config/robustbev.yaml", "config/mapping.yaml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    description="Camera, LiDAR and radar fusion in bird's-eye view that keeps seeing when sensors fail, as a ROS 2 node",
    license="Apache-2.0",
    entry_points={"console_scripts": [f"robustbev_node = {NAME}.node:main"]},
)
