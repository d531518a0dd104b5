"""The page of --explain in a real browser (Debian's chromium, headless), and its numbers computed again in numpy."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "support"))
from chromium import browser, needs_browser  # noqa: E402, F401

ROOT = Path(__file__).parents[2]
RUN = os.environ.get("RUN", str(ROOT / "run"))
STORIES = ROOT / "models/stories.bin"
LARGE = Path(os.environ.get("MODEL", ROOT / "models/smollm2-135m-instruct.bin"))
needs_large = pytest.mark.skipif(not LARGE.exists(), reason=f"{LARGE} is not there: models/get, or MODEL")
VIEWS = ["text", "tour", "sampling", "attention", "rollout", "lens", "residual", "cost"]
STORY = "Once upon a time, there was a little girl named Lily. One day, Lily"
# Texts that would end an element, start a script, hide, or turn the text around.
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1> \"'`&amp; \u202e\u200b\U0001f999 \x1b[31m \u05e9\u05dc\u05d5\u05dd"


def explain(path, *options, model=STORIES, text=None):
    """Runs ./run --explain; returns the path."""
    command = [RUN, str(model), *map(str, options), "-q", "--explain", str(path)]
    subprocess.run(command, check=True, input=text or "", text=True, stdout=subprocess.PIPE)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.json"
    return json.loads(explain(path, "-i", STORY, "-n", 40, "-s", 5).read_text())


def array(text, kind, *shape):
    return np.frombuffer(base64.b64decode(text), kind).reshape(*shape)


def lower(flat, n):
    """A lower triangle as a matrix."""
    matrix = np.zeros((n, n))
    matrix[np.tril_indices(n)] = (flat / 255.0) ** 2
    return matrix


def layer_maps(data, layer):
    """The bytes of a layer's attention, (heads, triangle)."""
    packed = zlib.decompress(base64.b64decode(data["attention"][layer]), -15)
    return np.frombuffer(packed, np.uint8).reshape(data["model"]["heads"], -1)


def maps(data):
    n, layers = data["positions"], data["model"]["layers"]
    return np.array([[lower(head, n) for head in layer_maps(data, layer)] for layer in range(layers)])


# ---- Numbers ----


def test_attention_rows_sum_to_one(data):
    sums = maps(data).sum(-1)
    assert np.abs(sums - 1).max() < 0.05  # 60 roundings to bytes
    assert abs(sums.mean() - 1) < 0.01


def test_rollout_is_that_of_numpy(data):
    attention = maps(data).mean(1)
    n = data["positions"]
    flow = np.eye(n)
    for layer in attention:
        layer = (layer + np.eye(n)) / 2
        flow = layer / layer.sum(-1, keepdims=True) @ flow
    found = lower(array(data["rollout"], np.uint8, -1), n)
    assert np.abs(found - flow).max() < 0.02
    assert np.abs(found.sum(-1) - 1).max() < 0.03


def test_kinds_are_those_of_numpy(data):
    attention, ids = maps(data), np.array([t["id"] for t in data["tokens"]][: data["positions"]])
    kinds = array(data["kinds"], np.float32, data["model"]["layers"], data["model"]["heads"], 5)
    n = len(ids)
    previous = np.array([attention[..., i, i - 1] for i in range(1, n)]).mean(0)
    same = np.array([attention[..., i, 1:i][..., ids[1:i] == ids[i]].sum(-1) for i in range(1, n) if ids[i] in ids[1:i]])
    after = [[j + 1 for j in range(i - 1) if ids[j] == ids[i]] for i in range(n)]
    induction = np.array([attention[..., i, j].sum(-1) for i, j in enumerate(after) if i and j])
    for k, expected in [(0, previous), (3, same.mean(0)), (4, induction.mean(0))]:
        assert np.abs(kinds[..., k] - expected).max() < 0.01
    assert np.abs(kinds[..., 1] - attention[..., 1:, 0].mean(-1)).max() < 0.01


def test_lens_ends_with_the_probabilities_of_top(data):
    """--top --json lists the model's own probabilities, before any setting of the sampler."""
    command = [RUN, str(STORIES), "-i", STORY, "-n", "40", "-s", "5", "--top", "5", "--json"]
    figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stderr)
    layers, n, top = data["model"]["layers"], data["positions"], data["lens"]["top"]
    assert data["lens"]["layers"] == list(range(layers + 1))
    ids = array(data["lens"]["ids"], np.int32, layers + 1, n, top)[-1]
    p = array(data["lens"]["p"], np.float32, layers + 1, n, top)[-1]
    assert len(figures["choices"]) == 40
    for i, choice in enumerate(figures["choices"], n - 40):
        assert [c["id"] for c in choice["top"]] == ids[i].tolist()
        assert np.allclose([c["p"] for c in choice["top"]], p[i], atol=1e-5)
        assert data["tokens"][i + 1]["id"] == choice["id"]
        assert abs(data["tokens"][i + 1]["p"] - choice["p"]) < 1e-5


def test_journey_adds_up(data):
    j = data["journey"]
    v = {k: array(x, np.float32, -1) for k, x in j.items() if isinstance(x, str)}
    assert np.allclose(v["weights"].sum(), 1, atol=1e-5)
    assert np.allclose(np.exp(v["scores"]) / np.exp(v["scores"]).sum(), v["weights"], atol=1e-5)
    assert np.allclose(v["middle"], v["x"] + v["attention_update"], atol=1e-5)
    assert np.allclose(v["layer_output"], v["middle"] + v["mlp_update"], atol=1e-5)
    assert np.allclose(v["hidden"], v["gate"] / (1 + np.exp(-v["gate"])) * v["up"], atol=1e-4)
    assert np.isclose(j["rms"], np.sqrt((v["x"] ** 2).mean() + 1e-5), rtol=1e-3)
    half = len(v["angles"])
    turned = (v["q"][:half] + 1j * v["q"][half:]) * np.exp(1j * v["angles"])
    assert np.allclose(np.concatenate([turned.real, turned.imag]), v["q_rope"], atol=1e-4)
    shown = lower(layer_maps(data, 0)[j["head"]], data["positions"])
    assert np.abs(shown[j["position"]][: len(v["weights"])] - v["weights"]).max() < 0.01


def test_values_of_the_journey_add_up_to_the_output(tmp_path):
    j = json.loads(explain(tmp_path / "data.json", "-i", "Once upon a time", "-n", 2, "-s", 5).read_text())["journey"]
    weights, output = (array(j[name], np.float32, -1) for name in ["weights", "output"])
    assert sorted(j["top"]) == list(range(5)) and list(weights[j["top"]]) == sorted(weights, reverse=True)
    assert np.allclose(weights[j["top"]] @ array(j["top_values"], np.float32, 5, -1), output, atol=1e-5)


@needs_large
def test_file_is_small(tmp_path):
    page = explain(tmp_path / "page.html", "-i", "The history of the town", "-n", 95, "-s", 1, model=LARGE)
    assert 0 < page.stat().st_size < 2e6


def test_costs_at_most_three_times(tmp_path):
    """Of a model that takes a second: a run of milliseconds is mostly the writing of the file."""
    if not LARGE.exists():
        pytest.skip(f"{LARGE} is not there")
    command = [RUN, str(LARGE), "-i", "The history of the town", "-n", "95", "-s", "1", "-q"]

    def seconds(*more):
        start = time.monotonic()
        subprocess.run([*command, *more], check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - start

    seconds()
    pairs = [(seconds(), seconds("--explain", tmp_path / "page.html")) for _ in range(5)]
    assert min(explained / plain for plain, explained in pairs) < 3


# ---- The page ----


class Tab:
    """A page, and what went wrong in it."""

    def __init__(self, browser, path, width=1100, height=850, **options):
        self.problems = []
        self.context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60000)
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda r: r.url.startswith(("file:", "data:")) or self.problems.append("request " + r.url))
        self.page.goto(path.as_uri())
        self.page.locator("body:not([inert])").wait_for()

    def text(self, selector):
        return self.page.locator(selector).inner_text()

    def picture(self, name):
        if folder := os.environ.get("SCREENSHOTS"):
            Path(folder).mkdir(exist_ok=True)
            for view in VIEWS:
                where = self.page.locator("#" + view)
                where.scroll_into_view_if_needed()
                self.page.wait_for_timeout(200)
                where.screenshot(path=f"{folder}/{name}-{view}.png")

    def close(self):
        assert self.problems == []
        self.context.close()


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    return explain(tmp_path_factory.mktemp("page") / "story.html", "-i", STORY, "-n", 40, "-s", 5)


@needs_browser
@pytest.mark.parametrize("scheme,width", [("light", 1100), ("dark", 1100), ("light", 360)])
def test_all_views(browser, story, data, scheme, width):
    tab = Tab(browser, story, width=width, color_scheme=scheme)
    for view in VIEWS:
        tab.page.locator("#" + view).scroll_into_view_if_needed()
        assert len(tab.text("#" + view)) > 200
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    text = tab.page.locator("#text-strip .t").all_text_contents()
    assert "".join(text).replace("<s>", "").startswith(" " + STORY)
    assert len(text) == len(data["tokens"])
    assert tab.page.locator("#heads").evaluate("c => c.width > 100 && c.getContext('2d').getImageData(40, 30, 20, 20).data.some(v => v)")
    assert tab.page.locator("#map").evaluate("c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v)")
    tab.picture(f"{scheme}-{width}")
    tab.close()


@needs_browser
def test_selecting_a_token(browser, story, data):
    tab = Tab(browser, story)
    last = len(data["tokens"]) - 1
    tab.page.locator("#text-strip .t").nth(25).click()
    assert tab.text("#selected").startswith(f"Token 26 of {last + 1}")
    token = data["tokens"][25]
    assert str(token["id"]) in tab.text("#token-card")
    assert f"{100 * token['p']:.0f}%" in tab.text("#token-card") or f"{100 * token['p']:.1f}%" in tab.text("#token-card")
    assert "After" in tab.text("#choice") and "chosen" in tab.text("#choice")
    tab.page.keyboard.press("ArrowRight")
    assert tab.text("#selected").startswith("Token 27 of")
    tab.page.keyboard.press("End")
    assert tab.text("#selected").startswith(f"Token {last + 1} of")
    tab.page.keyboard.press("Home")
    assert "was given" in tab.text("#choice")
    tab.page.click("#next")
    assert tab.text("#selected").startswith("Token 2 of")
    tab.close()


@needs_browser
def test_attention_by_mouse_and_keyboard(browser, story, data):
    tab = Tab(browser, story)
    attention = maps(data)
    tab.page.select_option("#layer", index=2)
    tab.page.select_option("#head", index=1)
    tab.page.uncheck("#no-first")
    tab.page.locator("#map").focus()
    for key in ["ArrowDown", "ArrowLeft", "ArrowLeft"]:
        tab.page.keyboard.press(key)
    said = tab.text("#readout")
    i, j = tab.page.evaluate("[position(), state.key]")
    assert said.startswith("Layer 3, head 2:")
    shown = float(re.search(r"with <?([\d.]+)% ", said)[1]) / 100
    assert abs(shown - attention[2, 1, i, j]) < 0.0055
    box = tab.page.locator("#map").bounding_box()
    cell, labels = tab.page.evaluate("[map.cell, map.labels]")
    tab.page.locator("#map").hover(position={"x": labels + 3.5 * cell, "y": labels + 9.5 * cell})
    said = tab.text("#readout")
    shown = float(re.search(r"with <?([\d.]+)% ", said)[1]) / 100
    assert abs(shown - attention[2, 1, 9, 3]) < 0.0055
    tab.page.locator("#map").click(position={"x": labels + 3.5 * cell, "y": labels + 9.5 * cell})
    assert tab.text("#selected").startswith("Token 10 of")
    tab.page.locator("#heads").focus()
    tab.page.keyboard.press("ArrowRight")
    assert tab.page.input_value("#layer") == "3"
    tab.page.check("#log")
    tab.page.locator("#kinds button").first.click()
    best = array(data["kinds"], np.float32, -1, 5)[:, 0].argmax()
    heads = data["model"]["heads"]
    assert (tab.page.input_value("#layer"), tab.page.input_value("#head")) == (str(best // heads), str(best % heads))
    tab.close()


@needs_browser
def test_tour(browser, story):
    tab = Tab(browser, story)
    seen = []
    for i in range(12):
        seen.append(tab.text(".step.current h3"))
        assert seen[-1].startswith(f"{i + 1}. ")
        assert tab.page.locator("#step-on").is_disabled() == (i == 11)
        if i < 11:
            tab.page.click("#step-on")
    assert len(set(seen)) == 12
    tab.page.locator("#steps button").nth(4).click()
    assert "RoPE" in tab.text(".step.current h3") and tab.page.locator(".step.current svg").count() >= 4
    tab.page.locator(".step.current summary").first.click()
    assert "void rope(" in tab.text(".step.current pre")
    tab.close()


@needs_browser
def test_tour_shows_its_head_in_the_map(browser, story, data):
    tab = Tab(browser, story)
    j = data["journey"]
    tab.page.locator("#steps button").nth(6).click()
    tab.page.locator(".step.current button").click()
    assert (tab.page.input_value("#layer"), tab.page.input_value("#head")) == ("0", str(j["head"]))
    assert tab.text("#selected").startswith(f"Token {j['position'] + 1} of")
    assert tab.page.evaluate("document.activeElement.id") == "map"
    tab.close()


@needs_browser
def test_words_are_defined(browser, story):
    """Each link to a word leads to its definition, which is its tooltip."""
    tab = Tab(browser, story)
    links = tab.page.locator("a.word").evaluate_all(
        "all => all.map(a => [a.title, document.querySelector('#words dd' + a.hash)?.textContent.replace(/\\s+/g, ' ')])")
    assert len(links) > 8 and all(title and title == text for title, text in links)
    tab.page.locator("#tour a.word").first.click()
    assert tab.page.locator("#word-weight").is_visible() and tab.page.url.endswith("#word-weight")
    tab.close()


@needs_browser
def test_choice_explains_its_settings(browser, story, tmp_path):
    tab = Tab(browser, story)
    assert all(name in tab.text("#choice ul") for name in ["temperature 0.8", "top-p 0.9", "seed 5"])
    assert "At temperature 0 nothing is drawn" in tab.text("#choice")
    tab.close()
    tab = Tab(browser, explain(tmp_path / "greedy.html", "-i", STORY, "-n", 5, "-t", 0))
    assert tab.text("#choice ul") == "temperature 0: always takes the most likely token"
    assert "drawn" not in tab.text("#choice")
    tab.close()


@needs_browser
def test_page_without_times_says_so(browser, story, tmp_path):
    """That of the panels Inside, which compute a text a second time."""
    changed = tmp_path / "changed.html"
    changed.write_text(re.sub(r'"read_gb_s": [^,]+', '"read_gb_s":0', story.read_text()))
    tab = Tab(browser, changed)
    assert tab.text("#cost-note").startswith("No times: ")
    assert tab.page.locator("#time").is_hidden() and tab.page.locator("#memory").is_visible()
    tab.close()


@needs_browser
def test_theme_and_print(browser, story, tmp_path):
    tab = Tab(browser, story)
    before = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.page.click("#theme")
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    tab.page.emulate_media(media="print")
    assert tab.page.locator(".step").evaluate_all("all => all.every(e => getComputedStyle(e).display === 'block')")
    tab.page.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 50000
    tab.close()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(browser, story, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = browser.new_context(bypass_csp=True, color_scheme=scheme)  # axe is a script of the test
    page = context.new_page()
    page.goto(story.as_uri())
    page.locator("body:not([inert])").wait_for()
    found = axe.run(page).response["violations"]
    assert [(v["id"], [n["html"][:200] for n in v["nodes"][:3]]) for v in found] == []
    context.close()


@needs_browser
def test_hostile_text_is_shown_not_run(browser, tmp_path):
    page = explain(tmp_path / "page.html", "-i", HOSTILE, "-n", 10, "-s", 1)
    tab = Tab(browser, page)
    assert tab.page.evaluate("window.hacked") is None
    assert tab.page.locator("img").count() == 0
    shown = "".join(tab.page.locator("#text-strip .t").all_text_contents())
    assert "</script><script>window.hacked=1</script>" in shown
    assert "\u202e" not in shown and "\x1b" not in shown
    for token in range(0, tab.page.locator("#text-strip .t").count(), 7):
        tab.page.locator("#text-strip .t").nth(token).click()
    tab.close()


@needs_browser
def test_hostile_names(browser, tmp_path):
    """The name of the model file and its provenance are from outside as well."""
    model = tmp_path / "<img src=x onerror=alert(1)>.bin"
    shutil.copy(STORIES, model)
    tab = Tab(browser, explain(tmp_path / "page.html", "-i", "Hi", "-n", 3, model=model))
    assert tab.text("#model").startswith("<img src=x onerror=alert(1)>.bin")
    assert tab.page.locator("img").count() == 0
    tab.close()


@needs_browser
def test_scripts_of_others_do_not_run(browser, story, tmp_path):
    """The policy of the page is a second line: even an element that got in would do nothing."""
    changed = tmp_path / "changed.html"
    changed.write_text(story.read_text().replace("<main", "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'><main"))
    tab = Tab(browser, changed)
    assert tab.page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in problem for problem in tab.problems)
    tab.context.close()


@needs_browser
@needs_large
def test_large_model(browser, tmp_path):
    page = explain(tmp_path / "chat.html", "-m", "chat", "-n", 30, "-s", 2, model=LARGE, text="What is the capital of France?\nWhy?\n")
    start = time.monotonic()
    tab = Tab(browser, page)
    assert time.monotonic() - start < 4  # 2 on an idle machine
    assert "<|im_start|>" in tab.text("#text-strip")
    tab.picture("chat")
    tab.close()


# What the browser itself calls a long task: 50 ms or more without an answer to the user.
LONG_TASKS = """() => {
  window.tasks = [];
  new PerformanceObserver(list => tasks.push(...list.getEntries().map(e => e.duration))).observe({type: 'longtask'});
}"""


@needs_browser
@pytest.mark.parametrize("model", [STORIES, pytest.param(LARGE, marks=needs_large)], ids=["stories", "large"])
def test_long_text_stays_smooth(browser, tmp_path, model):
    """512 tokens: no frame takes 50 ms, while the mouse moves over a map, the page scrolls, and tokens and heads change.
    Each is done several times; on a busy machine the typical one counts."""
    text = tmp_path / "text.txt"
    text.write_text((ROOT / "models/README.md").read_text()[: 900 if model == STORIES else 1500])
    page = explain(tmp_path / "long.html", "-f", text, "-n", 3, "--ctx", 1000, model=model)
    assert page.stat().st_size < 15e6
    tab = Tab(browser, page)
    assert re.match(r"Token \d+ of 513", tab.text("#selected"))
    rows = tab.page.locator("#lens-list tr")
    if model == LARGE:  # the last tokens have all layers, earlier ones some
        assert rows.count() == 31
        tab.page.locator("#text-strip .t").first.click()
        assert 3 <= rows.count() < 31
        assert "later ones have all" in tab.text("#settled")
    else:
        assert rows.count() == 7
    tab.page.evaluate(LONG_TASKS)

    def long_tasks(count, act):
        """How many of `count` times the browser had a long task."""
        found = 0
        for k in range(count):
            tab.page.evaluate("window.tasks = []")
            act(k)
            tab.page.wait_for_timeout(60)
            found += tab.page.evaluate("tasks.length > 0")
        return found

    tab.page.locator("#kinds").scroll_into_view_if_needed()
    tab.page.wait_for_timeout(4000)  # until the small maps are drawn
    tab.page.locator("#map").scroll_into_view_if_needed()
    box = tab.page.locator("#map").bounding_box()
    assert long_tasks(20, lambda k: tab.page.mouse.move(box["x"] + 50 + 5 * k, box["y"] + 200 + k)) <= 2
    assert long_tasks(20, lambda k: tab.page.mouse.wheel(0, 150)) <= 2
    assert long_tasks(9, lambda k: tab.page.click("#previous")) <= 4
    tab.page.locator("#heads").focus()
    assert long_tasks(9, lambda k: tab.page.keyboard.press("ArrowRight")) <= 4
    tab.close()
