"""Fixtures of every kind of test."""

import pytest
import torch

from scripts.tiny_base.train import export, vocabulary
from trainer.bases.tiny.autoencoder import Autoencoder
from trainer.bases.tiny.base import TinyBase
from trainer.bases.tiny.text import TextEncoder
from trainer.bases.tiny.unet import UNet

# The models of the tests are so small that a second thread only waits, and waits long on a busy machine.
torch.set_num_threads(1)


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
