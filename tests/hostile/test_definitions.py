"""Message definitions in a log, from which code is made: what is more than a message's layout is refused, and costs little."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors.logs.decode import ChannelInfo
from sensors.logs.decoder import Decoder
from sensors.logs.messages import Malformed, Payload
from tests.hostile.files import MAX_MIB, MAX_SECONDS, measured

TYPE = "vision_msgs/msg/Detection3DArray"
ANOTHER = "=" * 80 + "\nMSG: vision_msgs/{}\n"
SECONDS = MAX_SECONDS / 2  # twice that of the machine alone
DEFINITIONS = {
    "an array of strings, each a line of code": ("string[200000] a\n", "ros2msg"),
    "arrays of a few, many of them": ("".join(f"string[900] a{i}\n" for i in range(900)), "ros2msg"),
    "an array of fewer than none": ("uint8[-5] a\n", "ros2msg"),
    "a type that takes no bytes": ("A[] a\n" + ANOTHER.format("A") + "uint8[0] a\n", "ros2msg"),
    "a type without members": ("A[] a\n" + ANOTHER.format("A") + "\n", "ros2msg"),
    "a type within itself": ("Detection3DArray[] a\n", "ros2msg"),
    "types in types": ("B0 a\n" + "".join(f"{ANOTHER.format(f'B{i}')}B{i + 1} a\n" for i in range(300)), "ros2msg"),
    "a megabyte of nothing": ("\n" * 2**20, "ros2msg"),
    "as many empty lines as may be": ("\n" * 32_000, "ros2msg"),
    "constants that would be code": ("string A=__import__('os').mkdir('CANARY')\n", "ros2msg"),
    "brackets in brackets": (f"module m {{ const long A = {'(' * 16}1{')' * 16}; }};", "ros2idl"),
    "a number of gigabytes": ("module m { const long A = 1 << 20000000000; };", "ros2idl"),
}


def decoded(definition: str, encoding: str, data: bytes) -> Payload:
    return Decoder({1: ChannelInfo("/boxes", TYPE, "cdr", definition.encode(), encoding)}).decode(1, data, 0)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_no_definition_costs_more_than_its_message(name: str) -> None:
    with measured() as cost:
        assert isinstance(decoded(*DEFINITIONS[name], b"\0\1\0\0" + b"\xff" * 60), Malformed)
    assert cost.seconds < SECONDS
    assert cost.mib < MAX_MIB


@given(
    types=st.lists(
        st.lists(
            st.tuples(st.sampled_from(["string", "uint8", "float64", "T0", "T1", "T2"]),
                      st.sampled_from(["", "[]", "[<=9]", "[0]", "[1]", "[40]", "[990]", "[99999]"])),
            max_size=4,
        ), min_size=1, max_size=4,
    ),
    data=st.binary(max_size=64),
)  # fmt: skip
def test_whatever_types_a_definition_has(types: list[list[tuple[str, str]]], data: bytes) -> None:
    layouts = ["".join(f"{kind}{size} m{i}\n" for i, (kind, size) in enumerate(members)) for members in types]
    text = layouts[0] + "".join(ANOTHER.format(f"T{i}") + layout for i, layout in enumerate(layouts[1:]))
    with measured() as cost:
        assert isinstance(decoded(text, "ros2msg", b"\0\1\0\0" + data), Malformed)
    assert cost.seconds < SECONDS
    assert cost.mib < MAX_MIB
