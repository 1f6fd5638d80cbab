"""MODEL's options by name: what an image depends on, and nothing that differs from session to session."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from trainer.bases.comfyui.options import options_name


def on_model(value=None, wrappers=None):
    patches = {} if value is None else {"patches": {"attn2_patch": [value]}, "patches_replace": {}}
    return SimpleNamespace(model_options={"transformer_options": patches}, wrappers=wrappers or {})


def scaled(factor):
    def patch(x, shift=1.0):
        return factor * x + shift if callable(patch) else x  # holds itself

    return patch


def around(own):
    return lambda x: 2 * own(x)


class Wrapper:
    def __init__(self, factor, model):
        self.factor, self.model = factor, model

    def __call__(self, x):
        return self.factor * x

    def method(self, x):
        return self.factor * x


KINDS = {
    "closure": scaled,
    "around another": lambda factor: around(scaled(factor)),
    "partial": lambda factor: partial(torch.mul, other=factor),
    "object": lambda factor: Wrapper(factor, torch.nn.Linear(2, 2)),
    "method": lambda factor: Wrapper(factor, torch.nn.Linear(2, 2)).method,
    "tensor": lambda factor: scaled(torch.full((2,), factor)),
    "table": lambda factor: scaled({320: (factor, 0.9)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_functions_have_a_name_by_what_they_hold(kind):
    made = KINDS[kind]
    assert options_name(on_model(made(0.5))) == options_name(on_model(made(0.5)))
    names = {options_name(on_model(made(0.5))), options_name(on_model(made(0.6))), options_name(on_model())}
    assert len(names) == 3


def test_no_function_no_name():
    assert options_name(on_model()) == options_name(SimpleNamespace(model_options={})) == ""


def test_wrappers_and_defaults_count():
    first, second = scaled(1.0), scaled(1.0)
    second.__defaults__ = (2.0,)
    assert options_name(on_model(first)) != options_name(on_model(second))
    wrapped = options_name(on_model(wrappers={"apply_model": {"cache": [first]}}))
    assert wrapped not in ("", options_name(on_model(first)))
