"""The host's image encoder, by a stand-in of its interface."""

import pytest
import torch
from torch import nn

from trainer.errors import ContinualLoraError
from trainer.metrics import image_similarity
from trainer.metrics.features import FeatureEncoder
from trainer.metrics.features.clip_vision import HostClipVision


class Output:
    """ComfyUI's: attributes, set one by one."""


class Projecting(nn.Module):
    """A network as ComfyUI has it for CLIP; its SigLIP has a function there."""

    def __init__(self):
        super().__init__()
        self.visual_projection = nn.Linear(2, 2, bias=False)


class Dinov2Model(nn.Module):
    """Called as in ComfyUI, which loads it by the same node."""


class FakeClipVision:
    """The mean color as the feature, and a note of what was asked."""

    def __init__(self, network=None):
        self.model = network or Projecting()
        self.shapes, self.crops = [], []

    def encode_image(self, image, crop=True):
        self.shapes.append(tuple(image.shape))
        self.crops.append(crop)
        output = Output()
        output.last_hidden_state = image.flatten(1, 2)
        output.image_embeds = self.embed(image)
        return output

    def embed(self, image):
        return image.mean((1, 2)).half()


class Patches(FakeClipVision):
    """What SigLIP models give in ComfyUI 0.3.75: a vector for each patch."""

    def embed(self, image):
        return image.flatten(1, 2)


class Nothing(FakeClipVision):
    def embed(self, image):
        return None


class Bare(FakeClipVision):
    def encode_image(self, image, crop=True):
        return Output()


def test_features_by_hand():
    images = torch.zeros(2, 3, 5, 7)
    images[0, 0], images[1, 1:] = 1.0, 0.5  # red; half of green and blue
    encoder: FeatureEncoder = HostClipVision(FakeClipVision())
    found = encoder(images)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5**0.5, 0.5**0.5]]))
    assert (found.dtype, found.device.type, encoder.name) == (torch.float32, "cpu", "CLIP (CLIP_VISION)")
    assert float(image_similarity(found[:1], found[1:])) == 0


def test_only_clip_is_called_clip():
    assert HostClipVision(FakeClipVision(Dinov2Model())).name == "Dinov2Model (CLIP_VISION)"


def test_the_host_gets_its_layout_in_batches_and_crops_nothing():
    host = FakeClipVision()
    images = torch.rand(70, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    found = HostClipVision(host)(images)
    assert host.shapes == [(32, 5, 7, 3), (32, 5, 7, 3), (6, 5, 7, 3)]
    assert host.crops == [False] * 3
    torch.testing.assert_close(found[40:41], HostClipVision(FakeClipVision())(images[40:41]))


@pytest.mark.parametrize(("host", "came"), [(Patches(), r"shape \[2, 35, 3\]"), (Nothing(), "none"), (Bare(), "none")])
def test_a_model_without_image_embeds_is_refused(host, came):
    with pytest.raises(ContinualLoraError, match=rf"one feature vector.*This model gives {came}\..*Load a CLIP vision"):
        HostClipVision(host)(torch.ones(2, 3, 5, 7))
