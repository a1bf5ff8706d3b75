"""Planted data of every kind have the frequencies, correlations and families that their docstrings state."""

from typing import get_args, get_type_hints

import pytest
import torch

from saelab.errors import UsageError
from saelab.evaluation.synthetic import spec as spec_module
from saelab.evaluation.synthetic.correlated import CorrelatedFeatures
from saelab.evaluation.synthetic.generator import ExactlyPlantedFeatures, PlantedFeatures
from saelab.evaluation.synthetic.hierarchical import HierarchicalFeatures
from saelab.evaluation.synthetic.power_law import PowerLawFeatures
from saelab.evaluation.synthetic.shrinkage import OrthonormalFeatures, shrinkage_factor
from saelab.evaluation.synthetic.spec import KINDS, PlantedSpec

ROWS = 40_000


def share_on(planted, rows=ROWS):
    """Which features are on in a batch, float64."""
    return (planted.batch(0, rows).coefficients > 0).double()


@pytest.mark.parametrize("data", KINDS)
def test_every_kind_has_the_frequencies_that_it_states(data):
    planted = PlantedSpec(data=data).make()
    p = planted.frequencies()
    assert p.shape == (planted.n_features,)
    standard_errors = (p * (1 - p) / ROWS).sqrt()
    assert ((share_on(planted).mean(0) - p).abs() < 5 * standard_errors).all()


@pytest.mark.parametrize("data", KINDS)
def test_every_kind_is_a_function_of_its_fields_and_the_index(data):
    planted = PlantedSpec(data=data, data_seed=3).make()
    first, again = planted.batch(2, 50), PlantedSpec(data=data, data_seed=3).make().batch(2, 50)
    assert torch.equal(first.x, again.x) and torch.equal(first.coefficients, again.coefficients)
    assert not torch.equal(first.x, planted.batch(3, 50).x)
    assert not torch.equal(first.x, PlantedSpec(data=data, data_seed=4).make().batch(2, 50).x)
    assert torch.allclose(planted.directions().norm(dim=1), torch.ones(planted.n_features), atol=1e-5)


def test_a_power_law_falls_as_stated_and_adds_up():
    planted = PowerLawFeatures(n_features=100, mean_active=4.0, exponent=1.5, offset=3.0)
    p = planted.frequencies()
    assert p.sum().item() == pytest.approx(4.0)
    assert (p[0] / p[12]).item() == pytest.approx((16 / 4) ** 1.5)
    flat = PowerLawFeatures(n_features=100, mean_active=4.0, exponent=0.0).frequencies()
    assert torch.allclose(flat, torch.full((100,), 0.04, dtype=torch.float64))


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.8, 1.0])
def test_two_of_a_group_correlate_as_stated_and_two_groups_do_not(rho):
    planted = CorrelatedFeatures(n_features=6, mean_active=1.2, correlation=rho, group_size=3)
    on = share_on(planted, 200_000)
    found = torch.corrcoef(on.T)
    groups = planted.groups()
    alike = (groups[:, None] == groups[None, :]).double()
    expected = alike * rho + torch.eye(6, dtype=torch.float64) * (1 - rho)
    assert torch.allclose(found, expected, atol=0.015)
    # rho p + (1 - rho) p^2 with p = 0.2: what the correlation is made of.
    both = (on[:, 0] * on[:, 2]).mean().item()
    assert both == pytest.approx(rho * 0.2 + (1 - rho) * 0.04, abs=0.005)


def test_coefficients_of_correlated_features_stay_independent():
    planted = CorrelatedFeatures(n_features=2, mean_active=1.0, correlation=1.0)
    coefficients = planted.batch(0, ROWS).coefficients
    pairs = coefficients[(coefficients > 0).all(1)]
    assert abs(torch.corrcoef(pairs.T)[0, 1].item()) < 5 / len(pairs) ** 0.5


def test_a_child_is_on_only_where_its_parent_is():
    planted = HierarchicalFeatures(n_features=12, mean_active=2.0, children=3, child_share=0.4)
    on = share_on(planted)
    parents, children = on[:, : planted.n_parents], on[:, planted.n_parents :]
    assert planted.n_parents == 3 and planted.parents().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (children <= parents[:, planted.parents()]).all()
    given_parent = (children.sum(0) / parents.sum(0)[planted.parents()]).mean().item()
    assert given_parent == pytest.approx(0.4, abs=0.01)
    # Siblings are independent given their parent: P(both | parent) = 0.16.
    both = (children[:, 0] * children[:, 1]).sum() / parents[:, 0].sum()
    assert both.item() == pytest.approx(0.16, abs=0.015)


def test_the_penalised_code_of_orthonormal_features_is_the_minimum():
    planted = OrthonormalFeatures()
    V, penalty = planted.directions(), 0.6
    assert torch.allclose(V @ V.T, torch.eye(32), atol=1e-5)
    x, coefficients = planted.batch(0, 500)
    f = planted.penalised_code(x, penalty)
    assert torch.allclose(f, (coefficients - 0.3).clamp_min(0), atol=1e-5)
    # First-order conditions of a convex problem: no slope where f > 0, an upward one where f = 0.
    slope = 2 * (f @ V - x) @ V.T + penalty
    assert torch.allclose(slope[f > 0], torch.zeros(int((f > 0).sum())), atol=1e-5)
    assert (slope[f == 0] > 0).all()


@pytest.mark.parametrize("penalty", [0.0, 0.4, 1.0])
def test_shrinkage_is_undone_by_the_stated_factor(penalty):
    planted = OrthonormalFeatures(mean_active=4.0)
    x = planted.batch(0, ROWS).x
    x_hat = planted.penalised_code(x, penalty) @ planted.directions()
    assert shrinkage_factor(x, x_hat) == pytest.approx(planted.best_factor(penalty), rel=2e-3)
    if penalty:
        assert planted.best_factor(penalty) > 1.1
    # Any constant added to either side changes nothing.
    assert shrinkage_factor(x + 3, x_hat - 2) == pytest.approx(shrinkage_factor(x, x_hat), rel=1e-6)


def test_features_that_are_always_on_are_shifted_by_the_penalty_and_not_shrunk():
    planted = OrthonormalFeatures(n_features=8, mean_active=8.0)
    assert planted.best_factor(0.7) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PlantedFeatures(mean_active=0), "mean_active is 0"),
        (lambda: PlantedFeatures(noise=-1.0), "noise is -1"),
        (lambda: ExactlyPlantedFeatures(active=(3, 200)), "every count must be in"),
        (lambda: PowerLawFeatures(mean_active=100.0), "on with probability"),
        (lambda: PowerLawFeatures(exponent=-1.0), "must not be negative"),
        (lambda: CorrelatedFeatures(correlation=1.5), "correlation is 1.5"),
        (lambda: HierarchicalFeatures(children=4), "families of 5 must divide"),
        (lambda: HierarchicalFeatures(mean_active=100.0), "on with probability"),
        (lambda: OrthonormalFeatures(n_features=50), "at most 42"),
        (lambda: OrthonormalFeatures(noise=0.1), "without noise"),
        (lambda: OrthonormalFeatures().best_factor(1.1), "penalty is 1.1"),
        (lambda: PlantedSpec(correlation=0.1, group_size=3).make(), "--correlation, --group-size"),
    ],
)
def test_what_cannot_be_planted_is_refused(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def test_a_specification_hands_its_options_on():
    choices = get_type_hints(PlantedSpec, vars(spec_module) | {"Planted": object})["data"]
    assert get_args(choices) == tuple(KINDS), "what the command offers is what there is"
    spec = PlantedSpec(data="gba", n_features=20, d_in=9, active=(2, 5), data_seed=7)
    assert spec.make() == ExactlyPlantedFeatures(n_features=20, d_in=9, active=(2, 5), seed=7)
