"""`python -m training.doctor`, which needs nothing but the base installation."""

import sys

from training.doctor.examine import examine

if __name__ == "__main__":
    sys.exit(examine())
