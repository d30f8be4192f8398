"""The command ``broker``: starts itself anew, out of reach of the Python settings of the process that started it.

A job's PYTHONPATH, working folder, start-up files and other settings are for the job's programs. This file imports
nothing that they could replace: what it needs is built into Python.
"""

import os
import sys

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  pathlib can be replaced
TREE = os.path.dirname(HERE)  # noqa: PTH120


def roots() -> list[str]:
    """The folders that our own packages are imported from."""
    beside = [os.path.join(TREE, "protos"), TREE]  # noqa: PTH118
    if os.path.isdir(os.path.join(HERE, "broker_api")):  # noqa: PTH112, PTH118
        return [HERE]
    return [HERE, *beside]


def environment() -> dict[str, str]:
    """The environment for other programs of ours: nothing in it says where Python finds its modules, except ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | ({"PYTHONPATH": os.pathsep.join(roots())} if len(roots()) > 1 else {})


def main() -> None:
    """Run the command in an interpreter that heeds nothing but what was installed with it."""
    if not (sys.flags.isolated and sys.flags.no_site):
        command = [sys.executable, "-I", "-S", os.path.abspath(__file__)]  # noqa: PTH100
        os.execve(sys.executable, [*command, *sys.argv[1:]], _before_us())  # noqa: S606  that is the point
    sys.path += roots()  # before what is installed, as a tree that is worked on is meant to be
    import site  # noqa: PLC0415

    site.main()
    from broker_cli import main as command_line  # noqa: PLC0415
    from broker_cli.process import occupy  # noqa: PLC0415

    occupy()
    command_line.main()


def _before_us() -> "dict[bytes, bytes]":
    """The environment as it was given: Python itself sets LC_CTYPE where it takes the place of the C locale."""
    try:
        given = os.open("/proc/self/environ", os.O_RDONLY)
    except OSError:
        return dict(os.environb)
    text = b""
    while piece := os.read(given, 65536):
        text += piece
    os.close(given)
    lines = [line.partition(b"=") for line in text.split(b"\0")]
    return {name: value for name, equals, value in lines if equals and name}


if __name__ == "__main__":
    main()
