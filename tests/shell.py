"""A stand-in for weights with scales: a shell around plain tensors, and a layer that is not torch's."""

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


class Shell(Tensor):
    """Numbers in 8 bits [out, in] and a scale for each row [out, 1], which call themselves a matrix in fp32."""

    @staticmethod
    def __new__(cls, numbers, scales):
        return Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=torch.float32, device=numbers.device)

    def __init__(self, numbers, scales):
        self.numbers, self.scales = numbers, scales

    def __tensor_flatten__(self):
        return ["numbers", "scales"], None

    @staticmethod
    def __tensor_unflatten__(inner, _, size, stride):
        return Shell(inner["numbers"], inner["scales"])

    def dequantize(self):
        return self.numbers.float() * self.scales

    @classmethod
    def __torch_dispatch__(cls, function, _, args=(), kwargs=None):
        name, kwargs = function.overloadpacket.__name__, kwargs or {}
        if name in ("detach", "_to_copy"):  # as the hosts' do it, the latter for devices alone
            kwargs = {key: value for key, value in kwargs.items() if key == "device"}
            return Shell(*(function(part, **kwargs) for part in (args[0].numbers, args[0].scales)))
        args, kwargs = tree_map(lambda part: part.dequantize() if isinstance(part, Shell) else part, (args, kwargs))
        return function(*args, **kwargs)


def shell(rows, columns, seed=0):
    numbers = torch.randint(-127, 128, (rows, columns), generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    return Shell(numbers, torch.linspace(0.5, 1.5, rows)[:, None] / 127)


class OwnLinear(nn.Module):
    """A host's linear layer that is none of torch's; it rounds its input, unless something is done to its weight."""

    comfy_cast_weights, weight_function, bias_function = True, (), ()

    def __init__(self, in_features, out_features, seed=0):
        super().__init__()
        self.in_features, self.out_features, self.bias = in_features, out_features, None
        self.weight = nn.Parameter(shell(out_features, in_features, seed), requires_grad=False)

    def forward(self, x):
        weight = self.weight
        if not self.weight_function:
            return nn.functional.linear(x.detach().round(), weight)
        weight = weight.dequantize()
        for function in self.weight_function:
            weight = function(weight)
        return nn.functional.linear(x, weight)
