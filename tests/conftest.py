"""Fixtures of every kind of test."""

import os
import re
from pathlib import Path

import pytest
import torch

from scripts.tiny_base.train import export, vocabulary
from trainer.bases.tiny.autoencoder import Autoencoder
from trainer.bases.tiny.base import TinyBase
from trainer.bases.tiny.text import TextEncoder
from trainer.bases.tiny.unet import UNet

# The models of the tests are so small that a second thread only waits, and waits long on a busy machine.
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n 2`: a worker for all tests of the page, one for all on ComfyUI's server, and files for whoever is free.

    So there is one server of each kind; two with Stable Diffusion would not fit into every machine's memory.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByServer(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            folder = file.split("/")[1]
            on_server = folder == "comfy" and re.search(r"\b(client|server)\b", (ROOT / file).read_text("utf-8"))
            return folder if folder == "browser" or on_server else file

    config.option.loadscopereorder = False  # the folders with a server take longest and come first in the alphabet
    return ByServer(config, log)


@pytest.fixture(scope="session")
def comfy_path() -> Path:
    """A ComfyUI checkout: COMFYUI_PATH, else the one that `make comfyui` puts into build/."""
    path = Path(os.environ.get("COMFYUI_PATH") or ROOT / "build" / "comfyui")
    if not (path / "main.py").is_file():
        pytest.fail(
            f"There is no ComfyUI in {path}. Run `python -m scripts.comfyui build/comfyui`, "
            "or set COMFYUI_PATH to a checkout.",
            pytrace=False,
        )
    return path


@pytest.fixture(scope="session")
def random_tiny_folder(tmp_path_factory):
    """Weights of the embedded base as drawn, not trained: the architecture with no need for the real files."""
    folder = tmp_path_factory.mktemp("tiny")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        export(folder, Autoencoder(), TextEncoder(len(vocabulary())), UNet(), {})
    return folder


@pytest.fixture
def tiny(random_tiny_folder):
    """A fresh view of the embedded base with random weights."""
    return TinyBase(random_tiny_folder)
