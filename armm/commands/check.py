"""`armm check-modality package.Class`: run the library's laws on a modality."""

from __future__ import annotations

import json

from armm.commands.options import OptionParser
from armm.errors import InputError


def run(arguments: list[str]) -> int:
    """Run `armm check-modality`; 1 if a law is broken.

    Raises InputError: there is no such class, or it cannot be made from these arguments.
    """
    p = OptionParser("check-modality", "Run every law of the library on a modality.")
    p.add_argument("class_path", help="package.module.Class, also of a file in the working directory")
    p.add_argument("--init", default="{}", metavar="JSON", help="arguments of the class, such as '{\"levels\": 4}'")
    options = p.parse_args(arguments)
    try:
        init = json.loads(options.init)
    except json.JSONDecodeError as error:
        raise InputError(f"--init is not JSON: {error}; write it as '{{\"levels\": 4}}'") from error
    if not isinstance(init, dict):
        raise InputError(f"--init is {options.init}, expected an object such as '{{\"levels\": 4}}'")
    from armm.testing import check_class_path

    broken = 0
    for law, verdict in check_class_path(options.class_path, init):
        print(f"{'ok    ' if verdict is None else 'BROKEN'} {law}{'' if verdict is None else f': {verdict}'}")
        broken += verdict is not None
    print(f"{options.class_path}: " + (f"{broken} laws broken" if broken else "every law holds"))
    return 1 if broken else 0
