"""The command line: ``harmonyd run | check | demo | version``."""

from __future__ import annotations

import argparse
import gc
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
first steps, from a checkout:
  harmonyd demo  --config examples/default/config.toml    a PACS, harmonyd, four requests and their answers
  harmonyd check --config FILE                            what is wrong with a configuration, starting nothing
  harmonyd run   --config FILE                            the daemon, in the foreground

harmonyd COMMAND --help says more about each. All keys of the configuration: docs/configuration.md.

exit status: 0 all well; 1 it could not start, or a check found an error; 2 wrong usage or configuration
"""

_RUN = """\
Run the daemon in the foreground, until SIGTERM or SIGINT (Ctrl-C). It logs to standard error, unless
[logging] in the configuration names a file.
"""

_RUN_EPILOG = """\
is it there, is it ready for work?
  curl http://127.0.0.1:8080/livez
  curl http://127.0.0.1:8080/readyz

for finding faults, in the environment:
  HARMONY_TEST_DEBUG=1            answers of C-MOVE carry what movescu was given and said
  HARMONY_TEST_VERBOSE_DCMTK=1    the log carries what DCMTK's programs say (patient data, too)

exit status: 0 stopped as asked; 1 could not start (a port is taken, DCMTK is missing); 2 wrong configuration
"""

_CHECK = """\
Check everything that can be checked before a start, and start nothing: every error of the configuration
at once, with file and key; DCMTK's programs and their versions; ports, and who holds those that are taken;
folders that are written to.
"""

_CHECK_EPILOG = """\
example:
  harmonyd check --probe --config examples/default/config.toml

exit status: 0 all is well; 1 a check found an error; 2 the configuration is wrong
"""

_DEMO = """\
Start a PACS (DCMTK's dcmqrscp) with the images that pydicom ships, and harmonyd in front of it; perform
C-ECHO, C-FIND, C-GET and C-MOVE over HTTP; print the curl command and the answer of each; and stay until
Ctrl-C. Up to 50 .dcm files in dev/samples, below the current folder, are loaded as well.
"""

_DEMO_EPILOG = """\
example:
  harmonyd demo --once --config examples/default/config.toml

exit status: 0 all four answers were right; 1 one was not, or the demo could not start; 2 wrong configuration
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "harmonyd", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    def add(name: str, summary: str, description: str, epilog: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        which = "config.toml (default: %(default)s)"
        command.add_argument("-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help=which)
        return command

    add("run", "run the daemon in the foreground", _RUN, _RUN_EPILOG)
    check = add("check", "check a configuration and this machine, start nothing", _CHECK, _CHECK_EPILOG)
    check.add_argument("--probe", action="store_true", help="also send a C-ECHO to the node of every dicom backend")
    demo = add("demo", "a PACS, harmonyd, and four requests with their answers", _DEMO, _DEMO_EPILOG)
    demo.add_argument("--once", action="store_true", help="end after the four requests")
    commands.add_parser("version", help="print the version", description="Print the version of harmonyd.")
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
    return _daemon(arguments.config)


def _daemon(config: Path) -> int:
    gc.disable()  # imports leave nothing to collect, and looking for it is a tenth of their time
    from harmonyd.daemon.process import run

    gc.freeze()  # nor is there a need to look through all of it again later
    gc.enable()
    return run(config)
