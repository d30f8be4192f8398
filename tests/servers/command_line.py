"""All of the command line, which loads its parts when they are used: for a process that is to have them already."""

import importlib
import pkgutil

import broker_cli

for _found in pkgutil.walk_packages(broker_cli.__path__, "broker_cli."):
    if not _found.name.endswith(("__main__", "run_keeper")):  # programs of their own
        importlib.import_module(_found.name)
