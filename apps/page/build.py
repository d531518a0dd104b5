#!/usr/bin/env python3
"""build.py OUT MODEL THREADS RELAXED SIMD128: joins the page's parts to one HTML file."""

import gzip
import sys
from pathlib import Path

LIMIT = 3_000_000  # bytes

# The characters of the 7-bit numbers. What HTML would change, NUL and CR, and the "<" that could end the text are 128
# more, which takes two bytes in UTF-8. In all 17% more than the data; base64 would be 33%.
CHARACTERS = [chr(n + 128 if chr(n) in "\0\r<" else n) for n in range(128)]


def embedded(data):
    """Bytes as text, of gzip; the same every time."""
    text, bits, value = [], 0, 0
    for byte in gzip.compress(data, 9, mtime=0):
        value, bits = value << 8 | byte, bits + 8
        while bits >= 7:
            bits -= 7
            text.append(CHARACTERS[value >> bits & 127])
        value &= (1 << bits) - 1
    return "".join(text) + CHARACTERS[value << 7 - bits & 127] * (bits > 0)


def inside(path):
    """The page of apps/explain, which is a string literal of C++ there."""
    text = path.read_text()
    return text[text.index("<!doctype") : text.rindex(")page")]


def main(out, model, threads, relaxed, simd128):
    here = Path(__file__).parent
    page = (here / "page.html").read_text()
    parts = {
        "worker": "".join((here / f"{name}.js").read_text() for name in ["engine", "threads", "worker"]),
        "inside": embedded(inside(here / "../explain/page.html").encode()),
        "threads": embedded(Path(threads).read_bytes()),
        "relaxed": embedded(Path(relaxed).read_bytes()),
        "simd128": embedded(Path(simd128).read_bytes()),
        "model": embedded(Path(model).read_bytes()),
        "model_bytes": str(Path(model).stat().st_size),
    }
    for name, text in parts.items():
        if page.count(f"@@{name}@@") != 1 or "</script" in text:
            sys.exit(f"build.py: {name}: expected one place for it in page.html, and no </script in it")
        page = page.replace(f"@@{name}@@", text)
    data = page.encode()
    if len(data) > LIMIT:
        sys.exit(f"build.py: expected at most {LIMIT} bytes, found {len(data)}; is {model} too large?")
    Path(out).write_bytes(data)
    print(f"{out}: {len(data) / 1e6:.2f} MB, which works without a network")


main(*sys.argv[1:])
