"""A report as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saelab_kernels.bench.rounds import clocks


def table(report: dict[str, Any]) -> str:
    """Everything that was measured, as tables; times are medians, shares and ratios medians over the rounds."""
    o = report["options"]
    lines = [
        f"d_in {o['d_in']}, d_sae {o['d_sae']:,}, k {o['k']}, batch {o['batch']:,}, {o['rounds']} rounds, "
        f"backend {report['backend']} on {o['device']}, {report['threads']} threads, "
        f"torch {report['versions']['torch']}",
        f"{report['machine'].get('gpu') or report['machine']['processor']}, load {report['machine']['load']}",
    ]
    if "operators" in report:
        lines += ["", *_operators(report["operators"], o["device"])]
    if "step" in report:
        lines += ["", *_steps(report["step"], o["device"]), *_peers(report["step"], o["device"])]
    if "scaling" in report:
        lines += ["", *_scaling(report["scaling"], o["device"])]
    return "\n".join(lines)


def headline(report: dict[str, Any]) -> str:
    """What matters most, in a few lines."""
    clock = clocks(report["options"]["device"])[0]
    lines = []
    for name, operator in report.get("operators", {}).items():
        if name in ("select per token", "select per token, float32", "decode error", "adam"):
            lines.append(f"{name}: {operator['over_product'][clock]:.2f} encoder products")
    if "step" in report:
        step = report["step"]
        for name, one in step["variants"].items():
            if name.startswith("saelab"):
                lines.append(
                    f"step {name}: {one['over_bound'][clock]:.2f} of its bound, "
                    f"{one['over_bound_bf16'][clock]:.2f} of that with a bfloat16 product"
                )
        for peer, found in step["peers"].items():
            times = [f"{which} {one['over']['saelab'][clock]:.2f}" for which, one in found.items()]
            lines.append(f"step {peer} / saelab: {', '.join(times)}")
    return "\n".join(lines)


def _operators(operators: dict[str, Any], device: str) -> list[str]:
    heads = ["operator", "cpu ms", "wall ms", "MB", "GB/s", "of copy", "of product", "of bf16", "products"]
    clock = clocks(device)[0]
    rows = [
        [
            name,
            _ms(one, "cpu"),
            _ms(one, "wall"),
            f"{one['bytes'] / 1e6:.1f}",
            f"{one['gb_per_s']:.1f}",
            *(
                f"{one[share][clock]:.0%}"
                for share in ("share_of_bandwidth", "share_of_product", "share_of_product_bf16")
            ),
            f"{one['over_product'][clock]:.2f}",
        ]
        for name, one in operators.items()
    ]
    return _columns(heads, rows)


def _steps(step: dict[str, Any], device: str) -> list[str]:
    on = clocks(device)
    heads = ["step", "cpu ms", "best", "wall ms", "best"]
    heads += (
        [f"/bound {c}" for c in on] + [f"/bf16 bound {c}" for c in on] + ["peak MiB", "first loss", "last"]
    )
    rows = []
    for name, one in step["variants"].items():
        row = [name]
        for clock in ("cpu", "wall"):
            row += [_ms(one, clock), f"{one[f'{clock}_ms']['best']:.1f}"]
        row += [f"{one[bound][c]:.2f}" for bound in ("over_bound", "over_bound_bf16") for c in on]
        row.append(f"{one['peak_mib']:.0f}" if "peak_mib" in one else "")
        row += [f"{one['losses'][at]:.6g}" if "losses" in one else "" for at in (0, -1)]
        rows.append(row)
    lines = _columns(heads, rows)
    added = ", ".join(f"{value:.2f} ({clock})" for clock, value in step["auxk_over_product"].items())
    lines.append(f"AuxK adds to a step, in encoder products: {added}")
    return lines + [f"not measured: {name}: {reason}" for name, reason in step["missing"].items()]


def _peers(step: dict[str, Any], device: str) -> list[str]:
    """A table for each clock: a library's time over that of each of our variants, a row for each of its own."""
    shown = [
        (library, ", ".join(which for which, other in found.items() if other == one), one)
        for library, found in step["peers"].items()
        for one in {each["variant"]: each for each in found.values()}.values()
    ]
    lines = []
    for clock in clocks(device) if shown else ():
        ours = list(shown[0][2]["over"])
        rows = [
            [library, which, one["variant"]]
            + [f"{one['over'][own][clock]:.2f}" for own in ours]
            + ["" if one["peak_over_saelab"] is None else f"{one['peak_over_saelab']:.2f}"]
            for library, which, one in shown
        ]
        heads = [f"{clock} time", "as", "variant", *(f"/{own}" for own in ours), "peak/saelab"]
        lines += ["", *_columns(heads, rows)]
    return lines


def _scaling(records: list[dict[str, Any]], device: str) -> list[str]:
    clock = clocks(device)[0]
    names = [name for name in records[0]["variants"] if name != "product-bf16"]
    heads = ["axis", "value", *(f"{name} {clock} ms" for name in names), "step / bound"]
    rows = [
        [
            record["axis"],
            f"{record['value']:,}",
            *(_ms(record["variants"][name], clock) for name in names),
            f"{record['variants']['step']['over_bound'][clock]:.2f}",
        ]
        for record in records
    ]
    return _columns(heads, rows)


def _ms(record: dict[str, Any], clock: str) -> str:
    return f"{record[f'{clock}_ms']['median']:.1f}"


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns; the first to the left, the others to the right."""
    widths = [max(len(row[at]) for row in [heads, *rows]) for at in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [heads, *rows]
    ]
