"""A process that does one variant's training steps on request; also, as a script, other libraries' steps.

Run as a script by an interpreter that has those libraries, it must import nothing of ours. Requests and replies
are JSON, one a line, on standard input and output; batches come from a file of raw float32: `W_dec [d_sae, d_in]`,
then the batches `[batch, d_in]`.

    {"do": "start", ...fields of Setup}  -> {"versions": {...}}
    {"do": "step", "batch": 0}           -> {"wall": seconds, "cpu": seconds, "loss": squared error of a token}
    {"do": "finish"}                     -> {"memory": bytes}, and the process ends
    anything that fails                  -> {"error": "KindOfError: message"}

Memory is the peak above what the process held after its imports and one step of a tiny problem (thread pools and
compiled code then exist); on CUDA the peak of torch's allocator, with the copy of weights and moments that recording
a CUDA graph needs once. All variants start from the same weights, with
zero biases and a constant learning rate, and use Adam.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Setup:
    """One variant's problem."""

    variant: str
    d_in: int
    d_sae: int
    k: int
    batch: int
    data: str
    """File of the weights and batches."""
    device: str
    threads: int
    lr: float
    backend: str | None
    """Backend of our own variants."""
    clip: float
    aux_k: int
    n_dead: int

    def tiny(self) -> Setup:
        """A problem that costs nothing, for what a first step does once.

        As large a share of the features is kept: backends choose their way by it, and the first step is to compile
        what the others run.
        """
        d_sae = min(64, self.d_sae)
        k, aux_k, n_dead = (max(1, n * d_sae // self.d_sae) for n in (self.k, self.aux_k, self.n_dead))
        batch = min(32, self.batch)
        return dataclasses.replace(self, d_in=16, d_sae=d_sae, k=k, batch=batch, aux_k=aux_k, n_dead=n_dead)


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step in two parts."""

    run: Callable[[Any], Any]
    """From a batch to whatever `loss` needs; this is what is timed."""
    loss: Callable[[Any], float] | None
    """From that to the squared error of a token, its mean over the batch; None for a part of the bound."""


MakeStep = Callable[[Setup, Any], Step]
"""From a setup and `W_dec [d_sae, d_in]` on its device, which it may keep."""


def serve(variants: Mapping[str, MakeStep], packages: tuple[str, ...]) -> None:
    """Answer requests until `finish` or the end of the input."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no reply
    worker = None
    for line in sys.stdin:
        request = json.loads(line)
        task = request.pop("do")
        try:
            if task == "start":
                worker = Worker(Setup(**request), variants)
                reply = {"versions": _versions(packages)}
            else:
                assert worker is not None, "start comes first"
                reply = worker.step(request["batch"]) if task == "step" else {"memory": worker.memory()}
        except Exception as error:
            reply = {"error": describe(error)}
        replies.write(json.dumps(reply) + "\n")
        if task == "finish":
            return


def describe(error: Exception) -> str:
    """Kind, message and place of an error in one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} ({Path(place.filename).name}, line {place.lineno})"


class Worker:
    """One variant at work."""

    def __init__(self, setup: Setup, variants: Mapping[str, MakeStep]) -> None:
        import torch

        torch.set_num_threads(setup.threads)
        torch.manual_seed(0)
        self._setup, make = setup, variants[setup.variant]
        tiny = setup.tiny()
        rows = torch.nn.functional.normalize(torch.randn(tiny.d_sae, tiny.d_in), dim=1)
        first = make(tiny, rows.to(tiny.device))
        self._check(first, first.run(torch.randn(tiny.batch, tiny.d_in, device=tiny.device)))
        del first, rows
        self._baseline = start_of_memory(setup.device)
        self._step = make(setup, self._read(0, setup.d_sae).to(setup.device))

    def step(self, batch: int) -> dict[str, float | None]:
        """One step on a batch of the file."""
        setup = self._setup
        x = self._read(setup.d_sae + batch * setup.batch, setup.batch).to(setup.device)
        result, wall, cpu = timed(lambda: self._step.run(x), setup.device)
        return {"wall": wall, "cpu": cpu, "loss": self._check(self._step, result)}

    def _check(self, step: Step, result: Any) -> float | None:
        """The loss of a step's result (ArithmeticError where it is not finite)."""
        if step.loss is None:
            return None
        loss = step.loss(result)
        if not abs(loss) < float("inf"):
            raise ArithmeticError(f"{self._setup.variant}: the loss is {loss}")
        return loss

    def memory(self) -> int:
        """Bytes at the peak, above the baseline."""
        return peak_memory(self._setup.device) - self._baseline

    def _read(self, first_row: int, rows: int) -> Any:
        import torch

        size = 4 * self._setup.d_in
        content = bytearray(rows * size)
        with Path(self._setup.data).open("rb") as file:
            file.seek(first_row * size)
            assert file.readinto(content) == len(content), "the file of batches is too short"
        return torch.frombuffer(content, dtype=torch.float32).view(rows, self._setup.d_in)


def timed(call: Callable[[], Any], device: str) -> tuple[Any, float, float]:
    """The result of a call, its seconds (on CUDA by events) and the CPU seconds of all threads of this process."""
    if device == "cpu":
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        return result, time.perf_counter() - wall, time.process_time() - cpu
    import torch

    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    cpu = time.process_time()
    first.record()
    result = call()
    last.record()
    torch.cuda.synchronize()
    return result, first.elapsed_time(last) / 1e3, time.process_time() - cpu


def start_of_memory(device: str) -> int:
    """Bytes held now; the peak is counted from here on."""
    gc.collect()
    if device != "cpu":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if sys.platform != "linux":
        return peak_memory(device)
    with contextlib.suppress(
        OSError
    ):  # where it is forbidden, the peak of the imports may hide a smaller one
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
    return _resident("VmRSS")


def peak_memory(device: str) -> int:
    """Bytes at the peak."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":  # not ru_maxrss, which a child inherits from its parent
        return _resident("VmHWM")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def saelens(setup: Setup, W_dec: Any, *, sparse: bool = False, bf16: bool = False) -> Step:
    """SAELens: `SAETrainer.step`, which counts firing, clips at 1 and never normalises the decoder.

    Sparse activations need `rescale_acts_by_decoder_norm=False` on a CPU (no views of sparse tensors there).
    """
    sae_lens, trainers = import_module("sae_lens"), import_module("sae_lens.training.sae_trainer")
    config = sae_lens.TopKTrainingSAEConfig(
        d_in=setup.d_in,
        d_sae=setup.d_sae,
        k=setup.k,
        device=setup.device,
        use_sparse_activations=sparse,
        rescale_acts_by_decoder_norm=not (sparse and setup.device == "cpu"),
    )
    sae = sae_lens.TopKTrainingSAE(config)
    sae.W_dec.data.copy_(W_dec)
    sae.W_enc.data.copy_(W_dec.t())
    how = import_module("sae_lens.config").SAETrainerConfig(
        total_training_samples=10**6 * setup.batch,
        train_batch_size_samples=setup.batch,
        lr=setup.lr,
        lr_end=setup.lr,
        device=setup.device,
        autocast=bf16,
    )
    trainer = trainers.SAETrainer(how, sae, data_provider=iter(()))

    def run(x: Any) -> Any:
        output = trainer.step(x)
        trainer.n_training_steps += 1
        return output

    return Step(run, lambda output: float(output.losses["mse_loss"]))


def dictionary_learning(setup: Setup, W_dec: Any, *, bf16: bool = False) -> Step:
    """dictionary_learning: `TopKTrainer.update`, which projects, clips at 1, normalises and returns the loss.

    The step numbers begin with 1: at 0 it would move `b_dec`. With `bf16`, autocast and a batch in bfloat16, as
    its `trainSAE(autocast_dtype=torch.bfloat16)` on CUDA; that function never autocasts on a CPU.
    """
    import torch

    top_k = import_module("dictionary_learning.trainers.top_k")
    trainer = top_k.TopKTrainer(
        steps=10**6,
        activation_dim=setup.d_in,
        dict_size=setup.d_sae,
        k=setup.k,
        layer=0,
        lm_name="none",
        lr=setup.lr,
        warmup_steps=0,
        device=setup.device,
    )
    trainer.ae.decoder.weight.data.copy_(W_dec.t())
    trainer.ae.encoder.weight.data.copy_(W_dec)
    done = 0

    def run(x: Any) -> float:
        nonlocal done
        done += 1
        with torch.autocast(setup.device, torch.bfloat16, enabled=bf16):
            return trainer.update(done, x.to(torch.bfloat16) if bf16 else x)

    return Step(run, float)


def sparsify(setup: Setup, W_dec: Any, *, bf16: bool = False) -> Step:
    """sparsify: the step of `Trainer.fit`, which cannot be called alone, in its order; Adam in place of signum.

    It never clips, and autocasts to bfloat16 on CUDA by itself. Triton is switched off on a CPU, where it fails.
    """
    if setup.device == "cpu":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    import torch

    module, configs = import_module("sparsify.sparse_coder"), import_module("sparsify.config")
    torch.set_float32_matmul_precision("high")
    sae = module.SparseCoder(
        setup.d_in, configs.SparseCoderConfig(num_latents=setup.d_sae, k=setup.k), device=setup.device
    )
    sae.W_dec.data.copy_(W_dec)
    sae.encoder.weight.data.copy_(W_dec)
    adam = torch.optim.Adam(sae.parameters(), lr=setup.lr)
    since_fired = torch.zeros(setup.d_sae, dtype=torch.long, device=setup.device)
    did_fire = torch.zeros(setup.d_sae, dtype=torch.bool, device=setup.device)

    def run(x: Any) -> tuple[float, Any]:
        sae.set_decoder_norm_to_unit_norm()
        variance = (x - x.mean(0)).pow(2).sum()
        with torch.autocast(setup.device, torch.bfloat16, enabled=bf16):
            out = sae(x, x, dead_mask=None, total_variance=variance)
        did_fire[out.latent_indices.flatten()] = True
        fvu = float(out.fvu.detach())
        (out.fvu + out.multi_topk_fvu / 8).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        since_fired.add_(len(x))
        since_fired[did_fire] = 0
        did_fire.zero_()
        return fvu, variance

    return Step(run, lambda found: found[0] * float(found[1]) / setup.batch)


VARIANTS: dict[str, MakeStep] = {
    "saelens": saelens,
    "saelens-bf16": lambda setup, W_dec: saelens(setup, W_dec, bf16=True),
    "saelens-sparse": lambda setup, W_dec: saelens(setup, W_dec, sparse=True),
    "dictionary-learning": dictionary_learning,
    "dictionary-learning-bf16": lambda setup, W_dec: dictionary_learning(setup, W_dec, bf16=True),
    "sparsify": sparsify,
    "sparsify-bf16": lambda setup, W_dec: sparsify(setup, W_dec, bf16=True),
}
PACKAGES = ("torch", "triton", "sae-lens", "dictionary-learning", "eai-sparsify")


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose files have names that other packages may look for
    serve(VARIANTS, PACKAGES)
