"""What each command does, once its options are read."""

from exptilt.commands.train import pretrain, tilt
from exptilt.commands.use import bench, compare, demo, evaluate, export, likelihood, report, sample

__all__ = ["bench", "compare", "demo", "evaluate", "export", "likelihood", "pretrain", "report", "sample", "tilt"]
