"""The registered operators as torch sees them: their checks, whole steps in one graph, and no added waiting."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch.library import opcheck
from torch_ops_cases import BUDGETS, RULES, THETA, copies, counted, leaves, pairs_of, small

from saelab_kernels import adam, gradients, select, torch_ops
from saelab_kernels import decode as public
from saelab_kernels.adam_state import AdamOptions, AdamState, Weights
from saelab_kernels.buffers import GradientTerm
from saelab_kernels.rules import PerToken
from saelab_kernels.torch_ops import Pairs

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")


def code_arguments(p, name) -> tuple:
    pairs = pairs_of(p, name)
    return pairs.values, pairs.columns, pairs.offsets


def operator_calls(p) -> dict[str, tuple]:
    """Arguments for every operator, by `operator/case`."""
    x, W_enc, b_enc, W_dec, b_dec, target = leaves(*p.weights, p.W_dec, p.target[0], p.target)
    calls = {
        "encode_top_k/plain": (x, W_enc, b_enc, 3, None, None, None, True, "torch"),
        "encode_top_k/columns": (x, W_enc, b_enc, 9, None, torch.tensor([4, 1, 8]), None, False, "torch"),
        "encode_per_batch/plain": (x, W_enc, b_enc, 2.5, None, None, "torch"),
        "encode_per_feature/plain": (x, W_enc, b_enc, BUDGETS, None, None, "torch"),
        "encode_per_feature/columns": (x, W_enc, b_enc, BUDGETS, None, torch.tensor([4, 1, 8]), "torch"),
        "encode_threshold/plain": (x, W_enc, b_enc, THETA, None, None, "torch"),
    }
    for name in ("top_k", "threshold"):
        values, *places = code_arguments(p, name)
        code, code_leaf = (values, *places), (values.clone().requires_grad_(), *places)
        calls |= {
            f"decode/{name}": (*code_leaf, W_dec, b_dec, "torch"),
            f"decode_error/{name}": (*code_leaf, W_dec, b_dec, target, "torch"),
            f"pair_products/{name}": (*code, p.W_dec, p.target, "torch"),
            f"code_gradients/{name}": (*code, p.x, p.W_dec, p.target, values, "both", "torch"),
            f"adam_step/{name}": adam_arguments(p, code),
        }
    return calls


def adam_arguments(p, code) -> tuple:
    weights = Weights(p.W_enc, p.b_enc, p.W_dec[:, :4].contiguous(), p.target[0, :4].clone())
    state = AdamState.new(weights)
    lists = [list(one.named().values()) for one in (weights, state.exp_avg, state.exp_avg_sq)]
    terms = ([code[0]], [code[1]], [code[2]], [p.x], [p.x * 0.1], [None], [True])
    lr = torch.full((), 0.1, dtype=torch.float64)
    return *terms, *lists, state.steps, lr, 0.9, 0.999, 1e-8, 1.0, True, True, "torch"


OPERATORS = [
    *("encode_top_k/plain", "encode_top_k/columns", "encode_per_batch/plain"),
    *("encode_per_feature/plain", "encode_per_feature/columns", "encode_threshold/plain"),
    *(
        f"{operator}/{name}"
        for operator in ("decode", "decode_error", "pair_products", "code_gradients", "adam_step")
        for name in ("top_k", "threshold")
    ),
]


@pytest.mark.parametrize("case", OPERATORS)
def test_opcheck(problem, case):
    """Schema (also: nothing else is changed, nothing is aliased), registration, fake shapes, tracing."""
    calls = operator_calls(small(problem))
    assert calls.keys() == set(OPERATORS)
    opcheck(getattr(torch.ops.saelab, case.split("/")[0]), calls[case])


def test_every_registered_operator_is_checked():
    schemas = torch._C._jit_get_all_schemas()
    registered = {schema.name for schema in schemas if schema.name.startswith("saelab::")}
    assert registered == {f"saelab::{case.split('/')[0]}" for case in OPERATORS}


COMPILED = """
import torch
from saelab_kernels import torch_ops as ops
from saelab_kernels.adam_state import AdamOptions, AdamState, Weights
from saelab_kernels.buffers import GradientTerm

generator = torch.Generator().manual_seed(0)
draw = lambda *shape: torch.randn(*shape, generator=generator)
x, parts = draw(9, 4), (draw(12, 4).t(), draw(12), draw(12, 4), draw(4))
copies = lambda: [t.clone(memory_format=torch.preserve_format) for t in parts]
compiled = lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")

def top_k(W_enc, b_enc, W_dec, b_dec):
    pairs = ops.encode_top_k(x - b_dec, W_enc, b_enc, 3, backend="torch")
    return (ops.decode(pairs, W_dec, b_dec, "torch") - x).square().sum() + pairs.values.tanh().sum()

def per_batch(W_enc, b_enc, W_dec, b_dec):
    pairs = ops.encode_per_batch(x - b_dec, W_enc, b_enc, 2.5, backend="torch")
    pairs = pairs._replace(values=2 * pairs.values)
    return ops.decode_error(pairs, W_dec, b_dec, x, "torch")[1].sum()

def per_feature(W_enc, b_enc, W_dec, b_dec):
    pairs = ops.encode_per_feature(x - b_dec, W_enc, b_enc, torch.arange(12) % 4, backend="torch")
    return ops.decode(pairs, W_dec, b_dec, "torch").square().sum()

def threshold(W_enc, b_enc, W_dec, b_dec):
    pairs = ops.encode_threshold(x - b_dec, W_enc, b_enc, torch.full((), 0.3), backend="torch")
    return ops.decode_error(pairs, W_dec, b_dec, x, "torch")[0].square().sum()

for f in (top_k, per_batch, per_feature, threshold):
    found = []
    for call in (f, compiled(f)):
        leaves = [t.requires_grad_() for t in copies()]
        call(*leaves).backward()
        assert all(t.grad.stride() == t.stride() for t in leaves)
        found.append([t.grad for t in leaves])
    torch.testing.assert_close(*found)

def step(x, weights, exp_avg, exp_avg_sq, steps, lr):
    weights = Weights(*weights)
    state = AdamState(Weights(*exp_avg), Weights(*exp_avg_sq), steps)
    pairs = ops.encode_top_k(x, weights.W_enc, weights.b_enc, 3, backend="torch")
    term = GradientTerm(pairs.code(12), x, 0.1 * x)
    return ops.adam_step([term], weights, state, AdamOptions(clip=1.0), lr, "torch")

found = []
for call in (step, compiled(step)):
    weights = copies()
    state = AdamState.new(Weights(*weights))
    moments = [list(m.named().values()) for m in (state.exp_avg, state.exp_avg_sq)]
    norms = [call(x, weights, *moments, state.steps, torch.full((), 0.1)) for _ in range(2)]
    found.append([*norms, *weights, *moments[0], *moments[1], state.steps])
    assert not torch.equal(weights[0], parts[0]) and float(state.steps) == 2
torch.testing.assert_close(*found)
print("one graph each")
"""


def test_whole_steps_compile_to_one_graph():
    """In a process of its own, where no annotation is checked: the checks are not traceable."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.stdout.strip() == "one graph each", done.stderr[-3000:]


WAITS = ("aten::_local_scalar_dense", "aten::nonzero")


def waits(*works) -> list[int]:
    """Reads of a number, or of a size, from the device by all of `works`."""
    total = sum((counted(work) for work in works), Counter())
    return [total[name] for name in WAITS]


def test_the_wrappers_add_no_wait_for_the_device(problem):
    """They read no more from tensors than the public functions do; those read more than nothing on a CPU."""
    p = small(problem)
    code = pairs_of(p, "top_k").code(12)
    pairs = Pairs(code.values, code.columns)
    W_dec, g_out = p.W_dec, p.target
    found = waits(lambda: torch_ops.encode_top_k(*p.weights, 3, backend="torch"))
    expected = waits(lambda: select.encode_select(*p.weights, PerToken(3), boundary=True, backend="torch"))
    assert found == expected and sum(expected) > 0
    for name in ("per_batch", "per_feature", "threshold"):
        rule, options = RULES[name]
        options = options | ({"theta": THETA} if "theta" in options else {})
        assert waits(lambda name=name: pairs_of(p, name)) == waits(
            lambda rule=rule, options=options: select.encode_select(
                *p.weights, rule, backend="torch", **options
            )
        )
    products = lambda: gradients.pair_products(code, W_dec, g_out, "torch")  # noqa: E731
    assert waits(lambda: torch_ops.decode(pairs, W_dec, None, "torch")) == waits(
        lambda: public.decode(code, W_dec, None, "torch")
    )
    assert waits(lambda: torch_ops.decode_error(pairs, W_dec, None, g_out, "torch")) == waits(
        lambda: public.decode_error(code, W_dec, None, g_out, "torch")
    )
    mine = leaves(*p.weights, W_dec)
    loss = torch_ops.decode(torch_ops.encode_top_k(*mine[:3], 3, backend="torch"), mine[3], None, "torch")
    halves = [
        lambda parts=parts: gradients.code_gradients(code, p.x, W_dec, g_out, parts=parts, backend="torch")
        for parts in ("encoder", "decoder")
    ]
    input_gradient = lambda: public.decode(code, p.W_enc.t(), None, "torch")  # noqa: E731
    assert waits(lambda: loss.backward(g_out)) == waits(*halves, products, input_gradient)


def test_a_step_waits_no_more_than_the_optimiser(problem):
    p = problem(30, 6, 12, 6)
    weights = Weights(*copies(p.W_enc, p.b_enc, p.W_dec, p.target[0]))
    code = select.encode_select(*p.weights, PerToken(3), backend="torch").code
    terms, lr = [GradientTerm(code, p.x, p.target)], torch.full((), 0.1, dtype=torch.float64)
    optimiser = adam.SparseAdam(weights, AdamOptions(), "torch")
    state = AdamState.new(weights)
    found = waits(lambda: torch_ops.adam_step(terms, weights, state, AdamOptions(), lr, "torch"))
    assert found == waits(lambda: optimiser.step(terms, lr))
