"""A real ComfyUI server in a process and a folder of its own, and a client that speaks its HTTP interface."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDERS = ("custom_nodes", "input", "output", "temp", "user")
MODEL_FOLDERS = ("checkpoints", "loras", "embeddings", "clip_vision", "vae")


class PromptRejectedError(Exception):
    """The server refused a prompt; `details` is its whole answer."""

    def __init__(self, details: dict[str, Any]) -> None:
        super().__init__(json.dumps(details, indent=1))
        self.details = details


@dataclass(frozen=True)
class Run:
    """What became of a prompt.

    Attributes:
        outputs: what each output node reported: node id -> {"images": [...]} and the like.
        messages: the server's record of the run: (event, data), in order.
    """

    prompt_id: str
    status: str
    outputs: dict[str, dict[str, Any]]
    messages: list[tuple[str, dict[str, Any]]]

    def data(self, event: str) -> dict[str, Any] | None:
        """Data of the first message `event`, or None."""
        return next((data for name, data in self.messages if name == event), None)

    @property
    def error(self) -> dict[str, Any] | None:
        """`exception_message`, `exception_type`, `node_id`, `traceback` if a node raised."""
        return self.data("execution_error")

    @property
    def interrupted(self) -> bool:
        return self.data("execution_interrupted") is not None

    @property
    def cached(self) -> set[str]:
        """Ids of the nodes that did not have to run."""
        return set((self.data("execution_cached") or {}).get("nodes", ()))

    @property
    def images(self) -> list[dict[str, str]]:
        """Every image that a node reported, as `Client.view` takes it."""
        return [image for output in self.outputs.values() for image in output.get("images", ())]


class Client:
    """Talks to a server at `url`."""

    def __init__(self, url: str) -> None:
        self.url, self.client_id = url, uuid.uuid4().hex

    def fetch(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> bytes:
        """GET, or POST where there is a body."""
        request = urllib.request.Request(self.url + path, data=body, headers={"Content-Type": content_type})
        with urllib.request.urlopen(request, timeout=60) as response:
            return bytes(response.read())

    def get(self, path: str) -> Any:
        return json.loads(self.fetch(path))

    def post(self, path: str, data: Any = None) -> Any:
        answer = self.fetch(path, json.dumps({} if data is None else data).encode())
        return json.loads(answer) if answer else None

    def object_info(self) -> dict[str, Any]:
        """The schema of every node."""
        return self.get("/object_info")

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queue a prompt in the API format and return its id."""
        try:
            return self.post("/prompt", {"prompt": prompt, "client_id": self.client_id})["prompt_id"]
        except urllib.error.HTTPError as error:
            with error:
                raise PromptRejectedError(json.loads(error.read())) from None

    def history(self, prompt_id: str) -> Run | None:
        """The finished run, or None while it is waiting or running."""
        entry = self.get(f"/history/{prompt_id}").get(prompt_id)
        if entry is None:
            return None
        status = entry.get("status") or {"status_str": "error", "messages": []}
        messages = [(name, data) for name, data in status["messages"]]
        return Run(prompt_id, status["status_str"], entry["outputs"], messages)

    def wait(self, prompt_id: str, timeout: float = 300) -> Run:
        """Wait for the end of a queued prompt."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if run := self.history(prompt_id):
                return run
            time.sleep(0.1)
        raise TimeoutError(f"Prompt {prompt_id} did not end within {timeout:.0f} s.")

    def run(self, prompt: dict[str, Any], timeout: float = 300) -> Run:
        """Queue a prompt and wait for its end; a node that raises is in `Run.error`."""
        return self.wait(self.queue(prompt), timeout)

    def interrupt(self) -> None:
        self.post("/interrupt")

    def free(self) -> None:
        """Unload the models and forget the cached outputs."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def upload_image(self, name: str, content: bytes) -> str:
        """Put an image into the input folder and return the name that LoadImage takes."""
        mark = uuid.uuid4().hex
        head = f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{mark}--\r\n".encode()
        return json.loads(self.fetch("/upload/image", body, f"multipart/form-data; boundary={mark}"))["name"]

    def view(self, image: dict[str, str]) -> bytes:
        """The bytes of an image of `Run.images`."""
        return self.fetch("/view?" + urllib.parse.urlencode(image))


class Server:
    """ComfyUI from `comfy_path` with the pack in its custom nodes; use it in a `with` statement.

    Args:
        comfy_path: a ComfyUI checkout.
        base: an empty folder for its models, inputs, outputs and settings.
        pack: the root of this repository.
    """

    def __init__(self, comfy_path: Path, base: Path, pack: Path) -> None:
        self.comfy_path, self.base = comfy_path, base
        for name in (*FOLDERS, *(f"models/{name}" for name in MODEL_FOLDERS)):
            (base / name).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / "continual_lora").symlink_to(pack, target_is_directory=True)
        self.log_file = base / "comfyui.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Everything the server printed so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> "Server":
        device = os.environ.get("COMFYUI_OPTIONS", "--cpu").split()  # on a GPU: "", or how it is to use its memory
        options = [*device, "--disable-api-nodes", "--disable-auto-launch", "--port", str(self.port)]
        options += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        environment = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | os.environ
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "main.py", *options],
                cwd=self.comfy_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_it_answers(self, timeout: float = 240) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                Client(self.url).get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        raise RuntimeError(f"ComfyUI did not start. The end of its log:\n{self.log[-4000:]}")

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
