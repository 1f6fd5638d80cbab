"""What nodes such as FreeU or RescaleCFG leave on a MODEL: functions, told apart by their names and what they hold."""

from collections.abc import Iterable, Mapping
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import Tensor

from ...disk.metadata import tensor_hash
from ...disk.sequence import digest


def options_name(model: Any) -> str:
    """A name for the functions on MODEL and all that they hold, the same in every session; "" where there are none."""
    found = _described([model.model_options, getattr(model, "wrappers", {})])
    return digest(found)[:12] if found else ""


def _described(value: Any, inside: frozenset[int] = frozenset()) -> Any:
    """As JSON, "" where there is nothing.

    Args:
        value: anything.
        inside: the id of everything that holds it.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return tensor_hash({"": value.detach().float().cpu()})
    if id(value) in inside:  # a function may hold itself
        return ""
    inside |= {id(value)}
    if isinstance(value, Mapping):
        pairs = {str(key): _described(held, inside) for key, held in value.items()}
        return {key: found for key, found in pairs.items() if found != ""} or ""
    return [found for part in _parts(value) if (found := _described(part, inside)) != ""] or ""


def _parts(value: Any) -> Iterable[Any]:
    """A name and what is held."""
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if isinstance(value, MethodType):
        return value.__func__, value.__self__
    if isinstance(value, FunctionType):
        cells = map(_content, value.__closure__ or ())
        return f"{value.__module__}.{value.__qualname__}", *cells, value.__defaults__, value.__kwdefaults__
    # Of other objects what is plain: behind the rest may be a whole model.
    plain = bool, int, float, str, Tensor, list, tuple
    own = {name: held for name, held in getattr(value, "__dict__", {}).items() if isinstance(held, plain)}
    return type(value).__qualname__, own


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing yet
        return None
