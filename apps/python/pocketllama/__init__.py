"""Language models on a CPU.

    import pocketllama

    with pocketllama.Model() as model:                      # the story model of this package, or a path
        for text in model.generate("Once upon a time", seed=5):
            print(text, end="", flush=True)

    with pocketllama.Model("smollm2-135m-instruct.bin") as model, model.session() as session:
        print("".join(session.chat("What is the capital of France?")))

The same model, text, options and seed give the same output on every machine. Native calls release the GIL: threads with
sessions of their own run at the same time and may share a model.
"""

import ctypes
import os
import random
import threading
from pathlib import Path
from typing import Any, Iterator, List, Optional, Sequence, Tuple, Union

from ._library import POCKET_COPY, Error, Handle, Info, Options, Sampling, ScaledAdapter, check, library

__all__ = ["Adapter", "Error", "Model", "Session"]

_BATCH = 64  # tokens of a prompt between two chances for Ctrl-C


def _bytes(text: str) -> bytes:
    """The text for the library, which takes a zero for its end."""
    if "\0" in text:
        raise ValueError("text: expected no null character, found one")
    return text.encode("utf-8", "replace")


def _path(path: Union[str, "os.PathLike[str]"]) -> bytes:
    """The name of a file or folder for the library."""
    name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError("path: expected no null character, found one")
    return name


def _int32(name: str, value: int) -> int:
    """A number for the library. ctypes would take the lowest 32 bits of others."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, found {value}")
    if not -(1 << 31) <= value < 1 << 31:
        raise ValueError(f"{name}: expected a number of 32 bits, found {value}")
    return value


def _ids(ids: Sequence[int]) -> Any:
    if isinstance(ids, (bytes, bytearray, memoryview)):  # whose elements are numbers too
        raise TypeError(f"expected a text or token ids, found {type(ids).__name__}")
    return (ctypes.c_int32 * len(ids))(*[_int32("id", id) for id in ids])


class _Closable:
    """What models, adapters and sessions share: they are closed by close(), by `with`, or when they are collected."""

    _handle: Optional[Handle]

    def close(self) -> None:
        """Frees the memory. Without effect if it is closed already."""
        self._handle = None

    def __enter__(self):
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def _opened(self) -> Handle:
        """For a call of the library. The object itself, which a close() by another thread does not free meanwhile."""
        handle = self._handle
        if handle is None:
            raise Error(f"the {type(self).__name__.lower()} is closed")
        return handle


class Model(_Closable):
    """An open model file. Threads may share it. It may be closed before its adapters and sessions, which keep what they
    need.

    path: a model.bin; None: the small story model of this package.
    copy: read the file into memory instead of mapping it. A mapped file must not change while it is open.
    """

    def __init__(self, path: Union[str, "os.PathLike[str]", None] = None, *, copy: bool = False):
        file = Path(__file__).with_name("stories.bin") if path is None else path
        self._handle = Handle(library.model_open(_path(file), POCKET_COPY if copy else 0), library.model_free)
        info = Info()
        check(library.model_info(self._opened, ctypes.byref(info)))
        self.path = os.fspath(file)
        self.vocab_size: int = info.vocab_size  #: ids are 0 to vocab_size - 1
        self.context: int = info.context  #: tokens that the model was trained for
        self.dim: int = info.dim
        self.hidden_dim: int = info.hidden_dim
        self.layers: int = info.layers
        self.heads: int = info.heads
        self.kv_heads: int = info.kv_heads
        self.head_dim: int = info.head_dim
        self.bos: Optional[int] = info.bos if info.bos >= 0 else None  #: the token that starts a text
        self.has_chat: bool = bool(info.has_chat)  #: Session.chat() is possible
        self.file_bytes: int = info.file_bytes
        self.checksum: int = info.checksum  #: identifies the model
        self.provenance: str = info.provenance.decode("utf-8", "replace")  #: source, licence, quantization

    def encode(self, text: str, *, bos: bool = False) -> List[int]:
        """The tokens of a text. bos: with the token that starts a text, if the model uses one."""
        data = _bytes(text)
        ids = (ctypes.c_int32 * (len(data) + 8))()
        n = check(library.encode(self._opened, data, bos, ids, len(ids)))
        if n > len(ids):
            ids = (ctypes.c_int32 * n)()
            check(library.encode(self._opened, data, bos, ids, n))
        return list(ids[:n])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens. Control tokens have none."""
        data = _ids(ids)
        n = check(library.decode(self._opened, data, len(data), None, 0))
        text = ctypes.create_string_buffer(n)
        check(library.decode(self._opened, data, len(data), text, n))
        return text.raw[:n].decode("utf-8", "replace")

    def adapter(self, path: Union[str, "os.PathLike[str]"]) -> "Adapter":
        """Opens a LoRA adapter of the model; as Adapter."""
        return Adapter(self, path)

    def session(self, **options: Any) -> "Session":
        """A new session; options as for Session."""
        return Session(self, **options)

    def generate(self, prompt: str = "", tokens: Optional[int] = 256, **options: Any) -> Iterator[str]:
        """Continues a text in a new session; options as for Session. Yields pieces of text, without the prompt."""
        return Session(self, **options).generate(prompt, tokens)


class Adapter(_Closable):
    """An open LoRA adapter of a model, for the `adapters` of its sessions. Threads may share it. It may be closed before
    these, which keep what they need.

    path: a folder with adapter_config.json and adapter_model.safetensors or .bin, as PEFT and models/train save it. The
    files must not change while the adapter is open.
    """

    def __init__(self, model: Model, path: Union[str, "os.PathLike[str]"]):
        self._handle = Handle(library.adapter_open(model._opened, _path(path)), library.adapter_free)
        self.path = os.fspath(path)


class Session(_Closable):
    """A text in progress: its tokens, and what the model keeps of them. Calls from several threads wait for each other.

    adapters: adapters of the model, each with a factor of its effect: [(adapter, 0.5)]. An adapter alone has the factor
    1, as trained. Their effects add up. Sessions of one model may have different ones.
    context: tokens that the session has room for; 0: as many as the model was trained for.
    threads: of the computation; 0: one per CPU. It does not change the text.
    kv_f32: keep keys and values as float32 instead of int8.
    seed: of the random choice of tokens; None: a random one. The others: see set_sampling().
    """

    def __init__(self, model: Model, *, adapters: Sequence[Union[Adapter, Tuple[Adapter, float]]] = (),
                 context: int = 0, threads: int = 0, kv_f32: bool = False, seed: Optional[int] = None,
                 temperature: float = 0.8, top_p: float = 0.9, top_k: int = 0, min_p: float = 0.0,
                 repeat_penalty: float = 1.0):
        options = Options(_int32("context", context), _int32("threads", threads), kv_f32)
        pairs = [(a, 1.0) if isinstance(a, Adapter) else a for a in adapters]
        handles = [adapter._opened for adapter, _ in pairs]
        scaled = (ScaledAdapter * len(pairs))(*[(h.pointer, scale) for h, (_, scale) in zip(handles, pairs)])
        pointer = library.session_new_with_adapters(model._opened, ctypes.byref(options), scaled, len(pairs))
        self._start(model, Handle(pointer, library.session_free), context or model.context)
        self.set_sampling(seed=seed, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
                          repeat_penalty=repeat_penalty)

    def _start(self, model: Model, handle: Handle, context: int) -> None:
        self._model = model
        self._handle = handle
        self._context = context
        self._unread = ""  # text of tokens of the session that no caller has got
        self._lock = threading.Lock()

    @property
    def model(self) -> Model:
        """The model of the session."""
        return self._model

    @property
    def position(self) -> int:
        """The number of tokens of the session."""
        with self._lock:
            return check(library.position(self._opened))

    def set_sampling(self, *, seed: Optional[int] = None, temperature: float = 0.8, top_p: float = 0.9,
                     top_k: int = 0, min_p: float = 0.0, repeat_penalty: float = 1.0) -> None:
        """How tokens are chosen from now on.

        seed: of the random choice; None: a random one. temperature: 0: always the most likely token; 1: as trained.
        top_p: only the likeliest tokens that together hold this much probability. top_k: only so many tokens; 0: all.
        min_p: only tokens at least this likely, relative to the most likely one. repeat_penalty: logits of the last 64
        tokens are divided by it.
        """
        seed = random.randrange(1_000_000) if seed is None else seed
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed: expected 0 to 2**64 - 1, found {seed}")
        sampling = Sampling(seed, temperature, top_p, min_p, repeat_penalty, _int32("top_k", top_k))
        with self._lock:
            check(library.set_sampling(self._opened, ctypes.byref(sampling)))

    def append(self, text: Union[str, Sequence[int]]) -> None:
        """Appends a text, or tokens. They are processed when they are needed."""
        with self._lock:
            self._unread = ""
            if isinstance(text, str):
                check(library.append_text(self._opened, _bytes(text)))
            else:
                check(library.append(self._opened, _ids(text), len(text)))

    def logits(self) -> Any:
        """Scores for each token that may come next: float32, (vocab_size,), not softmaxed.

        A read-only NumPy array, or a memoryview where NumPy is not installed. It is a view of the session's memory,
        not a copy: the next call with the session changes it.
        """
        self._process()
        with self._lock:
            address = check(library.logits(self._opened))
            memory = (ctypes.c_float * self._model.vocab_size).from_address(address)
            memory.owner = self._handle  # keeps the memory alive
        view = memoryview(memory).toreadonly().cast("B").cast("f")
        try:
            import numpy
        except ImportError:
            return view
        return numpy.frombuffer(view, dtype=numpy.float32)

    def generate(self, prompt: str = "", tokens: Optional[int] = 256) -> Iterator[str]:
        """Appends a prompt and continues the text. Yields pieces of it, in whole characters.

        tokens: at most so many new ones; None: until the context is full. The text ends earlier at a stop token of the
        model. Ctrl-C raises KeyboardInterrupt between two tokens; the session may be continued.
        """
        if prompt:
            self.append(prompt)
        return self._pieces(tokens)

    def chat(self, message: str, *, system: Optional[str] = None, tokens: Optional[int] = None) -> Iterator[str]:
        """Appends a message by the model's chat template and generates the reply. Yields pieces of it, as generate().

        system: the system prompt, for the first message of a session; None: that of the template, if it has one.
        """
        with self._lock:
            self._unread = ""
            system_text = None if system is None else _bytes(system)
            check(library.append_message(self._opened, system_text, _bytes(message)))
        return self._pieces(tokens)

    def rewind(self, position: int = 0) -> None:
        """Forgets all tokens but the first `position`."""
        with self._lock:
            self._unread = ""
            check(library.rewind(self._opened, _int32("position", position)))

    def fork(self) -> "Session":
        """An independent copy of the session, which continues with the same random numbers."""
        copy = object.__new__(Session)
        with self._lock:
            copy._start(self._model, Handle(library.session_fork(self._opened), library.session_free), self._context)
        return copy

    def cancel(self) -> None:
        """Lets the running, or else the next, computation of another thread raise Error("cancelled")."""
        library.cancel(self._opened)

    def _process(self) -> None:
        """Processes the appended tokens, with chances for Ctrl-C."""
        left = 1
        while left > 0:
            with self._lock:
                left = check(library.process(self._opened, _BATCH))

    def _pieces(self, tokens: Optional[int]) -> Iterator[str]:
        if self.position > self._context:  # a text that ended with a full context
            return
        self._process()
        token, text, size = ctypes.c_int32(), ctypes.c_void_p(), ctypes.c_size_t()
        more, count = 1, 0
        while more and (tokens is None or count < tokens):
            with self._lock:
                size.value = 0
                try:
                    more = check(library.next(self._opened, ctypes.byref(token), ctypes.byref(text), ctypes.byref(size)))
                finally:  # also if Ctrl-C came during the call, which has appended the token
                    if size.value:
                        self._unread += ctypes.string_at(text.value, size.value).decode("utf-8", "replace")
            count += more
            if self._unread:
                piece, self._unread = self._unread, ""
                yield piece
