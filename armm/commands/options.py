"""Options of a command, whose mistakes are one line like every other."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from armm.errors import InputError, nearest


class OptionParser(argparse.ArgumentParser):
    """A parser that raises `InputError` instead of printing its usage and exiting."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"armm {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        known = [option for action in self._actions for option in action.option_strings]
        hint = nearest(unknown[1].partition("=")[0], known) if unknown else ""
        raise InputError(f"{message}{hint} ({self.prog} --help lists the options)")
