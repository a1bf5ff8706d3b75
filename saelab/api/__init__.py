"""The loop in Python: cache, train, evaluate, load. `import saelab` offers these names without loading torch."""

from saelab.api.comparing import compare
from saelab.api.data import cache, cache_inputs, hooks, live, open_store
from saelab.api.evaluating import evaluate, evaluate_many
from saelab.api.interop import export, import_sae, load
from saelab.api.training import train, train_config, train_grid

__all__ = [
    "cache",
    "cache_inputs",
    "compare",
    "evaluate",
    "evaluate_many",
    "export",
    "hooks",
    "import_sae",
    "live",
    "load",
    "open_store",
    "train",
    "train_config",
    "train_grid",
]
