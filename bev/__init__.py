"""The bird's-eye-view grid and what lives on it: geometry, lift, pillars, backbone, heads and boxes. Needs torch only."""
