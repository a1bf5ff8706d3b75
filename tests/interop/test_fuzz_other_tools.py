"""Damaged files of other tools: an error of our own type or a correct read, never another exception, and quickly."""

import json
import os
import shutil
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interop_cases import CASES, FIXTURES, case

from saelab.errors import SaelabError
from saelab.interop.read import load_foreign, read_foreign

# What users run has no checks of annotations, which would refuse much before the readers themselves do.
pytestmark = pytest.mark.usefixtures("unchecked")
LONGEST = 1.0
"""Seconds of processor time that an example may take."""
SOAK_EXAMPLES = int(os.environ.get("SAELAB_SOAK_EXAMPLES", "10000"))
CHECKS = [
    HealthCheck.function_scoped_fixture,
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from(
        [2**31, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", "topk", "none", [], {}, [[1]]]
    ),
)


@pytest.fixture(scope="module", autouse=True)
def loaded():
    """Read one of each first: loading modules and kernels is not the readers' time."""
    for name in CASES:
        sae = load_foreign(case(name).read())
        sae(torch.zeros(2, sae.config.d_in))


def damage_bytes(data, file):
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content) - 1, 2500)))
        content[place] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])


def damage_value(data, file):
    raw = json.loads(file.read_text())
    table = raw
    for name in ("trainer", "metadata", "activation_fn_kwargs", "dataset_average_activation_norm"):
        if name in table and data.draw(st.booleans()):
            table = table[name]
            break
    key = data.draw(st.sampled_from(sorted(table)))
    if data.draw(st.booleans()):
        table[key] = data.draw(VALUES)
    else:
        del table[key]
    file.write_text(json.dumps(raw))


def read_damaged(data, folder):
    name = data.draw(st.sampled_from(CASES))
    shutil.copytree(FIXTURES / name / "sae", folder / "sae")
    files = sorted(path for path in (folder / "sae").rglob("*") if path.is_file())
    file = data.draw(st.sampled_from(files))
    is_value = file.suffix == ".json" and data.draw(st.booleans())
    (damage_value if is_value else damage_bytes)(data, file)
    began = time.process_time()
    try:
        sae = load_foreign(read_foreign(folder / case(name).about["sae"], allow_pickle=True))
        x = torch.zeros(2, sae.config.d_in)
        assert sae(x).shape == (2, sae.config.d_out)
    except SaelabError:
        pass
    finally:
        shutil.rmtree(folder)
    assert time.process_time() - began < LONGEST


@settings(max_examples=150, deadline=None, suppress_health_check=CHECKS)
@given(data=st.data())
def test_damage_anywhere(data, tmp_path_factory):
    read_damaged(data, tmp_path_factory.mktemp("damaged"))


@pytest.mark.soak
@settings(max_examples=SOAK_EXAMPLES, deadline=None, print_blob=True, suppress_health_check=CHECKS)
@given(data=st.data())
def test_damage_anywhere_for_long(data, tmp_path_factory):
    read_damaged(data, tmp_path_factory.mktemp("damaged"))
