#!/usr/bin/env python3
"""peers.py: compares the speed and memory of pocketllama and llama.cpp on one machine.

  apps/bench/peers.py                        random weights of TinyLlama-1.1B's shape: q4 here, Q4_0 in llama.cpp
  apps/bench/peers.py model.bin model.gguf   two files of the same model
  apps/bench/peers.py --parallel 1,8,32      several conversations in one pass

Requires make, make bench, and a Python with llama-cpp-python; numpy and gguf as well, to write the random models. Each
engine runs in a separate process that answers commands, one per line (see apps/bench/worker.hpp). Each round measures
the engines in turns, and the ratios are medians over the rounds. llama.cpp is measured with and without flash
attention; the better setting counts. Its memory excludes that of Python, its time to the first token excludes the start
of Python, and it does not sample tokens.

--parallel measures each number of conversations as llama.cpp's llama-batched-bench -npp 32 -ntg 32 -npl N does: each
has a prompt of 32 tokens of its own, and then 32 passes with a token of each are counted. Neither engine samples.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BENCH = os.path.join(ROOT, "apps", "bench", "bench")
CONVERT = os.path.join(ROOT, "export", "convert")
SHAPE = "tinyllama-1.1b"
PARALLEL_TOKENS = 32  # of each conversation, before and while it is measured; as in apps/bench/worker.hpp
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pocketllama-peers")


class Failure(Exception):
    """An error, reported to the user on one line."""


def one_line(text):
    """A text from outside as one line without characters that act on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def write(text):
    """Writes a text to standard output. Raises Failure if that fails, also for the last bytes."""
    if sys.stdout is None:
        raise Failure("standard output: is closed")
    try:
        print(text, end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes again at exit
        raise Failure(f"standard output: {error.strerror}")


# ---- The worker process of llama.cpp ----


def memory(field):
    """VmRSS or VmHWM of this process, in bytes."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise Failure(f"/proc/self/status: no field {field}")


class Llama:
    """A model and a context of llama.cpp, through the low-level interface of llama-cpp-python."""

    def __init__(self, api, path, threads, context, flash, sequences):
        self.api = api
        self.quiet = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self.quiet, None)
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
        if not self.model:
            raise Failure(f"{path}: llama.cpp cannot load it")
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, min(context, 512), min(context, 512)
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        if hasattr(params, "flash_attn_type"):
            params.flash_attn_type = 1 if flash else 0
        else:
            params.flash_attn = flash
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise Failure(f"{path}: llama.cpp cannot create a context of {context} tokens")
        self.vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.position = 0
        self.batch = api.llama_batch_init(max(sequences, PARALLEL_TOKENS), 0, 1)
        self.sequences = 0  # that have a prompt, for parallel()

    def feed(self, n):
        tokens = (self.api.llama_token * n)(*((i + 1) * 7919 % self.vocab_size for i in range(n)))
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(tokens, n)) != 0:
            raise Failure(f"llama.cpp failed at position {self.position}")
        self.api.llama_synchronize(self.context)
        self.position += n

    def rewind(self, position):
        self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.context), 0, position, -1)
        self.position = position

    def prompt(self, n):
        self.rewind(0)
        start = time.perf_counter()
        for at in range(0, n, 512):
            self.feed(min(512, n - at))
        return time.perf_counter() - start

    def generate(self, n):
        position = self.position
        start = time.perf_counter()
        for _ in range(n):
            self.feed(1)
        taken = time.perf_counter() - start
        self.rewind(position)
        return taken


    def feed_sequences(self, tokens):
        """Processes [(sequence, position, has logits)] in one batch."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (sequence, position, logits) in enumerate(tokens):
            batch.token[i], batch.pos[i] = (sequence + position + 1) * 7919 % self.vocab_size, position
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, sequence, logits
        if self.api.llama_decode(self.context, batch) != 0:
            raise Failure(f"llama.cpp failed with {len(tokens)} tokens in a batch")
        self.api.llama_synchronize(self.context)

    def parallel(self, n):
        depth = PARALLEL_TOKENS
        for sequence in range(self.sequences, n):
            self.feed_sequences([(sequence, i, i == depth - 1) for i in range(depth)])
        self.sequences = max(self.sequences, n)
        start = time.perf_counter()
        for position in range(depth, 2 * depth):
            self.feed_sequences([(sequence, position, True) for sequence in range(n)])
        taken = time.perf_counter() - start
        for sequence in range(n):
            self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.context), sequence, depth, -1)
        return taken


def serve_commands(args):
    """Answers the commands on stdin like bench --worker. The line "ready" ends the start of Python."""
    import llama_cpp  # only here: the comparing process does not need it

    before = memory("VmRSS")
    print("ready", flush=True)
    llama = Llama(llama_cpp, args.models[0], args.threads, args.context, args.flash, args.sequences)
    for line in sys.stdin:
        verb, *count = line.split()
        if verb == "peak":
            print(memory("VmHWM") - before, flush=True)
        else:
            commands = {"prompt": llama.prompt, "generate": llama.generate, "parallel": llama.parallel}
            print(commands[verb](int(count[0])), flush=True)


# ---- Controlling worker processes ----


class Worker:
    """A process that runs an engine. `started` is the time when the engine started."""

    def __init__(self, name, command):
        self.name = name
        self.started = time.perf_counter()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            hint = "; llama.cpp built with g++ 12 crashes on CPUs with AMX, built with clang it does not"
            raise Failure(f"{self.name}: the process ended with status {status}{hint if status < 0 else ''}")
        return line

    def ask(self, command):
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # read() reports the status
        return float(self.read())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


class Engines:
    """Starts workers of both engines."""

    def __init__(self, ours, theirs, threads):
        self.ours_file, self.theirs_file, self.threads = ours, theirs, str(threads)

    def ours(self):
        return Worker("pocketllama", [BENCH, "--worker", self.ours_file, "--threads", self.threads])

    def theirs(self, flash, context, sequences=1):
        options = ["--threads", self.threads, "--context", str(context), "--sequences", str(sequences)]
        options += ["--flash"] if flash else []
        worker = Worker("llama.cpp", [sys.executable, __file__, "--worker", self.theirs_file] + options)
        worker.read()  # ready
        worker.started = time.perf_counter()
        return worker


# ---- Comparing ----


def progress(step):
    print(f"peers: {one_line(step)}", file=sys.stderr)


def compare(ours, theirs, better, unit):
    """A row of the table: medians, and the median ratio to llama.cpp's better setting. theirs: {setting: values}."""
    name = better(theirs, key=lambda setting: statistics.median(theirs[setting]))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs[name]))
    return {
        "unit": unit,
        "ours": statistics.median(ours),
        "theirs": {setting: statistics.median(values) for setting, values in theirs.items()},
        "better_setting": name,
        "ratio": ratio,
    }


def speed(workers, command, tokens, rounds):
    """Tokens per second of each worker, in turns. workers: ours, {setting: theirs}. tokens: of a command."""
    ours, theirs = workers
    found, peers = [], {setting: [] for setting in theirs}
    for _ in range(rounds):
        found.append(tokens / ours.ask(command))
        for setting, worker in theirs.items():
            peers[setting].append(tokens / worker.ask(command))
    return compare(found, peers, max, "tok/s")


def measure_speed(engines, args, depth):
    rows = {}
    with engines.ours() as ours, engines.theirs(True, args.context) as on, engines.theirs(False, args.context) as off:
        workers = ours, {"flash attention": on, "no flash attention": off}
        everyone = [ours, on, off]
        prompt, tokens = min(512, args.context), min(args.tokens, args.context - depth)
        progress("generating at depth 0")
        for worker in everyone:
            worker.ask("prompt 1")
        rows["generating at depth 0"] = speed(workers, f"generate {tokens}", tokens, args.rounds)
        progress(f"prompt of {prompt}")
        rows[f"prompt of {prompt}"] = speed(workers, f"prompt {prompt}", prompt, max(1, args.rounds // 2))
        progress(f"generating at depth {depth}")
        for worker in everyone:
            worker.ask(f"prompt {depth}")
        rows[f"generating at depth {depth}"] = speed(workers, f"generate {tokens}", tokens, args.rounds)
    return rows


def measure_parallel(engines, args):
    rows, most = {}, max(args.parallel)
    context = 2 * PARALLEL_TOKENS * most
    with engines.ours() as ours, engines.theirs(True, context, most) as on, engines.theirs(False, context, most) as off:
        for worker in (ours, on, off):
            worker.ask(f"parallel {most}")  # processes the prompts of all conversations
        for n in args.parallel:
            progress(f"{n} conversations")
            workers = ours, {"flash attention": on, "no flash attention": off}
            rows[f"{n} conversations"] = speed(workers, f"parallel {n}", n * PARALLEL_TOKENS, args.rounds)
    return rows


def measure_memory(engines, args, depth):
    """Peak memory after some tokens and with a full context. llama.cpp gets a context of that size."""
    rows = {}
    for prompt, total in ((4, min(128, args.context)), (depth, args.context)):
        progress(f"memory for {total} tokens")
        found, peers = [], {}
        for setting, start in (
            (None, engines.ours),
            ("flash attention", lambda: engines.theirs(True, total)),
            ("no flash attention", lambda: engines.theirs(False, total)),
        ):
            with start() as worker:
                worker.ask(f"prompt {prompt}")
                worker.ask(f"generate {total - prompt}")
                (found if setting is None else peers.setdefault(setting, [])).append(worker.ask("peak") / 1e6)
        rows[f"peak memory, {total} tokens"] = compare(found, peers, min, "MB")
    return rows


def measure_load(engines, args):
    """Time from the start of a process to the first token after a prompt of 4, with the files in the page cache."""
    progress("load to first token")
    found, peers = [], {"flash attention": [], "no flash attention": []}
    for _ in range(args.rounds):
        for times, start in (
            (found, engines.ours),
            (peers["flash attention"], lambda: engines.theirs(True, args.context)),
            (peers["no flash attention"], lambda: engines.theirs(False, args.context)),
        ):
            with start() as worker:
                worker.ask("prompt 4")
                times.append((time.perf_counter() - worker.started) * 1e3)
    return {"load to first token": compare(found, peers, min, "ms")}


def print_table(rows):
    write(f"{'':28} {'ours':>10} {'llama.cpp':>10}        ours / theirs\n")
    for name, row in rows.items():
        theirs = row["theirs"][row["better_setting"]]
        write(
            f"{name:28} {row['ours']:10.1f} {theirs:10.1f} {row['unit']:6} {row['ratio']:8.2f}"
            f"   (llama.cpp with {row['better_setting']})\n"
        )


# ---- Models with random weights ----


def vocabulary(size):
    """Pieces, scores and types (1: normal, 2: unknown, 3: control, 6: byte) of a SentencePiece vocabulary."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(f"\u2581w{i}", -float(i), 1) for i in range(size - len(pieces))]
    return zip(*pieces)


DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, CONTEXT = 2048, 5632, 22, 32, 4, 32000, 2048  # of TinyLlama-1.1B


def add_settings(out):
    """Adds the shape and the vocabulary to a gguf.GGUFWriter."""
    out.add_context_length(CONTEXT)
    out.add_embedding_length(DIM)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(HIDDEN)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(DIM // HEADS)
    out.add_vocab_size(VOCAB)
    pieces, scores, types = vocabulary(VOCAB)
    out.add_tokenizer_model("llama")
    out.add_token_list(pieces)
    out.add_token_scores(scores)
    out.add_token_types(types)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)


def write_gguf(path):
    """Writes a GGUF file in Q4_0: blocks of 32 weights, each a float16 scale and 16 bytes of codes."""
    import gguf
    import numpy

    random = numpy.random.default_rng(1)
    ones = numpy.ones(DIM, numpy.float32)

    def blocks(rows, cols):
        data = random.integers(0, 256, (rows, cols // 32, 18), numpy.uint8)
        data[:, :, :2] = numpy.array([0.0043], numpy.float16).view(numpy.uint8)  # a deviation of 0.02
        return data.reshape(rows, -1)

    kv_dim = DIM // HEADS * KV_HEADS
    shapes = {"attn_q": (DIM, DIM), "attn_k": (kv_dim, DIM), "attn_v": (kv_dim, DIM), "attn_output": (DIM, DIM)}
    shapes |= {"ffn_gate": (HIDDEN, DIM), "ffn_up": (HIDDEN, DIM), "ffn_down": (DIM, HIDDEN)}
    matrices = {name: blocks(*shape) for name, shape in shapes.items()}  # shared by all layers

    out = gguf.GGUFWriter(path + ".tmp", "llama")
    add_settings(out)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)

    def add(name, data):
        out.add_tensor(name + ".weight", data, raw_dtype=None if data is ones else gguf.GGMLQuantizationType.Q4_0)

    add("token_embd", blocks(VOCAB, DIM))
    for layer in range(LAYERS):
        for name, data in {**matrices, "attn_norm": ones, "ffn_norm": ones}.items():
            add(f"blk.{layer}.{name}", data)
    add("output_norm", ones)
    add("output", blocks(VOCAB, DIM))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    os.replace(path + ".tmp", path)


def random_models(folder):
    """The paths of both random models, which are written if they do not exist."""
    os.makedirs(folder, exist_ok=True)
    ours, theirs = os.path.join(folder, SHAPE + ".q4.bin"), os.path.join(folder, SHAPE + ".Q4_0.gguf")
    if not os.path.exists(ours):
        progress(f"writing {ours}")
        if subprocess.run([CONVERT, "--random", SHAPE, "--type", "q4", "-o", ours]).returncode != 0:
            raise Failure(f"{ours}: export/convert failed")
    if not os.path.exists(theirs):
        progress(f"writing {theirs}")
        write_gguf(theirs)
    return ours, theirs


# ---- Command line ----


def whole(low, high):
    def parse(text):
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, found '{text}'")
        return int(text)

    return parse


def whole_list(low, high):
    return lambda text: [whole(low, high)(item) for item in text.split(",")]


class Parser(argparse.ArgumentParser):
    """argparse itself ignores failed writes, and prints arguments unfiltered."""

    def print_help(self, file=None):
        write(self.format_help())

    def error(self, message):
        super().error(one_line(message))


def parse_arguments():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="model.bin and model.gguf")
    cpus = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=whole(1, 256), default=cpus, help="threads of each engine [one per CPU]")
    parser.add_argument("--context", type=whole(64, 1 << 22), default=2048, help="context of each engine [2048]")
    parser.add_argument("--rounds", type=whole(1, 1000), default=7, help="rounds of measuring in turns [7]")
    parser.add_argument("--tokens", type=whole(1, 100000), default=16, help="tokens per measurement of generation [16]")
    parser.add_argument(
        "--parallel", type=whole_list(1, 128), metavar="LIST", help="conversations in one pass, for example 1,8,32"
    )
    parser.add_argument("--cache", default=CACHE, metavar="FOLDER", help="folder of the random models [%(default)s]")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout instead of a table")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--flash", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sequences", type=whole(1, 128), default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if len(args.models) not in ((1,) if args.worker else (0, 2)):
        parser.error("expected a model.bin and a model.gguf, or no models")
    return args


def main():
    try:
        args = parse_arguments()
        if args.worker:
            return serve_commands(args)
        if subprocess.run([sys.executable, "-c", "import llama_cpp"], stderr=subprocess.DEVNULL).returncode != 0:
            raise Failure(f"{sys.executable} has no package llama-cpp-python; run peers.py with a Python that has it")
        for program, target in ((BENCH, "make bench"), (CONVERT, "make")):
            if not os.path.exists(program):
                raise Failure(f"{program} does not exist; run {target}")
        ours, theirs = args.models or random_models(args.cache)
        engines, depth = Engines(ours, theirs, args.threads), args.context * 1900 // 2048
        if args.parallel:
            rows = measure_parallel(engines, args)
        else:
            rows = measure_load(engines, args) | measure_memory(engines, args, depth)
            rows |= measure_speed(engines, args, depth)
        if args.json:
            write(json.dumps({"threads": args.threads, "rows": rows}) + "\n")
        else:
            print_table(rows)
    except (Failure, OSError) as failure:
        sys.exit(f"peers: {one_line(failure)}")
    except ModuleNotFoundError as missing:
        sys.exit(f"peers: {missing}; install it with: pip install numpy gguf")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
