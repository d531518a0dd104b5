"""apps/server/examples/translate.py keeps what is not language, whatever the model writes."""

import importlib.util
import re
import subprocess
import sys

import pytest
from conftest import ROOT

PROGRAM = ROOT / "apps/server/examples/translate.py"
spec = importlib.util.spec_from_file_location("translate", PROGRAM)
translate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(translate)

MARKDOWN = """---
title: Front
---
# A heading with `code`

A paragraph of two sentences. It has **bold**, a [link](https://example.org/a_b), and
<b>HTML</b> over two lines.

- [ ] an item
  1. a nested one

> a quote

    indented code

```python
print("code stays. Always.")
```

| name | meaning |
| --- | --- |
| dog | an animal. It barks. |

[ref]: https://example.org "Title"
"""
SRT = """1
00:00:01,000 --> 00:00:02,500
Hello there. <i>How are
you?</i>

2
00:00:03,000 --> 00:00:04,000
{\\an8}Fine.
"""
VTT = "WEBVTT\n\nNOTE a note\n\n00:01.000 --> 00:02.000 align:start\n<v Ada>Hello.\n"


@pytest.mark.parametrize(
    "text, suffix", [(MARKDOWN, ".md"), (SRT, ".srt"), (VTT, ".vtt"), ("One. Two.\n\nThree.\n", ".txt"), ("", ".md")]
)
def test_pieces_are_the_text(text, suffix):
    split = translate.KINDS.get(suffix, (translate.plain, None))[0]
    assert "".join(piece for piece, _ in split(text)) == text
    same = translate.translate_document(text, suffix, lambda sentence: sentence)
    assert same.split() == text.split() and same.count("\n") == text.count("\n")


def test_markdown():
    done = translate.translate_document(MARKDOWN, ".md", str.upper)
    assert done.startswith("---\ntitle: Front\n---\n# A HEADING WITH `code`\n")
    for kept in [
        'print("code stays. Always.")',
        "    indented code\n",
        "](https://example.org/a_b)",
        "<b>HTML</b>",
        '[ref]: https://example.org "Title"',
        "| --- | --- |",
        "**BOLD**",
        "- [ ] AN ITEM\n  1. A NESTED ONE\n",
        "> A QUOTE",
    ]:
        assert kept in done, kept
    assert "| DOG | AN ANIMAL. IT BARKS. |" in done


def test_a_rule_at_the_beginning_is_no_front_matter():
    done = translate.translate_document("---\nA text.\n\nAnother one.\n", ".md", str.upper)
    assert done == "---\nA TEXT.\n\nANOTHER ONE.\n"


def test_subtitles():
    done = translate.translate_document(SRT, ".srt", lambda s: s[::-1] if "⟦" not in s else s.upper())
    assert re.findall(r".*-->.*", done) == re.findall(r".*-->.*", SRT)
    assert "<i>HOW ARE" in done and "{\\an8}FINE." in done and len(done.splitlines()) == len(SRT.splitlines())


@pytest.mark.parametrize("answer", [None, "", "no marks at all", "⟦1⟧ ⟦1⟧ ⟦2⟧", "**a** `b` <i> [x](y)", "⟦9⟧"])
def test_marks_survive_any_model(answer):
    done = translate.translate_document(MARKDOWN, ".md", lambda _: answer)
    spans = lambda text: [
        s for piece, language in translate.markdown(text) for s in translate.MARKDOWN_SPAN.findall(piece)
    ]
    assert spans(done) == spans(MARKDOWN)
    assert [p for p, language in translate.markdown(MARKDOWN) if not language and p.strip()] == [
        p for p, language in translate.markdown(done) if not language and p.strip()
    ]


def test_sentences():
    assert translate.sentences('Dr. Who came. He said: "No!" Then? e.g. this… Done') == [
        "Dr. Who came. ",
        'He said: "No!" ',
        "Then? e.g. this… ",
        "Done",
    ]


def test_glossary():
    class Client:
        class chat:
            class completions:
                @staticmethod
                def create(messages, **options):
                    Client.request = messages[0]["content"]
                    choice = type("C", (), {"finish_reason": "stop", "message": type("M", (), {"content": "Der Hund"})})
                    return type("R", (), {"choices": [choice]})

    t = translate.Translator(Client, "m", "English", "German", {"dog": "Hund", "cat": "Katze"})
    assert (
        t("The Dog") == "Der Hund"
        and "dog = Hund" in Client.request
        and "Katze" not in Client.request
        and not t.failures
    )
    t("The dog and the cat")
    assert t.failures == [("without the term 'Katze'", "The dog and the cat")]


def test_with_a_server(chat, tmp_path):
    (tmp_path / "in.md").write_text(MARKDOWN)
    command = [
        sys.executable,
        PROGRAM,
        "--to",
        "German",
        tmp_path / "in.md",
        "-o",
        tmp_path / "out.md",
        "--url",
        chat.url + "/v1",
    ]
    subprocess.run(command, check=True, capture_output=True)
    out = (tmp_path / "out.md").read_text()
    assert 'print("code stays. Always.")' in out and "](https://example.org/a_b)" in out
