"""Read a feature index: what every feature of an SAE does, looked up in milliseconds.

index = open_index("runs/topk")
page = index.features(FeatureFilter(alive=True, text="import"), sort="density", limit=10)
view = index.feature(page.rows[0].feature)
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from saelab.errors import DamagedFileError, UsageError
from saelab.features.codes import CodeShard, read_shard
from saelab.features.labels.places import shown_labels_of
from saelab.features.queries.by_token import TokenSearch, search_tokens, tokens_containing
from saelab.features.queries.database import Database
from saelab.features.queries.examples import ExampleReader, require_context, require_kind
from saelab.features.queries.facts import IndexFacts
from saelab.features.queries.filters import FeatureFilter, require_text
from saelab.features.queries.nearest import Nearest, nearest_rows
from saelab.features.queries.opened import FILE_OF_PART, check_index
from saelab.features.queries.pages import MAX_PAGE, Page, Sort, read_page, require_limit
from saelab.features.queries.places import find_index, require_same_sae, run_of_index
from saelab.features.queries.related import read_companions, read_neighbors
from saelab.features.queries.rows import read_detail, read_names, read_row, read_rows
from saelab.features.records import Companion, Example, FeatureDetail, FeatureRow, FeatureView, Neighbor
from saelab.features.schema import NEAR
from saelab.training.run import SAE
from saelab_kernels.shapes import Float, Tensor

CONTEXT = 32
"""Tokens shown on either side of an example's peak."""


class FeatureIndex(IndexFacts):
    """A finished feature index; get one with `open_index` or `FeatureIndex.open`.

    Reading is safe from several threads. Files are checked for size and columns when the index is opened; checksums are
    compared by ``saelab verify``.
    """

    def __init__(self, path: Path, run: Path | None) -> None:
        super().__init__(check_index(path), run)
        if run is not None:
            require_same_sae(path, self.sae_identity, run)
        self._database = Database(path, self._opened.tables)
        self._examples = ExampleReader(
            self._database, self._corpus, self._opened.n_documents, self.n_vocabulary
        )
        self._labels: Mapping[int, str] = MappingProxyType({})

    @classmethod
    def open(cls, path: Path | str) -> FeatureIndex:
        """Open the index in a folder.

        Raises:
            DamagedFileError: It was never finished, or a file is not what the manifest says.
            UsageError: It lies in a run whose SAE is another.
        """
        path = Path(path)
        return cls(path, run_of_index(path))

    @property
    def is_current(self) -> bool:
        """Whether the folder still holds the index that was opened, and not one built since."""
        return self._database.is_current

    @property
    def labels(self) -> Mapping[int, str]:
        """What features are called by people or programs."""
        return self._labels

    def use_labels(self, labels: Mapping[int, str]) -> None:
        """Show these labels from now on, and search them; they are not written anywhere.

        Raises:
            UsageError: One is of a feature that there is not.
        """
        known = {self._checked(feature): text for feature, text in labels.items()}
        self._database.put_labels(known)
        self._labels = MappingProxyType(known)

    def features(
        self,
        where: FeatureFilter | None = None,
        sort: str = Sort.FEATURE,
        *,
        descending: bool = False,
        limit: int = 100,
        offset: int = 0,
    ) -> Page:
        """Return some of the features that meet a condition, and how many do.

        Args:
            where: The condition; None for all features.
            sort: A name of `Sort`; ties are in the order of the features, undefined numbers come last.
            descending: Largest first.
            limit: Rows of the page.
            offset: Rows before it.

        Raises:
            UsageError: A value is out of range, or a condition needs what the index does not have.
        """
        where = where or FeatureFilter()
        where.check()
        for feature in where.features or ():
            self._checked(feature)
        for token in (*where.promotes, *where.active_on):
            self._check_token(token)
        if where.promotes:
            self._require_logits()
        if where.min_max_decoder_cosine is not None or sort == Sort.MAX_DECODER_COSINE:
            self._require("neighbors")
        if where.active_on:
            self._database.require_active_on()
        return read_page(self._database, where, sort, descending=descending, limit=limit, offset=offset)

    def rows(self) -> list[FeatureRow]:
        """Return the numbers of every feature, page by page."""
        starts = range(0, self.d_sae, MAX_PAGE)
        return [row for start in starts for row in self.features(limit=MAX_PAGE, offset=start).rows]

    def row(self, feature: int) -> FeatureRow:
        """Return the numbers of a feature; UsageError where there is no such feature."""
        return read_row(self._database, self._checked(feature))

    def detail(self, feature: int) -> FeatureDetail:
        """Return the histograms and token lists of a feature; UsageError where there is no such feature."""
        return read_detail(self._database, self._checked(feature), self.n_vocabulary)

    def feature(self, feature: int, *, context: int | None = CONTEXT) -> FeatureView:
        """Return all that the index knows of a feature.

        Args:
            feature: Its index.
            context: Tokens shown on either side of an example's peak; None for whole rows.

        Raises:
            UsageError: There is no such feature.
            DamagedFileError: A table is not sound.
        """
        feature = self._checked(feature)
        require_context(context)
        examples = self._examples.of_all_kinds(feature, context)
        if self.has("near-miss"):
            examples["near-miss"] = self._examples.of_kind(feature, NEAR, context, None)
        neighbors = read_neighbors(self._database, feature) if self.has("neighbors") else ()
        companions = read_companions(self._database, feature) if self.has("coactivation") else ()
        others = {one.other for one in (*neighbors, *companions)}
        return FeatureView(
            row=read_row(self._database, feature),
            detail=read_detail(self._database, feature, self.n_vocabulary),
            examples=examples,
            neighbors=neighbors,
            companions=companions,
            names=read_names(self._database, sorted(others)),
            n_tokens=self.n_tokens,
            source=self.source,
        )

    def examples(
        self, feature: int, group: str = "top", *, context: int | None = CONTEXT, limit: int | None = None
    ) -> tuple[Example, ...]:
        """Return the examples of one kind, intervals from the highest to the lowest, with the tokens around them.

        Args:
            feature: Its index.
            group: A name of `saelab.features.schema.KINDS`.
            context: Tokens shown on either side of the peak, within its row; None for the whole row.
            limit: How many; None for all.

        Raises:
            UsageError: There is no such feature or kind, or the part ``near-miss`` was not built.
            DamagedFileError: An example is not sound.
        """
        feature, kind = self._checked(feature), require_kind(group)
        require_context(context)
        if kind == NEAR:
            self._require("near-miss")
        return self._examples.of_kind(feature, kind, context, limit)

    def neighbors(self, feature: int) -> tuple[Neighbor, ...]:
        """Return the features whose decoder rows point the same way; UsageError without the part ``neighbors``."""
        feature = self._checked(feature)
        self._require("neighbors")
        return read_neighbors(self._database, feature)

    def companions(self, feature: int) -> tuple[Companion, ...]:
        """Return the features active on the same tokens; UsageError without the part ``coactivation``."""
        feature = self._checked(feature)
        self._require("coactivation")
        return read_companions(self._database, feature)

    def search_token(self, text: str, *, contains: bool = False, limit: int = 100) -> TokenSearch:
        """Return the features that promote tokens of a text, and those that are active on them.

        Args:
            text: What a token's text is, spaces before and after aside.
            contains: Take all tokens whose text contains it.
            limit: Features of either list at most.

        Raises:
            UsageError: The text is empty, too long or not Unicode.
        """
        require_text(text)
        require_limit(limit)
        if not text:
            raise UsageError("index: give the text of a token")
        tokens = tokens_containing(self._database, text) if contains else self.vocabulary.find(text)
        self._database.require_active_on()
        return search_tokens(self._database, tokens, limit, has_logits=self.has("logits"))

    def nearest(self, vector: Float[Tensor, " d_out"], limit: int = 32) -> tuple[Nearest, ...]:
        """Return the features whose decoder rows point most like a vector, nearest first.

        Args:
            vector: A direction in raw activation units.
            limit: How many.

        Raises:
            UsageError: The SAE is not at hand, or the vector has another length or no direction.
            DamagedFileError: The SAE's weights are damaged.
        """
        require_limit(limit)
        if self.run_path is None:
            raise UsageError(
                f"{self.path} does not lie in its run, which has the SAE's weights: open it with open_index(RUN)"
            )
        require_same_sae(self.path, self.sae_identity, self.run_path)
        cosines, features = nearest_rows(self.run_path / SAE, self.d_sae, vector, limit)
        rows = read_rows(self._database, features)
        return tuple(
            Nearest(row=rows[feature], cosine=cosine)
            for feature, cosine in zip(features, cosines.tolist(), strict=True)
        )

    def codes(self) -> Iterator[CodeShard]:
        """Return every kept (token, feature) pair, a shard at a time in the order of the tokens.

        Raises:
            UsageError: They were not kept.
        """
        if not self.has("codes"):
            raise UsageError(
                f"{self.path} has no codes; keep them with: saelab index {self.run_path or 'RUN'} --keep-codes True"
            )
        return (read_shard(self.path / name, self.d_sae) for name in self._opened.code_shards)

    def close(self) -> None:
        """Free the memory of the tables."""
        self._database.close()

    def __enter__(self) -> FeatureIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, feature: Any) -> int:
        try:
            number = operator.index(feature)
        except TypeError:
            number = -1
        if isinstance(feature, bool) or not 0 <= number < self.d_sae:
            raise UsageError(
                f"index: there is no feature {feature!r}; features go from 0 to {self.d_sae - 1:,}"
            )
        return number

    def _check_token(self, token: int) -> None:
        if token >= self.n_vocabulary:
            raise UsageError(
                f"index: there is no token id {token}; ids go from 0 to {self.n_vocabulary - 1:,}"
            )

    def _require(self, part: str) -> None:
        if not self.has(part):
            named = "" if self.path.name == "main" else f" --name {self.path.name}"
            raise UsageError(
                f"{self.path} has no {FILE_OF_PART[part]}; add it with: "
                f"saelab index add {self.run_path or 'RUN'} {part}{named}"
            )

    def _require_logits(self) -> None:
        if not self.has("logits"):
            raise UsageError(
                f"{self.path} does not know which tokens features promote: {self._why_no_logits()}"
            )

    def _why_no_logits(self) -> str:
        why = self.manifest.content.get("logits")
        if not isinstance(why, str):
            raise DamagedFileError(f"{self.path}: its manifest does not say what the logits are of")
        return why


def open_index(path: Path | str, name: str = "main", *, out: Path | str | None = None) -> FeatureIndex:
    """Open the feature index of a run, with the labels that were imported for it.

    Args:
        path: A run, the SAE's folder within it, or the folder of an index.
        name: Name of the index within the run.
        out: An overlay in which it was built, for runs that are read-only.

    Raises:
        UsageError: There is no index of that name, or it or the labels are of another SAE.
        DamagedFileError: It was never finished, or a file is not what its manifest says.
    """
    overlay = None if out is None else Path(out)
    place, run = find_index(Path(path), name, overlay)
    index = FeatureIndex(place, run)
    if run is not None and (labels := shown_labels_of(run, overlay)):
        index.use_labels(labels)
    return index
