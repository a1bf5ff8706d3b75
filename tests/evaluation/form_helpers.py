"""SAEs of every form by hand, and what they cost a model in a float64 loop over sequences and predictions."""

import copy
import dataclasses

import numpy as np
import torch

from saelab.sae.autoencoder import SAEParameters, SparseAutoencoder
from saelab.text.packing import predictions_that_count

ALL = {"name": "threshold"}
"""The rule that keeps everything above ``theta``; 0 makes it the ReLU."""


def make_sae(base, W_enc, W_dec, b_dec=None, *, inputs, outputs, rule=None, skip=None, attribution=None):
    """Return an SAE with these weights; ``inputs`` and ``outputs`` give the width of each hookpoint."""
    config = dataclasses.replace(
        base,
        recipe="known",
        d_in=len(W_enc),
        d_out=W_dec.shape[1],
        d_sae=len(W_dec),
        input_hooks=tuple(inputs),
        input_widths=tuple(inputs.values()),
        output_hooks=tuple(outputs),
        output_widths=tuple(outputs.values()),
        inference=rule or ALL,
        attribution=attribution,
        has_skip=skip is not None,
    )
    b_dec = torch.zeros(W_dec.shape[1]) if b_dec is None else b_dec
    parameters = SAEParameters(W_enc, torch.zeros(len(W_dec)), W_dec, b_dec)
    return SparseAutoencoder(config, parameters, None if rule else torch.zeros(()), skip)


def both_signs(weight):
    """Return encoder and decoder of a dictionary that gives ``x @ weight`` exactly: a feature for each sign of x."""
    eye = torch.eye(len(weight))
    return torch.cat([eye, -eye], dim=1), torch.cat([weight, -weight])


def random_weights(d_in, d_sae, d_out, seed=0):
    """Return an encoder and a decoder with rows of unit norm."""
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(d_sae, d_out, generator=generator)
    W_enc = torch.randn(d_in, d_sae, generator=generator) / d_in**0.5
    return W_enc, W_dec / W_dec.norm(dim=1, keepdim=True)


class Loop:
    """The model in float64, one sequence at a time, with plain hooks on its modules.

    Hookpoints are module paths that end in ``.input`` or ``.output``.
    """

    def __init__(self, world, store):
        self.model, self.store = copy.deepcopy(world.lm.hf).double(), store
        self.counted = predictions_that_count(store.sequences)

    def spliced(self, sae, *, with_gradients=False):
        """Return cross entropy and KL with what ``sae`` gives for the clean activations in their place."""
        ce, kl = [], []
        for row in self.store.sequence_rows("heldout"):
            start, stop = int(self.store.row_starts[row]), int(self.store.row_starts[row + 1])
            ids = torch.from_numpy(np.array(self.store.tokens[start:stop])).long()[None]
            keep = torch.from_numpy(self.store.keep[start:stop])
            at = torch.from_numpy(np.flatnonzero(self.counted[start:stop]))
            hooks = dict.fromkeys((*sae.config.input_hooks, *sae.config.output_hooks))
            seen, logits = self._run(ids, hooks)
            clean = logits.log_softmax(-1)
            x = torch.cat([seen[hook][0, keep] for hook in sae.config.input_hooks], dim=1).detach().float()
            gradients = None
            if with_gradients:
                loss = -clean[at, ids[0, at + 1]].sum()
                found = torch.autograd.grad(loss, [seen[hook] for hook in sae.config.output_hooks])
                gradients = torch.cat([g[0, keep] for g in found], dim=1).float()
            x_hat = sae.reconstruct(x, gradients).x_hat.double().split(sae.config.output_widths, dim=1)
            edits = {hook: (keep, part) for hook, part in zip(sae.config.output_hooks, x_hat, strict=True)}
            other = self._run(ids, edits)[1].log_softmax(-1)
            clean, other = clean.detach(), other.detach()
            ce.append(-other[at, ids[0, at + 1]])
            kl.append((clean[at].exp() * (clean[at] - other[at])).sum(1))
        return float(torch.cat(ce).mean()), float(torch.cat(kl).mean())

    def _run(self, ids, edits):
        """Return the activations that were seen ``[1, length, d]`` and the logits ``[length, V]``."""
        seen, handles = {}, []

        def visit(hook, x):
            if edits[hook] is not None:
                keep, value = edits[hook]
                x = x.clone()
                x[0, keep] = value
            elif not x.requires_grad:
                x = x.detach().requires_grad_()
            seen[hook] = x
            return x

        for hook in edits:
            module, _, side = hook.rpartition(".")
            place = self.model.get_submodule(module)
            if side == "input":
                handles.append(
                    place.register_forward_pre_hook(
                        lambda _, args, hook=hook: (visit(hook, args[0]), *args[1:])
                    )
                )
            else:
                handles.append(
                    place.register_forward_hook(lambda _, args, output, hook=hook: visit(hook, output))
                )
        try:
            logits = self.model(input_ids=ids).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        return seen, logits
