"""The direction of imports, file sizes and light imports: what docs/architecture.md promises."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED = {"errors", "fields", "storage", "progress", "interrupts", "memory", "quantities"}
# Each room and the rooms that it may import, besides the shared ones and itself.
ROOMS = {
    "storage": set(),
    "text": set(),
    "lm": {"text"},
    "activations": {"lm", "text", "kernels"},
    "sae": {"kernels"},
    "training": {"activations", "sae", "kernels"},
    "interop": {"features", "training", "sae", "lm", "kernels"},
    "evaluation": {"training", "activations", "sae", "lm", "text", "kernels"},
    "features": {"evaluation", "training", "activations", "sae", "lm", "text", "kernels"},
    "viz": {"evaluation", "features", "text"},
    "api": {"viz", "features", "interop", "evaluation", "training", "activations", "sae", "lm", "text"},
    "demo": {"api", "viz", "features", "evaluation", "training", "activations", "sae", "lm", "text"},
    "cli": {
        "api",
        "demo",
        "viz",
        "features",
        "interop",
        "evaluation",
        "training",
        "activations",
        "sae",
        "lm",
        "text",
        "kernels",
    },
}
# These write annotations with the kernels package's shape shim; it holds no logic.
SHIM_USERS = {"lm", "storage"}


def python_files():
    return [
        p for folder in ("saelab", "kernels", "app", "scripts") for p in sorted((ROOT / folder).rglob("*.py"))
    ]


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "saelab").parts
    return parts[0].removesuffix(".py")


def imported_modules(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize(
    "path", sorted((ROOT / "saelab").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_point_one_way(path):
    room = room_of(path)
    if room in SHARED - {"storage"} or room == "__init__":
        allowed = (
            SHARED | {"api", "activations", "features", "training", "lm", "text"}
            if room == "__init__"
            else SHARED
        )
    else:
        allowed = ROOMS[room] | SHARED | {room}
    for module in imported_modules(path):
        top, *rest = module.split(".")
        if top == "saelab" and rest:
            assert rest[0] in allowed, f"{path.relative_to(ROOT)} imports {module}"
        if top == "saelab_kernels" and "kernels" not in allowed:
            assert room in SHIM_USERS and module == "saelab_kernels.shapes", f"{path} imports {module}"
        assert top != "saelab_app", f"{path} imports the app"


def test_the_kernels_package_stands_alone():
    for path in (ROOT / "kernels").rglob("*.py"):
        for module in imported_modules(path):
            top = module.split(".")[0]
            assert (
                top
                in {"torch", "saelab_kernels", "jaxtyping", "numba", "llvmlite", "numpy", "triton"}
                | sys.stdlib_module_names
            ), path


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_holds_at_most_350_lines(path):
    assert len(path.read_text().splitlines()) <= 350


@pytest.mark.parametrize(
    "command",
    [
        *("", "hooks", "cache", "train", "evaluate", "compare", "synthetic", "import", "export"),
        *("index", "find", "encode", "report", "labels", "verify", "ls", "demo", "bench"),
    ],
)
def test_help_imports_no_torch(command):
    script = (
        "import sys; from saelab.cli.main import run\n"
        f"assert run({[command, '--help'] if command else ['--help']!r}) == 0\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'datasets', 'pandas'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: saelab" in done.stdout


def test_training_runs_with_torch_and_file_formats_alone(tmp_path):
    """A bare GPU machine has none of the other packages."""
    script = (
        "import sys\n"
        "for name in ('transformers', 'tokenizers', 'transformer_lens', 'tyro', 'tqdm', 'jaxtyping', 'beartype',\n"
        "             'datasets', 'streamlit', 'plotly', 'wandb', 'tensorboard', 'numba'):\n"
        "    sys.modules[name] = None\n"
        "import json, torch, pathlib\n"
        "from saelab.activations.store import Store\n"
        "from saelab.training.__main__ import main\n"
        "from saelab.api import train_config\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "store = Store.from_tensors(folder / 'store', torch.randn(2000, 8))\n"
        "config = train_config(store, 'topk', recipe_options={'k': 2}, width=16, tokens=640, batch=64)\n"
        "(folder / 'config.json').write_text(json.dumps(config.to_json()))\n"
        "options = {'--config': 'config.json', '--store': 'store', '--out': 'run'}\n"
        "main([part for name, place in options.items() for part in (name, str(folder / place))])\n"
        "print((folder / 'run' / 'manifest.json').exists())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True"


def test_the_project_speaks_of_no_machine():
    """No absolute path of a machine and no package index in what is shipped."""
    for path in [*python_files(), ROOT / "pyproject.toml", ROOT / "constraints.txt", ROOT / "Makefile"]:
        text = path.read_text()
        for word in ("/work/", "/root/", "index-url", "find-links"):
            assert word not in text, f"{path}: {word}"
