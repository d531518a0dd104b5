"""The WebAssembly modules in node: kernels of odd shapes, self-tests, and the logits and texts of ./run."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WASM = ROOT / "build/wasm"
DATA = Path(os.environ.get("POCKET_DATA", ROOT / "../shared/data"))
SMOLLM = Path(os.environ.get("POCKET_SMOLLM_Q4", ROOT / "models/smollm2-135m-instruct-q4.bin"))
MODULES = {"scalar": ["scalar"], "simd128": ["wasm-simd128", "scalar"], "relaxed": ["wasm-relaxed", "scalar"],
           "threads": ["wasm-relaxed", "scalar"]}
TOKENS = 75
REQUIRE_DATA = bool(os.environ.get("POCKET_REQUIRE_DATA"))  # then no test is skipped


def node():
    """Node with relaxed SIMD, which versions before 22 hide behind a flag."""
    flag = "--experimental-wasm-relaxed-simd"
    known = subprocess.run(["node", flag, "-e", ""], capture_output=True).returncode == 0
    return ["node", flag] if known else ["node"]


def ask(module, model, *requests, threads=3):
    """The answers of tests/page/model.mjs. threads: of the module that has them."""
    lines = "".join(json.dumps(r) + "\n" for r in requests)
    command = [*node(), ROOT / "tests/page/model.mjs", WASM / f"{module}.wasm", model]
    command += [str(threads)] if module == "threads" else []
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def run(*arguments):
    return subprocess.run([ROOT / "run", *map(str, arguments)], check=True, capture_output=True, timeout=300).stdout


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Paths by name. A model that needs data which is not here is absent."""
    folder, found = tmp_path_factory.mktemp("models"), {"stories": ROOT / "models/stories.bin"}
    qwen = DATA / "hf-more/qwen3"
    if qwen.exists():
        found["qwen3"] = folder / "qwen3.bin"
        subprocess.run([ROOT / "export/convert", qwen, "-z", DATA / "tok512.model", "--type", "q4", "-o",
                        found["qwen3"]], check=True, capture_output=True)
    if SMOLLM.exists():
        found["smollm2"] = SMOLLM
    # Of these only stories15m has matrices large enough for several threads to share a single token.
    for name, shape, kind in [("q8", "tiny", "q8"), ("f32", "tiny", "f32"), ("stories15m", "stories15m", "q4")]:
        found[name] = folder / f"{name}.bin"
        subprocess.run([ROOT / "export/convert", "--random", shape, "--type", kind, "-o", found[name]], check=True,
                       capture_output=True)
    return found


@pytest.mark.parametrize("module", ["simd128", "relaxed"])
def test_kernels_have_the_bits_of_the_scalar_ones(module):
    # Without the one that writes a file.
    command = [*node(), ROOT / "tests/page/program.mjs", WASM / f"{module}-kernels_test.wasm", "--gtest_brief=1",
               "--gtest_filter=-Formats.WeightReadsEveryTypeAndLayout"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"PASSED\s*\] (\d+) tests", done.stdout)[1]) >= 25


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", ["stories", "stories15m", "smollm2", "qwen3", "q8", "f32"])
def test_logits_are_those_of_the_program(module, name, models, tmp_path):
    if name not in models:
        reason = f"{name}: not here; see apps/page/README.md"
        pytest.fail(reason) if REQUIRE_DATA else pytest.skip(reason)
    ids = [(7919 * i + 13) % 500 for i in range(TOKENS)]
    expected, found = tmp_path / "expected", tmp_path / "found"
    run(models[name], "--ids", ",".join(map(str, ids)), "--logits", expected)
    kernel, threads, sets, _ = ask(module, models[name], {"kernel": True}, {"threads": True}, {"selfTest": ""},
                                   {"logits": ids, "to": str(found)})
    assert kernel == MODULES[module][0]
    assert threads == (3 if module == "threads" else 1)
    assert sets == len(MODULES[module])
    assert found.read_bytes() == expected.read_bytes()


def test_module_tells_the_story_of_the_program(models):
    for seed in [5, 6]:
        expected = run(models["stories"], "-i", "Once upon a time", "-s", seed, "-q").decode()
        for module in MODULES:
            assert ask(module, models["stories"], {"tell": "Once upon a time", "seed": seed})[0]["text"] == expected


def test_simd_is_faster(models):
    """Far below what an idle machine gives (2.9 and 6.7 times), since this one may be busy. The modules take turns."""
    story, best = {"tell": "Once upon a time", "seed": 5}, dict.fromkeys(MODULES, 0)
    for _ in range(3):
        for m in MODULES:
            best[m] = max(best[m], *(a["speed"] for a in ask(m, models["stories"], *[story] * 2)))
    print({m: round(speed) for m, speed in best.items()})
    assert best["simd128"] > 1.7 * best["scalar"]
    assert best["relaxed"] > 3 * best["scalar"]
