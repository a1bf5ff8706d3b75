"""Names and helpers that several test files here use."""

from pathlib import Path

RESID_0, RESID_1 = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"


def data_files(folder: Path) -> dict[str, bytes]:
    """Every data file of a store, by name: not the lock, not which store it was before."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "history.json")
    }


def all_rows(store, hook, split="train"):
    """All rows of one hookpoint in a split."""
    return store.rows(hook, split, 0, store.n_rows(hook, split))
