"""`python -m saelab.training --config FILE --store STORE --out RUN`: train where only torch is installed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from saelab.activations.aligned import open_stores
from saelab.errors import Interrupted, SaelabError, UsageError
from saelab.interrupts import stop_on_signals
from saelab.storage.files import read_json
from saelab.training.config import train_config_from_json
from saelab.training.passes import HowToTrain
from saelab.training.single import train_run
from saelab.training.warm_start import open_warm_start
from saelab_kernels.dispatch import BackendError


def main(arguments: list[str] | None = None) -> None:
    """Train from a saved configuration, or finish an interrupted run."""
    parser = argparse.ArgumentParser(prog="python -m saelab.training", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="config.json of a run, or one like it")
    parser.add_argument(
        "--store", type=Path, nargs="+", required=True, help="activation store, or several of the same tokens"
    )
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument(
        "--resume", choices=("exact", "plain"), default="exact", help="with other threads or kernels"
    )
    parser.add_argument(
        "--init-from", type=Path, help="run or SAE to start from, where the configuration names one"
    )
    options = parser.parse_args(arguments)
    config = train_config_from_json(read_json(options.config), str(options.config))
    source = open_stores(options.store)
    warm = None if options.init_from is None else open_warm_start(options.init_from)
    with stop_on_signals() as stop:
        train_run(config, source, options.out, HowToTrain(stop=stop, resume=options.resume, warm=warm))


if __name__ == "__main__":
    try:
        main()
    except BackendError as error:
        sys.stderr.write(f"saelab.training: {error}\n")
        sys.exit(2)
    except SaelabError as error:
        sys.stderr.write(f"saelab.training: {error}\n")
        sys.exit(2 if isinstance(error, UsageError) else 130 if isinstance(error, Interrupted) else 1)
