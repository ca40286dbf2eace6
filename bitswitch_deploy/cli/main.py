"""Entry point: finds the command, and turns every failure into one message and one exit code.

Commands are imported when they are called, so `bitswitch-deploy --help` does not pay for onnx and onnxruntime.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from contextlib import suppress
from typing import NoReturn

import click

from bitswitch_deploy import __version__
from bitswitch_deploy.cli.stdout import ClosedPipeError, check_stdout, guarded_stdout
from bitswitch_deploy.errors import (
    ERROR_SCHEMA,
    EXIT_BUG,
    EXIT_OK,
    BitswitchError,
    OutputError,
    UnavailableError,
    UsageError,
)

_NAME = "bitswitch-deploy"
_EXIT_INTERRUPTED = 130
# what a shell reports for a process that died of the signal of a closed pipe
_EXIT_CLOSED_PIPE = 141

# name -> (module, one line of help); the order of the help page
COMMANDS = {
    "export": ("export", "Turn a master into a validated package for one target."),
    "search": ("search", "Choose which layer gets which width, under budgets of bits, bytes, time."),
    "inspect": ("inspect", "Show what is in a master file."),
    "targets": ("targets", "List targets, or show one."),
    "validate": ("validate", "Measure the graphs of a package again, on this machine."),
    "check": ("check", "Say whether accuracy has regressed since the baseline."),
    "blame": ("blame", "Say which layer loses accuracy, and why."),
    "verify": ("verify", "Check every file of a package against its manifest."),
    "lint": ("lint", "Say what an engine refuses, misreads or leaves in float in any Q/DQ graph."),
    "build": ("build", "Build the engines of a package, here or over ssh."),
    "profile": ("profile", "Time every width of a package, here or over ssh."),
    "doctor": ("doctor", "Say what works on this machine, and how to get what is missing."),
}


class _Commands(click.Group):
    """Looks commands up in COMMANDS and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"bitswitch_deploy.cli.{COMMANDS[cmd_name][0]}")
        command = module.command
        if not isinstance(command, click.Command):
            raise TypeError(f"{module.__name__}.command is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=_NAME)
def cli() -> None:
    """One int8 master, every bit-width, every target: derive, lower, build, validate and package.

    Exit codes: 0 done; 1 a check failed (accuracy, latency, hashes, --strict, lint, blame, search, doctor); 2 wrong
    usage; 3 bad input file or output that cannot be written; 4 target, engine or optional package not here, busy, or
    out of memory or time; 70 a bug; 130, 143 interrupted, terminated; 141 nobody reads stdout any more.
    """


def main() -> NoReturn:
    """Run the command line and exit with the code of the kind of failure."""
    if sys.stderr is None:  # closed: what is said there goes nowhere, and no file that is opened later takes its place
        sys.stderr = os.fdopen(_at(2, os.open(os.devnull, os.O_WRONLY)), "w", encoding="utf-8")
    with guarded_stdout():
        sys.exit(_exit_code())


def _at(number: int, descriptor: int) -> int:
    """Move a descriptor to a number."""
    if descriptor == number:
        return number
    os.dup2(descriptor, number)
    os.close(descriptor)
    return number


def _exit_code() -> int:
    """Run the command line; say on stderr what failed."""
    try:
        check_stdout()
        code = cli.main(prog_name=_NAME, standalone_mode=False)
        # here, where it can still be said that it failed
        sys.stdout.flush()
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.ClickException as exc:
        exc.show()
        _print_as_json(_usage_error(exc))
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted: no result was written; engines and measurements that were finished stay")
        return _EXIT_INTERRUPTED
    except ClosedPipeError:
        return _EXIT_CLOSED_PIPE
    except BitswitchError as exc:
        return _refuse(exc)
    except MemoryError as exc:
        return _refuse(
            UnavailableError(
                where=_NAME,
                got=f"memory ran out: {exc}".rstrip(": "),
                allowed="as much as the command takes",
                do="take fewer samples, a smaller batch or fewer workers, or free some memory",
            )
        )
    except Exception:
        sys.excepthook(*sys.exc_info())
        _say("this is a bug in bitswitch-deploy: please report it with the lines above")
        return EXIT_BUG
    return code if isinstance(code, int) else EXIT_OK


def _refuse(error: BitswitchError) -> int:
    _say(f"error: {error}")
    _print_as_json(error)
    return error.exit_code


def _usage_error(error: click.ClickException) -> UsageError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else _NAME
    allowed, do = "what its help lists", f"read `{command} --help`"
    return UsageError(where=command, got=error.format_message(), allowed=allowed, do=do)


def _print_as_json(error: BitswitchError) -> None:
    """Print an error where JSON is wanted. stdout may be what failed; the message on stderr says all of it as well."""
    if "--json" not in sys.argv:
        return
    fields = {"where": error.where, "got": error.got, "allowed": error.allowed, "do": error.do}
    about = {"schema": ERROR_SCHEMA, "kind": type(error).__name__, "exit_code": error.exit_code}
    with suppress(ClosedPipeError, OutputError):
        print(json.dumps({**about, **fields}, indent=2), flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
