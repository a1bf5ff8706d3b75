"""`saelab bench`: the sparse operators and the training step, timed on this machine."""

from __future__ import annotations

from dataclasses import dataclass, fields

from saelab.cli.options import Common, Result
from saelab.errors import UsageError
from saelab_kernels.bench.options import BenchError, BenchOptions


@dataclass(frozen=True, kw_only=True)
class Options(BenchOptions, Common):
    """Time the sparse operators and the training step on this machine, beside other libraries where asked."""


def run(options: Options) -> Result:
    """Run the command; the table goes to standard error."""
    from saelab_kernels.bench.run import bench

    given = {field.name: getattr(options, field.name) for field in fields(BenchOptions)}
    try:
        report, text = bench(BenchOptions(**given))
    except BenchError as error:
        raise UsageError(str(error)) from error
    return Result(report, text)
