"""`python -m training.doctor`, which needs nothing but the base installation."""

from __future__ import annotations

from training.doctor.examine import main

if __name__ == "__main__":
    main()
