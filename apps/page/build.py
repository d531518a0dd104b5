#!/usr/bin/env python3
"""build.py OUT MODEL RELAXED SIMD128: joins the page's parts to one HTML file."""

import base64
import gzip
import sys
from pathlib import Path

LIMIT = 3_000_000  # bytes


def embedded(path):
    """A file as base64 of gzip; the same bytes every time."""
    return base64.b64encode(gzip.compress(Path(path).read_bytes(), 9, mtime=0)).decode()


def main(out, model, relaxed, simd128):
    here = Path(__file__).parent
    page = (here / "page.html").read_text()
    parts = {
        "worker": (here / "engine.js").read_text() + (here / "worker.js").read_text(),
        "relaxed": embedded(relaxed),
        "simd128": embedded(simd128),
        "model": embedded(model),
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
