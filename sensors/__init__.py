"""What sensors say: frames, calibration, encoders, nuScenes data and simulation."""
