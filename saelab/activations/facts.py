"""What a store's manifest says about its content, as checked values: it may come from a stranger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from saelab.activations.layout import is_slug, shard_name, statistics_name
from saelab.activations.spec import ITEM_BYTES, StoredDtype
from saelab.errors import DamagedFileError, UsageError
from saelab.fields import read_fields
from saelab.lm.identity import ModelIdentity
from saelab.lm.spec import ModelSpec


@runtime_checkable
class NamedHook(Protocol):
    """A hookpoint under its two names."""

    @property
    def module_path(self) -> str:
        """Canonical name."""
        ...

    @property
    def alias(self) -> str | None:
        """TransformerLens name, where there is one."""
        ...


HookT = TypeVar("HookT", bound=NamedHook)


def find_hook(hooks: Sequence[HookT], name: str | None, where: object) -> HookT:
    """Find a hookpoint by either spelling; None means the only one.

    Args:
        hooks: Those that there are.
        name: The one that is wanted.
        where: What has them, for the message.

    Raises:
        UsageError: There is none of that name, or several and no name was given.
    """
    found = [hook for hook in hooks if name is None or name in (hook.module_path, hook.alias)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(hook.alias or hook.module_path for hook in hooks)
    if name is None:
        raise UsageError(f"{where} has several hookpoints, choose one: {names}")
    raise UsageError(f"{where} has no hookpoint {name!r}; it has {names}")


@dataclass(frozen=True, kw_only=True)
class StoredHook:
    """A hookpoint whose activations are in a store."""

    module_path: str
    """Canonical name."""
    alias: str | None
    """TransformerLens name, where there is one."""
    slug: str
    """Name of its folder under `hooks/`."""
    d_in: int
    """Width of the activations."""
    dtype: StoredDtype
    """Number format on disk."""
    n_rows: int
    """Rows of both splits together."""
    has_gradients: bool
    """Whether gradients stand beside the activations."""


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """The part of the manifest's content that readers rely on."""

    hooks: tuple[StoredHook, ...]
    """The stored hookpoints."""
    shards: tuple[int, ...]
    """Rows of each shard, the same for every hookpoint."""
    n_tokens: int
    """Length of the token stream (for own activations: of the rows)."""
    n_token_rows: int
    """Rows of tokens."""
    bos_token_id: int
    """The token that begins rows; -1 where there are no tokens."""
    has_loss: bool
    """Whether the losses of all tokens are stored."""
    statistics: dict[str, Any]
    """Scalars of each hookpoint's statistics, by slug."""
    model: ModelIdentity | None
    """The model that made the activations."""
    model_spec: ModelSpec | None
    """How that model was loaded."""
    provenance: dict[str, Any]
    """How the activations were made: text, packing, masks, definitions, counts."""
    notes: tuple[str, ...]
    """What a user should know about the content."""

    def to_content(self) -> dict[str, Any]:
        """Return the manifest's content."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["hooks"] = [asdict(hook) for hook in self.hooks]
        content["shards"] = list(self.shards)
        content["notes"] = list(self.notes)
        content["model"] = None if self.model is None else self.model.to_json()
        content["model_spec"] = None if self.model_spec is None else asdict(self.model_spec)
        return content

    @classmethod
    def from_content(cls, content: dict[str, Any], folder: Path) -> StoreFacts:
        """Read and check a manifest's content.

        Raises:
            DamagedFileError: Something is missing or contradicts itself.
        """
        try:
            spec, model = content["model_spec"], content["model"]
            facts = cls(
                hooks=tuple(
                    read_fields(StoredHook, hook, f"{folder}: hook", DamagedFileError)
                    for hook in content["hooks"]
                ),
                shards=tuple(_count(n) for n in content["shards"]),
                n_tokens=_count(content["n_tokens"]),
                n_token_rows=_count(content["n_token_rows"]),
                bos_token_id=int(content["bos_token_id"]),
                has_loss=bool(content["has_loss"]),
                statistics=dict(content["statistics"]),
                model=None if model is None else ModelIdentity.from_json(model),
                model_spec=None
                if spec is None
                else read_fields(ModelSpec, spec, f"{folder}: model", DamagedFileError),
                provenance=dict(content["provenance"]),
                notes=tuple(str(note) for note in content["notes"]),
            )
            facts._check()
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DamagedFileError(f"{folder}: the manifest does not describe a store ({error})") from error
        return facts

    def _check(self) -> None:
        total = sum(self.shards)
        for hook in self.hooks:
            if not is_slug(hook.slug) or not isinstance(hook.module_path, str):
                raise ValueError(f"hook {hook.module_path!r} has the folder name {hook.slug!r}")
            if hook.dtype not in ITEM_BYTES or _count(hook.d_in) == 0 or _count(hook.n_rows) != total:
                raise ValueError(f"hook {hook.module_path!r}: dtype {hook.dtype!r}, {hook.n_rows!r} rows")
        if not self.hooks or len({hook.slug for hook in self.hooks}) < len(self.hooks):
            raise ValueError("no hooks, or two of one name")
        if not total <= self.n_tokens:
            raise ValueError(f"{total} rows from {self.n_tokens} tokens")

    def data_names(self) -> list[str]:
        """Return the names of the files of every hookpoint: shards and statistics."""
        shards = [shard_name(hook.slug, i) for hook in self.hooks for i in range(len(self.shards))]
        return shards + [statistics_name(hook.slug) for hook in self.hooks]


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**62:
        raise ValueError(f"{value!r} is not a count")
    return value
