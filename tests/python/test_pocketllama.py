"""Tests of the installed Python package. POCKET_RUN is the program ./run, to compare with."""

import array
import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading

import pytest

import pocketllama
from pocketllama import Error, Model, Session

RUN = os.environ.get("POCKET_RUN")


@pytest.fixture(scope="module")
def model():
    with Model() as model:
        yield model


def story(model, seed=5, **options):
    return "".join(model.generate("Once upon a time", seed=seed, **options))


@pytest.mark.skipif(not RUN, reason="POCKET_RUN is not set")
@pytest.mark.parametrize("seed", [1, 5])
def test_text_is_that_of_run(model, seed):
    command = [RUN, model.path, "-i", "Once upon a time", "-s", str(seed), "-q"]
    expected = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    assert "Once upon a time" + story(model, seed) == expected
    command = [sys.executable, "-m", "pocketllama", "Once upon a time", "-s", str(seed)]
    assert subprocess.run(command, capture_output=True, check=True).stdout.decode() == expected


def test_info(model):
    assert model.vocab_size > 0 and model.context > 0 and model.layers > 0
    assert "source" in model.provenance
    assert not model.has_chat


def test_encode_and_decode(model):
    text = "Tom saw a café. 🙂"
    assert model.decode(model.encode(text)) == text
    assert model.decode([]) == ""
    with pytest.raises(Error, match="id: expected 0 to"):
        model.decode([-1])
    with pytest.raises(ValueError, match="null character"):
        model.encode("a\0b")


def test_same_text_for_any_threads_and_parts(model):
    expected = story(model)
    assert story(model, threads=3) == expected
    session = model.session(seed=5)
    parts = "".join(session.generate("Once upon a time", 20))
    fork = session.fork()
    assert parts + "".join(session.generate(tokens=236)) == expected
    session.close()
    assert parts + "".join(fork.generate(tokens=236)) == expected


def test_threads_share_a_model(model):
    expected = story(model)
    found = [None] * 6

    def tell(i):
        found[i] = story(model)

    threads = [threading.Thread(target=tell, args=(i,)) for i in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * len(found)


def test_threads_may_use_one_session(model):
    with model.session(seed=1) as session:
        session.append("Once")
        threads = [threading.Thread(target=lambda: list(session.generate(tokens=30))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert session.position > 30


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(Error, match="missing.bin: No such file"):
        Model(tmp_path / "missing.bin")
    damaged = tmp_path / "damagéd.bin"
    with Model() as model:
        data = bytearray(open(model.path, "rb").read())
    damaged.write_bytes(data[: len(data) // 2])
    with pytest.raises(Error, match="damagéd.bin: file_bytes"):
        Model(damaged)
    data[300] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(Error, match="checksum"):
        Model(damaged)


def test_wrong_arguments(model):
    with pytest.raises(Error, match="threads: expected 0 to 256"):
        Session(model, threads=-1)
    with pytest.raises(Error, match="top_p: expected 0 to 1"):
        model.session(top_p=2)
    with pytest.raises(ValueError, match="seed"):
        model.session(seed=-1)
    with pytest.raises(Error, match="no chat template"):
        model.session().chat("hello")
    with pytest.raises(Error, match="the session is empty"):
        model.session().logits()
    with pytest.raises(Error, match="the context has room for 3"):
        model.session(context=3).append("Once upon a time there was a little girl")


def test_objects_may_be_freed_in_any_order():
    model = Model()
    session = model.session(seed=5)
    expected = story(model)
    model.close()
    model.close()
    assert "".join(session.generate("Once upon a time")) == expected
    session.rewind(20)
    logits = session.logits()
    before = float(logits[0])
    session.close()
    assert float(logits[0]) == before
    with pytest.raises(Error, match="the session is closed"):
        session.logits()
    with pytest.raises(Error, match="the model is closed"):
        model.session()


def write_adapter(folder, model, *, width=None, seed=1):
    """Writes an adapter of rank 2 of the model's first q_proj, of other columns if `width` is given."""
    numbers = random.Random(seed)
    q_dim, width = model.heads * model.head_dim, width or model.dim
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    header, data = {}, b""
    for factor, shape in ("A", (2, width)), ("B", (q_dim, 2)):
        values = array.array("f", [numbers.gauss(0, 0.3) for _ in range(shape[0] * shape[1])]).tobytes()
        header[name.format(factor)] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    head = json.dumps(header).encode()
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.skipif(not RUN, reason="POCKET_RUN is not set")
def test_text_with_adapters_is_that_of_run(model, tmp_path):
    first, second = (write_adapter(tmp_path / name, model, seed=i) for i, name in enumerate(["first", "sécond"]))
    one, two = model.adapter(first), model.adapter(str(second))
    texts = {story(model)}
    for adapters, lora in [([one], [f"{first}"]), ([(one, -0.5)], [f"{first}:-0.5"]),
                           ([(two, 0.25), one], [f"{second}:0.25", f"{first}"])]:
        options = [word for name in lora for word in ("--lora", name)]
        command = [RUN, model.path, "-i", "Once upon a time", "-s", "5", "-q", *options]
        expected = subprocess.run(command, capture_output=True, check=True).stdout.decode()
        assert "Once upon a time" + story(model, adapters=adapters) == expected
        program = [sys.executable, "-m", "pocketllama", "-s", "5", *options]
        assert subprocess.run(program, capture_output=True, check=True).stdout.decode() == expected
        texts.add(story(model, adapters=adapters))
    assert len(texts) == 4
    assert story(model, adapters=[(one, 0)]) == story(model)


def test_sessions_have_adapters_of_their_own(tmp_path):
    model = Model()
    plain, adapter = model.session(seed=5), model.adapter(write_adapter(tmp_path / "a", model))
    with_it = model.session(seed=5, adapters=[(adapter, 2)])
    expected = [story(model), story(model, adapters=[(adapter, 2)])]
    assert expected[0] != expected[1]
    adapter.close()
    with pytest.raises(Error, match="the adapter is closed"):
        model.session(adapters=[adapter])
    model.close()
    assert ["".join(s.generate("Once upon a time")) for s in (plain, with_it.fork())] == expected


def test_wrong_adapters(model, tmp_path):
    adapter = model.adapter(write_adapter(tmp_path / "a", model))
    with pytest.raises(Error, match="missing: expected the folder of a LoRA adapter"):
        model.adapter(tmp_path / "missing")
    with pytest.raises(Error, match="expected shape"):
        model.adapter(write_adapter(tmp_path / "wide", model, width=model.dim + 1))
    for scale in float("nan"), float("inf"):
        with pytest.raises(Error, match=r"adapters\[1\]: scale: expected a finite number"):
            model.session(adapters=[adapter, (adapter, scale)])
    with Model() as other, pytest.raises(Error, match="expected an adapter of this model"):
        other.session(adapters=[adapter])
    with pytest.raises(TypeError):
        model.session(adapters=[None])


def test_bytes_are_no_token_ids(model):
    with model.session() as session:
        for wrong in b"Once", bytearray(b"Once"), memoryview(b"Once"), [True], [1, False]:
            with pytest.raises(TypeError, match="expected"):
                session.append(wrong)


def test_logits_are_a_view(model):
    numpy = pytest.importorskip("numpy")
    with model.session() as session:
        session.append([model.bos or 0] + model.encode("Once upon a time"))
        logits = session.logits()
        assert logits.shape == (model.vocab_size,) and logits.dtype == numpy.float32
        assert not logits.flags.writeable and not logits.flags.owndata
        assert logits.ctypes.data == session.logits().ctypes.data
        best = int(numpy.argmax(logits))
        text = "".join(model.generate("Once upon a time", 1, temperature=0))
        assert text.strip() == model.decode([best]).strip()


def test_ctrl_c_ends_generate():
    code = (
        "import pocketllama, sys\n"
        "session = pocketllama.Model().session(seed=1)\n"
        "try:\n"
        "    while True:\n"
        "        session.rewind()\n"
        "        for text in session.generate('Once upon a time', None):\n"
        "            print(text, flush=True)\n"
        "except KeyboardInterrupt:\n"
        "    n = session.position\n"
        "    assert list(session.generate(tokens=1)) is not None and session.position >= n\n"
        "    sys.exit(42)\n"
    )
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    program.stdout.readline()
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=60)
    assert (program.returncode, errors) == (42, b"")


def test_ctrl_c_during_a_token_loses_no_text(model, monkeypatch):
    expected = "".join(model.generate("Once upon a time", 40, seed=3))
    original, calls = pocketllama.library.next, 0

    def interrupted(*arguments):
        nonlocal calls
        calls += 1
        result = original(*arguments)
        if calls % 3 == 0:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(pocketllama.library, "next", interrupted)
    with model.session(seed=3) as session:
        session.append("Once upon a time")
        end, text = session.position + 40, ""
        while session.position < end:
            try:
                for piece in session.generate(tokens=end - session.position):
                    text += piece
            except KeyboardInterrupt:
                pass
        monkeypatch.undo()
        assert calls == 40 and text + session._unread == expected


def test_close_waits_for_a_running_call(model):
    for _ in range(20):
        session = model.session(context=4000, threads=1)
        session.append([300] * 3000)

        def compute():
            with pytest.raises(Error, match="closed"):
                list(session.generate(tokens=1000))

        thread = threading.Thread(target=compute)
        thread.start()
        session.close()
        thread.join()


def test_full_context_ends_the_text(model):
    with model.session(context=20, temperature=1.5, seed=1) as session:
        assert list(session.generate("Once upon a time", None))
        assert list(session.generate()) == []


def test_cancel_from_another_thread(model):
    with model.session() as session:
        session.append("Once")
        session.cancel()
        with pytest.raises(Error, match="cancelled"):
            list(session.generate())
        assert list(session.generate(tokens=3))


@pytest.mark.skipif(not os.environ.get("POCKET_CHAT_MODEL"), reason="POCKET_CHAT_MODEL is not set")
def test_chat():
    with Model(os.environ["POCKET_CHAT_MODEL"], copy=True) as model, model.session(temperature=0) as session:
        assert "Paris" in "".join(session.chat("What is the capital of France?", tokens=40))
        assert "Rome" in "".join(session.chat("And of Italy?", tokens=40))
        with pytest.raises(Error, match="context has room"):
            session.chat("word " * 10000)


def test_numbers_beyond_32_bits_are_refused(model):
    with model.session() as session:
        session.append("Once")
        for call in (lambda: session.rewind((1 << 32) + 1), lambda: model.decode([(1 << 32) + 300]),
                     lambda: model.session(context=1 << 32), lambda: session.set_sampling(top_k=1 << 33)):
            with pytest.raises(ValueError, match="32 bits"):
                call()


def test_terminal_gets_no_escape_sequences():
    command = [sys.executable, "-m", "pocketllama", "\x1b]0;title\x07Once\u202e\tupon", "-n", "1"]
    terminal, other = os.openpty()
    subprocess.run(command, stdout=other, check=True)
    shown = os.read(terminal, 1 << 16).decode()
    assert shown.startswith("]0;titleOnce") and not set("\x1b\x07\u202e") & set(shown)
    assert b"\x1b" in subprocess.run(command, capture_output=True, check=True).stdout


def test_program_reports_errors():
    command = [sys.executable, "-m", "pocketllama", "-m", "missing.bin"]
    result = subprocess.run(command, capture_output=True)
    assert (result.returncode, result.stderr) == (1, b"pocketllama: missing.bin: No such file or directory\n")


def test_program_reports_errors_of_adapters(model, tmp_path):
    folder = write_adapter(tmp_path / "a", model)
    for value, status, message in [
        ("missing", 1, "pocketllama: missing: expected the folder of a LoRA adapter"),
        (f"{folder}:much", 2, f"{folder}:much: expected a number after the colon, found 'much'"),
        (f"{folder}:nan", 1, "scale: expected a finite number"),
    ]:
        result = subprocess.run([sys.executable, "-m", "pocketllama", "--lora", value], capture_output=True)
        assert result.returncode == status and message in result.stderr.decode()
        assert not result.stdout
