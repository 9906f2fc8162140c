"""The command line: ``harmonyd run | check | doctor | demo | spool | cache | hash-password | version``."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harmonyd import __version__

DEFAULT_CONFIG = Path("/etc/harmonyd/config.toml")
EXIT_INTERRUPTED = 130
"""What shells report for a command that SIGINT ended."""
EXIT_UNREAD = 141
"""And for one that SIGPIPE ended: nobody reads what it prints."""
_DIGITS = 19
"""A number of fewer digits is one that SQLite can hold."""

_LEAST_SECS, _MOST_SECS = 0.1, 3600.0

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
  harmonyd doctor --config FILE                           why a PACS does not answer, and who has to change what

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

_DOCTOR = """\
Walk the way to the node of each dicom backend, or of one: name, TCP, TLS, association and what is accepted in it,
C-ECHO, a C-FIND for one row, and a C-MOVE of nothing, which shows whether the PACS knows where to deliver. Says what is
wrong, on which side, and what to enter there. Nothing is changed, and no patient data is shown. It works beside a
running daemon.
"""

_DOCTOR_EPILOG = """\
examples:
  harmonyd doctor                                       all dicom backends
  harmonyd doctor pacs --config FILE --json             one, as JSON

exit status: 0 no error, perhaps warnings; 1 an error; 2 the configuration is wrong, or has no such backend
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

_SPOOL = """\
What was received and is not everywhere yet where it belongs: see it, have it tried again, remove it, copy it.
Works while the daemon runs and when it does not.
"""

_SPOOL_EPILOG = """\
examples, each with --config FILE (default: /etc/harmonyd/config.toml):
  harmonyd spool list --state QUARANTINED     what was given up, and why
  harmonyd spool retry --all                  try all now: a backend was mended
  harmonyd spool export 17 /tmp/look          copy an object, to look at it

harmonyd spool COMMAND --help says more about each. What to do when: docs/spool.md.

exit status: 0 done; 1 nothing done, or not found; 2 wrong usage or configuration
"""

_LIST = """\
A line with the summary, then a line for each delivery that was not made: id, when it came (UTC), endpoint, SOP
Instance UID, bytes, backend and state, failed attempts, the next attempt, and why the last one failed.
"""

_SHOW = "All that is known about one object: where it lies, where it came from, and each delivery."

_RETRY = """\
Try these now, also when they were given up, with all attempts before them. A running daemon begins within 5
seconds. What is damaged cannot be delivered.
"""

_DISCARD = "Remove these for good. One that is being delivered just now may arrive all the same."

_EXPORT = """\
Copy an object to FOLDER/ID.dcm, and what is known about it to FOLDER/ID.json. It stays in the spool. The copy
holds patient data.
"""

_CACHE = """\
What DICOMweb clients have retrieved, and is kept for the next who asks: how much it is, or remove it all.
Works while the daemon runs and when it does not. The PACS has everything that is here.
"""


_HASH = """\
Print what the configuration has of a password (basic_auth): ask for it at the terminal, or read one line from
standard input. With --api-key make a key for a program (api_key), and print it with what the configuration has of it.
A secret is never an argument: others can see those.
"""

_HASH_EPILOG = """\
examples:
  harmonyd hash-password                      asks twice, prints $scrypt$...
  harmonyd hash-password < secret.txt         the first line of a file
  harmonyd hash-password --api-key            a new key, and its sha256

exit status: 0 printed; 1 not a usable password or key
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
    doctor = add("doctor", "why a PACS does not answer, and which side has to change what", _DOCTOR, _DOCTOR_EPILOG)
    doctor.add_argument("backend", nargs="?", metavar="BACKEND", help="a dicom backend (default: all)")
    doctor.add_argument("--json", action="store_true", help="the same as JSON")
    doctor.add_argument(
        "--timeout",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="wait at most so long at once, and no longer than the backend's timeouts (default: 30)",
    )
    demo = add("demo", "a PACS, harmonyd, and four requests with their answers", _DEMO, _DEMO_EPILOG)
    demo.add_argument("--once", action="store_true", help="end after the four requests")
    demo.add_argument("--engine", choices=["dcmtk", "native"], help="speak DIMSE with this engine")
    _add_spool(commands)
    _add_cache(commands)
    hashing = commands.add_parser(
        "hash-password",
        help="what the configuration has of a password, or of an API key",
        description=_HASH,
        epilog=_HASH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hashing.add_argument("--api-key", action="store_true", help="make a key for a program")
    hashing.add_argument("--stdin", action="store_true", help="with --api-key: read a key instead of making one")
    commands.add_parser("version", help="print the version", description="Print the version of harmonyd.")
    return parser


def _add_spool(commands: Any) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    spool = commands.add_parser(
        "spool",
        help="see what was received and not delivered, retry, discard, export",
        description=_SPOOL,
        epilog=_SPOOL_EPILOG,
        formatter_class=raw,
    )
    below = spool.add_subparsers(dest="spool_command", required=True, metavar="COMMAND", title="commands")

    def add(name: str, summary: str, description: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = below.add_parser(
            name, help=summary, description=description, formatter_class=raw
        )
        which = "config.toml (default: %(default)s)"
        command.add_argument("-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help=which)
        return command

    listing = add("list", "what is in the spool, and why", _LIST)
    listing.add_argument("--state", choices=["WAITING", "QUARANTINED", "DAMAGED"], help="only what is in this state")
    listing.add_argument("--endpoint", metavar="NAME", help="only what this endpoint received")
    listing.add_argument("--limit", type=_positive, default=100, metavar="N", help="so many objects (default: 100)")
    listing.add_argument("--json", action="store_true", help="the same as JSON")
    show = add("show", "all about one object", _SHOW)
    show.add_argument("id", type=_positive, metavar="ID")
    show.add_argument("--json", action="store_true", help="the same as JSON")
    retry = add("retry", "try objects now", _RETRY)
    which = retry.add_mutually_exclusive_group(required=True)
    which.add_argument("ids", type=_positive, nargs="*", default=[], metavar="ID")
    which.add_argument("--all", action="store_true", help="all that wait or are in quarantine")
    discard = add("discard", "remove objects for good", _DISCARD)
    discard.add_argument("ids", type=_positive, nargs="+", metavar="ID")
    discard.add_argument("--yes", action="store_true", help="needed for more than one")
    export = add("export", "copy an object into a folder", _EXPORT)
    export.add_argument("id", type=_positive, metavar="ID")
    export.add_argument("folder", type=Path, metavar="FOLDER")


def _add_cache(commands: Any) -> None:
    cache = commands.add_parser(
        "cache", help="see how much of what was retrieved is kept, empty it", description=_CACHE
    )
    below = cache.add_subparsers(dest="cache_command", required=True, metavar="COMMAND", title="commands")
    for name, summary in (("show", "how much is kept"), ("clear", "remove it all")):
        command = below.add_parser(name, help=summary, description=_CACHE)
        which = "config.toml (default: %(default)s)"
        command.add_argument("-c", "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help=which)
        command.add_argument("--json", action="store_true", help="the answer as JSON")


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < _DIGITS else 0
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _LEAST_SECS <= seconds <= _MOST_SECS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from {_LEAST_SECS:g} to {_MOST_SECS:g}")
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status. Wrong usage, and ``--help``, raise ``SystemExit``."""
    arguments = _parser().parse_args(argv)
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        # Ctrl-C before there is a reactor that takes it for the wish to stop.
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # ``| head`` has seen enough. What is still in the buffer must not fail once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_UNREAD
    return status


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "version":
        print(f"harmonyd {__version__}")
        return 0
    if arguments.command == "check":
        from harmonyd.check import check

        return check(arguments.config, probe=arguments.probe)
    if arguments.command == "doctor":
        from harmonyd.doctor import doctor

        return doctor(arguments.config, arguments.backend, as_json=arguments.json, timeout_secs=arguments.timeout)
    if arguments.command == "demo":
        from harmonyd.demo import demo

        return demo(arguments.config, once=arguments.once, engine=arguments.engine)
    if arguments.command == "spool":
        return _run_spool(arguments)
    if arguments.command == "cache":
        from harmonyd import cache_command

        return cache_command.run(arguments.config, arguments.cache_command, as_json=arguments.json)
    if arguments.command == "hash-password":
        from harmonyd import hash_command

        if arguments.api_key:
            return hash_command.make_api_key(given=arguments.stdin)
        return hash_command.hash_from_terminal()
    return _daemon(arguments.config)


def _run_spool(arguments: argparse.Namespace) -> int:
    from harmonyd import spool_command as spool

    match arguments.spool_command:
        case "list":
            action = spool.listing(arguments.state, arguments.endpoint, arguments.limit, as_json=arguments.json)
        case "show":
            action = spool.showing(arguments.id, as_json=arguments.json)
        case "retry":
            action = spool.retrying(None if arguments.all else arguments.ids)
        case "discard":
            action = spool.discarding(arguments.ids, is_sure=arguments.yes)
        case _:
            action = spool.exporting(arguments.id, arguments.folder)
    return spool.run(arguments.config, action)


def _daemon(config: Path) -> int:
    # Threads that a library starts when it is imported (numpy does) must never take a signal that is for us.
    held_before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
    gc.disable()  # imports leave nothing to collect, and looking for it is a tenth of their time
    from harmonyd.daemon.process import run

    signal.pthread_sigmask(signal.SIG_SETMASK, held_before)
    gc.freeze()  # nor is there a need to look through all of it again later
    gc.enable()
    return run(config)
