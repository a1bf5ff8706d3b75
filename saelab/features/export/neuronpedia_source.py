"""The lines that say what an SAE is on Neuronpedia: its release, model, set and source, each with all keys."""

from __future__ import annotations

from typing import Any

from saelab.features.export.facts import clean
from saelab.features.export.names import Names
from saelab.features.export.options import IndexExportOptions
from saelab.features.index import FeatureIndex


def release_line(index: FeatureIndex, names: Names, options: IndexExportOptions) -> dict[str, Any]:
    """Return the release, which is named as the set."""
    return {
        "name": names.sae_set,
        "description": clean(index.source),
        "creatorName": options.creator_name,
        "creatorId": options.creator,
        "visibility": options.visibility,
        "isNewUi": False,
        "featured": False,
        "descriptionShort": names.sae_set,
        "urls": [],
        "creatorEmail": None,
        "creatorNameShort": options.creator_name,
        "defaultSourceSetName": names.sae_set,
        "defaultSourceId": names.source.source_id,
        "defaultUmapSourceIds": [],
        "createdAt": options.created,
    }


def model_line(index: FeatureIndex, names: Names, options: IndexExportOptions) -> dict[str, Any]:
    """Return the language model; one that is known there already stays as it is."""
    return {
        "id": names.model,
        "instruct": False,
        "creatorId": options.creator,
        "displayNameShort": names.model,
        "displayName": names.model,
        "tlensId": None,
        "dimension": None,
        "visibility": options.visibility,
        "defaultSourceSetName": None,
        "defaultSourceId": None,
        "inferenceEnabled": False,
        "layers": 0,
        "neuronsPerLayer": 0,
        "createdAt": options.created,
        "owner": options.creator_name,
        "updatedAt": options.created,
        "website": None,
    }


def source_set_line(index: FeatureIndex, names: Names, options: IndexExportOptions) -> dict[str, Any]:
    """Return the set of SAEs."""
    return {
        "modelId": names.model,
        "name": names.sae_set,
        "creatorId": options.creator,
        "hasDashboards": True,
        "visibility": options.visibility,
        "description": clean(index.source),
        "type": "",
        "creatorName": options.creator_name,
        "urls": [],
        "creatorEmail": None,
        "releaseName": names.sae_set,
        "defaultOfModelId": None,
        "defaultRange": 1,
        "defaultShowBreaks": True,
        "showDfa": False,
        "showCorrelated": False,
        "showHeadAttribution": False,
        "showUmap": False,
        "createdAt": options.created,
    }


def source_line(index: FeatureIndex, names: Names, options: IndexExportOptions) -> dict[str, Any]:
    """Return the SAE."""
    return {
        "id": names.source.source_id,
        "modelId": names.model,
        "setName": names.sae_set,
        "creatorId": options.creator,
        "hasDashboards": True,
        "inferenceEnabled": False,
        "inferenceHosts": [],
        "saelensConfig": None,
        "saelensRelease": None,
        "saelensSaeId": None,
        "hfRepoId": None,
        "hfFolderId": None,
        "visibility": options.visibility,
        "defaultOfModelId": None,
        "hasUmap": False,
        "hasUmapLogSparsity": False,
        "hasUmapClusters": False,
        "num_prompts": names.n_prompts,
        "num_tokens_in_prompt": names.n_tokens_in_prompt,
        "dataset": names.dataset,
        "notes": f"saelab sae {index.sae_identity}",
        "createdAt": options.created,
    }
