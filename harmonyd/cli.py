"""The command line: ``harmonyd run | check | demo | version``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from harmonyd import __version__

DEFAULT_CONFIG = Path("/etc/harmonyd/config.toml")
EXIT_INTERRUPTED = 130
"""What shells report for a command that SIGINT ended."""

_DESCRIPTION = """\
harmonyd is a gateway between HTTP and DICOM networks. An HTTP client asks, harmonyd performs the
DIMSE operation (C-ECHO, C-FIND, C-GET, C-MOVE, C-STORE) at a PACS and streams the answer back.
A modality sends, harmonyd receives and runs the object through the pipeline that names the endpoint.
"""

_EPILOG = """\
first steps:
  harmonyd demo                          an embedded PACS, harmonyd, and four requests with their answers
  harmonyd check --config FILE           what is wrong with a configuration, without starting anything
  harmonyd run --config FILE             the daemon, in the foreground, log on standard error

exit status: 0 all well; 1 it could not start, or a check found an error; 2 wrong usage or configuration
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "harmonyd", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="run the daemon in the foreground",
        description="Run the daemon until SIGTERM or SIGINT. It logs to standard error unless the configuration "
        "names a file.",
    )
    check = commands.add_parser(
        "check",
        help="check a configuration and this machine, start nothing",
        description="Check everything that can be checked before a start: every error of the configuration at once, "
        "DCMTK and its version, ports (and who holds them), folders. Exits 1 or 2 when something is wrong.",
    )
    check.add_argument("--probe", action="store_true", help="also send a C-ECHO to every dicom backend")
    demo = commands.add_parser(
        "demo",
        help="an embedded PACS, harmonyd, and four requests with their answers",
        description="Start a PACS (dcmqrscp) with real data and harmonyd, perform echo, find, get and move over HTTP, "
        "print the curl command and the answer of each, and stay until Ctrl-C.",
    )
    demo.add_argument("--once", action="store_true", help="end after the four requests; exit 0 only if all were right")
    for command in (run, check, demo):
        command.add_argument(
            "-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s"
        )
    commands.add_parser("version", help="print the version")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status. Wrong usage, and ``--help``, raise ``SystemExit``."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        # Ctrl-C before there is a reactor that takes it for the wish to stop.
        return EXIT_INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "version":
        print(f"harmonyd {__version__}")
        return 0
    if arguments.command == "check":
        from harmonyd.check import check

        return check(arguments.config, probe=arguments.probe)
    if arguments.command == "demo":
        from harmonyd.demo import demo

        return demo(arguments.config, once=arguments.once)
    from harmonyd.daemon.process import run

    return run(arguments.config)
