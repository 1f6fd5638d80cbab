"""Every language has every text of the nodes, and what must not be translated is as it was."""

import json
import re

import pytest

from trainer.recipes import RECIPES, settings_by_recipe
from trainer.settings import TrainSettings

from .test_docs import BY_ID, ROOT, text_of

LANGUAGES = ("en", "es", "ja", "ko", "zh")
# Tokens, what is in backticks, files, folders, recipes and settings: what a user types or finds on disk.
KEPT = (
    r"<[\w-]+>|`[^`]+`|\.(?:txt|safetensors)\b|(?:output|input)/\w+|embedding:NAME|\b[a-z0-9]+(?:_[a-z0-9]+)+\b"
    r"|\b(?:bf16|fp16|CLIP_VISION|EfficientNet-Lite0|VeRA|AdamW|TensorBoard|64x64|CUDA)\b"
)
each_language = pytest.mark.parametrize("language", LANGUAGES)
each_translation = pytest.mark.parametrize("language", LANGUAGES[1:])


def texts_of(language):
    """The texts of a language by their path, such as `ContinualLoRA_Train.inputs.rank.name`."""

    def flat(value, path):
        if isinstance(value, str):
            return {path: value}
        return {key: text for name, item in value.items() for key, text in flat(item, f"{path}.{name}").items()}

    tree = json.loads(text_of(f"locales/{language}/nodeDefs.json"))
    return {key: text for name, item in tree.items() for key, text in flat(item, name).items()}


def wanted():
    """The paths that the schemas ask for."""
    for name, node in BY_ID.items():
        yield from (f"{name}.display_name", f"{name}.description")
        for item in node.inputs:
            yield from (f"{name}.inputs.{item.name}.name", f"{name}.inputs.{item.name}.tooltip")
        for index in range(len(node.outputs)):
            yield from (f"{name}.outputs.{index}.name", f"{name}.outputs.{index}.tooltip")


def kept(text):
    return sorted(set(re.findall(KEPT, text, re.ASCII)))


def test_languages_are_those_of_the_folder():
    assert sorted(path.name for path in (ROOT / "locales").iterdir()) == sorted(LANGUAGES)
    assert {path.name for path in (ROOT / "locales").glob("*/*")} == {"nodeDefs.json"}


@each_language
def test_every_text_is_there_and_none_is_left_over(language):
    assert sorted(texts_of(language)) == sorted(wanted())


@each_language
def test_no_text_is_empty_or_means_something_to_the_page(language):
    # ComfyUI's page fills in braces, splits at bars and follows links after @, older versions at least.
    texts = texts_of(language)
    assert [key for key, text in texts.items() if text != text.strip() or not text or re.search(r"[{}|@]", text)] == []


def test_english_names_are_those_of_the_schemas():
    texts = texts_of("en")
    for name, node in BY_ID.items():
        assert texts[f"{name}.display_name"] == node.title
        assert all(texts[f"{name}.inputs.{item.name}.name"] == item.name for item in node.inputs)
        assert [texts[f"{name}.outputs.{i}.name"] for i in range(len(node.outputs))] == node.outputs


def test_tooltips_say_in_which_recipes_a_setting_takes_effect():
    texts, users = texts_of("en"), settings_by_recipe()
    for name in vars(TrainSettings()).keys() - {"recipe"}:
        (text,) = (texts[key] for key in texts if re.fullmatch(rf"\w+_Train(Options)?\.inputs\.{name}\.tooltip", key))
        said = re.search(r"(Takes|Has no) effect in ([\w, ]+)\.$", text)
        named = set(said[2].split(", ")) if said else set()
        effective = named if said and said[1] == "Takes" else RECIPES.keys() - named
        assert effective == set(users.get(name, RECIPES)), name


@each_translation
def test_what_users_type_or_find_on_disk_survives(language):
    english, translated = texts_of("en"), texts_of(language)
    for key in english:
        if not key.endswith(".name"):
            assert kept(translated[key]) == kept(english[key]), key


@each_translation
def test_numbers_survive(language):
    english, translated = texts_of("en"), texts_of(language)
    for key, text in english.items():
        if key.endswith(".tooltip"):
            numbers = set(re.findall(r"(?<![\w-])\d+(?:\.\d+)?\b", text, re.ASCII))
            missing = [number for number in numbers if number not in translated[key]]
            assert missing == [], key


@each_translation
def test_sentences_are_translated(language):
    english, translated = texts_of("en"), texts_of(language)
    same = [key for key, text in english.items() if text == translated[key] and not key.endswith(".name")]
    assert same == []
