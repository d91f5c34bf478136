"""Starts the node: ros2 launch robustbev_ros robustbev.launch.py checkpoint:=DIRECTORY mapping:=FILE."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue


def generate_launch_description() -> LaunchDescription:
    """The node with its parameter file; what is named at launch goes before it."""
    config = Path(get_package_share_directory("robustbev_ros")) / "config"
    arguments = [
        DeclareLaunchArgument("checkpoint", description="Directory with model.safetensors and config.json."),
        DeclareLaunchArgument(
            "mapping", default_value=str(config / "mapping.yaml"), description="YAML: which topic is which sensor."
        ),
        DeclareLaunchArgument(
            "params", default_value=str(config / "robustbev.yaml"), description="YAML: parameters of the node."
        ),
        DeclareLaunchArgument("device", default_value="cpu", description="cpu, cuda, cuda:1 ..."),
        DeclareLaunchArgument("use_sim_time", default_value="false", description="true: time comes from /clock."),
    ]
    texts = {
        name: ParameterValue(LaunchConfiguration(name), value_type=str) for name in ("checkpoint", "mapping", "device")
    }
    sim_time = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    node = Node(
        package="robustbev_ros",
        executable="robustbev_node",
        name="robustbev",
        output="screen",
        parameters=[LaunchConfiguration("params"), {**texts, "use_sim_time": sim_time}],
    )
    return LaunchDescription([*arguments, node])
