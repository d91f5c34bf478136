"""Trainings and tasks on Ray: the connection, one training on many workers, many tasks side by side."""
