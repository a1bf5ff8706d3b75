"""`saelab COMMAND`: find the command, run it, print one result or one line of error."""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
import traceback
from importlib import import_module

from saelab.errors import Interrupted, SaelabError, UsageError

COMMANDS = {
    "demo": "the whole loop on the embedded model, each stage timed",
    "hooks": "the hookpoints of a model, without loading its weights",
    "cache": "write a model's activations on a text to disk",
    "train": "train an SAE on cached activations, or finish an interrupted run",
    "evaluate": "sparsity, reconstruction, density and loss recovered",
    "compare": "one table and figures over runs, on the same tokens",
    "index": "what every feature does: examples, statistics, logits, neighbors",
    "encode": "apply an SAE to a text: codes or chosen features to Parquet",
    "find": "which features separate two sets of texts",
    "labels": "what features are called, from a file and into one",
    "report": "a run as one page that needs no network: metrics, figures, clear features",
    "synthetic": "how many planted features SAEs find, and how far seeds agree",
    "import": "another tool's SAE as a run: SAELens, sparsify, dictionary_learning, Gemma Scope, ...",
    "export": "a run's SAE in another tool's format",
    "verify": "compare a folder with its checksums",
    "ls": "what is in a folder, how large, and from what",
    "bench": "the kernels and the training step, timed on this machine",
}
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    # Threads that wait for work sleep instead of spinning: on a busy machine spinning made the same
    # command 2.5 times slower (docs/benchmarks.md). It must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has gone; nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _write(_help())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        _write(f"saelab {version('saelab')}")
        return 0
    command, rest = arguments[0], arguments[1:]
    try:
        return _run_command(command, rest)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return _fail(command, "interrupted", EXIT_INTERRUPTED, rest)
    except Interrupted as stopped:
        return _fail(command, str(stopped), EXIT_INTERRUPTED, rest)
    except UsageError as error:
        return _fail(command, str(error), EXIT_USAGE, rest)
    except SaelabError as error:
        return _fail(command, str(error), EXIT_FAILED, rest)
    except OSError as error:  # of a file or folder that no message was made for
        where = f" {error.filename}" if error.filename else ""
        return _fail(command, f"cannot use{where}: {error.strerror or error}", EXIT_FAILED, rest)
    except Exception as error:
        if type(error).__name__ == "BackendError":  # by name: its module would load torch for any other error
            return _fail(command, str(error), EXIT_USAGE, rest)
        text = f"unexpected {type(error).__name__}: {error}; run it with --debug for the trace"
        return _fail(command, text, EXIT_FAILED, rest)


def _run_command(command: str, arguments: list[str]) -> int:
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(COMMANDS)}"
        raise UsageError(f"there is no such command; {hint}")
    from saelab.cli.options import parse

    module = import_module(f"saelab.cli.{command}")
    options = parse(module.Options, command, arguments)
    result = module.run(options)
    _write(json.dumps(result.data, allow_nan=False) if options.json else result.text)
    return result.exit_code


def _fail(command: str, message: str, code: int, arguments: list[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    # What a library says of its own part would read as the name of another command.
    line = re.sub(rf"^({command}|cache|caching|live|packing|stream): ", "", " ".join(message.split()))
    sys.stderr.write(f"saelab {command}: {line}\n")
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: saelab COMMAND [options]",
            "",
            "Sparse autoencoders for language models: cache activations, train, evaluate.",
            "",
            *lines,
            "",
            "saelab COMMAND --help explains a command; --json prints its result as JSON.",
        ]
    )


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")
