"""What the tests of batch-topk, mutual-choice and feature-choice share: a small training without a run folder."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from saelab.activations.source import StoreSource
from saelab.activations.store import Store
from saelab.api import train_config
from saelab.evaluation.synthetic.generator import PlantedFeatures
from saelab.sae.autoencoder import SAEParameters
from saelab.training.config import DeadFeatures
from saelab.training.finish import finished_sae
from saelab.training.member import Member, make_member
from saelab.training.recipes.moments import Inputs, Setup
from saelab.training.views import HookRows
from saelab_kernels.decode import decode_error

BATCH, WIDTH, ROWS = 256, 64, 16_384
PLANTED = PlantedFeatures(n_features=48, d_in=16, mean_active=3.0, seed=0)


def planted_rows(first, n):
    return torch.cat([PLANTED.batch(index, 2048).x for index in range(first, first + n // 2048)]) + 0.5


HELD_OUT = planted_rows(100, 8192)


def planted_store(folder):
    return Store.from_tensors(folder, planted_rows(0, ROWS), dtype="float32")


@dataclass
class Trained:
    """An SAE after its last step, and what it was trained on."""

    member: Member
    source: StoreSource

    def sae(self, **options):
        """The finished SAE, with other options of the recipe where they are given."""
        config = self.member.config
        self.member.config = replace(config, recipe=replace(config.recipe, **options))
        return finished_sae(self.member, self.source)[0]

    def by_the_batch_rule(self, x):
        """FVU and L0 of rows in batches, as in training."""
        member, squares, active = self.member, 0.0, 0
        factor = member.views.inputs[0].normalisation.factor
        for batch in (x * factor).split(BATCH):
            selection = self.select(batch)
            squares += float(
                decode_error(selection.code, member.params.W_dec, member.params.b_dec, batch)[1].sum()
            )
            active += int(selection.code.l0().sum())
        return squares / float((x * factor - (x * factor).mean(0)).square().sum()), active / len(x)

    def select(self, batch):
        member = self.member
        inputs = Inputs(batch - member.params.b_dec, batch)
        return member.config.recipe.select(inputs, member.params, member.recipe_state, member.clock)


def train_member(
    store, name, steps, *, batch=BATCH, coefficient=1 / 32, min_tokens=2_000, **options
) -> Trained:
    source = StoreSource(store)
    config = train_config(
        source,
        name,
        width=WIDTH,
        tokens=steps * batch,
        batch=batch,
        lr=5e-3,
        recipe_options={"k": 3} | options,
        dead=DeadFeatures(min_tokens=min_tokens, coefficient=coefficient),
        device="cpu",
    )
    member = make_member("m", config, source, Path("nowhere"))
    x = planted_rows(0, ROWS)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)).repeat(-(-steps * batch // ROWS))
    for step in range(steps):
        member.train_on({config.hook: HookRows(x[order[step * batch : (step + 1) * batch]])})
    return Trained(member, source)


def measured(sae, x):
    """FVU and L0 of rows by the inference form."""
    x_hat, code = sae.reconstruct(x)
    fvu = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    return float(fvu), float(code.l0().double().mean())


def random_parameters(d_in, d_sae, *, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(d_sae, d_in, generator=generator, dtype=dtype)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    b_enc = 0.1 * torch.randn(d_sae, generator=generator, dtype=dtype)
    return SAEParameters(
        W_enc=W_dec.clone().T, b_enc=b_enc, W_dec=W_dec, b_dec=torch.zeros(d_in, dtype=dtype)
    )


def in_tiles(x, tile=1024):
    """What `finalise` gets: rows by tiles, whatever number is asked for."""
    return lambda rows: iter(x.split(tile))


def setup_of(clock, d_sae, d_in=16):
    nothing = torch.zeros(1, d_in)
    return Setup(clock, d_in, d_in, d_sae, 1.0, nothing, nothing, (d_in,), 0)
