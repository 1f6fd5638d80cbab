"""Which of the host's models are taken, and tokens in its tokenizers."""

from pathlib import Path

from .inside import run_inside

TAKEN = {
    "sd15": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sd3": "stable-diffusion-3",
    "dev": "flux-1",
    "schnell": "flux-1",
}


def test_families_are_told_apart_and_tokens_are_what_embeddings_are(comfy_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "embeddings"
    folder.mkdir()
    found = run_inside("families.py", comfy_path, tmp_path, folder)
    refused = {name: text for name, text in found["kinds"].items() if name not in TAKEN}
    assert {name: found["kinds"][name] for name in TAKEN} == TAKEN
    assert set(refused) == {"sd15 inpainting", "unclip", "playground", "refiner", "fill", "flux2", "chroma"}
    for text in refused.values():
        assert text.startswith("This version teaches Stable Diffusion 1.x, 2.x, XL and 3, Flux.1")
        assert "The model is a `" in text and text.endswith("Load a checkpoint of one of these families.")
    assert len(found["pieces"]) == 8 and all(found["pieces"].values()), found["pieces"]
