"""Reading what is left of a damaged log takes time by its size, not by its square."""

import pytest

from tests.hostile.recovery import DAMAGES, seconds


@pytest.mark.parametrize("name", DAMAGES)
def test_four_times_the_bytes_take_some_four_times_the_time(name: str) -> None:
    small, large = min(seconds(name, 0.5) for _ in range(2)), min(seconds(name, 2) for _ in range(2))
    assert large < 8 * small + 0.1
