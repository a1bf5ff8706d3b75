"""`python -m saelab_kernels.bench`: the benchmark where only torch is installed."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import sys
import textwrap
from dataclasses import fields
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

from saelab_kernels.bench.options import BenchError, BenchOptions


def main(arguments: list[str] | None = None) -> None:
    """Measure; the table goes to standard error, with `--json` the report as one line to standard output."""
    # Threads that wait sleep instead of taking the time of others; it must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = vars(_parser().parse_args(arguments))
    as_json = given.pop("json")
    from saelab_kernels.bench.run import bench

    try:
        report, text = bench(BenchOptions(**given))
    except BenchError as error:
        sys.exit(f"saelab_kernels.bench: {error}")
    sys.stdout.write((json.dumps(report, allow_nan=False) if as_json else text) + "\n")


def _parser() -> argparse.ArgumentParser:
    """An option for every field of `BenchOptions`, explained by the sentence under it."""
    parser = argparse.ArgumentParser(prog="python -m saelab_kernels.bench", description=BenchOptions.__doc__)
    kinds, texts = get_type_hints(BenchOptions), _sentences(BenchOptions)
    for field in fields(BenchOptions):
        known: dict[str, Any] = {"default": field.default, "help": texts[field.name].replace("``", "")}
        kind = kinds[field.name]
        if kind is bool:
            known["action"] = "store_true"
        elif get_origin(kind) is Literal:
            known["choices"] = get_args(kind)
        else:
            known["type"] = next(one for one in (get_args(kind) or (kind,)) if one is not type(None))
        parser.add_argument(f"--{field.name.replace('_', '-')}", **known)
    parser.add_argument("--json", action="store_true", help="print the whole report as one line of JSON")
    return parser


def _sentences(kind: type) -> dict[str, str]:
    """The string under each field of a class, by the field's name."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: str(ast.literal_eval(text.value))
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
    }


if __name__ == "__main__":
    main()
