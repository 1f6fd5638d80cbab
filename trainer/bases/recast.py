"""Layers whose weight is made anew for every call: brought from the CPU, unpacked, cast, patched.

Autograd would keep the made weight of every layer until its gradient is wanted: all of the model, in the number format
of the computation. Here it is made a second time instead. Only the layer knows how, so it is called again, but where it
would multiply by the weight, the gradient alone is computed. Where the weight is merely cast, as it mostly is, no call
is needed for that: it would take ten times as long as the cast itself, and a GPU waits for it.
"""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional, grad
from torch.overrides import TorchFunctionMode

# What the layers below end in, and the gradient of its input: (shape of the input, weight, gradient, geometry).
PRODUCTS: dict[object, Callable[..., Tensor]] = {
    functional.linear: lambda _, weight, gradient: gradient @ weight,
    functional.conv1d: grad.conv1d_input,
    functional.conv2d: grad.conv2d_input,
    functional.conv3d: grad.conv3d_input,
}
FUNCTION_OF = {2: functional.linear, 3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
ARGUMENTS: dict[str, Any] = {
    "input": None,
    "weight": None,
    "bias": None,
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
}
AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _MadeTwice(torch.autograd.Function):
    """y = W x + b; the gradient g W does not depend on x, so nothing of the call is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ANN401
        ctx.call, ctx.shape, ctx.dtype = call, x.shape, x.dtype
        ctx.autocast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
        return _not_a_view(call(x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (gradient,), (enabled, dtype) = gradients, ctx.autocast
        anywhere = torch.zeros(ctx.shape, dtype=ctx.dtype, device=gradient.device, requires_grad=True)
        with torch.enable_grad(), torch.autocast(gradient.device.type, dtype, enabled=enabled), _GradientsOnly():
            output = ctx.call(anywhere)
        (found,) = torch.autograd.grad(output, anywhere, gradient)
        return found, None


class _Cast(torch.autograd.Function):
    """The same of a layer whose weight is its own in another number format."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:  # noqa: ANN401
        ctx.layer, ctx.shape = layer, x.shape
        weight, bias = _in_format(layer.weight, x.dtype), None if layer.bias is None else layer.bias.to(x.dtype)
        product = functional.linear if isinstance(layer, nn.Linear) else layer._conv_forward
        return _not_a_view(product(x, weight, bias))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (gradient,), layer = gradients, ctx.layer
        geometry = () if isinstance(layer, nn.Linear) else (layer.stride, layer.padding, layer.dilation, layer.groups)
        weight = _in_format(layer.weight, gradient.dtype)
        return PRODUCTS[FUNCTION_OF[weight.dim()]](ctx.shape, weight, gradient, *geometry), None


def _in_format(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight, cast; on a CPU PyTorch goes between the 16-bit formats five times faster by way of fp32."""
    if weight.device.type == "cpu" and {weight.dtype, dtype} == {torch.float16, torch.bfloat16}:
        weight = weight.float()
    return weight.to(dtype)


def _not_a_view(output: Tensor) -> Tensor:
    """A view made where autograd does not look could not be added onto in place, as the host's Flux does."""
    return output.new_empty(0).set_(output) if output._is_view() else output  # type: ignore[call-overload]


class _GradientsOnly(TorchFunctionMode):
    """Products with a plain weight give zeros that have the product's gradient; any other function is what it is."""

    def __torch_function__(
        self,
        function: Any,  # noqa: ANN401
        _: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if function not in PRODUCTS:
            return function(*args, **kwargs or {})
        given = dict(zip(ARGUMENTS, args, strict=False)) | (kwargs or {})
        x, weight, _, *geometry = (given.get(name, default) for name, default in ARGUMENTS.items())
        if type(weight) not in (Tensor, nn.Parameter) or isinstance(given.get("padding"), str):
            return function(*args, **kwargs or {})  # a packed weight knows how it is multiplied
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
        if function is functional.linear:
            geometry = []
        return _ZerosWithGradient.apply(x, weight, function, geometry)  # type: ignore[no-untyped-call]


class _ZerosWithGradient(torch.autograd.Function):
    """See `_GradientsOnly`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, product: Callable[..., Tensor], geometry: list[Any]) -> Tensor:  # noqa: ANN401
        ctx.gradient_of = lambda gradient: PRODUCTS[product](x.shape, weight, gradient, *geometry)
        ctx.weight = weight
        return x.new_zeros(()).expand(product(x.to("meta"), weight.to("meta"), None, *geometry).shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        found: Tensor = ctx.gradient_of(gradients[0])
        _keep_until_done(ctx.weight)
        return found, None, None, None


def _keep_until_done(weight: Tensor) -> None:
    """The host made it on a stream of its own, where its memory would be given to the next one before it was used."""
    if weight.device.type == "cuda":
        weight.record_stream(torch.cuda.current_stream(weight.device))


def make_weights_twice(
    view: nn.Module, made: Callable[[nn.Module, Tensor], bool], cast: Callable[[nn.Module, Tensor], bool]
) -> None:
    """Let the linear and convolutional layers of a private view keep no made weights; gradients are the same.

    Args:
        view: changed in place; the layers keep their types.
        made: (layer, its input) -> whether the layer's weight is not used as it lies there.
        cast: (a layer of those, its input) -> whether its weight and bias are merely cast to the input's format.
    """
    for layer in view.modules():
        if isinstance(layer, AFFINE):
            # Weakly, so that no layer holds itself alive.
            layer.forward = partial(_forward, weakref.ref(layer), made, cast)  # type: ignore[method-assign]


def _forward(
    layer: Callable[[], Any],
    made: Callable[[nn.Module, Tensor], bool],
    cast: Callable[[nn.Module, Tensor], bool],
    x: Tensor,
) -> Tensor:
    own = layer()
    call = partial(type(own).forward, own)
    if torch.is_autocast_enabled(x.device.type):
        # Else the weight is made in the format of the input, and then cast and kept by autocast.
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if not made(own, x):
        output: Tensor = call(x)
    elif cast(own, x) and _has_plain_geometry(own):
        output = _Cast.apply(x, own)  # type: ignore[no-untyped-call]
    else:
        output = _MadeTwice.apply(x, call)  # type: ignore[no-untyped-call]
    return output


def _has_plain_geometry(layer: Any) -> bool:  # noqa: ANN401
    """Whether `PRODUCTS` has the gradient."""
    return isinstance(layer, nn.Linear) or (layer.padding_mode == "zeros" and not isinstance(layer.padding, str))
