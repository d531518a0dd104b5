"""The page in Debian's chromium, headless, from file://. SCREENSHOTS: a folder for a picture of each state."""

import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from playwright.sync_api import expect
from test_modules import REQUIRE_DATA, ROOT, SMOLLM, run

sys.path.append(str(Path(__file__).parents[1] / "support"))
import chromium  # noqa: E402
from chromium import LONG, browser  # noqa: E402, F401

PAGE = (ROOT / "apps/page/pocketllama.html").as_uri()
needs_smollm = pytest.mark.skipif(not SMOLLM.exists() and not REQUIRE_DATA,
                                  reason=f"{SMOLLM} is not here; see apps/page/README.md")


class Tab:
    """A page, and what went wrong in it."""

    def __init__(self, browser, width=1000, height=760, context=None, url=PAGE, **options):
        self.url, self.own = url, context is None
        self.context = context or browser.new_context(viewport={"width": width, "height": height}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(LONG)
        self.errors, self.urls = [], []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.urls.append(request.url))
        self.page.goto(url)
        expect(self.page.locator("#model")).to_contain_text("story model", timeout=LONG)

    def settings(self, **values):
        if not self.page.locator("details[open]").count():
            self.page.click("summary")
        for name, value in values.items():
            self.page.fill(f"[name={name}]", str(value))

    def tell(self, **settings):
        if settings:
            self.settings(**settings)
        self.page.click("#story .go")
        return self.reply()

    def reply(self):
        expect(self.page.locator(".reply.running")).to_have_count(0, timeout=LONG)
        return self.page.locator(".reply .text").last.text_content()

    def open(self, path):
        self.page.set_input_files("#file", path)

    def problem(self):
        expect(self.page.locator("#problem")).to_be_visible(timeout=LONG)
        return self.page.text_content("#problem")

    def picture(self, name):
        if folder := os.environ.get("SCREENSHOTS"):
            Path(folder).mkdir(exist_ok=True)
            self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)

    def close(self):
        if self.own:
            self.context.close()
        assert self.errors == []
        assert [url for url in self.urls if not url.startswith((self.url, "blob:", "data:"))] == []


@pytest.fixture
def tabs(browser):
    """Makes tabs; at the end no tab has written to its console, or asked for anything but itself."""
    opened = []

    def make(**options):
        opened.append(Tab(browser, **options))
        return opened[-1]

    yield make
    for tab in reversed(opened):
        tab.close()


@pytest.fixture
def tab(tabs):
    return tabs()


def test_tells_the_story_of_the_program(tab):
    assert (ROOT / "apps/page/pocketllama.html").stat().st_size < 3_000_000
    assert not tab.page.evaluate("crossOriginIsolated")  # and so one thread
    assert re.search("wasm-(relaxed|simd128)$", tab.page.text_content("#model"))
    assert tab.tell(seed=23) == run("-i", "Once upon a time", "-s", 23, "-q").decode()
    assert re.match(r"\d+ tokens, [\d.]+ tok/s; seed 23$", tab.page.text_content(".figures"))
    tab.picture("story")


@pytest.mark.parametrize("test, result", [("!WebAssembly.validate(bytes)", "name === 'relaxed'"),
                                          ("engine.kernel() !== 'scalar'", "name !== 'relaxed'")])
def test_without_exact_relaxed_simd_the_other_module_is_used(tabs, tmp_path, test, result):
    """As in a browser that does not have it, or rounds twice: the page with one condition replaced."""
    page = (ROOT / "apps/page/pocketllama.html").read_text()
    assert page.count(test) == 1
    path = tmp_path / "page.html"
    path.write_text(page.replace(test, result))
    tab = tabs(url=path.as_uri())
    assert "wasm-simd128" in tab.page.text_content("#model")
    assert tab.tell(seed=23) == run("-i", "Once upon a time", "-s", 23, "-q").decode()


def test_words_and_sampling_reach_the_model(tab):
    tab.page.fill("#words", "dog, cake,sad")
    expected = run("--words", "dog,cake,sad", "-s", 7, "-t", 0.5, "-p", 0.7, "-n", 80, "-q").decode()
    assert tab.tell(seed=7, temperature=0.5, top_p=0.7, max_tokens=80) == expected.strip(" ")
    tab.page.fill("#words", "")
    tab.page.fill("#beginning", "The sea 🌊 was")
    assert tab.tell() == run("-i", "The sea 🌊 was", "-s", 7, "-t", 0.5, "-p", 0.7, "-n", 80, "-q").decode()


def test_a_seed_that_is_not_given_is_shown(tab):
    first = tab.tell()
    seed = re.search(r"seed (\d+)", tab.page.text_content(".figures"))[1]
    assert tab.tell(seed=seed) == first


def test_invalid_settings_are_pointed_out(tab):
    tab.settings(temperature=-1)
    tab.page.click("#story .go")
    assert tab.page.locator(".reply").count() == 0
    assert tab.page.evaluate("document.activeElement.name") == "temperature"


def test_stop_keeps_the_text(tab):
    tab.settings(max_tokens=1000000, temperature=1.5, top_p=1)
    for _ in range(20):  # until one is long enough to be stopped
        tab.page.click("#story .go")
        tab.page.keyboard.press("Escape")
        tab.reply()
        if "stopped" in tab.page.text_content(".figures"):
            break
    assert "stopped" in tab.page.text_content(".figures")
    assert tab.page.is_enabled("#story .go")


@pytest.mark.parametrize("head, part", [
    (b"", "not a pocketllama model"), (b"# notes\n" * 9, "not a pocketllama model"),
    (b"GGUF\x03\0\0\0" + bytes(99), "export/convert FILE.gguf"), (b"PK\x03\x04" + bytes(99), "ZIP"),
    (b"\x20\0\0\0\0\0\0\0{\"a\": 1}", "safetensors"), (b"PKTLLAMA" + bytes(999), "version: expected 1 or 2, found 0"),
    (b"PKTLLAMA", "at least 256 bytes")])
def test_a_wrong_file_is_refused_and_stories_go_on(tab, tmp_path, head, part):
    path = tmp_path / "model.bin"
    path.write_bytes(head)
    tab.open(path)
    assert part in tab.problem()
    expect(tab.page.locator("#story")).to_be_visible()
    assert tab.tell(seed=23).startswith("Once upon a time")


def test_a_truncated_or_damaged_model_is_refused(tab, tmp_path):
    data = (ROOT / "models/stories.bin").read_bytes()
    path = tmp_path / "model.bin"
    for found, part in [(data[:-100], "truncated"), (data[:300] + b"?" + data[301:], "damaged")]:
        path.write_bytes(found)
        tab.open(path)
        expect(tab.page.locator("#problem")).to_contain_text(part, timeout=LONG)
        expect(tab.page.locator("#story")).to_be_visible()
    tab.picture("damaged")


def test_a_model_too_large_for_a_page_is_refused(tab, tmp_path):
    path = tmp_path / "large.bin"
    path.write_bytes(b"PKTLLAMA")
    os.truncate(path, 5 << 30)  # sparse
    tab.open(path)
    assert "5.4 GB of memory, but a page can use at most 4 GB" in tab.problem()
    tab.picture("too-large")


def test_missing_memory_is_explained(tab, tmp_path):
    """A module whose memory cannot grow as far as the file needs."""
    path = tmp_path / "large.bin"
    path.write_bytes(b"PKTLLAMA")
    os.truncate(path, 3 << 30)
    # The worker is made from this text: it gets less memory than the file takes.
    tab.page.evaluate("""() => {
      const source = document.getElementById('worker-source');
      source.textContent = source.textContent.replace('this.c._initialize();',
        'this.c._initialize(); this.c = {...this.c, sbrk: n => n > 1e8 ? -1 : this.c0.sbrk(n)};')
        .replace('this.c = instantiate', 'this.c = this.c0 = instantiate');
    }""")
    tab.open(path)
    assert "Close other tabs" in tab.problem()


def test_dropped_files(tab):
    drop = """([name, text]) => {
      const data = new DataTransfer();
      data.items.add(new File([text], name));
      for (const type of ['dragover', 'drop']) dispatchEvent(new DragEvent(type, {dataTransfer: data, cancelable: true}));
    }"""
    tab.page.evaluate(drop, ["notes.txt", "hello"])
    assert tab.problem().startswith("notes.txt: This is not a pocketllama model")
    expect(tab.page.locator("#drop")).to_be_hidden()


def test_a_text_longer_than_the_context_is_refused(tab):
    tab.page.fill("#beginning", "The dog ran home. " * 2000)
    tab.page.click("#story .go")
    assert re.match(r"The model takes \d+ tokens in all. Shorten the text.", tab.problem())
    tab.page.fill("#beginning", "Once upon a time")
    assert tab.tell(seed=23) == run("-i", "Once upon a time", "-s", 23, "-q").decode()


def test_html_in_a_text_is_text(tab):
    tab.page.fill("#beginning", "<img src=x onerror=console.log(1)><b>Once")
    assert tab.tell(seed=1, max_tokens=5).startswith("<img src=x")
    assert tab.page.locator(".reply img, .reply b").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(tabs, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tab = tabs(color_scheme=scheme, bypass_csp=True)
    tab.tell(seed=23)
    results = axe.run(tab.page)
    assert results.violations_count == 0, results.generate_report()


def test_a_narrow_page_does_not_scroll_sideways(tabs):
    tab = tabs(width=360, height=740, color_scheme="dark")
    tab.page.fill("#words", "dog, cake, sad")
    tab.tell(seed=23)
    tab.picture("narrow")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_keyboard_alone_is_enough(tab):
    seen = []
    for _ in range(12):
        tab.page.keyboard.press("Tab")
        seen.append(tab.page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    for stop in ["open", "theme", "beginning", "words", "Tell a story", "Settings"]:
        assert stop in seen
    tab.page.focus("#beginning")
    tab.page.keyboard.press("Enter")
    assert tab.reply()


def test_screen_readers_hear_sentences(tab):
    text = tab.tell(seed=23, max_tokens=60)
    parts = tab.page.locator("#announcements p").all_text_contents()
    assert " ".join(parts[:-1]).split() == text.split()
    assert parts[-1] == "The text is complete."


@needs_smollm
def test_chat_and_two_tabs(tabs, tab):
    tab.open(SMOLLM)
    expect(tab.page.locator("#chat")).to_be_visible(timeout=LONG)
    expect(tab.page.locator("#story")).to_be_hidden()
    tab.settings(seed=4, temperature=0, max_tokens=24, system="You reply in one short sentence.")
    replies = []
    for text in ["What is the capital of France?", "And of Italy?"]:
        tab.page.fill("#message", text)
        tab.page.press("#message", "Enter")
        replies.append(tab.reply())
    tab.picture("chat")
    lines = "What is the capital of France?\nAnd of Italy?\n"
    expected = subprocess.run([ROOT / "run", SMOLLM, "-m", "chat", "-y", "You reply in one short sentence.", "-t", "0", "-n",
                               "24", "-q"], input=lines, capture_output=True, text=True).stdout
    assert [line for line in expected.splitlines() if line] == [line for r in replies for line in r.splitlines() if line]
    other = tabs(context=tab.context)
    expect(other.page.locator("#others")).to_contain_text("Also open in another tab: " + SMOLLM.name)
    other.picture("two-tabs")
    tab.page.click("#stories")
    expect(tab.page.locator("#story")).to_be_visible(timeout=LONG)
    expect(other.page.locator("#others")).to_be_hidden()


# ---- Inside ----


def open_inside(tab, at=0):
    """Opens the panel of a text; returns its frame."""
    return chromium.open_inside(tab.page, tab.page.locator(".reply button", has_text="Inside").nth(at))


@pytest.mark.parametrize("scheme, width", [("light", 1000), ("dark", 360)])
def test_inside_shows_the_text(tabs, tmp_path, scheme, width):
    """The same numbers as ./run --explain, since the bits are."""
    tab = tabs(color_scheme=scheme, width=width)
    text = tab.tell(seed=5, max_tokens=40)
    frame = open_inside(tab)
    assert "".join(frame.locator("#text-strip .t").all_text_contents()).replace("<s>", "").strip() == text.strip()
    map_ = frame.locator("#map")
    map_.scroll_into_view_if_needed()
    assert map_.evaluate("c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v)")
    assert frame.locator("html").evaluate("e => e.scrollWidth") <= width
    run("-i", "Once upon a time", "-s", 5, "-n", 40, "-q", "--explain", tmp_path / "data.json")
    expected = json.loads((tmp_path / "data.json").read_text())
    found = frame.locator("html").evaluate("() => data")
    for field in ["tokens", "choices", "attention", "kinds", "rollout", "lens"]:
        assert found[field] == expected[field], field
    tab.picture(f"inside-{scheme}-{width}")
    tab.page.keyboard.press("Escape")
    expect(tab.page.locator("#inside")).to_be_hidden()
    assert tab.page.locator("iframe").count() == 0
    assert tab.tell(seed=6, max_tokens=5)


def test_inside_shows_hostile_text_only(tab):
    tab.page.fill("#beginning", '</script><script>parent.hacked=1</script><img src=x onerror="parent.hacked=1">')
    tab.tell(seed=1, max_tokens=5)
    frame = open_inside(tab)
    assert "<img src=x" in "".join(frame.locator("#text-strip .t").all_text_contents())
    assert frame.locator("img").count() == 0
    assert tab.page.evaluate("window.hacked") is None


@needs_smollm
def test_a_refused_first_message_does_not_cost_the_system_prompt(tab):
    tab.open(SMOLLM)
    expect(tab.page.locator("#chat")).to_be_visible(timeout=LONG)
    tab.settings(seed=4, temperature=0, max_tokens=12, system="Reply in French.")
    tab.page.fill("#message", "The dog ran home. " * 2000)
    tab.page.press("#message", "Enter")
    assert "Shorten the text." in tab.problem()
    tab.page.fill("#message", "Hello")
    tab.page.press("#message", "Enter")
    expected = subprocess.run([ROOT / "run", SMOLLM, "-m", "chat", "-y", "Reply in French.", "-t", "0", "-n", "12", "-q"],
                              input="Hello\n", capture_output=True, text=True).stdout
    assert tab.reply().strip() == expected.strip()


@needs_smollm
def test_inside_of_an_earlier_reply_in_a_chat(tab):
    tab.open(SMOLLM)
    expect(tab.page.locator("#chat")).to_be_visible(timeout=LONG)
    tab.settings(seed=4, max_tokens=8)
    for text in ["Hello", "Again"]:
        tab.page.fill("#message", text)
        tab.page.press("#message", "Enter")
        tab.reply()
    frame = open_inside(tab, 0)
    assert "Again" not in "".join(frame.locator("#text-strip .t").all_text_contents())
    assert frame.locator("#text-strip .t.new").count() == 8


# ---- Threads ----

STORY = ("-i", "Once upon a time", "-s", 23, "-q")


class Isolated(http.server.SimpleHTTPRequestHandler):
    """Files, with the headers that let a page share memory among its workers."""

    def end_headers(self):
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(tmp_path):
    """Serves the page with some of its text replaced; returns the address."""
    handler = functools.partial(Isolated, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def start(*replaced):
            page = (ROOT / "apps/page/pocketllama.html").read_text()
            for old, new in replaced:
                assert page.count(old) == 1
                page = page.replace(old, new)
            (tmp_path / "page.html").write_text(page)
            return f"http://127.0.0.1:{server.server_port}/page.html"

        yield start
        server.shutdown()


def test_threads_give_the_same_text(tabs, serve):
    tab = tabs(url=serve(("navigator.hardwareConcurrency", "3")))  # on any machine
    assert tab.page.evaluate("crossOriginIsolated")
    assert tab.page.text_content("#model").endswith("wasm-relaxed, 3 threads")
    assert tab.tell(seed=23) == run(*STORY).decode()
    assert re.match(r"\d+ tokens, [\d.]+ tok/s, 3 threads; seed 23$", tab.page.text_content(".figures"))
    tab.picture("threads")
    open_inside(tab)  # a second session, while the workers are taken


def test_as_many_threads_as_the_machine_has(tabs, serve):
    tab = tabs(url=serve())
    n = min(8, tab.page.evaluate("navigator.hardwareConcurrency"))
    assert tab.page.text_content("#model").endswith(f"wasm-relaxed, {n} threads" if n > 1 else "wasm-relaxed")


def test_threads_end_with_the_model(tabs, serve, tmp_path):
    """Models are opened in turn, more often than there could be workers if the old ones stayed."""
    tab = tabs(url=serve(("navigator.hardwareConcurrency", "8")))
    path = tmp_path / "stories.bin"
    path.write_bytes((ROOT / "models/stories.bin").read_bytes())
    for _ in range(3):
        tab.open(path)
        megabytes = (ROOT / "models/stories.bin").stat().st_size / 1e6
        expect(tab.page.locator("#model")).to_contain_text(
            f"stories.bin, {megabytes:.1f} MB, wasm-relaxed, 8 threads", timeout=LONG)
        tab.page.click("#stories")
        expect(tab.page.locator("#model")).to_contain_text("story model", timeout=LONG)
    assert tab.tell(seed=23) == run(*STORY).decode()


def test_without_exact_relaxed_simd_there_is_one_thread(tabs, serve):
    tab = tabs(url=serve(("navigator.hardwareConcurrency", "3"), ("engine.kernel() !== 'scalar'", "name === 'simd128'")))
    assert tab.page.text_content("#model").endswith("wasm-simd128")
    assert tab.tell(seed=23) == run(*STORY).decode()


@pytest.mark.parametrize("old, new", [
    ("threads.idle.push(makeWorker())", "throw new Error('no worker')"),
    ("reply({ready: true})", "throw new Error('no worker')"),
    ("const memory = new WebAssembly.Memory(", "throw new RangeError('no worker'); const memory = ("),
    ("reply({ready: true})", "setTimeout(() => { throw new Error('no worker'); })")])
def test_without_threads_there_is_one(tabs, serve, old, new):
    """What starts threads fails: the story is told by the module without them."""
    tab = tabs(url=serve(("navigator.hardwareConcurrency", "3"), (old, new)))
    assert re.search("wasm-relaxed, one thread: .*no worker$", tab.page.text_content("#model"))
    assert tab.tell(seed=23) == run(*STORY).decode()
    assert re.match(r"\d+ tokens, [\d.]+ tok/s; seed 23$", tab.page.text_content(".figures"))
