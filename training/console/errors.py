"""Errors as a user of the command sees them: messages and exit codes."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from sensors.errors import MissingExtraError
from sensors.text import plain
from training.console.interrupt import sigterm_as_ctrl_c

Parameters = ParamSpec("Parameters")


Result = TypeVar("Result")


FAULTY_INPUT, MISSING_EXTRA, INTERRUPTED = 2, 3, 130


DEBUG_VARIABLE = "ROBUSTBEV_DEBUG"  # set by --debug; with it every error keeps its traceback


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # told without a file where it shows while writing


_ROOT = Path(__file__).resolve().parents[2]


def _told_plainly(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our own warnings speak to the user: without the place in the code that libraries' warnings need."""
    if category.__module__.partition(".")[0] in ("bev", "fusion", "robustbev", "sensors", "training"):
        return f"warning: {plain(str(message))}\n"
    return f"{filename}:{lineno}: {category.__name__}: {plain(str(message))}\n"


def tells_errors(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Faults of the input end a command with a message and an exit code; faults of ours keep their traceback.

    SIGTERM ends it as Ctrl-C does.
    """

    @functools.wraps(command)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            with sigterm_as_ctrl_c():
                return command(*args, **kwargs)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except Exception as error:
            code = exit_code(error)
            if code is None or os.environ.get(DEBUG_VARIABLE):
                raise
            print("\n".join(f"error: {plain(line)}" for line in str(error).splitlines()), file=sys.stderr)
            sys.exit(code)

    return wrapped


def exit_code(error: Exception) -> int | None:
    """The exit code of an error that a user can mend, None for one that is a defect of the program."""
    if isinstance(error, MissingExtraError):
        return MISSING_EXTRA
    if isinstance(error, ModuleNotFoundError) and error.name:
        return None
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return FAULTY_INPUT
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _DISK):
        return FAULTY_INPUT
    return FAULTY_INPUT if isinstance(error, ValueError) and _raised_by_us(error) else None


def _raised_by_us(error: Exception) -> bool:
    """Whether the error was raised in our own code: by our rule a ValueError then speaks to the user."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    file = Path(trace.tb_frame.f_code.co_filename).resolve()
    return _ROOT in file.parents and "site-packages" not in file.relative_to(_ROOT).parts
