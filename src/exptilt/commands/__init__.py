"""What each command does, once its options are read."""

from exptilt.commands.draw import sample
from exptilt.commands.reproduce import reproduce
from exptilt.commands.train import pretrain, tilt
from exptilt.commands.use import bench, compare, demo, evaluate, export, likelihood, push, report

__all__ = [
    "bench",
    "compare",
    "demo",
    "evaluate",
    "export",
    "likelihood",
    "pretrain",
    "push",
    "report",
    "reproduce",
    "sample",
    "tilt",
]
