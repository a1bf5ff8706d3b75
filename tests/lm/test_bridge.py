import socket

import pytest
import torch

from saelab.lm.bridge import to_bridge
from saelab.lm.run import capture


@pytest.fixture(scope="module")
def bridge(lm):
    return to_bridge(lm)


def test_bridge_and_plain_hooks_agree_on_every_named_activation(lm, bridge, ids):
    named = [hookpoint for hookpoint in lm.hookpoints if hookpoint.alias]
    ours = capture(lm, ids, named)
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(ids)
    for hookpoint in named:
        theirs = cache[hookpoint.alias].reshape(*ids.shape, hookpoint.d_in)
        assert ours[hookpoint].std() > 1e-3
        torch.testing.assert_close(ours[hookpoint], theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(
            logits, lm.hf(input_ids=ids).logits, rtol=0, atol=1e-5 * float(logits.abs().max())
        )


def test_the_model_itself_is_left_alone(lm, ids):
    kinds = {name: type(module) for name, module in lm.hf.named_modules()}
    made = to_bridge(lm)
    assert {name: type(module) for name, module in lm.hf.named_modules()} == kinds
    assert lm.hf.config._attn_implementation == "sdpa"
    owned = {p.data_ptr() for p in lm.hf.parameters()}
    assert not owned & {p.data_ptr() for p in made.parameters()}


def test_a_bridge_is_made_without_the_network(lm, monkeypatch):
    attempts = []

    def refuse(*arguments, **_):
        attempts.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    to_bridge(lm)
    assert attempts == []
