"""kill -9 at random moments: the same command ends with the same bytes as if undisturbed. One line a command."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import data_files, start, start_python
from soak_kills import LIMIT, PHASES, Team, Work, run_undisturbed

import saelab
from saelab.activations.store import Store
from saelab.storage.manifest import read_manifest

pytestmark = pytest.mark.soak

KILLS = int(os.environ.get("SAELAB_SOAK_KILLS", "50"))
KILLS_OF_ONE_FOLDER = 6

CACHE = """
import sys
import saelab

saelab.cache("embedded", "stdlib", at="blocks.1.hook_resid_post", tokens=sys.argv[2], out=sys.argv[1],
             context=64, batch_rows=8, shard_rows=1024, loss=True, quiet=True)
"""
BATCH = 256
TRAIN = f"train {{store}} --width x8 --tokens 120k --batch {BATCH} --checkpoint-every 25"
LIVE = (
    "train embedded stdlib --at blocks.1.hook_resid_post --k 8 --width x4 --tokens 30k --batch 256 "
    "--checkpoint-every 10 --pool-rows 4096 --context 64 --batch-rows 8"
)


def cache(tokens: str) -> Callable[[Path, Path], subprocess.Popen[str]]:
    """Start a cache of so many tokens, in shards that are small enough for a short test."""
    return lambda inputs, out: start_python(CACHE, out, tokens)


def command(line: str) -> Callable[[Path, Path], subprocess.Popen[str]]:
    """Start a command; ``{store}`` stands for a store that is there."""
    return lambda inputs, out: start(*line.format(store=inputs / "store").split(), "--out", out)


def last_checkpoint(tokens: int, folder: str = "checkpoints") -> str:
    """Return the file that is there when the last step was done."""
    return f"{folder}/step-{tokens // BATCH:06d}/manifest.json"


INDEX = """
import sys
from pathlib import Path
from saelab.features.building import encode
from saelab.features.indexing import HowToIndex, index_runs
from saelab.training.run import Run

encode.SHARD_TOKENS = 2 * encode.TILE
index_runs([Run.open(sys.argv[1])], how=HowToIndex(out=Path(sys.argv[2]), quiet=True))
"""


def index() -> Callable[[Path, Path], subprocess.Popen[str]]:
    """Start an index of a run that is there, in shards that are small enough for a short test."""
    return lambda inputs, out: start_python(INDEX, inputs / "run", out)


WORKS = {
    "index": Work(
        start=index(),
        first_file="*/indexes/.building-main/request.json",
        finishing_file="*/indexes/.building-main/examples.parquet",
    ),
    "cache": Work(start=cache("10k"), first_file="config.json", finishing_file="rows.bin"),
    "cache by two writers": Work(
        start=cache("40k"), first_file="config.json", finishing_file="rows.bin", processes=2
    ),
    "train": Work(
        start=command(f"{TRAIN} --k 8"),
        first_file="environment.json",
        finishing_file=last_checkpoint(120_000),
    ),
    "train a group": Work(
        start=command(f"{TRAIN} --k 4 8"),
        first_file="topk-k4-f512-s0/environment.json",
        finishing_file=last_checkpoint(120_000, "checkpoints/pass-000"),
    ),
    "train live": Work(
        start=command(LIVE), first_file="environment.json", finishing_file=last_checkpoint(30_000)
    ),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What the commands read."""
    folder = tmp_path_factory.mktemp("inputs")
    x = torch.randn(16_384, 64, generator=torch.Generator().manual_seed(0))
    Store.from_tensors(folder / "store", x).close()
    hook = "blocks.1.hook_resid_post"
    of_text = saelab.cache("embedded", "stdlib", at=hook, tokens="30k", out=folder / "of-text", quiet=True)
    options = {"recipe_options": {"k": 8}, "width": 512, "tokens": "20k", "batch": 512, "quiet": True}
    saelab.train(of_text, "topk", out=folder / "run", **options)
    return folder


def kill_at_random(
    work: Work, inputs: Path, place: Path, durations: list[float], check: Callable[[Path], None]
) -> Counter[str]:
    """Kill processes again and again, and check every folder once all its processes have run to their end.

    Returns:
        In which phase the kills came, and under ``folders`` how many folders were checked.
    """
    rng = random.Random(0)
    counts: Counter[str] = Counter()
    kills = 0
    while kills < KILLS:
        team, here, ended = Team(work, inputs, place / f"folder-{counts['folders']}"), 0, False
        while not ended:
            team.start_missing()
            if here >= KILLS_OF_ONE_FOLDER or kills >= KILLS:
                ended = team.ended(within=LIMIT)
                assert ended, f"{team.folder}: no end within {LIMIT} s"
                continue
            aim = rng.randrange(len(PHASES))
            delay = rng.uniform(0, durations[aim])
            ended = not team.reached(aim) or team.ended(within=delay)
            if not ended:
                phase, killed = PHASES[team.phase], team.kill(rng)
                counts[phase] += killed
                kills, here = kills + killed, here + killed
        check(team.folder)
        shutil.rmtree(team.folder)
        counts["folders"] += 1
    return counts


@pytest.mark.parametrize("name", WORKS)
def test_a_command_that_is_killed_anywhere_ends_with_the_same_bytes(name, inputs, tmp_path):
    work, began = WORKS[name], time.monotonic()
    durations = run_undisturbed(work, inputs, tmp_path / "straight")
    wanted = data_files(tmp_path / "straight")
    # The kills are worth something only if there was work to lose.
    if name.startswith("cache"):
        assert len(read_manifest(tmp_path / "straight", "store").content["shards"]) >= 5

    def check(folder: Path) -> None:
        found = data_files(folder)
        assert found.keys() == wanted.keys()
        assert [file for file in wanted if found[file] != wanted[file]] == []

    counts = kill_at_random(work, inputs, tmp_path, durations, check)
    by_phase = ", ".join(
        f"{counts[phase]} in {phase} ({s:.2f} s)" for phase, s in zip(PHASES, durations, strict=True)
    )
    print(
        f"\nkill -9 of {name}: {sum(counts[phase] for phase in PHASES)} kills, {by_phase}; "
        f"{counts['folders']} folders of {len(wanted)} files equal; {time.monotonic() - began:.0f} s"
    )
    if KILLS >= 50:
        assert all(counts[phase] for phase in PHASES), "a phase was never hit: the test shows too little"
