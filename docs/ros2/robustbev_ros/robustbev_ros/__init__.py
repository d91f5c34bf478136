"""RobustBEV as a ROS 2 node. Only `robustbev_ros.node` needs ROS."""
