"""The three commands that write, small enough that each can be broken many times."""

from pathlib import Path

HOOK = "blocks.0.hook_resid_post"
FOLDERS = {"cache": "cached", "train": "run", "evaluate": "overlay"}
"""Which folder each command writes."""


def commands(inputs: Path, out: Path) -> dict[str, list[str]]:
    """Return the commands; ``inputs`` holds a text, a store and a run."""
    found = {
        "cache": [
            *("cache", "embedded", inputs / "text.jsonl", "--at", HOOK, "--tokens", 900, "--context", 32),
            *("--loss", "--heldout-share", 0.2),
        ],
        "train": [
            *("train", inputs / "store", "--k", 2, "--width", 24, "--tokens", 1280, "--batch", 64),
            *("--checkpoint-every", 5),
        ],
        "evaluate": ["evaluate", inputs / "run", "--tokens", 500],
    }
    return {name: [*map(str, found[name]), "--out", str(out / FOLDERS[name])] for name in found}
