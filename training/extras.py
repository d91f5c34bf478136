"""Optional libraries: which command of pip brings one that is not there."""

from __future__ import annotations

from importlib.util import find_spec

from sensors.errors import MissingExtraError as MissingExtraError

# Extra -> import names that tell whether it is there.
EXTRAS = {
    "data": ("nuscenes", "simplejpeg", "cv2", "scipy", "embreex"),
    "train": ("ray", "mlflow", "typer", "rich", "yaml", "matplotlib"),
    "replay": ("mcap", "mcap_protobuf", "foxglove", "rosbags", "cv2", "simplejpeg", "yaml"),
    "rerun": ("rerun",),
    "spconv": ("spconv",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "dev": ("pytest", "ruff", "mypy", "importlinter", "hypothesis"),
}


def missing(extra: str) -> list[str]:
    """The libraries of an extra that are not installed."""
    return [name for name in EXTRAS[extra] if find_spec(name) is None]


def require(what: str, extra: str, *libraries: str) -> None:
    """Raise MissingExtraError, saying what to install, unless all `libraries` (default: the whole extra) are there."""
    absent = [name for name in (libraries or EXTRAS[extra]) if find_spec(name) is None]
    if absent:
        raise MissingExtraError(
            f"{what} needs {', '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not installed: "
            f'pip install "robustbev[{extra}]"'
        )
