"""Loss curves of two kernel backends, from one seed and one order of the data, beside what one rounding does.

    python scripts/loss_curves.py --out curves.json

Two backends add in different orders, so their weights differ by roundings after the first step. A rounding moves a
pre-activation past another one now and then, and a token then keeps another feature; Adam, which divides by the size
of a gradient, makes as much of a small gradient's rounding as of a large one. So differences grow, in any
arithmetic, until the runs are two samples of the same training. No tolerance follows from rounding alone. The
control says what is to be expected: the same backend again, each weight of the encoder moved to a neighbouring float
at the start (about 1e-7 of its value).

What must hold: over the first 10, 100 and all steps no more than twice the larger control. Measured with the
defaults and float32 products (torch against cpu-float32; controls of either; largest relative difference of the
loss): 1.3e-7, 6.0e-6 and 5.9e-6 in 10 steps; 1.6e-3, 1.1e-3 and 1.3e-3 in 100; 1.2e-2, 1.4e-2 and 1.1e-2 in 2,000;
held-out FVU at the end 1.1e-2, 0.8e-2 and 0.5e-2. Kept pairs in common at the end: 65, 61 and 62 %. Single steps can
be far apart where AuxK's term sets in at another step: in 1,000 steps 0.30, 0.30 and 0.28 (torch against cpu), the mean
of all steps being 0.016, 0.035 and 0.012, the held-out FVU 4e-4, 1.1e-3 and 3e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import saelab
from saelab.activations.source import Order, StoreSource
from saelab.api import train_config
from saelab.quantities import parse_count
from saelab.sae.normalisation import normalise
from saelab.training.config import TrainConfig
from saelab.training.member import Member, make_member
from saelab.training.views import HookRows
from saelab_kernels.decode import decode
from saelab_kernels.dispatch import OVERRIDE
from saelab_kernels.rules import PerToken
from saelab_kernels.select import encode_select
from saelab_kernels.shapes import Bool, Tensor

HELD_OUT_ROWS = 8192
WINDOWS = (10, 100, 500)
"""Steps at which the part so far is also compared by itself."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What one training run left."""

    name: str
    loss: list[float]
    """Of every step."""
    fvu: float
    """On held-out rows, after the last step."""
    active: Bool[Tensor, "rows d_sae"]
    """Which features each held-out row keeps."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two curves are from each other."""

    between: tuple[str, str]
    largest: dict[int, float]
    """Largest relative difference of the loss up to a step, by steps; the last one is the whole run."""
    largest_at: int
    """Step of the largest difference, from 1."""
    mean: float
    """Mean relative difference over all steps."""
    fvu: float
    """Relative difference of the FVU on held-out rows."""
    equal_codes: float
    """Share of held-out rows that keep exactly the same features."""
    common_pairs: float
    """Pairs that both keep, of those that the first one keeps."""


def train_curve(
    config: TrainConfig, source: StoreSource, backend: str, *, k: int, nudged: bool = False
) -> Curve:
    """Train one SAE with a backend, its encoder first moved by one rounding if `nudged`."""
    with _kernels(backend), tempfile.TemporaryDirectory() as folder:
        member = make_member(config.recipe.name, config, source, Path(folder))
        if nudged:
            _move_to_neighbours(member.params.W_enc)
        order = Order(
            batch=config.batch,
            seed=config.data_seed,
            pool_rows=config.pool_rows,
            total_rows=config.steps * config.batch,
        )
        stream = source.open([config.hook], order, None)
        clock, loss = time.perf_counter(), []
        try:
            for _ in range(config.steps):
                member.train_on({config.hook: HookRows(stream.next()[config.hook].x)})
                assert member.outcome is not None
                loss.append(float(member.outcome.result.metrics["loss"]))
        finally:
            stream.close()
        seconds = time.perf_counter() - clock
        fvu, active = _held_out(member, source, k)
    name = backend + (", one rounding away" if nudged else "")
    return Curve(name=name, loss=loss, fvu=fvu, active=active, seconds=seconds)


def compare(a: Curve, b: Curve) -> Difference:
    """Compare two runs of one configuration."""
    first, second = torch.tensor(a.loss, dtype=torch.float64), torch.tensor(b.loss, dtype=torch.float64)
    relative = (first - second).abs() / first.abs()
    steps = [*(n for n in WINDOWS if n < len(relative)), len(relative)]
    return Difference(
        between=(a.name, b.name),
        largest={n: float(relative[:n].max()) for n in steps},
        largest_at=int(relative.argmax()) + 1,
        mean=float(relative.mean()),
        fvu=abs(a.fvu - b.fvu) / a.fvu,
        equal_codes=float((a.active == b.active).all(1).float().mean()),
        common_pairs=float((a.active & b.active).sum() / a.active.sum()),
    )


@contextmanager
def _kernels(backend: str) -> Iterator[None]:
    """Choose the backend of every operator inside."""
    before = os.environ.get(OVERRIDE)
    os.environ[OVERRIDE] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ[OVERRIDE]
        else:
            os.environ[OVERRIDE] = before


def _move_to_neighbours(weights: Tensor) -> None:
    """Each number to the next float above or below it, at random, in place."""
    up = torch.rand(weights.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    weights.copy_(torch.nextafter(weights, torch.where(up, torch.inf, -torch.inf)))


def _held_out(member: Member, source: StoreSource, k: int) -> tuple[float, Tensor]:
    """FVU and kept features on the first held-out rows."""
    params, hook = member.params, member.config.hook
    rows = min(HELD_OUT_ROWS, source.store.n_rows(hook, "heldout"))
    x = normalise(source.store.rows(hook, "heldout", 0, rows).x, member.views.inputs[0].normalisation)[0]
    code = encode_select(x - params.b_dec, params.W_enc, params.b_enc, PerToken(k)).code
    error = decode(code, params.W_dec, params.b_dec) - x
    return float(error.square().sum() / (x - x.mean(0)).square().sum()), code.dense() > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["torch", "cpu"])
    parser.add_argument("--at", default="blocks.2.hook_resid_post")
    parser.add_argument("--cached", type=parse_count, default=300_000, help="tokens in the store")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=100, help="steps between printed lines")
    parser.add_argument("--out", type=Path, default=None, help="JSON with all curves")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = saelab.cache(
            saelab.load_model(saelab.ModelSpec(name="embedded")),
            "stdlib",
            at=options.at,
            tokens=options.cached,
            out=Path(folder) / "store",
            quiet=True,
        )
        config = train_config(
            store,
            "topk",
            width=options.width,
            tokens=options.steps * options.batch,
            batch=options.batch,
            recipe_options={"k": options.k},
        )
        curves = [
            train_curve(config, StoreSource(store), backend, k=options.k, nudged=nudged)
            for nudged in (False, True)
            for backend in options.backends
        ]
    n = len(options.backends)
    pairs = [(curves[0], other) for other in curves[1:n]]
    pairs += [(curves[i], curves[n + i]) for i in range(n)]
    differences = [compare(a, b) for a, b in pairs]
    _report(curves, pairs, differences, options.every)
    if options.out is not None:
        content = {
            "options": {key: str(value) for key, value in vars(options).items()},
            "differences": [asdict(difference) for difference in differences],
            "curves": [{"name": c.name, "fvu": c.fvu, "seconds": c.seconds, "loss": c.loss} for c in curves],
        }
        options.out.write_text(json.dumps(content, indent=1) + "\n")


def _report(
    curves: list[Curve], pairs: list[tuple[Curve, Curve]], differences: list[Difference], every: int
) -> None:
    for curve in curves:
        print(
            f"{curve.name:<28} loss {curve.loss[-1]:.6f}  held-out FVU {curve.fvu:.6f}  {curve.seconds:6.1f} s"
        )
    print("\n  step  " + "  ".join(f"{a.name} / {b.name}" for a, b in pairs))
    for step in [1, *range(every, len(curves[0].loss) + 1, every)]:
        found = (abs(a.loss[step - 1] - b.loss[step - 1]) / abs(a.loss[step - 1]) for a, b in pairs)
        print(
            f"{step:6}  "
            + "  ".join(
                f"{value:{len(a.name) + len(b.name) + 3}.2e}"
                for value, (a, b) in zip(found, pairs, strict=True)
            )
        )
    for d in differences:
        largest = ", ".join(f"{value:.2e} in the first {n:,}" for n, value in d.largest.items())
        print(f"\n{d.between[0]} against {d.between[1]}:")
        print(
            f"  loss, largest relative difference: {largest} steps (at step {d.largest_at:,}); mean {d.mean:.2e}"
        )
        print(f"  held-out FVU: {d.fvu:.2e}; rows with the same features {d.equal_codes:.1%}, ", end="")
        print(f"pairs in common {d.common_pairs:.1%}")


if __name__ == "__main__":
    main()
