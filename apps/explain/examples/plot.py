"""Reads the data of --explain with numpy, and plots some of it with matplotlib.

    ./run -i "Once upon a time" -n 40 --explain data.json
    python3 apps/explain/examples/plot.py data.json figure.png
"""

import base64
import json
import sys
import zlib

import matplotlib.pyplot as plt
import numpy as np


def array(text, kind, *shape):
    """A base64 array of the file."""
    return np.frombuffer(base64.b64decode(text), kind).reshape(*shape)


def attention(data):
    """Attention weights, (layers, heads, positions, positions)."""
    n, heads = data["positions"], data["model"]["heads"]
    maps = np.zeros((len(data["attention"]), heads, n, n), np.float32)
    for layer, text in enumerate(data["attention"]):
        row, column = np.tril_indices(n)
        packed = zlib.decompress(base64.b64decode(text), -15)
        maps[layer][:, row, column] = (np.frombuffer(packed, np.uint8).reshape(heads, -1) / 255) ** 2
    return maps


def main(path, figure):
    data = json.load(open(path))
    n, layers = data["positions"], data["model"]["layers"]
    maps = attention(data)
    words = [data["pieces"][str(t["id"])] for t in data["tokens"][:n]]
    kinds = array(data["kinds"], np.float32, layers, -1, 5)
    layer, head = np.unravel_index(np.nanargmax(kinds[..., 0]), kinds.shape[:2])

    _, axes = plt.subplots(1, 3, figsize=(18, 6))
    axes[0].imshow(maps[layer, head], cmap="Greens")
    axes[0].set_xticks(range(n), words, rotation=90, fontsize=6)
    axes[0].set_yticks(range(n), words, fontsize=6)
    axes[0].set_title(f"attention of layer {layer + 1}, head {head + 1}")
    axes[1].plot(data["lens"]["layers"], array(data["lens"]["entropy"], np.float32, -1, n))
    axes[1].set(title="logit lens: entropy of each position", xlabel="layer", ylabel="bits")
    axes[2].plot(array(data["residual"]["norms"], np.float32, layers + 1, n))
    axes[2].set(title="residual stream: length of each position", xlabel="layer", yscale="log")
    plt.tight_layout()
    plt.savefig(figure, dpi=120)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
