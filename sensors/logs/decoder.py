"""Chooses how a channel's messages are decoded, and decodes them."""

from __future__ import annotations

from collections.abc import Mapping

from sensors.logs.decode import ChannelInfo, DecodeError, DecodeOne, unread
from sensors.logs.encode import MissingLogLibraryError
from sensors.logs.foxglove.decode import foxglove_decoder
from sensors.logs.messages import Malformed, Other, Payload
from sensors.logs.ros2.decode import ros2_decoder


class Decoder:
    """Decodes the messages of one file's channels."""

    def __init__(self, channels: Mapping[int, ChannelInfo]) -> None:
        self.channels = channels
        self._decoders: dict[int, DecodeOne | str] = {}

    def decode(self, channel: int, data: bytes, log_ns: int) -> Payload:
        """What the message says. `log_ns` stands in for the stamp of a message that holds nothing to carry one.

        Raises:
            MissingLogLibraryError: a library that this encoding needs is not installed.
        """
        info = self.channels[channel]
        if channel not in self._decoders:
            self._decoders[channel] = self._decoder(info)
        decoder = self._decoders[channel]
        if isinstance(decoder, str):
            return Malformed(info.type, decoder)
        try:
            return decoder(data, log_ns)
        except DecodeError as error:
            return Malformed(info.type, str(error))
        except Exception as error:  # libraries raise what they like for bytes that are no message of theirs
            return Malformed(
                info.type, f"expected a {info.encoding} message, got {len(data)} bytes that are none ({_brief(error)})"
            )

    def _decoder(self, info: ChannelInfo) -> DecodeOne | str:
        """How to decode a channel, or why that is not possible."""
        if info.schema_lost:
            return "expected the channel's schema in the log, got none: it was lost with a damaged chunk"
        if why := unread(info.type, info.encoding):
            return why
        try:
            if info.encoding in ("protobuf", "json") and info.type.startswith("foxglove."):
                found = foxglove_decoder(info)
            else:
                found = ros2_decoder(info) if info.encoding == "cdr" else None
        except MissingLogLibraryError:
            raise
        except ImportError as error:
            raise MissingLogLibraryError(error.name or info.encoding) from error
        except Exception as error:  # a schema is as foreign as a message
            return f"expected a schema of {info.type}, got one that makes no sense ({_brief(error)})"
        return found or (lambda data, _: Other(info.type, data))


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__
