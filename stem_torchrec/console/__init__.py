"""What a person sees of a command."""

from stem_torchrec.console.prediction import PredictionConsole
from stem_torchrec.console.stages import StageConsole
from stem_torchrec.console.tables import print_check, print_evaluation, print_report, print_stats
from stem_torchrec.console.terminal import print_finding, print_note, print_start
from stem_torchrec.console.training import TrainConsole

__all__ = [
    "PredictionConsole",
    "StageConsole",
    "TrainConsole",
    "print_check",
    "print_evaluation",
    "print_finding",
    "print_note",
    "print_report",
    "print_start",
    "print_stats",
]
