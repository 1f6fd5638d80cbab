"""Evaluating a sequence: what is drawn and kept, the figures by hand, the classifier, the spectrum, the report."""

import csv
import json
import re
from dataclasses import replace

import pytest
import torch

from tests.toy import ToyBase, ToyUNet, toy_concept, toy_settings, trained_task
from trainer.concept import prepare
from trainer.disk.manifest import MANIFEST
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.evaluation.dc_accuracy import dc_accuracy
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.fisher_spectrum import chosen_layers, fisher_spectrum, restored_task, spectrum
from trainer.evaluation.pictures import (
    Artist,
    all_cells,
    draw_missing,
    first_and_last_cells,
    own_artist,
    read_cell,
)
from trainer.evaluation.report import (
    at_each_hundredth,
    contact_sheet,
    curves,
    forgetting_map,
    markdown_table,
    write_evaluation,
)
from trainer.evaluation.scores import measure, prompt_without_token
from trainer.metrics import image_similarity, kid, mmd
from trainer.recipes import RECIPES
from trainer.teach import teach

UNET = ToyUNet().requires_grad_(False)


class MeanColors:
    """A feature that a person can compute: the mean of each half of the picture, as a unit vector."""

    name = "mean colors"

    def __call__(self, images):
        halves = torch.cat([images[..., :4].mean((2, 3)), images[..., 4:].mean((2, 3))], dim=1)
        return torch.nn.functional.normalize(halves - 0.5, dim=1)


class MeanColorsAndWords(MeanColors):
    def encode_text(self, prompt):
        return torch.nn.functional.normalize(torch.arange(1.0, 7.0) * len(prompt.split()), dim=0)


class Painter:
    """Draws one flat color for each (task, prompt) and counts."""

    def __init__(self, fail_at=0):
        self.drawn, self.fail_at = [], fail_at

    def draw(self, line, prompts):
        for prompt in prompts:
            if len(self.drawn) + 1 == self.fail_at:
                raise KeyboardInterrupt
            self.drawn.append((len(line.tasks), prompt))
            generator = torch.Generator().manual_seed(10 * len(line.tasks) + len(prompt))
            yield torch.rand(3, 3, 8, 8, generator=generator)

    def artist(self, **how):
        return Artist(self.draw, {"seed": 1, **how})


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    line = ConceptSequence.create(tmp_path_factory.mktemp("evaluation") / "pets", ToyBase(UNET).fingerprint)
    for seed, word in enumerate(("fox", "small-cat", "my-little-dog")):
        line = teach(ToyBase(UNET), toy_concept(word, seed=seed), toy_settings(), line)
    return line


@pytest.fixture
def line(taught, tmp_path):
    import shutil

    root = tmp_path / "pets"
    shutil.copytree(taught.root, root)
    return replace(taught, root=root)


def test_the_images_of_a_task_are_kept_as_they_were_trained_on(line):
    for seed, (task, word) in enumerate(zip(line.tasks, ("fox", "small-cat", "my-little-dog"), strict=True)):
        images, _ = prepare(toy_concept(word, seed=seed), 8)
        assert (line.images(task) - images).abs().max() <= 0.5 / 255 + 1e-6


def test_a_task_without_images_is_refused_before_anything_is_drawn(line):
    for file in (line.folder(line.tasks[1]) / "images").iterdir():
        file.unlink()
    painter = Painter()
    with pytest.raises(ContinualLoraError, match=r"Task 2 .*images of small-cat.*older version.*teach"):
        evaluate(line, painter.artist(), MeanColors(), lambda: ToyBase(UNET), 0, 0)
    assert painter.drawn == []
    with pytest.raises(ContinualLoraError, match="at least one concept"):
        evaluate(line.up_to(0), painter.artist(), MeanColors(), lambda: ToyBase(UNET), 0, 0)


def test_which_cells():
    assert all_cells(3) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    assert first_and_last_cells(3) == [(0, 0), (1, 1), (2, 0), (2, 1), (2, 2)]


def test_nothing_is_drawn_twice(line):
    painter, told = Painter(), []
    draw_missing(line, painter.artist(), first_and_last_cells(3), lambda *step: told.append(step))
    assert [n for n, _ in painter.drawn] == [1, 2, 3, 3, 3] and told[-1] == ("draw", 5, 5)
    draw_missing(line, painter.artist(), all_cells(3))
    assert painter.drawn[5:] == [(2, "photo of a <fox> animal")]  # the one that was missing
    draw_missing(line, painter.artist(), all_cells(3))
    assert len(painter.drawn) == 6
    draw_missing(line, painter.artist(seed=2), [(0, 0)])  # another noise is another picture
    assert len(painter.drawn) == 7


def test_what_was_drawn_before_an_interrupt_is_kept(line):
    first, second = Painter(fail_at=4), Painter()
    with pytest.raises(KeyboardInterrupt):
        draw_missing(line, first.artist(), all_cells(3))
    draw_missing(line, second.artist(), all_cells(3))
    assert len(first.drawn) == 3 and len(second.drawn) == 3 and not set(first.drawn) & set(second.drawn)


def test_own_artist_draws_the_same_from_every_process_and_another_after_another_task(line):
    class Soft(ToyBase):  # the toy's pictures are black or white
        def decode_latents(self, latents):
            return super().decode_latents(latents / 80)

    artist = own_artist(lambda: Soft(UNET), count=2, seed=5, steps=1, guidance=1.0)
    draw_missing(line, artist, [(0, 0), (1, 0)])
    first, after = read_cell(line, artist, 0, 0), read_cell(line, artist, 1, 0)
    assert first.shape == (2, 3, 8, 8)
    again = next(artist.draw(line.up_to(1), [line.tasks[0].prompt]))
    assert (first - again).abs().max() <= 0.5 / 255 + 1e-6
    assert not torch.equal(first, after)


def test_every_figure_is_that_of_the_metric_on_the_features(line):
    artist, encoder = Painter().artist(), MeanColorsAndWords()
    draw_missing(line, artist, all_cells(3))
    scores = measure(line, artist, all_cells(3), encoder)
    real = [encoder(line.images(task)) for task in line.tasks]
    drawn = {cell: encoder(read_cell(line, artist, *cell)) for cell in all_cells(3)}
    for (i, j), cell in scores.cells.items():
        assert cell["mmd"] == pytest.approx(float(mmd(real[j], drawn[i, j])))
        assert cell["mmd_squared"] == pytest.approx(cell["mmd"] ** 2)
        assert cell["kid"] == pytest.approx(float(kid(real[j], drawn[i, j])))
        assert cell["i2i"] == pytest.approx(float(image_similarity(real[j], drawn[i, j])))
        text = torch.nn.functional.normalize(torch.arange(1.0, 7.0), dim=0)
        assert cell["t2i"] == pytest.approx(100 * float((drawn[i, j] @ text).mean()), abs=1e-4)
    own, last = [scores.cells[j, j]["mmd"] for j in range(3)], [scores.cells[2, j]["mmd"] for j in range(3)]
    moved = [float(mmd(drawn[j, j], drawn[2, j])) for j in range(2)]
    assert scores.values["a_mmd"] == pytest.approx(sum(last) / 3)
    assert scores.values["new_mmd"] == pytest.approx(sum(own) / 3)
    assert scores.values["f_mmd"] == pytest.approx(sum(moved) / 2)
    assert scores.values["bwt_mmd"] == pytest.approx((own[0] - last[0] + own[1] - last[1]) / 2)
    assert scores.values["kid"] == pytest.approx(sum(scores.cells[2, j]["kid"] for j in range(3)) / 3)
    few = measure(line, artist, first_and_last_cells(3), encoder)
    assert few.values == scores.values  # what lies between enters none of them
    assert few.table("mmd", 3)[1] == [None, own[1], None]
    assert "t2i" not in measure(line, artist, all_cells(3), MeanColors()).values


def test_the_new_word_is_taken_out_of_the_prompt():
    assert prompt_without_token("photo of a <my-fox> animal", "my-fox") == "photo of a animal"
    assert prompt_without_token("<x>, a cat", "x") == ", a cat"


def test_accuracy_of_the_classifier_is_1_where_each_prompt_is_right_and_0_where_it_is_wrong(line, monkeypatch):
    right = {}

    class Found:
        def __init__(self, predicted):
            self.predicted = predicted

    def classify(base, latents, prompts, trials, seed, *, pruned):
        right.setdefault("calls", []).append((len(latents), len(prompts), trials, pruned))
        return Found(torch.tensor([0, 1, 1]))

    monkeypatch.setattr("trainer.evaluation.dc_accuracy.classify", classify)
    told = []
    found = dc_accuracy(lambda: ToyBase(UNET), line, [1, 2], 4, lambda *step: told.append(step))
    third = 1 / 3
    assert found == {
        (1, 0): pytest.approx(third),
        (1, 1): pytest.approx(2 * third),
        (2, 0): pytest.approx(third),
        (2, 1): pytest.approx(2 * third),
        (2, 2): 0.0,
    }
    # Two or three concepts and c_0.
    assert right["calls"] == [(3, 3, 4, False)] * 2 + [(3, 4, 4, False)] * 3 and told[-1] == ("classify", 5, 5)


def test_spectrum_by_hand():
    found = spectrum(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 1.0]]))
    # F = 1/2 (g1 g1^T + g2 g2^T): diagonal (2, 1/2, 1/2), eigenvalues 2, 1 and a 0 that is not listed.
    torch.testing.assert_close(found.diagonal, torch.tensor([2, 0.5, 0.5], dtype=torch.float64))
    torch.testing.assert_close(found.eigenvalues, torch.tensor([2.0, 1.0], dtype=torch.float64))


def test_spectrum_equals_the_eigenvalues_of_the_whole_matrix():
    g = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = spectrum(g)
    whole = torch.linalg.eigvalsh(g.T @ g / 5).flip(0)
    torch.testing.assert_close(found.eigenvalues, whole[:5])
    assert whole[5:].abs().max() < 1e-12 and found.eigenvalues.sum() == pytest.approx(float(found.diagonal.sum()))


def test_both_spectra_come_from_the_draws_of_the_fisher():
    task, settings = trained_task(ToyBase()), toy_settings(batch_size=2, temperature=0.3, num_prompts=4)
    told = []
    found = fisher_spectrum(task, settings, 7, told.append)
    layers = chosen_layers(task.adapter.names)
    assert set(found) == {"L_den", "L_den + CE"} and all(list(s) == layers for s in found.values())
    assert told == [2, 4, 6, 7, 9, 11, 13, 14]
    from trainer.methods.ewc import EWC

    for objective, classifier in (("L_den", False), ("L_den + CE", True)):
        ewc = EWC(replace(settings, fisher_draws=7), classifier=classifier)
        *_, last = ewc.end_task(task)
        traces = sum(float(s.eigenvalues.sum()) for s in found[objective].values())
        assert traces == pytest.approx(last.values["fisher_trace"], rel=1e-4)  # the toy has two layers, both chosen
        assert len(found[objective][layers[0]].eigenvalues) == 7


def test_both_objectives_see_the_same_draws():
    """At a high temperature the classes add next to nothing: what is left of the difference would be other draws."""
    task = trained_task(ToyBase())
    found = fisher_spectrum(task, toy_settings(temperature=100.0), 5)
    for layer, plain in found["L_den"].items():
        for part in ("diagonal", "eigenvalues"):
            ours, with_classes = getattr(plain, part), getattr(found["L_den + CE"][layer], part)
            assert (ours - with_classes).abs().max() < 0.05 * ours.max() and not torch.equal(ours, with_classes)


def test_the_diagonal_is_shown_at_each_hundredth():
    thousand = torch.arange(1000, 0, -1)
    assert at_each_hundredth(thousand).tolist() == list(range(991, 0, -10))
    assert at_each_hundredth(torch.tensor([5, 2])).tolist() == [5] * 50 + [2] * 50


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_sequence_of_any_recipe_can_be_evaluated(recipe, tmp_path):
    line = ConceptSequence.create(tmp_path / "pets", ToyBase(UNET).fingerprint)
    for seed, word in enumerate(("fox", "cat")):
        line = teach(ToyBase(UNET), toy_concept(word, seed=seed), toy_settings(recipe=recipe), line)
    found = evaluate(line, Painter().artist(), MeanColors(), lambda: ToyBase(UNET), 1, 3)
    assert bool(found.spectra) == (recipe != "textual_inversion")  # which has no parameters that a Fisher could weigh
    assert (write_evaluation(found) / "report.html").is_file()


def test_the_first_the_middle_and_the_last_layer():
    assert chosen_layers(list("abcdef")) == ["a", "d", "f"] and chosen_layers(["a"]) == ["a"]


def test_without_room_for_gradients_the_rest_is_measured(line):
    class Small(ToyBase):
        def predict(self, x_t, t, conditioning):
            if torch.is_grad_enabled():
                raise torch.cuda.OutOfMemoryError("no room")
            return super().predict(x_t, t, conditioning)

    with pytest.warns(UserWarning) as warned:
        found = evaluate(line, Painter().artist(), MeanColors(), lambda: Small(UNET), 1, 3)
    assert str(warned[-1].message).startswith("The report has no spectrum of the Fisher: the device ran out of memory.")
    assert found.spectra == {} and found.accuracies and found.scores


def test_a_spectrum_asks_for_room_and_keeps_as_little_as_the_training_did(tmp_path):
    class Asked(ToyBase):
        def make_room(self, shape, checkpointed):
            self.room = tuple(shape), checkpointed

    for checkpointed in (False, True):
        sequence = ConceptSequence.create(tmp_path / str(checkpointed), ToyBase(UNET).fingerprint)
        settings = toy_settings(gradient_checkpointing=checkpointed)
        base = Asked(UNET)
        restored_task(base, teach(ToyBase(UNET), toy_concept("fox"), settings, sequence), batch_size=3)
        assert base.room == ((3, 1, 1, 2), checkpointed)


def test_a_restored_task_is_what_the_methods_saw(line):
    task = restored_task(ToyBase(UNET), line)
    assert len(task.earlier_prompts) == 2 and task.seed == "0/3" and task.latents.shape == (3, 1, 1, 2)
    saved = line.lora(line.tasks[-1])
    assert float(task.adapter.norm()) == pytest.approx(line.tasks[-1].values["adapter_norm"], rel=1e-5) and saved
    for turn in (0, 1):
        written = line.lora(line.tasks[turn])
        for name, value in task.earlier_adapter(turn).items():
            stem = name.replace("middle_block.1.attn2.to_", "lora_unet_mid_block_attentions_0_attn2_to_")
            assert torch.equal(value, written[f"{stem}.weight"])


@pytest.mark.parametrize("stored", [None, "fp8", []])
def test_a_task_without_a_known_number_format_is_restored_in_the_bases_own(line, stored):
    """An older version wrote none, and the manifest is not held to it."""
    path = line.root / MANIFEST
    manifest = json.loads(path.read_text())
    if stored is None:
        del manifest["tasks"][line.head]["settings"]["mixed_precision"]
    else:
        manifest["tasks"][line.head]["settings"]["mixed_precision"] = stored
    path.write_text(json.dumps(manifest))
    base = ToyBase(UNET)
    assert restored_task(base, line).denoiser is base


def test_the_report_holds_every_figure(line):
    evaluation = evaluate(line, Painter().artist(), MeanColors(), lambda: ToyBase(UNET), 2, 6)
    assert set(evaluation.accuracies) == set(all_cells(3)) and evaluation.spectra
    folder = write_evaluation(evaluation)
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["after_task"]) - 1, int(row["concept_index"]) - 1) for row in rows] == all_cells(3)
    for row, cell in zip(rows, all_cells(3), strict=True):
        assert float(row["mmd"]) == evaluation.scores.cells[cell]["mmd"] and row["encoder"] == "mean colors"
        assert float(row["dc_accuracy"]) == evaluation.accuracies[cell] and row["t2i"] == ""
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert text == markdown_table(evaluation) and f"| a_mmd | {evaluation.scores.values['a_mmd']:.4g} |" in text
    page = (folder / "report.html").read_text(encoding="utf-8")
    # The toy has two layers; of each there are the eigenvalues and the diagonal.
    assert page.count("<figure>") == 3 + 1 + 2 * 2 and "mean colors" in page
    assert re.search(r"L_den \+ CE", page) and "my-little-dog" in page
    assert write_evaluation(evaluation) == folder


def test_pictures_have_a_place_for_every_cell(line):
    evaluation = evaluate(line, Painter().artist(), MeanColors(), lambda: ToyBase(UNET), 0, 0)
    sheet, table, lines = contact_sheet(evaluation), forgetting_map(evaluation), curves(evaluation)
    assert sheet.width > 3 * 192 and sheet.height > 4 * 192
    assert table.width < sheet.width and lines.height > 200
    # Concepts that were not taught yet leave white; those that were do not.
    right, below = sheet.crop((sheet.width - 150, 260, sheet.width - 40, 350)), sheet.height - 150
    assert right.getextrema() == ((255, 255),) * 3
    taught = sheet.crop((sheet.width - 150, below, sheet.width - 40, sheet.height - 60))
    assert taught.getextrema() != ((255, 255),) * 3
