"""Runs: configuration, data, step, loop, Ray, MLflow, evaluation, pictures and the command line."""
