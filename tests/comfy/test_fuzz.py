"""Every node of the pack works or says in three facts why not, whatever it is given."""

from pathlib import Path

from .inside import run_inside

NODES = {
    "ApplyConceptSequence",
    "DiffusionClassifierScore",
    "EvaluateConceptSequence",
    "LoadConceptImages",
    "LoadConceptSequence",
    "MergeConceptSequence",
    "SaveConceptSequence",
    "TrainContinualLora",
    "TrainOptions",
}


def test_a_thousand_inputs_for_each_node(comfy_path: Path, tmp_path: Path) -> None:
    parent, folder = tmp_path / "parent", tmp_path / "host"
    parent.mkdir()
    found = run_inside("fuzz_nodes.py", comfy_path, parent, folder)
    assert found["outside"] == []
    assert set(found["nodes"]) == NODES  # Load Tiny Base has no input
    for name, outcomes in found["nodes"].items():
        assert outcomes["worked"] + outcomes["refused"] >= 1000, name
        assert min(outcomes["worked"], outcomes["refused"]) > 0, name
