"""Small runs, and their evaluation as records."""

from saelab import api
from saelab.evaluation import sources

HOOK = "model.layers.0.output"
SMALL = {"tokens": 640, "batch": 64, "quiet": True}
TOKENS = "300"


def evaluate(paths, **options):
    """Evaluate runs on a few tokens; return the records as they are printed."""
    options = {"tokens": TOKENS, "quiet": True} | options
    return [found.to_json() for found in api.evaluate_many(paths, **options)]


def text_of(world):
    """Return the path of the text that the world's stores were made from."""
    return sources.saved_config(world.masked.path).text.source
