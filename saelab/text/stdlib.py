"""The text that every machine with Python has: the standard library's own source.

It is read from the running interpreter and never copied into the project, so it differs a little
between Python versions and builds; stores record the hash of what they read. Nothing here names
the machine: build configuration (`_sysconfigdata*`, `config-*`) and installed packages are left
out, and so are tables of characters and hex dumps, which hold no language.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from saelab.text.documents import HELDOUT_SHARE, Document, move_near_copies_to_train, with_splits

MIN_CHARACTERS = 200
MAX_TABLE_SHARE = 0.15
MAX_HEX_LITERALS = 400
MAX_ESCAPES_IN_ENCODINGS = 200
_TEST_FOLDERS = {"test", "tests", "idle_test"}
_FOREIGN_FOLDERS = {"site-packages", "dist-packages", "__pycache__"}
_ESCAPE = re.compile(r"\\x|\\u|0x")


def stdlib_documents(
    include_tests: bool = False, root: Path | None = None, heldout_share: float = HELDOUT_SHARE
) -> list[Document]:
    """Read the standard library as documents, in the order of the hash of their path.

    The order is fixed but not alphabetical, so that any prefix of the corpus is a fair sample; the
    held-out documents are spread evenly, the first at the front, so that any prefix has some.

    Args:
        include_tests: Also read the interpreter's own test suite, where it is installed. It is
            twice as large as the library itself and would dominate the style.
        root: Folder to read instead of the running interpreter's.
        heldout_share: Share of the documents that is held out.

    Returns:
        Documents with exact copies removed and near copies kept on one side of the split.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    documents = list(with_splits(_read_all(root, include_tests), heldout_share))
    documents.sort(key=lambda document: hashlib.blake2b(document.id.encode()).digest())
    return _spread_heldout(move_near_copies_to_train(documents))


def is_test_file(document_id: str) -> bool:
    """Whether a document of this corpus belongs to a test suite."""
    return not _TEST_FOLDERS.isdisjoint(Path(document_id).parts)


def _spread_heldout(documents: list[Document]) -> list[Document]:
    """Put the held-out documents at equal distances, counted in characters of training text."""
    training = [document for document in documents if document.split == "train"]
    heldout = [document for document in documents if document.split == "heldout"]
    total = sum(len(document.text) for document in training)
    spread, passed = [], 0
    for document in training:
        while heldout and passed >= total * (1 - len(heldout) / (len(documents) - len(training))):
            spread.append(heldout.pop(0))
        spread.append(document)
        passed += len(document.text)
    return spread + heldout


def _read_all(root: Path, include_tests: bool) -> Iterator[Document]:
    seen: set[bytes] = set()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if _is_foreign(name) or (is_test_file(name.as_posix()) and not include_tests):
            continue
        text = _read(path)
        if text is None or len(text) < MIN_CHARACTERS or _is_table(name, text):
            continue
        digest = hashlib.blake2b(text.encode()).digest()
        if digest not in seen:
            seen.add(digest)
            yield Document(id=name.as_posix(), text=text, source="stdlib")


def _read(path: Path) -> str | None:
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (OSError, SyntaxError, UnicodeDecodeError, LookupError):
        return None  # the test suite holds files that are broken on purpose


def _is_foreign(name: Path) -> bool:
    return (
        not _FOREIGN_FOLDERS.isdisjoint(name.parts)
        or name.parts[0].startswith("config-")
        or name.name.startswith("_sysconfigdata")
    )


def _is_table(name: Path, text: str) -> bool:
    if name.parts[0] == "encodings" and text.count("\\x") > MAX_ESCAPES_IN_ENCODINGS:
        return True
    if text.count("0x") > MAX_HEX_LITERALS:
        return True
    return len(_ESCAPE.findall(text)) * len("\\x00aa") > MAX_TABLE_SHARE * len(text)
