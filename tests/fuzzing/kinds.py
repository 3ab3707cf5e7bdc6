"""The kinds of hostile input by name, and how many of a hundred are of each."""

from __future__ import annotations

from hypothesis import strategies as st

from fuzzing import commands, data, models
from fuzzing.harness import Case

KINDS: dict[str, tuple[int, st.SearchStrategy[Case]]] = {
    "weights (safetensors)": (12, models.weights()),
    "config.json, model_index.json": (14, models.configurations()),
    "links, pipes and folders in a model": (5, models.places()),
    "names of models": (4, models.names()),
    "run.json, log.jsonl, result.json of a report": (1, models.records()),
    "run.json, result.json of a card": (3, models.cards()),
    "result.json of a comparison": (4, models.results()),
    "feature networks": (4, models.feature_networks()),
    "flows of codes": (3, models.code_flows()),
    "checkpoints of runs": (3, models.checkpoints()),
    "images": (15, data.pictures()),
    "npy, npz": (13, data.arrays()),
    "safetensors of images": (4, data.tensors()),
    "parquet": (7, data.tables()),
    "data folders": (4, data.folders()),
    "names of data sets": (3, data.names()),
    "command lines": (2, commands.commands()),
}
