"""The loop in Python: cache, train, evaluate, index, load. `import saelab` offers these names without loading torch."""

from saelab.api.comparing import compare
from saelab.api.data import cache, cache_inputs, hooks, live, open_store
from saelab.api.evaluating import evaluate, evaluate_many
from saelab.api.finding import encode, find
from saelab.api.indexing import build_index, open_index
from saelab.api.interop import export, import_sae, load
from saelab.api.reporting import report, show
from saelab.api.training import train, train_config, train_grid

__all__ = [
    "build_index",
    "cache",
    "cache_inputs",
    "compare",
    "encode",
    "evaluate",
    "evaluate_many",
    "export",
    "find",
    "hooks",
    "import_sae",
    "live",
    "load",
    "open_index",
    "open_store",
    "report",
    "show",
    "train",
    "train_config",
    "train_grid",
]
