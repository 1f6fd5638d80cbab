"""Fixtures around one real ComfyUI server per test session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import Client, Server

from .checkpoint import build_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def server(comfy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(comfy_path, tmp_path_factory.mktemp("comfyui"), ROOT) as server:
        yield server


@pytest.fixture(scope="session")
def client(server: Server) -> Client:
    return Client(server.url)


def checkpoint(comfy_path: Path, server: Server, family: str) -> str:
    file = build_checkpoint(comfy_path, family, ROOT / "build" / "checkpoints")
    (server.base / "models" / "checkpoints" / file.name).symlink_to(file)
    return file.name


@pytest.fixture(scope="session")
def sd15_checkpoint(comfy_path: Path, server: Server) -> str:
    """Name of a random SD1.5 checkpoint for CheckpointLoaderSimple; kept in build/ from one session to the next."""
    return checkpoint(comfy_path, server, "sd15")


@pytest.fixture(scope="session")
def sd2_checkpoint(comfy_path: Path, server: Server) -> str:
    """Of SD2 with v-prediction."""
    return checkpoint(comfy_path, server, "sd2_v")


@pytest.fixture(scope="session")
def sd3_checkpoint(comfy_path: Path, server: Server) -> str:
    """Of SD3 without a T5."""
    return checkpoint(comfy_path, server, "sd3")


@pytest.fixture(scope="session")
def sdxl_checkpoint(comfy_path: Path, server: Server) -> str:
    """Of SDXL."""
    return checkpoint(comfy_path, server, "sdxl")
