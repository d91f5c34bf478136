"""The command `robustbev`: its entry, and how it tells what went wrong. The commands are in `training.commands.app`."""

from __future__ import annotations

import sys
import warnings

from sensors.errors import MissingExtraError
from sensors.extras import require
from training.console.errors import MISSING_EXTRA, _told_plainly


def main() -> None:
    """Entry of the console command.

    Exit codes: 2 faulty input, or a machine that refuses it (a full disk); 3 a missing extra; 130 interrupted, by Ctrl-C or
    by SIGTERM.
    """
    try:
        require("the command robustbev", "cli")
    except MissingExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISSING_EXTRA)
    warnings.formatwarning = _told_plainly
    from training.commands.app import app

    app(prog_name="robustbev")


if __name__ == "__main__":
    main()
