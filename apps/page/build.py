#!/usr/bin/env python3
"""build.py OUT MODEL THREADS RELAXED SIMD128: joins the page's parts to one HTML file."""

import base64
import gzip
import sys
from pathlib import Path

LIMIT = 3_000_000  # bytes


def embedded(data):
    """Bytes as base64 of gzip; the same every time."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


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
    if len(page.encode()) > LIMIT:
        sys.exit(f"build.py: expected at most {LIMIT} bytes, found {len(page.encode())}; is {model} too large?")
    Path(out).write_text(page)
    print(f"{out}: {len(page.encode()) / 1e6:.2f} MB, which works without a network")


main(*sys.argv[1:])
