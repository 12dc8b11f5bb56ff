"""Runs the pickle of a torch archive on a closed list of opcodes and globals.

`pickle.Unpickler` with a filtered `find_class` would still let a file ask for a memo of 64 GB, or
hash a tuple that holds itself 2**40 times. This machine has no such instruction: what is not in the
tables below is refused by name. Its values are plain containers, tensor views and inert stand-ins.
"""

import collections
import dataclasses
import math
import pickletools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from lunar_distill_jax.convert.torch_zip import Refusal, shown

MAX_OPCODES = 2_000_000  # a teacher needs 40,000
MAX_DIMS = 32
_BITS64 = range(-(2**63), 2**64)

DTYPES = {
    "Half": ("float16", np.dtype(np.float16)),
    "BFloat16": ("bfloat16", np.dtype(ml_dtypes.bfloat16)),
    "Float": ("float32", np.dtype(np.float32)),
    "Double": ("float64", np.dtype(np.float64)),
    "Long": ("int64", np.dtype(np.int64)),
    "Int": ("int32", np.dtype(np.int32)),
    "Short": ("int16", np.dtype(np.int16)),
    "Char": ("int8", np.dtype(np.int8)),
    "Byte": ("uint8", np.dtype(np.uint8)),
    "Bool": ("bool", np.dtype(np.bool_)),
}
_NUMPY_SCALARS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


@dataclasses.dataclass(frozen=True)
class _Function:
    """Stands for a callable of the allow-list; `call` is ours, never the one the file names."""

    call: Callable


@dataclasses.dataclass(frozen=True)
class _Type:
    """Stands for a torch storage class, a torch dtype or a numpy dtype."""

    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class _Storage:
    """The bytes that tensors look at, and what the file says they are."""

    data: np.ndarray
    dtype: np.dtype
    limit: int  # bytes a tensor may unfold to, by overlapping strides


class Namespace:
    """An inert `argparse.Namespace`: its attributes are the entries of `fields`."""

    def __init__(self):
        self.fields: dict = {}


def strided_view(storage: _Storage, dtype: np.dtype, offset, size, stride) -> np.ndarray:
    """Returns the tensor as a read-only view of its storage; offset and stride count elements.

    Raises:
      Refusal: an element would lie outside of the storage, or the numbers make no sense.
    """
    if not (isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)):
        raise Refusal("has a tensor whose size and stride do not match: it is damaged.")
    numbers = (offset, *size, *stride)
    if len(size) > MAX_DIMS or any(type(n) is not int or n < 0 for n in numbers):
        raise Refusal(f"has a tensor with the offset, size and stride {str(numbers)[:80]}.")
    count = math.prod(size)
    reach = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0
    if (offset + reach) * dtype.itemsize > len(storage.data):
        raise Refusal(
            f"has a tensor of size {size} and stride {stride} at {offset} that leaves its storage "
            f"of {len(storage.data)} bytes: it is damaged."
        )
    if count * dtype.itemsize > storage.limit:
        raise Refusal(f"has a tensor of size {size} that repeats a few bytes without end.")
    if count == 0:
        return np.empty(size, dtype)
    # The stride of an axis of length 1 is never used, and torch leaves any number there.
    steps = [step if n > 1 else 1 for n, step in zip(size, stride, strict=True)]
    in_bytes = [step * dtype.itemsize for step in steps]
    return np.ndarray(size, dtype, storage.data, offset * dtype.itemsize, in_bytes)


def _rebuild_tensor_v2(storage, offset, size, stride, _grad=False, _hooks=None, _meta=None):
    return strided_view(_checked(storage, _Storage), storage.dtype, offset, size, stride)


def _rebuild_tensor_v3(storage, offset, size, stride, _grad, _hooks, kind, _meta=None):
    storage, kind = _checked(storage, _Storage), _checked(kind, _Type)
    return strided_view(storage, kind.dtype, offset, size, stride)


def _rebuild_parameter(tensor, _grad=False, _hooks=None):
    return _checked(tensor, np.ndarray)


def _numpy_dtype(code, _align=False, _copy=True):
    if code not in _NUMPY_SCALARS:
        raise Refusal(f"has a numpy scalar of type {str(code)[:40]!r}, which is not read here.")
    return _Type(np.dtype(code))


def _numpy_scalar(kind, raw):
    kind = _checked(kind, _Type).dtype
    if len(_checked(raw, bytes)) != kind.itemsize:
        raise Refusal("has a numpy scalar of the wrong size: it is damaged.")
    return np.frombuffer(raw, kind)[0].item()


def _encode(text, encoding):  # how protocol 2 writes bytes
    if len(_checked(text, str)) > 64 or encoding != "latin1":
        raise Refusal("has a byte string that is not a number.")
    return text.encode("latin1")


def _checked(value, kind: type):
    if not isinstance(value, kind):
        raise Refusal(f"has a {type(value).__name__} where a {kind.__name__} must be.")
    return value


GLOBALS: dict[str, Any] = {  # "module name": what it stands for. This list is closed.
    "torch._utils _rebuild_tensor_v2": _Function(_rebuild_tensor_v2),
    "torch._utils _rebuild_tensor_v3": _Function(_rebuild_tensor_v3),
    "torch._utils _rebuild_parameter": _Function(_rebuild_parameter),
    "torch Size": _Function(lambda sizes: _checked(sizes, tuple)),
    "torch device": _Function(lambda kind, index=None: _checked(kind, str)),
    "collections OrderedDict": _Function(lambda: collections.OrderedDict()),
    "argparse Namespace": _Function(Namespace),
    "numpy dtype": _Function(_numpy_dtype),
    "numpy.core.multiarray scalar": _Function(_numpy_scalar),
    "numpy._core.multiarray scalar": _Function(_numpy_scalar),
    "_codecs encode": _Function(_encode),
    "torch.storage UntypedStorage": _Type(np.dtype(np.uint8)),
    **{f"torch {name}Storage": _Type(dtype) for name, (_, dtype) in DTYPES.items()},
    **{f"torch {name}": _Type(dtype) for name, dtype in DTYPES.values()},
}


class _Machine:
    """One run of one pickle. Each opcode costs at most the values that it takes off the stack."""

    def __init__(self, find_storage: Callable[[str], np.ndarray], limit: int):
        self.find_storage, self.limit = find_storage, limit
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: bytes):
        """Returns the value that the pickle leaves."""
        for steps, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
            if steps > MAX_OPCODES:
                raise Refusal(f"has more than {MAX_OPCODES} pickle instructions.")
            if opcode.name in _LITERALS:
                self.push(arg)
            elif opcode.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode.name]())
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](self, arg)
            elif opcode.name == "INST":
                _find_global(str(arg))
            elif opcode.name not in _NO_STEP:
                raise Refusal(
                    f"uses the pickle instruction {opcode.name}, which tensors do not need: "
                    "save it again with torch.save(model.state_dict(), ...)."
                )
        (value,) = self.stack
        return value

    def push(self, value):
        if type(value) is int and value not in _BITS64:
            raise Refusal("has an integer of more than 64 bits: it is damaged.")
        self.stack.append(value)

    def mark(self, _):
        self.marks.append(len(self.stack))

    def since_mark(self) -> list:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def pop_mark(self, _):
        self.since_mark()

    def pop(self, _):
        self.stack.pop()

    def dup(self, _):
        self.stack.append(self.stack[-1])

    def put(self, index):
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index):
        self.stack.append(self.memo[index])

    def tuple_since_mark(self, _):
        self.stack.append(tuple(self.since_mark()))

    def take(self, n: int) -> tuple:
        values = tuple(self.stack[len(self.stack) - n :])
        if len(values) != n:
            raise Refusal("has a pickle that takes what it did not give: it is damaged.")
        del self.stack[len(self.stack) - n :]
        return values

    def append(self, _):
        (value,) = self.take(1)
        _checked(self.stack[-1], list).append(value)

    def appends(self, _):
        values = self.since_mark()
        _checked(self.stack[-1], list).extend(values)

    def set_item(self, _):
        self.set_pairs(self.take(2))

    def set_items(self, _):
        self.set_pairs(self.since_mark())

    def set_pairs(self, pairs):
        target = _checked(self.stack[-1], dict)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) not in (str, int, float, bool, type(None)):
                raise Refusal(f"has a dictionary whose key is a {type(key).__name__}.")
            target[key] = value

    def global_(self, arg):
        self.stack.append(_find_global(arg))

    def stack_global(self, _):
        module, name = self.take(2)
        self.stack.append(_find_global(f"{_checked(module, str)} {_checked(name, str)}"))

    def reduce(self, _):
        function, args = self.take(2)
        self.stack.append(_checked(function, _Function).call(*_checked(args, tuple)))

    def build(self, _):
        (state,) = self.take(1)
        target = self.stack[-1]
        if isinstance(target, Namespace):
            target.fields = _checked(state, dict)
        elif isinstance(target, collections.OrderedDict):
            _checked(state, dict)  # torch hangs `_metadata` on a state dict: not needed
        elif not isinstance(target, _Type) or _checked(state, tuple)[1] not in ("<", "|", "="):
            raise Refusal(f"sets the state of a {type(target).__name__}, which was not done.")

    def persistent_id(self, _):
        kind, storage_type, key, _location, count = _checked(self.take(1)[0], tuple)
        if kind != "storage" or type(count) is not int or count < 0:
            raise Refusal("has a storage record that torch.save does not write: it is damaged.")
        dtype, data = _checked(storage_type, _Type).dtype, self.find_storage(_checked(key, str))
        if count * dtype.itemsize > len(data):
            raise Refusal(
                f"declares {count} numbers of {dtype} in storage {key[:20]!r}, "
                f"which has {len(data)} bytes: it is damaged or cut."
            )
        self.stack.append(_Storage(data[: count * dtype.itemsize], dtype, self.limit))


def _find_global(name: str):
    if name not in GLOBALS:
        dotted = shown(name.replace(" ", "."), 120)
        raise Refusal(
            f"asks for the global {dotted}, which is not needed for tensors: it was not executed; "
            "get a file with tensors only, by torch.save(model.state_dict(), ...), from its author."
        )
    return GLOBALS[name]


_LITERALS = set(
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "SHORT_BINBYTES BINBYTES".split()
)
_CONSTANTS: dict[str, Callable] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_NO_STEP = {"PROTO", "FRAME", "STOP"}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.dup,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": _Machine.tuple_since_mark,
    "TUPLE1": lambda machine, _: machine.stack.append(machine.take(1)),
    "TUPLE2": lambda machine, _: machine.stack.append(machine.take(2)),
    "TUPLE3": lambda machine, _: machine.stack.append(machine.take(3)),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
}


def load(stream: bytes, find_storage: Callable[[str], np.ndarray], limit: int):
    """Returns the value of a torch pickle; tensors are read-only views of their storages.

    Args:
      stream: the pickle.
      find_storage: the bytes (uint8 [n]) of the storage with a given key.
      limit: bytes that one tensor may unfold to.

    Raises:
      Refusal: the pickle asks for something that tensors do not need. Damaged bytes may raise any
        other exception too, and do nothing else.
    """
    return _Machine(find_storage, limit).run(stream)
