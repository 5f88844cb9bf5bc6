"""The `penstock` command: its subcommands, and how every one of them ends.

Exit codes: 0 done; 1 a check failed (outputs differ, budget exceeded); 2 bad input or a failure that has a name, told
in one line; 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import penstock
from penstock.cli import bench, demo, execute, machine, pack, plan, run, train_plan
from penstock.cli.options import UsageError
from penstock.errors import BudgetInfeasibleError, PenstockError

BAD_INPUT = 2
INTERRUPTED = 130

app = typer.Typer(
    name="penstock",
    help="Run any PyTorch model inside a byte budget, its weights streamed from the checkpoint while it computes.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(run.run)
app.command()(plan.plan)
app.command()(bench.bench)
app.command()(pack.pack)
app.command()(machine.machine)
app.command("exec")(execute.execute)
app.command("train-plan")(train_plan.train_plan)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"penstock {penstock.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[  # acted on by its callback
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run_app(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (without the program's name) and returns the exit code."""
    command = typer.main.get_command(app)
    try:
        code = command.main(args=list(arguments), prog_name="penstock", standalone_mode=False)
    except UsageError as error:
        return _fail(error.format_message(), error, arguments)
    except PenstockError as error:
        return _fail(str(error), error, arguments)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{where}{error.strerror or error}", error, arguments)
    except MemoryError as error:
        return _fail("out of memory", error, arguments)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def main() -> None:
    """The entry point `penstock`."""
    sys.exit(run_app(sys.argv[1:]))


def _fail(message: str, error: BaseException, arguments: Sequence[str]) -> int:
    line = " ".join(message.split()) or type(error).__name__
    print(f"error: {line}", file=sys.stderr)
    if "--json" in arguments:
        details = {"needed_nbytes": error.needed_nbytes} if isinstance(error, BudgetInfeasibleError) else {}
        print(json.dumps({"error": line, **details}))
    return BAD_INPUT
