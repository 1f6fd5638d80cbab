"""The texts that the page shows in each language, as a real server hands them out."""

import json
from pathlib import Path

from scripts.locales import FOLDER, english
from tests.server import Client


def test_english_is_what_the_schemas_say(client: Client) -> None:
    stored = json.loads((FOLDER / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert stored == english(client.object_info()), "run `python -m scripts.locales` (see there)"


def test_server_hands_out_every_language(client: Client) -> None:
    answer = client.get("/i18n")
    for path in FOLDER.glob("*/nodeDefs.json"):
        stored = json.loads(path.read_text(encoding="utf-8"))
        assert stored.items() <= answer[Path(path).parent.name]["nodeDefs"].items()
