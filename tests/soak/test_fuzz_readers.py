"""Readers of files from strangers: an error of our own type or a correct read, never another exception, and quickly."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import safetensors.torch
import torch
from beartype.door import is_bearable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from soak_damage import (
    Damage,
    damaged_file,
    damages,
    edited_bytes,
    edited_values,
    every_value_edit,
    sealed_manifest,
)

import saelab
from saelab.activations.store import Store
from saelab.errors import SaelabError, UsageError
from saelab.sae.autoencoder import SAEParameters, SparseAutoencoder
from saelab.sae.config import Normalisation, SAEConfig
from saelab.sae.feature_statistics import FeatureAccumulator
from saelab.sae.files import load_feature_statistics, load_sae, save_sae
from saelab.storage.files import write_bytes
from saelab.storage.manifest import MANIFEST_NAME, check_file, digest_of, read_manifest, write_manifest
from saelab.storage.tensors import read_tensors, write_tensors
from saelab.training.run import Run

# What users run has no checks of annotations, which would refuse much before the readers themselves do.
pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("unchecked")]

EXAMPLES = int(os.environ.get("SAELAB_SOAK_EXAMPLES", "10000"))
LONGEST = 1.0
"""Seconds of processor time that an example may take."""
SOAK = settings(
    max_examples=EXAMPLES,
    deadline=None,  # by processor time instead, see LONGEST: the machine may be busy
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


class GoodFolder:
    """A sound folder that is damaged for the length of one example."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != ".lock")
        contents = {p.relative_to(path).as_posix(): p.read_bytes() for p in files}
        self.contents = {MANIFEST_NAME: contents.pop(MANIFEST_NAME), **contents}

    @contextmanager
    def damaged(self, several: list[Damage], seals: bool) -> Iterator[None]:
        """Damage files; where it seals, the manifest has the sizes and checksums of the damaged files."""
        changed = self._changed(several, seals)
        try:
            for name, content in changed.items():
                (self.path / name).write_bytes(content)
            yield
        finally:
            for name in changed:
                (self.path / name).write_bytes(self.contents[name])

    def _changed(self, several: list[Damage], seals: bool) -> dict[str, bytes]:
        names = list(self.contents)
        manifest = json.loads(self.contents[MANIFEST_NAME])
        del manifest["blake2b"]
        on_manifest = [damage for damage in several if damage.file % len(names) == 0]
        changed: dict[str, bytes] = {}
        for damage in several:
            if damage not in on_manifest:
                name = names[damage.file % len(names)]
                changed[name] = damaged_file(name, changed.get(name, self.contents[name]), damage)
                if seals and name in manifest["files"]:
                    facts = {"bytes": len(changed[name]), "blake2b": digest_of(changed[name])}
                    manifest["files"][name] = facts
        for damage in on_manifest:
            if damage.keeps_form:
                manifest = edited_values(manifest, damage)
        if on_manifest or seals:
            changed[MANIFEST_NAME] = sealed_manifest(manifest, several[0])
        for damage in on_manifest:
            if not damage.keeps_form:
                changed[MANIFEST_NAME] = edited_bytes(changed[MANIFEST_NAME], damage)
        return changed


def fuzz(name: str, strategy: st.SearchStrategy[Any], read: Callable[[Any], None]) -> None:
    """Run a reader on many examples; it returns after a correct read and raises when it refuses."""
    counts: Counter[str] = Counter()
    slowest = 0.0

    @SOAK
    @given(strategy)
    def check(example: Any) -> None:
        nonlocal slowest
        gc.disable()  # a full collection walks what hypothesis keeps of all examples, and is not the reader's time
        began = time.process_time()
        try:
            read(example)
            counts["read"] += 1
        except SaelabError as error:
            counts["refused"] += 1
            assert "\n" not in str(error)
        finally:
            taken = time.process_time() - began
            gc.enable()
        slowest = max(slowest, taken)
        assert taken < LONGEST

    began = time.monotonic()
    check()
    print(
        f"\nfuzz of {name}: {sum(counts.values()):,} examples, {counts['read']:,} read and "
        f"{counts['refused']:,} refused, slowest {slowest * 1000:.0f} ms; {time.monotonic() - began:.0f} s"
    )
    # Damage that is always refused, or never, would test one half of the reader only.
    assert counts["read"]
    assert counts["refused"]


def fuzz_folder(name: str, path: Path, read: Callable[[], None]) -> None:
    folder = GoodFolder(path)
    read()  # a sound folder is read, or refusals would mean nothing
    sweep(name, folder, read)

    def read_damaged(example: tuple[list[Damage], bool]) -> None:
        with folder.damaged(*example):
            read()

    several = st.lists(damages, min_size=1, max_size=2)
    fuzz(name, st.tuples(several, st.sampled_from([True, True, True, False])), read_damaged)


def sweep(name: str, folder: GoodFolder, read: Callable[[], None]) -> None:
    """Put every hostile value at every place of every file, one at a time: chance would miss most such pairs."""
    counts: Counter[str] = Counter()
    began = time.monotonic()
    for number, (file, content) in enumerate(folder.contents.items()):
        for edit in every_value_edit(file, content):
            damage = Damage(number, True, (), (edit,), slack=40)
            with folder.damaged([damage], seals=True):
                try:
                    read()
                    counts["read"] += 1
                except SaelabError:
                    counts["refused"] += 1
                except Exception as error:
                    error.add_note(f"{file}: {edit}")
                    raise
    print(
        f"\nsweep of {name}: {sum(counts.values()):,} examples, {counts['read']:,} read and "
        f"{counts['refused']:,} refused; {time.monotonic() - began:.0f} s"
    )


def test_safetensors_files(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"x": torch.arange(12.0).reshape(3, 4), "half": torch.ones(5, dtype=torch.bfloat16)}
    tensors |= {"empty": torch.zeros(0, 3), "flags": torch.tensor([True, False]), "n": torch.tensor(7)}
    write_tensors(path, tensors, {"note": "kept"})
    good = path.read_bytes()

    def read(damage: Damage) -> None:
        content = damaged_file(path.name, good, damage)
        path.write_bytes(content)
        ours = read_tensors(path)
        if content == good:
            assert ours.keys() == tensors.keys()
        try:
            theirs = safetensors.torch.load(content)
        except Exception:
            return  # the reference is stricter, for example about gaps, and knows no better error
        for name, tensor in theirs.items():
            assert ours[name].shape == tensor.shape
            assert ours[name].dtype == tensor.dtype
            assert bytes_of(ours[name]) == bytes_of(tensor)

    fuzz("safetensors files", damages, read)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def test_manifests(tmp_path):
    folder = tmp_path / "folder"
    write_bytes(folder / "data.bin", b"0123456789")
    write_bytes(folder / "deep" / "more.bin", b"abc")
    write_bytes(tmp_path / "outside.bin", b"secret")
    write_manifest(folder, "run", ["data.bin", "deep/more.bin"], {"fact": 1, "list": [1, {"a": None}]})

    def read() -> None:
        manifest = read_manifest(folder)
        assert manifest.version == 1
        for name, facts in manifest.files.items():
            check_file(folder, name, manifest)
            assert (folder / name).resolve().is_relative_to(folder)
            content = (folder / name).read_bytes()
            assert len(content) == facts["bytes"]
            assert hashlib.blake2b(content, digest_size=16).hexdigest() == facts["blake2b"]

    fuzz_folder("manifests", folder, read)


def sae_config(d_in: int, d_sae: int) -> SAEConfig:
    return SAEConfig(
        recipe="topk",
        d_in=d_in,
        d_out=d_in,
        d_sae=d_sae,
        input_hooks=("model.layers.1.output",),
        input_widths=(d_in,),
        output_hooks=("model.layers.1.output",),
        output_widths=(d_in,),
        hook_aliases=("blocks.1.hook_resid_post",),
        input_normalisation=Normalisation(),
        target_normalisation=Normalisation(),
        apply_b_dec_to_input=True,
        has_skip=False,
        attribution=None,
        inference={"name": "per_token", "k": 3},
        units="raw",
        model_identity="",
        model_name="",
        source_identity="",
        tokenizer_hash="",
    )


def test_sae_folders(tmp_path):
    d_in, d_sae = 4, 8
    rng = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(shape, generator=rng) for shape in [(d_in, d_sae), (d_sae,), (d_sae, d_in), (d_in,)]
    ]
    x = torch.randn(6, d_in, generator=rng)
    sae = SparseAutoencoder(sae_config(d_in, d_sae), SAEParameters(*weights))
    statistics = FeatureAccumulator(d_sae)
    statistics.add(sae.encode(x))
    save_sae(tmp_path / "sae", sae, statistics.result())

    def read() -> None:
        loaded = load_sae(tmp_path / "sae")
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            assert torch.isfinite(getattr(loaded, name)).all()
        assert (loaded.W_enc.shape, loaded.W_dec.shape[0]) == (
            (loaded.config.d_in, loaded.config.d_sae),
            d_sae,
        )
        assert loaded.reconstruct(torch.ones(2, loaded.config.d_in)).x_hat.shape == (2, loaded.config.d_out)
        load_feature_statistics(tmp_path / "sae")

    fuzz_folder("SAE folders", tmp_path / "sae", read)


def assert_typed(record: Any) -> None:
    """Compare the fields of a dataclass with their annotations."""
    for name, hint in get_type_hints(type(record)).items():
        assert is_bearable(getattr(record, name), hint), name


def test_stores(tmp_path):
    options: dict[str, Any] = {
        "context": 16,
        "batch_rows": 2,
        "shard_rows": 24,
        "loss": True,
        "gradients": True,
    }
    path = tmp_path / "store"
    saelab.cache(
        "embedded", "stdlib", at="blocks.0.hook_resid_post", tokens=60, out=path, quiet=True, **options
    )
    shutil.rmtree(path / ".lock", ignore_errors=True)

    def read() -> None:
        with Store.open(path) as store:
            for hook in store.hooks:
                for split in ("train", "heldout"):
                    n = store.n_rows(hook, split)
                    rows = store.rows(hook, split, 0, n)
                    assert rows.x.shape == (n, hook.d_in)
                    assert rows.x.dtype == torch.float32
                    assert rows.token_index.shape == (n,)
                    assert (rows.gradients is not None) == hook.has_gradients
                assert store.statistics(hook).mean.shape == (hook.d_in,)
                assert_typed(hook)
            with pytest.raises(UsageError):
                store.hook("missing")
            if spec := store.model_spec():
                assert_typed(spec)
            assert len(store.identity) == 32
            if store.has_tokens:
                assert {type(text) for text in store.sequences.documents.ids} == {str}
                assert len(store.tokens) == len(store.keep) == int(np.sum(store.sequences.documents.lengths))
                assert store.losses is None or len(store.losses) == len(store.tokens)

    fuzz_folder("stores", path, read)


def test_run_folders(tmp_path):
    x = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
    with Store.from_tensors(tmp_path / "store", x) as store:
        saelab.train(
            store, tokens=256, batch=64, width=16, out=tmp_path / "run", quiet=True, recipe_options={"k": 2}
        )
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # not part of a finished run's promise

    def read() -> None:
        run = Run.open(tmp_path / "run")
        assert isinstance(run.store_path, Path)
        assert run.config.steps >= 1
        sae = run.sae()
        assert sae.W_dec.shape == (sae.config.d_sae, sae.config.d_out)

    fuzz_folder("run folders", tmp_path / "run", read)
