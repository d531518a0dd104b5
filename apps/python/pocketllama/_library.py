"""The C library, apps/c/pocketllama.h, by ctypes."""

import ctypes
from ctypes import (POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_uint,
                    c_void_p)
from pathlib import Path

API_VERSION = 1
POCKET_COPY = 1


class Info(ctypes.Structure):
    """pocket_info."""

    _fields_ = [(name, c_int32) for name in (
        "vocab_size", "context", "dim", "hidden_dim", "layers", "heads", "kv_heads", "head_dim", "bos", "has_chat")]
    _fields_ += [("file_bytes", c_uint64), ("checksum", c_uint64), ("provenance", c_char_p)]


class Options(ctypes.Structure):
    """pocket_options."""

    _fields_ = [("context", c_int32), ("threads", c_int32), ("kv_f32", c_int32)]


class ScaledAdapter(ctypes.Structure):
    """pocket_scaled_adapter."""

    _fields_ = [("adapter", c_void_p), ("scale", c_double)]


class Sampling(ctypes.Structure):
    """pocket_sampling."""

    _fields_ = [("seed", c_uint64), ("temperature", c_float), ("top_p", c_float), ("min_p", c_float),
                ("repeat_penalty", c_float), ("top_k", c_int32)]


_FUNCTIONS = {  # name: result, arguments
    "api_version": (c_int,),
    "error": (c_char_p,),
    "model_open": (c_void_p, c_char_p, c_uint),
    "model_free": (None, c_void_p),
    "model_info": (c_int, c_void_p, POINTER(Info)),
    "encode": (c_int, c_void_p, c_char_p, c_int, POINTER(c_int32), c_int),
    "decode": (c_int64, c_void_p, POINTER(c_int32), c_int, c_char_p, c_size_t),
    "adapter_open": (c_void_p, c_void_p, c_char_p),
    "adapter_free": (None, c_void_p),
    "session_new_with_adapters": (c_void_p, c_void_p, POINTER(Options), POINTER(ScaledAdapter), c_int),
    "session_fork": (c_void_p, c_void_p),
    "session_free": (None, c_void_p),
    "set_sampling": (c_int, c_void_p, POINTER(Sampling)),
    "append": (c_int, c_void_p, POINTER(c_int32), c_int),
    "append_text": (c_int, c_void_p, c_char_p),
    "append_message": (c_int, c_void_p, c_char_p, c_char_p),
    "process": (c_int, c_void_p, c_int),
    "logits": (c_void_p, c_void_p),
    "next": (c_int, c_void_p, POINTER(c_int32), POINTER(c_void_p), POINTER(c_size_t)),
    "position": (c_int, c_void_p),
    "rewind": (c_int, c_void_p, c_int),
    "cancel": (None, c_void_p),
}


class Error(RuntimeError):
    """A failure of the engine. The message names the file or the value, what was expected and what was found."""


class _Library:
    """The functions of the library without their prefix. They release the GIL while they run."""

    def __init__(self, path: Path):
        library = ctypes.CDLL(str(path))
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = getattr(library, "pocket_" + name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        if self.api_version() != API_VERSION:
            raise Error(f"{path}: expected version {API_VERSION} of the interface, found {self.api_version()}")


library = _Library(Path(__file__).with_name("libpocketllama.so"))


def check(result):
    """Returns the result of a function, or raises its error."""
    if result is None or result < 0:
        raise Error(library.error().decode("utf-8", "replace"))
    return result


class Handle:
    """A model, adapter or session of the library, freed with the last reference to it."""

    def __init__(self, pointer, free):
        self.pointer = check(pointer)
        self._free = free

    @property
    def _as_parameter_(self):
        """What ctypes passes for the object. Its arguments live until the call returns."""
        return self.pointer

    def __del__(self):
        if getattr(self, "pointer", None):
            self._free(self.pointer)
