"""The chat page in a real browser: Debian's chromium, headless. SCREENSHOTS: a folder for a picture of each state."""

import json
import os
import re
import signal
import sys
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.append(str(Path(__file__).parents[1] / "support"))
import chromium  # noqa: E402
from chromium import LONG, browser, needs_browser  # noqa: E402, F401
from playwright.sync_api import expect  # noqa: E402

pytestmark = needs_browser
DEFAULTS = {"temperature": 0.8, "top_p": 0.9}  # of the page


class Tab:
    """A page, and what went wrong in it."""

    def __init__(self, browser, url, width=1280, height=800, **options):
        self.url, self.expected_errors, self.errors, self.hosts = url, "", [], set()
        size = {"width": width, "height": height}
        self.context = browser.new_context(viewport=size, reduced_motion="reduce", **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(LONG)
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type != "log" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/v1")[0]))

    def open(self):
        self.page.goto(self.url)
        expect(self.page.locator("#model")).not_to_be_empty(timeout=LONG)
        return self

    def send(self, text):
        self.page.fill("#input", text)
        self.page.press("#input", "Enter")

    def wait(self):
        """Until no reply runs."""
        expect(self.page.locator("#stop")).to_be_hidden(timeout=LONG)
        return self

    def replies(self):
        return self.page.locator(".reply .text").all_text_contents()

    def users(self):
        return self.page.locator(".user .text").all_text_contents()

    def seed(self, at=0):
        return int(re.search(r"seed (\d+)", self.page.locator(".figures.small").nth(at).text_content())[1])

    def settings(self, column="A", **values):
        if not self.page.locator("#settings[open]").count():
            self.page.click("#settings-button")
        for name, value in values.items():
            place = "#settings" if name == "seed" else "#fields-" + column
            where = self.page.locator(f"{place} [name={name}]")
            where.set_checked(value) if isinstance(value, bool) else where.fill(str(value))
        if self.page.locator("#settings:modal").count():
            self.page.keyboard.press("Escape")

    def picture(self, name):
        if folder := os.environ.get("SCREENSHOTS"):
            Path(folder).mkdir(exist_ok=True)
            self.page.screenshot(path=f"{folder}/{name}.png")

    def scrolls_sideways(self):
        return self.page.evaluate("""[document.documentElement, ...document.querySelectorAll('#log, dialog')]
                                     .some(e => e.scrollWidth > e.clientWidth)""")

    def close(self):
        self.context.close()
        assert [e for e in self.errors if not self.expected_errors or not re.search(self.expected_errors, e)] == []
        assert {h for h in self.hosts if not h.startswith((self.url, "data:", "blob:" + self.url))} == set()


@pytest.fixture
def tabs(browser):
    """Makes tabs; at the end no tab has had an error on its console, or a request to another host."""
    opened = []

    def make(server, **options):
        opened.append(Tab(browser, server.url, **options))
        return opened[-1]

    yield make
    for tab in opened:
        tab.close()


@pytest.fixture
def tab(tabs, stories):
    return tabs(stories).open()


# Slows a stream down, so that a reply of the small model takes seconds.
SLOW = """{
  const original = fetch;
  window.fetch = async (path, options) => {
    const response = await original(path, options);
    if (!options?.body) return response;
    const slow = new TransformStream({async transform(part, out) {
      for (const event of new TextDecoder().decode(part).split(/(?<=\\n\\n)/)) {
        await new Promise(done => setTimeout(done, 40));
        out.enqueue(new TextEncoder().encode(event));
      }
    }});
    return new Response(response.body.pipeThrough(slow), response);
  };
}"""


def answer(*parts, finish="stop"):
    """The body of a streamed response with these texts, each a token."""
    events = [{"choices": [{"index": 0, "text": text, "finish_reason": None, "logprobs": {
        "tokens": [text], "token_logprobs": [-0.5], "top_logprobs": [{text: -0.5, "other " + text: -2}]}}]}
        for text in parts]
    events.append({"choices": [{"index": 0, "text": "", "finish_reason": finish, "logprobs": None}]})
    return "".join(f"data: {json.dumps(e)}\n\n" for e in events) + "data: [DONE]\n\n"


# ---- A chat ----

def test_reply_is_that_of_the_api(stories, tab):
    tab.picture("start")
    tab.send("Once upon a time")
    tab.wait()
    tab.picture("reply")
    expect(tab.page.locator(".figures.small")).to_contain_text("tok/s")
    body = {"prompt": "Once upon a time", "seed": tab.seed(), "max_tokens": 256, **DEFAULTS}
    assert tab.replies() == [stories.json("/v1/completions", body)["choices"][0]["text"]]
    assert tab.users() == ["Once upon a time"]
    assert tab.page.input_value("#input") == ""


def test_settings_are_those_of_the_request(stories, tab):
    settings = {"temperature": 1.5, "top_p": 0.95, "top_k": 30, "min_p": 0.01, "max_tokens": 25, "seed": 7}
    tab.settings(**settings)
    tab.picture("settings")
    tab.send("Tom saw a bird.")
    tab.wait()
    expected = stories.json("/v1/completions", {"prompt": "Tom saw a bird.", **settings})["choices"][0]["text"]
    assert tab.replies() == [expected]
    expect(tab.page.locator(".figures.small")).to_contain_text("25 tokens")
    expect(tab.page.locator(".figures.small")).to_contain_text("max tokens reached")
    tab.settings(json=True, max_tokens=100)
    tab.send("An object:")
    tab.wait()
    assert tab.replies()[1].lstrip().startswith("{")


def test_invalid_setting_is_shown_and_sends_nothing(tab):
    tab.settings(top_p=3)
    tab.send("Once")
    assert tab.users() == []
    assert tab.page.evaluate("document.activeElement.name") == "top_p"
    assert tab.page.input_value("#input") == "Once"
    tab.page.get_by_role("button", name="Reset").click()
    tab.page.press("#input", "Enter")
    assert tab.users() == ["Once"]


def test_server_figures_are_shown(stories, tab):
    tab.page.click("#settings-button")
    figures = tab.page.locator("#figures")
    expect(figures).to_contain_text("Memory of the process")
    expect(figures).to_contain_text(f"{stories.figure('weights_bytes') / 1e6:.1f} MB")


def test_reply_arrives_in_parts_and_stops(tabs, stories):
    tab = tabs(stories)
    tab.page.add_init_script(SLOW)
    tab.open().send("Once upon a time")
    tokens = tab.page.locator(".reply .t")
    expect(tokens.nth(3)).to_be_visible()
    few = tokens.count()
    expect(tokens.nth(few + 5)).to_be_visible()  # more have arrived
    expect(tab.page.locator(".reply.running")).to_be_visible()
    tab.picture("running")
    tab.page.fill("#input", "A draft")
    tab.page.click("#stop")
    tab.wait()
    expect(tab.page.locator(".figures.small")).to_contain_text("stopped")
    stopped = tab.replies()
    tab.page.wait_for_timeout(300)
    assert tab.replies() == stopped and len(stopped[0]) > 3
    assert tab.page.input_value("#input") == "A draft"
    tab.page.keyboard.press("Enter")  # the focus is in the message field; what has arrived is part of the chat
    expect(tokens.nth(tokens.count() + 3)).to_be_visible()
    tab.page.keyboard.press("Escape")
    tab.wait()
    assert tab.users() == ["Once upon a time", "A draft"]


def test_regenerates_with_another_seed_and_takes_it_back(tab):
    tab.settings(max_tokens=40)
    tab.send("Once upon a time")
    tab.wait()
    first, seed = tab.replies(), tab.seed()
    tab.page.get_by_role("button", name="Regenerate").click()
    tab.wait()
    assert tab.seed() != seed and tab.replies() != first
    tab.picture("regenerated")
    tab.page.get_by_role("button", name="Undo").click()
    assert tab.replies() == first
    tab.settings(seed=seed)  # the same reply again
    tab.page.get_by_role("button", name="Regenerate").click()
    tab.wait()
    assert tab.replies() == first


def test_edited_message_continues_from_there(stories, tab):
    tab.settings(max_tokens=20, seed=3)
    for text in ["Once upon a time", "Then Tom came.", "They ate cake."]:
        tab.send(text)
        tab.wait()
    before = tab.users(), tab.replies()
    tab.page.get_by_role("button", name="Edit message").nth(1).click()
    tab.picture("edit")
    field = tab.page.get_by_role("textbox", name="Edit message")
    field.fill("Then a cat came.")
    tab.page.get_by_role("button", name="Copy message").first.click()  # what is typed is kept
    expect(field).to_have_value("Then a cat came.")
    field.press("Enter")
    tab.wait()
    assert tab.users() == ["Once upon a time", "Then a cat came."]
    prompt = "Once upon a time" + before[1][0] + "\nThen a cat came."
    body = {"prompt": prompt, "seed": 3, "max_tokens": 20, **DEFAULTS}
    expected = stories.json("/v1/completions", body)["choices"][0]["text"]
    assert tab.replies() == [before[1][0], expected]
    tab.page.get_by_role("button", name="Undo").click()
    assert (tab.users(), tab.replies()) == before


def test_compares_two_settings_with_one_seed(stories, tab):
    tab.page.click("#compare-button")
    tab.settings("A", max_tokens=30, temperature=1)
    tab.settings("B", max_tokens=30, temperature=1)
    tab.send("Once upon a time")
    tab.wait()
    same = tab.replies()
    assert same[0] == same[1] and tab.seed(0) == tab.seed(1)
    tab.settings("B", temperature=0)
    tab.send("Then")
    tab.wait()
    tab.picture("compare")
    replies = tab.replies()[2:]
    assert replies[0] != replies[1] and tab.seed(2) == tab.seed(3)
    body = {"prompt": "Once upon a time" + same[1] + "\nThen", "temperature": 0, "max_tokens": 30}
    assert replies[1] == stories.json("/v1/completions", body)["choices"][0]["text"]
    tab.page.get_by_role("button", name="Continue with B").click()
    assert tab.replies() == [same[1], replies[1]]
    assert tab.page.get_attribute("#compare-button", "aria-pressed") == "false"
    assert tab.page.input_value("#fields-A [name=temperature]") == "0"


def test_token_shows_its_alternatives(stories, tab):
    tab.settings(max_tokens=12, seed=1)
    tab.send("Once upon a time")
    tab.wait()
    body = {"prompt": "Once upon a time", "max_tokens": 12, "seed": 1, "logprobs": 5, **DEFAULTS}
    logprobs = stories.json("/v1/completions", body)["choices"][0]["logprobs"]
    card, tokens = tab.page.locator("#card"), tab.page.locator(".reply .t")
    assert tokens.all_text_contents() == logprobs["tokens"]

    def expect_token(i):
        expect(card).to_be_visible()
        shown = card.locator("code").all_text_contents()
        assert [t.replace("␣", " ").replace("⏎", "\n") for t in shown[:5]] == list(logprobs["top_logprobs"][i])
        chosen = 100 * 2.718281828459045 ** logprobs["token_logprobs"][i]
        assert card.locator(".chosen td").last.text_content() == f"{chosen:.1f}%"

    tokens.nth(3).hover()
    expect_token(3)
    tab.picture("alternatives")
    card.hover()  # the card stays while the pointer is on it
    tab.page.wait_for_timeout(400)
    expect(card).to_be_visible()
    tab.page.mouse.move(2, 2)
    expect(card).to_be_hidden()
    tab.page.locator(".reply .text").focus()  # by keyboard
    for _ in range(3):
        tab.page.keyboard.press("ArrowRight")
    expect_token(2)
    expect(tab.page.locator("#announcements")).to_contain_text("Alternatives")
    tab.page.keyboard.press("Escape")
    expect(card).to_be_hidden()


# ---- What is kept ----

def test_reload_keeps_everything(tab):
    tab.settings(max_tokens=15, seed=9, temperature=0.5)
    tab.send("Once upon a time")
    tab.wait()
    tab.page.click("#new-chat")
    tab.send("Another story")
    tab.wait()
    tab.page.fill("#input", "A draft")
    tab.page.click("#theme-button")
    before = tab.users(), tab.replies(), tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.page.reload()
    assert (tab.users(), tab.replies(), tab.page.evaluate("getComputedStyle(document.body).backgroundColor")) == before
    assert tab.page.input_value("#input") == "A draft"
    assert tab.page.input_value("#fields-A [name=temperature]") == "0.5"
    tab.page.locator(".reply .t").nth(1).hover()
    expect(tab.page.locator("#card")).to_be_visible()
    tab.page.get_by_role("button", name="Once upon a time", exact=True).click()
    assert tab.users() == ["Once upon a time"]
    tab.page.get_by_role("button", name="Delete Once upon a time").click()
    assert tab.users() == []
    tab.page.get_by_role("button", name="Undo").click()
    assert tab.users() == ["Once upon a time"]


def test_two_tabs_keep_each_others_messages(tab):
    tab.settings(max_tokens=5)
    tab.send("The first")
    tab.wait()
    other = tab.context.new_page()
    other.goto(tab.url)
    tab.send("The second")
    tab.wait()
    expect(other.locator(".user .text")).to_have_text(["The first", "The second"])
    expect(other.locator(".reply.running")).to_have_count(0)
    other.fill("#input", "The third")
    other.press("#input", "Enter")
    expect(tab.page.locator(".user .text")).to_have_text(["The first", "The second", "The third"])
    expect(tab.page.locator(".reply.running")).to_have_count(0)
    tab.page.get_by_role("button", name="Delete The first").click()
    expect(other.locator(".user .text")).to_have_count(0)


def test_forbidden_storage_is_no_obstacle(tabs, stories):
    tab = tabs(stories)
    tab.page.add_init_script("""for (const kind of ['localStorage', 'sessionStorage'])
      Object.defineProperty(window, kind, {get() { throw new DOMException('denied', 'SecurityError'); }});""")
    tab.open().settings(max_tokens=5)
    tab.send("Once upon a time")
    tab.wait()
    assert len(tab.replies()[0]) > 5
    tab.page.click("#new-chat")
    tab.page.get_by_role("button", name="Delete Once upon a time").click()
    assert tab.page.locator("#chat-list li").count() == 0


def test_damaged_chats_are_left_out(tabs, stories):
    tab = tabs(stories)
    tab.page.add_init_script("""for (const turns of ['null', '{}', '{"text": "a", "replies": {"A": {}}}'])
      localStorage.setItem('pocketllama.chat.' + turns.length, `{"id": "${turns.length}", "turns": [${turns}]}`);""")
    tab.open().settings(max_tokens=5)
    tab.send("Once upon a time")
    tab.wait()
    assert len(tab.replies()[0]) > 5


def test_reload_during_a_reply_keeps_what_has_arrived(tabs, stories):
    tab = tabs(stories)
    tab.page.add_init_script(SLOW)
    tab.open().send("Once upon a time")
    expect(tab.page.locator(".reply .t").nth(5)).to_be_visible()
    tab.page.reload()
    assert len(tab.replies()[0]) > 5
    expect(tab.page.locator("#log .problem")).to_contain_text("The page was closed")
    tab.page.get_by_role("button", name="Try again").click()
    expect(tab.page.locator("#log .problem")).to_have_count(0)
    tab.page.click("#stop")
    tab.wait()


def test_chat_deleted_during_a_reply_comes_back_stopped(tabs, stories):
    tab = tabs(stories)
    tab.page.add_init_script(SLOW)
    tab.open().send("Once upon a time")
    expect(tab.page.locator(".reply .t").nth(5)).to_be_visible()
    tab.page.get_by_role("button", name="Delete Once upon a time").click()
    assert tab.users() == []
    tab.page.get_by_role("button", name="Undo").click()
    expect(tab.page.locator(".reply.running")).to_have_count(0)
    expect(tab.page.locator(".figures.small")).to_contain_text("stopped")
    assert tab.users() == ["Once upon a time"] and len(tab.replies()[0]) > 5
    expect(tab.page.get_by_role("button", name="Regenerate")).to_be_visible()


def test_full_storage_is_reported(tab):
    tab.page.evaluate("""() => {
      for (let text = 'x'.repeat(1 << 20); text;)
        try { localStorage.setItem('x' + localStorage.length, text); } catch { text = text.slice(1 + text.length / 2); }
    }""")
    tab.settings(max_tokens=30)
    tab.send("Once upon a time")
    tab.wait()
    expect(tab.page.locator("#notice")).to_contain_text("no room")
    assert len(tab.replies()[0]) > 5


def test_copies_and_exports(tabs, stories):
    tab = tabs(stories, permissions=["clipboard-read", "clipboard-write"]).open()
    tab.settings(max_tokens=10, seed=2)
    tab.send("Once upon a time")
    tab.wait()
    reply = tab.replies()[0]
    tab.page.get_by_role("button", name="Copy reply").click()
    assert tab.page.evaluate("navigator.clipboard.readText()") == reply

    def exported(button):
        tab.page.click("#export-button")
        tab.picture("export")
        with tab.page.expect_download() as download:
            tab.page.get_by_role("button", name=button).click()
        return download.value.suggested_filename, Path(download.value.path()).read_text()

    name, text = exported("Download Markdown")
    assert name == "once-upon-a-time.md"
    assert text == f"# Once upon a time\n\n## User\n\nOnce upon a time\n\n## stories\n\n{reply}\n"
    name, text = exported("Download JSON")
    user, assistant = json.loads(text)["messages"]
    assert user == {"role": "user", "content": "Once upon a time"}
    assert assistant["content"] == reply and assistant["seed"] == 2 and len(assistant["logprobs"]["content"]) == 10


# ---- Hostile texts ----

def test_texts_are_never_html(tabs, stories):
    attack = "<img src=x onerror=\"window.hit=1\"><script>window.hit=1</script><b>bold</b>"
    tab = tabs(stories)
    tab.page.route("**/v1/completions", lambda route: route.fulfill(body=answer("Hi ", attack, " end"),
                                                                    content_type="text/event-stream"))
    tab.open().send(attack)
    tab.wait()
    assert tab.users() == [attack] and tab.replies() == ["Hi " + attack + " end"]
    tab.page.locator(".reply .t").nth(1).hover()
    expect(tab.page.locator("#card")).to_contain_text("onerror")
    tab.picture("attack")
    tab.page.click("#new-chat")
    tab.page.reload()
    expect(tab.page.locator("#chat-list")).to_contain_text("onerror")
    assert tab.page.evaluate("[window.hit, document.querySelectorAll('img, b, #log script').length]") == [None, 0]


def test_policy_applies_no_other_script(tabs, stories):
    with urllib.request.urlopen(stories.url) as first, urllib.request.urlopen(stories.url) as second:
        policies = [r.headers["Content-Security-Policy"] for r in (first, second)]
        html = first.read().decode()
    assert policies[0] != policies[1] and "unsafe" not in policies[0]
    nonce = re.search("'nonce-([0-9a-f]{32})'", policies[0])[1]
    assert html.count(f'nonce="{nonce}"') == 2 and 'nonce="NONCE"' not in html
    tab = tabs(stories).open()
    tab.expected_errors = "Content Security Policy|requires .*Trusted"
    tab.page.evaluate("""() => {
      const script = document.createElement('script');
      try { script.text = 'window.hit = 1'; } catch { }
      document.body.append(script);
      try { document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="window.hit=2">'); } catch { }
      const image = document.createElement('img');
      image.setAttribute('src', 'data:,');
      document.body.append(image);
    }""")
    tab.page.wait_for_timeout(200)
    assert tab.page.evaluate("window.hit") is None


# ---- Failures ----

def refusal(status, code, message, headers=None):
    body = {"error": {"message": message, "type": "server_error", "param": None, "code": code}}
    return {"status": status, "content_type": "application/json", "body": json.dumps(body), "headers": headers or {}}


@pytest.mark.parametrize("response, words", [
    (refusal(429, "rate_limit_exceeded", "too many requests", {"Retry-After": "4"}), "busy.*in 4 s"),
    (refusal(503, "shutting_down", "the server is shutting down"), "shutting down"),
    (refusal(503, "out_of_memory", "the request needs more memory than there is"), "cannot reply now.*memory"),
    ({"status": 502, "content_type": "text/html", "body": "<h1>Bad gateway</h1>"}, "HTTP status 502"),
    ({"content_type": "text/event-stream", "body": "data: {\"choices\""}, "connection to the server was lost"),
])
def test_failure_is_explained_and_can_be_repeated(tabs, stories, response, words):
    tab = tabs(stories)
    tab.expected_errors = "Failed to load resource"
    tab.page.route("**/v1/completions", lambda route: route.fulfill(**response), times=1)
    tab.open().send("Once upon a time")
    problem = tab.page.locator("#log .problem")
    expect(problem).to_have_text(re.compile(words))
    tab.picture(f"failure-{response.get('status', 'cut')}")
    assert tab.users() == ["Once upon a time"]
    tab.page.get_by_role("button", name="Try again").click()
    tab.wait()
    assert len(tab.replies()[0]) > 10
    expect(problem).to_have_count(0)


def test_chat_longer_than_the_context_is_explained(tab):
    tab.expected_errors = "status of 400"
    tab.send("word " * 3000)
    expect(tab.page.locator("#log .problem")).to_contain_text("longer than the model's context")


def test_lost_server_is_reported_until_it_is_back(tabs, start):
    server = start()
    tab = tabs(server)
    tab.expected_errors = "ERR_|Failed to load resource"
    tab.page.add_init_script(SLOW.replace("40", "200"))
    tab.open().send("Once upon a time")
    expect(tab.page.locator(".reply .t").nth(2)).to_be_visible()
    server.stop(signal.SIGKILL)
    tab.page.click("#stop")
    tab.wait()
    tab.send("Then Tom came.")
    expect(tab.page.locator("#log .problem")).to_contain_text("cannot be reached")
    expect(tab.page.locator("#offline")).to_be_visible()
    tab.picture("offline")
    assert tab.users() == ["Once upon a time", "Then Tom came."]
    start(ROOT / "models/stories.bin", "--port", server.port)
    expect(tab.page.locator("#offline")).to_be_hidden(timeout=LONG)
    tab.page.get_by_role("button", name="Try again").click()
    expect(tab.page.locator(".reply .t").nth(4)).to_be_visible()


def test_asks_for_the_api_key(tabs, start, tmp_path):
    (tmp_path / "keys").write_text("correct-horse-battery\n")
    tab = tabs(start(ROOT / "models/stories.bin", "--api-keys", tmp_path / "keys"))
    tab.expected_errors = "status of 401"
    tab.page.goto(tab.url)
    expect(tab.page.locator("#key-dialog")).to_be_visible()
    tab.picture("key")
    for key in ["wrong-wrong-wrong-wrong", "wrong-in-a-header\u200b", "correct-horse-battery"]:
        expect(tab.page.locator("#key-dialog")).to_be_visible()
        tab.page.fill("#key", key)
        tab.page.keyboard.press("Enter")
        if key.startswith("wrong"):
            expect(tab.page.locator("#key-problem")).to_be_visible()
    expect(tab.page.locator("#model")).to_have_text("stories")
    tab.send("Once upon a time")
    tab.wait()
    assert len(tab.replies()[0]) > 10
    assert "correct" not in tab.page.evaluate("JSON.stringify(localStorage)")


# ---- For everybody ----

def test_works_at_360_pixels(tabs, stories):
    tab = tabs(stories, width=360, height=740, has_touch=True).open()
    tab.picture("narrow-start")
    assert not tab.scrolls_sideways()
    tab.settings(max_tokens=30)
    tab.send("Once upon a time " + "x" * 80)
    tab.wait()
    tab.page.locator(".reply .t").nth(8).tap()
    tab.page.wait_for_timeout(400)
    expect(tab.page.locator("#card")).to_be_visible()  # it stays when the finger is lifted
    box = tab.page.locator("#card").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    tab.picture("narrow-alternatives")
    tab.page.click("#compare-button")
    tab.send("Then")
    tab.wait()
    tab.picture("narrow-compare")
    assert not tab.scrolls_sideways()
    for panel in ["settings", "chats"]:
        tab.page.click(f"#{panel}-button")
        expect(tab.page.locator(f"#{panel}")).to_be_visible()
        tab.picture("narrow-" + panel)
        assert not tab.scrolls_sideways()
        tab.page.keyboard.press("Escape")
        expect(tab.page.locator(f"#{panel}")).to_be_hidden()
        assert tab.page.evaluate("document.activeElement.id") == panel + "-button"
    for button in tab.page.locator("header button").all():
        box = button.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["height"] >= 24


def test_keyboard_alone_is_enough(tab):
    keys = tab.page.keyboard
    keys.type("Once upon a time")  # the message field has the focus
    keys.press("Enter")
    tab.wait()
    seen = []
    for _ in range(30):
        keys.press("Tab")
        focused = tab.page.evaluate("""() => {
          const e = document.activeElement, style = getComputedStyle(e);
          return [e.id || e.dataset.key || e.className, style.outlineStyle !== 'none' || e.id === 'input'];
        }""")
        seen.append(focused[0])
        assert focused[1] or focused[0] == "", f"{focused} has no visible focus"
    for stop in "chats export compare settings theme".split():
        assert stop + "-button" in seen
    for stop in "new-chat edit0 text copy0A again0A input send".split():
        assert stop in seen
    tab.page.focus("#compare-button")
    keys.press("Space")
    expect(tab.page.locator("#compare-button")).to_have_attribute("aria-pressed", "true")
    expect(tab.page.locator("#settings-button")).to_have_attribute("aria-expanded", "true")  # comparing opens it
    tab.page.focus("#settings-button")
    keys.press("Enter")
    expect(tab.page.locator("#settings-button")).to_have_attribute("aria-expanded", "false")


def test_screen_readers_hear_sentences(tab):
    tab.settings(max_tokens=60)
    tab.send("Once upon a time")
    tab.wait()
    parts = tab.page.locator("#announcements p").all_text_contents()
    assert " ".join(parts[:-1]).split() == tab.replies()[0].split()
    assert parts[-1] == "The reply is complete."


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(tabs, stories, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tab = tabs(stories, color_scheme=scheme).open()
    tab.page.click("#settings-button")
    tab.page.click("#compare-button")

    def expect_no_fault(state):
        results = axe.run(tab.page)
        assert results.violations_count == 0, state + ": " + results.generate_report()

    expect_no_fault("start")
    tab.settings("A", max_tokens=20)
    tab.send("Once upon a time")
    tab.wait()
    tab.page.locator(".reply .t").nth(3).hover()
    tab.picture("compare-" + scheme)
    expect_no_fault("card")
    tab.page.get_by_role("button", name="Edit message").click()
    expect_no_fault("edit")


# ---- A model that was trained to chat ----

def test_chat_model_gets_all_messages(smollm, tabs):
    tab = tabs(smollm).open()
    tab.settings(system="You reply in one short sentence.", max_tokens=24, seed=4)
    messages = [{"role": "system", "content": "You reply in one short sentence."}]
    for text in ["What is rain?", "And snow? ❄️"]:
        tab.send(text)
        tab.wait()
        messages.append({"role": "user", "content": text})
        body = {"messages": messages, "seed": 4, "max_tokens": 24, **DEFAULTS}
        reply = smollm.json("/v1/chat/completions", body)["choices"][0]["message"]["content"]
        assert tab.replies()[-1] == reply
        messages.append({"role": "assistant", "content": reply})
    tab.page.locator(".reply .t").first.hover()
    assert tab.page.locator("#card tr").count() == 5
    tab.picture("chat-model")


def test_stop_ends_the_reply_on_the_server(smollm, tabs):
    cancelled = smollm.figure("cancelled_total")
    tab = tabs(smollm).open()
    tab.settings(temperature=1.2)
    tab.send("Write a long story of ten pages about a river, with many details.")
    expect(tab.page.locator(".reply .t").nth(2)).to_be_visible()
    tab.page.click("#stop")
    tab.wait()
    for _ in range(50):
        if smollm.figure("cancelled_total") > cancelled:
            break
        tab.page.wait_for_timeout(100)
    assert smollm.figure("cancelled_total") == cancelled + 1
    assert smollm.figure("running") == 0


# ---- Inside ----


def open_inside(tab, at=0):
    """Opens the panel of a reply; returns its frame."""
    return chromium.open_inside(tab.page, tab.page.locator("[data-key^=inside]").nth(at))


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 360)])
def test_inside_shows_the_reply(tabs, stories, scheme, width):
    tab = tabs(stories, color_scheme=scheme, width=width).open()
    tab.settings(max_tokens=30, seed=5)
    tab.send("Once upon a time")
    reply = tab.wait().replies()[0]
    frame = open_inside(tab)
    written = frame.locator("#text-strip .t.new").all_text_contents()
    assert "".join(written).replace("⏎", "\n").strip() == reply.strip()
    map_ = frame.locator("#map")
    map_.scroll_into_view_if_needed()
    assert map_.evaluate("c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v)")
    assert frame.locator("html").evaluate("e => e.scrollWidth") <= width
    assert frame.locator("#choice tr.chosen").count() == 1
    tab.picture(f"inside-{scheme}-{width}")
    tab.page.keyboard.press("Escape")
    expect(tab.page.locator("#inside")).to_be_hidden()
    assert tab.page.locator("iframe").count() == 0


def test_inside_is_offered_for_replies_of_this_model_only(tab):
    tab.settings(max_tokens=5)
    tab.send("Once upon a time")
    tab.wait()
    expect(tab.page.get_by_role("button", name="Inside")).to_have_count(1)
    tab.page.evaluate("chat.turns[0].replies.A.model = 'another'; render()")
    expect(tab.page.get_by_role("button", name="Inside")).to_have_count(0)


def test_inside_of_an_earlier_reply_in_a_chat(tabs, chat):
    tab = tabs(chat).open()
    tab.settings(max_tokens=8, seed=2)
    for text in ["Hello", "Again"]:
        tab.send(text)
        tab.wait()
    tab.settings(max_tokens=20)  # of later replies
    frame = open_inside(tab, 0)
    assert "".join(frame.locator("#text-strip .t").all_text_contents()).count("Again") == 0
    assert frame.locator("#text-strip .t.new").count() == 8
    tab.page.click("#inside [data-close]")
    frame = open_inside(tab, 1)
    assert frame.locator("#text-strip .t.new").count() == 8


def test_inside_shows_hostile_text_and_reaches_nothing(tabs, stories):
    tab = tabs(stories).open()
    tab.settings(max_tokens=5, seed=2)
    tab.send('</script><script>parent.hacked=1</script><img src=x onerror="parent.hacked=1">')
    tab.wait()
    frame = open_inside(tab)
    assert "<img src=x" in "".join(frame.locator("#text-strip .t").all_text_contents())
    assert frame.locator("img").count() == 0
    assert tab.page.evaluate("window.hacked") is None
    reached = frame.locator("html").evaluate(
        """() => ['parent.document.title', 'localStorage', "document.cookie"].map(text => {
             try { return [parent.document.title, 1][1] && 'reached'; } catch (error) { return error.name; } })"""
    )
    assert set(reached) == {"SecurityError"}


def test_inside_says_why_it_fails(tabs, stories):
    tab = tabs(stories).open()
    tab.settings(max_tokens=5, seed=2)
    tab.send("Once")
    tab.wait()
    tab.expected_errors = "status of 429"
    error = {"error": {"message": "another text is being explained; try again later", "code": "rate_limit_exceeded"}}
    tab.page.route(
        "**/explain",
        lambda route: route.fulfill(status=429, json=error) if route.request.method == "POST" else route.continue_(),
    )
    tab.page.locator("[data-key^=inside]").click()
    expect(tab.page.locator("#inside-state")).to_contain_text("The server is busy")
    assert not tab.scrolls_sideways()
