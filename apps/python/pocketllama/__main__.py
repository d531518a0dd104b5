"""python -m pocketllama "Once upon a time": continues a text."""

import argparse
import os
import sys

from . import Error, Model


def lora(text):
    """The folder and the scale of FOLDER[:SCALE]; a colon may also belong to the folder's name."""
    folder, colon, scale = text.rpartition(":")
    if not colon or os.path.isdir(text) or not os.path.isdir(folder):
        return text, 1.0
    try:
        return folder, float(scale)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected a number after the colon, found '{scale}'") from None


# What may change a terminal, except for tabs and line breaks: control characters, and marks of the writing direction.
CONTROLS = dict.fromkeys({*range(32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A)} - {9, 10})


def write(text: str) -> None:
    """Prints a part of the text, to a terminal without control characters."""
    print(text.translate(CONTROLS) if sys.stdout.isatty() else text, end="", flush=True)


def main() -> int:
    """The exit status: 0 success, 1 failure, 2 wrong usage, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="pocketllama", description="Continues a text by a language model.")
    parser.add_argument("prompt", nargs="?", default="Once upon a time", help="the beginning of the text")
    parser.add_argument("-m", "--model", help="a model.bin [the story model of this package]")
    parser.add_argument("--lora", type=lora, action="append", default=[], metavar="FOLDER[:SCALE]",
                        help="add a LoRA adapter, times SCALE [1]; repeatable")
    parser.add_argument("-n", "--tokens", type=int, default=256, help="generate at most so many tokens [256]")
    parser.add_argument("-t", "--temperature", type=float, default=0.8, help="0: always the most likely token [0.8]")
    parser.add_argument("-p", "--top-p", type=float, default=0.9, help="sample from this much probability [0.9]")
    parser.add_argument("-s", "--seed", type=int, help="the same one gives the same text [random]")
    parser.add_argument("--threads", type=int, default=0, help="number of threads [one per CPU]")
    a = parser.parse_args()
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    try:
        with Model(a.model) as model:
            adapters = [(model.adapter(folder), scale) for folder, scale in a.lora]
            pieces = model.generate(a.prompt, a.tokens, adapters=adapters, seed=a.seed, temperature=a.temperature,
                                    top_p=a.top_p, threads=a.threads)
            write(a.prompt)
            for text in pieces:
                write(text)
            if sys.stdout.isatty():
                print()
    except (Error, OSError, ValueError) as e:
        print(f"pocketllama: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
