"""The values in a pickle of `torch.save`, read without running anything of it.

A pickle is a program for a small machine that may call any function. This is another machine, for the same program:
names are names and are never looked up, the few calls that build tensors and dictionaries are carried out as what they
mean, and objects of some known libraries stay closed boxes. Every other name ends the reading.

    https://github.com/python/cpython/blob/main/Lib/pickletools.py (the instructions; `genops` reads, and never runs)
    https://github.com/pytorch/pytorch/blob/v2.9.0/torch/_utils.py (what torch calls to build a tensor)
"""

from __future__ import annotations

import pickletools
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.errors import InvalidPrompt

MAX_INSTRUCTIONS = 2_000_000

STORAGES: Mapping[str, str | None] = {
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    **{f"torch.{name}Storage": None for name in ("Double", "Long", "Int", "Short", "Char", "Byte", "Bool")},
}
"""Kinds of numbers that may stand in a file; those without a name are passed over, never read."""

CLOSED = ("omegaconf.", "pytorch_lightning.", "lightning.", "nemo.", "typing.", "argparse.Namespace")
"""Libraries whose objects checkpoints carry beside the tensors: kept closed, not imported."""


@dataclass(frozen=True)
class Name:
    """A function or class that the file mentions."""

    path: str


@dataclass(frozen=True)
class Box:
    """An object that stays closed."""

    path: str


@dataclass(frozen=True)
class Storage:
    """Numbers in a record of their own; `dtype` None: a kind that is not read."""

    dtype: str | None
    key: str
    count: int


@dataclass(frozen=True)
class TensorRef:
    """A view of a storage, as torch describes it."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_DAMAGE = (
    *(ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError),
    *(struct.error, DeprecationWarning, SyntaxWarning),
)


def read_values(data: bytes) -> Any:
    """What the pickle describes: dictionaries, lists, tuples, texts, numbers, `TensorRef`, `Box`.

    Raises InvalidPrompt for what is no such pickle, and for one that mentions any other function or class.
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings(action="error"):  # Python warns of texts that it will refuse one day
            for count, (code, argument, _) in enumerate(pickletools.genops(data)):
                if count >= MAX_INSTRUCTIONS:
                    raise InvalidPrompt("the pickle is longer than any of a prompt")
                machine.run(code.name, argument)
        return machine.result()
    except InvalidPrompt:
        raise
    except _DAMAGE as error:
        raise InvalidPrompt(f"not a pickle of torch.save ({type(error).__name__})") from None


class _Mark:
    pass


class _Machine:
    """A stack, and what was stored to be used again."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        (value,) = self._stack
        return value

    def run(self, code: str, argument: Any) -> None:
        if code in _NOTHING:
            return
        if code in _LITERALS:
            self._stack.append(argument)
        elif code in _CONSTANTS:
            self._stack.append(_CONSTANTS[code]())
        elif code in _TUPLES:
            count = _TUPLES[code]
            self._stack[len(self._stack) - count :] = [tuple(self._stack[-count:])]
        elif code in _RUN:
            _RUN[code](self, argument)
        else:
            raise InvalidPrompt(f"the pickle holds the instruction {code}, which no tensor needs")

    def put(self, place: Any) -> None:
        self._memo[len(self._memo) if place is None else place] = self._stack[-1]

    def get(self, place: Any) -> None:
        self._stack.append(self._memo[place])

    def mark(self, _: Any) -> None:
        self._stack.append(_Mark)

    def above_mark(self) -> list[Any]:
        at = len(self._stack) - 1 - self._stack[::-1].index(_Mark)
        values = self._stack[at + 1 :]
        del self._stack[at:]
        return values

    def tuple_(self, _: Any) -> None:
        self._stack.append(tuple(self.above_mark()))

    def list_(self, _: Any) -> None:
        self._stack.append(self.above_mark())

    def append(self, _: Any) -> None:
        value = self._stack.pop()
        _collect(self._stack[-1], [value])

    def appends(self, _: Any) -> None:
        values = self.above_mark()
        _collect(self._stack[-1], values)

    def set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        _fill(self._stack[-1], [key, value])

    def set_items(self, _: Any) -> None:
        pairs = self.above_mark()
        _fill(self._stack[-1], pairs)

    def name(self, argument: Any) -> None:
        """`module name` of GLOBAL, or the two texts on the stack."""
        if argument is None:
            last, first = self._stack.pop(), self._stack.pop()
            if not isinstance(first, str) or not isinstance(last, str):
                raise InvalidPrompt("the pickle mentions a function that has no name")
            argument = f"{first} {last}"
        self._stack.append(_known(argument.replace(" ", ".")))

    def storage(self, _: Any) -> None:
        kind, of, key, _, count = self._stack.pop()
        if kind != "storage" or not isinstance(of, Name) or not isinstance(key, str) or not isinstance(count, int):
            raise InvalidPrompt("the pickle refers to something that is no storage of torch")
        self._stack.append(Storage(STORAGES[of.path], key, count))

    def call(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(arguments, tuple):
            raise InvalidPrompt("the pickle calls without arguments")
        self._stack.append(_call(function, arguments))

    def build(self, _: Any) -> None:
        """State of an object: dictionaries and tensors have none that matters, boxes stay closed."""
        self._stack.pop()


def _known(path: str) -> Name:
    if path in STORAGES or path in _CALLS or path.startswith(CLOSED):
        return Name(path)
    raise InvalidPrompt(f"the pickle mentions {ascii(path)[:80]}, which no tensor needs: it is not opened further")


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    if isinstance(function, Name) and function.path in _CALLS:
        return _CALLS[function.path](*arguments)
    if isinstance(function, Name | Box) and function.path.startswith(CLOSED):
        return Box(function.path)
    raise InvalidPrompt("the pickle calls what is no function of torch")


def _collect(target: Any, values: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(values)
    elif not isinstance(target, Box):
        raise InvalidPrompt("the pickle appends to what is no list")


def _fill(target: Any, pairs: list[Any]) -> None:
    if isinstance(target, Box):
        return
    if not isinstance(target, dict) or len(pairs) % 2:
        raise InvalidPrompt("the pickle sets items of what is no dictionary")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if isinstance(key, str | int):  # others name nothing that is looked for
            target[key] = value


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorRef:
    numbers = (offset, *size, *stride)
    if not isinstance(storage, Storage) or len(size) != len(stride):
        raise InvalidPrompt("the pickle describes a tensor without numbers")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise InvalidPrompt("the pickle describes a tensor of no shape")
    return TensorRef(storage, offset, tuple(size), tuple(stride))


def _dictionary(pairs: Any = ()) -> dict[Any, Any]:
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise InvalidPrompt("the pickle makes a dictionary of what are no pairs")
    found: dict[Any, Any] = {}
    _fill(found, [part for pair in pairs for part in pair])
    return found


def _parameter(data: Any, *_: Any) -> Any:
    return data


_CALLS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": lambda function, kind, arguments, state: _call(function, arguments),
    "torch.nn.parameter.Parameter": _parameter,
    "torch.Tensor": _parameter,
    "torch.Size": tuple,
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": _dictionary,
    "__builtin__.dict": _dictionary,
}

_NOTHING = {"PROTO", "FRAME", "STOP"}
_LITERALS = {
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4"),
    *("BINFLOAT", "FLOAT"),
}
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES: Mapping[str, int] = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_RUN: Mapping[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "PUT"), _Machine.put),
    "MEMOIZE": lambda machine, _: machine.put(None),
    **dict.fromkeys(("BINGET", "LONG_BINGET", "GET"), _Machine.get),
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple_,
    "LIST": _Machine.list_,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name,
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
}
