"""The nodes of the pack, one file per node."""

from .advanced_options import TrainOptions
from .apply_sequence import ApplyConceptSequence
from .classifier_score import DiffusionClassifierScore
from .evaluate import EvaluateConceptSequence
from .load_concept_images import LoadConceptImages
from .load_sequence import LoadConceptSequence
from .load_tiny_base import LoadTinyBase
from .merge_sequence import MergeConceptSequence
from .save_sequence import SaveConceptSequence
from .train import TrainContinualLora

NODES: list[type] = [
    LoadTinyBase,
    LoadConceptImages,
    TrainContinualLora,
    TrainOptions,
    DiffusionClassifierScore,
    MergeConceptSequence,
    ApplyConceptSequence,
    EvaluateConceptSequence,
    LoadConceptSequence,
    SaveConceptSequence,
]
