#!/usr/bin/env python3
"""Translates a text, a Markdown file or subtitles with a model of your own, sentence by sentence.

    models/get eurollm-1.7b-instruct
    ./serve models/eurollm-1.7b-instruct.bin &
    translate.py --from English --to German README.md -o LIESMICH.md
    translate.py --from English --to Polish film.srt -o film.pl.srt --glossary terms.tsv

The type of a file follows from its name: .md, .srt or .vtt, else plain text. What is not language stays as it is, whatever
the model writes: in Markdown code, links, HTML and the marks of headings, lists and tables; in subtitles numbers, times
and tags. A glossary has lines of TERM <tab> TRANSLATION. Sentences that could not be translated stay as they are, and are
listed on stderr. Nothing leaves the machine that the server runs on. Requires the package openai.
"""

import argparse
import concurrent.futures
import pathlib
import re
import sys
import textwrap

# ---- Documents: parts that stay, and texts to translate ----

# In a text: code, links and images up to the text and from its end, HTML, addresses, emphasis.
MARKDOWN_SPAN = re.compile(
    r"`+[^`]+`+|!\[[^\]]*\]\([^)]*\)|\]\([^)]*\)|\]\[[^\]]*\]|\[\^[^\]]*\]|\[|<[^>]+>|https?://\S+|\*\*|\*|__|~~"
)
SUBTITLE_SPAN = re.compile(r"<[^>]+>|\{[^}]*\}")
NO_SPAN = re.compile(r"(?!)")
# The beginning of a line: headings, lists, quotes.
MARKDOWN_MARK = re.compile(r"(\s*(?:(?:[#]{1,6}|>|[-*+]|\d+[.)])(?:\s+(?:\[[ xX]\]\s+)?|$))*)(.*)", re.S)
TIME = re.compile(r"\s*[\d:.,]+\s+-->\s+[\d:.,]+")


def markdown(text):
    """Pieces of a Markdown text: (text, whether it is language). Together they are the text."""
    pieces, paragraph, fence = [], [], None
    lines = text.splitlines(keepends=True)
    ends = [line.strip() in ("---", "...") for line in lines]
    front = bool(lines) and lines[0].strip() == "---" and any(ends[1:])

    def end_paragraph():
        if paragraph:
            pieces.append(("".join(paragraph), True))
            paragraph.clear()

    for i, line in enumerate(lines):
        mark, rest = MARKDOWN_MARK.fullmatch(line).groups()
        ticks = re.match(r"\s*(```+|~~~+)", line)
        if front:
            pieces.append((line, False))
            front = i == 0 or not ends[i]
        elif fence or ticks:
            end_paragraph()
            pieces.append((line, False))
            if fence and ticks and ticks[1].startswith(fence):
                fence = None
            elif not fence:
                fence = ticks[1]
        elif line.lstrip().startswith("|"):
            end_paragraph()
            for cell in re.split(r"(\|)", line):
                pieces.append((cell, bool(re.search(r"\w", cell))))
        elif (
            not rest.strip()
            or (not paragraph and line.startswith(("    ", "\t")))
            or re.fullmatch(r"\s*\[[^\]]+\]:.*\s*|[\s=*_-]+", line)
        ):
            end_paragraph()
            pieces.append((line, False))
        else:
            if mark:
                end_paragraph()
                pieces.append((mark, False))
            paragraph.append(rest)
            if mark.lstrip().startswith("#"):
                end_paragraph()
    end_paragraph()
    return pieces


def subtitles(text):
    """The same for SubRip and WebVTT: the texts are those after a line with times, up to an empty line."""
    pieces, cue = [], None
    for line in text.splitlines(keepends=True):
        if cue is not None and line.strip():
            cue.append(line)
            continue
        if cue:
            pieces.append(("".join(cue), True))
            cue = None
        pieces.append((line, False))
        if TIME.match(line):
            cue = []
    if cue:
        pieces.append(("".join(cue), True))
    return pieces


def plain(text):
    """The same for a text with paragraphs."""
    return [(part, bool(part.strip())) for part in re.split(r"(\n\s*\n)", text) if part]


KINDS = {".md": (markdown, MARKDOWN_SPAN), ".srt": (subtitles, SUBTITLE_SPAN), ".vtt": (subtitles, SUBTITLE_SPAN)}
ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|vs|etc|e\.g|i\.e|z\.B|d\.h|bzw|ca|Nr|[A-Z])\.)$")


def sentences(text):
    """Splits a text behind the ends of its sentences."""
    found, begin = [], 0
    for end in re.finditer(r"[.!?…]+[\"'”’)\]]*\s+(?=[^\sa-zà-ÿ])", text):
        if not ABBREVIATION.search(text[begin : end.start() + 1]):
            found.append(text[begin : end.end()])
            begin = end.end()
    return found + [text[begin:]]


# ---- Translation ----


class Translator:
    """translate(sentence) asks the server; the same sentence is asked once."""

    def __init__(self, client, model, source, target, glossary):
        self.client, self.model, self.source, self.target, self.glossary = client, model, source, target, glossary
        self.failures = []

    def terms(self, sentence):
        return {t: u for t, u in self.glossary.items() if re.search(rf"\b{re.escape(t)}\b", sentence, re.I)}

    def __call__(self, sentence):
        terms = self.terms(sentence)
        request = f"Translate the following text from {self.source} to {self.target}."
        if terms:
            request += " Use these terms: " + "; ".join(f"{t} = {u}" for t, u in terms.items()) + "."
        request += f"\n{self.source}: {sentence}\n{self.target}:"
        reply = self.client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": request}],
            temperature=0,
            seed=1,
            max_tokens=40 + 2 * len(sentence.encode()) // 3,
        )
        text = " ".join((reply.choices[0].message.content or "").split())
        if reply.choices[0].finish_reason != "stop" or not text:
            self.failures.append(("not translated", sentence))
            return None
        for term in terms.values():
            if term.lower() not in text.lower():
                self.failures.append((f"without the term '{term}'", sentence))
        return text


def is_safe(text, sentence, span):
    """Whether a translation has no marks of Markdown, tags or lines of its own, which would change the document."""
    begin = re.compile(r"[#>*+|=-]|\d+[.)]\s")
    return bool(text) and not span.search(text) and bool(begin.match(text)) <= bool(begin.match(sentence))


def translate_sentence(sentence, span, translate):
    """A sentence with spans that stay: each is a mark for the model. If a mark is lost, the texts between the spans are
    translated one by one."""
    spans = span.findall(sentence)
    marked = iter(range(1, len(spans) + 1))
    words = span.sub(lambda _: f"⟦{next(marked)}⟧", sentence)
    if not re.search(r"[^\W\d_]", re.sub(r"⟦\d+⟧", "", words)):
        return sentence
    text = translate(words)
    if not is_safe(text, words, span):
        text = ""
    if (
        re.findall(r"⟦(\d+)⟧", text) == [str(i + 1) for i in range(len(spans))]
        and text.count("⟦") == len(spans)
        and text
    ):
        return re.sub(r"⟦(\d+)⟧", lambda mark: spans[int(mark[1]) - 1], text)
    if not spans:
        return sentence
    out, end = "", 0
    for found in [*span.finditer(sentence), None]:
        between = sentence[end : found.start() if found else None]
        if re.search(r"[^\W\d_]", between):
            inner = translate(between.strip())
            if is_safe(inner, between.strip(), span) and "⟦" not in inner:
                between = re.sub(r"\S.*\S|\S", lambda _: inner, between, count=1, flags=re.S)
        out += between + (found[0] if found else "")
        end = found.end() if found else None
    return out


def translate_text(text, span, translate, keep_lines):
    """Translates a paragraph or the text of a subtitle. White space around it stays."""
    head, body, tail = re.fullmatch(r"(\s*)(.*?)(\s*)", text, re.S).groups()
    lines = body.split("\n")
    done = " ".join(translate_sentence(s.strip(), span, translate) for s in sentences(" ".join(map(str.strip, lines))))
    if len(lines) > 1:
        width = -(-len(done) // len(lines)) + 8 if keep_lines else max(map(len, lines))
        done = "\n".join(textwrap.wrap(done, max(20, width), break_long_words=False, break_on_hyphens=False))
    return head + done + tail


def translate_document(text, suffix, translate, parallel=1):
    split, span = KINDS.get(suffix, (plain, NO_SPAN))
    keep_lines = split is subtitles
    pieces = split(text)
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        known = {}
        for piece, language in pieces:
            if language and piece not in known:
                known[piece] = pool.submit(translate_text, piece, span, translate, keep_lines)
        return "".join(known[piece].result() if language else piece for piece, language in pieces)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("file")
    arguments.add_argument("--from", dest="source", default="English", help="language of the file [English]")
    arguments.add_argument("--to", dest="target", required=True, help="language of the translation")
    arguments.add_argument("-o", "--output", default="-", help="file to write; - is standard output [-]")
    arguments.add_argument("--glossary", help="file with lines of TERM <tab> TRANSLATION")
    arguments.add_argument("--url", default="http://127.0.0.1:8080/v1", help="the server [http://127.0.0.1:8080/v1]")
    arguments.add_argument("--key", default="none", help="API key of the server")
    arguments.add_argument("--parallel", type=int, default=8, help="paragraphs at once [8]")
    a = arguments.parse_args()

    import openai

    client = openai.OpenAI(base_url=a.url, api_key=a.key)
    rows = pathlib.Path(a.glossary).read_text().splitlines() if a.glossary else []
    glossary = dict(row.split("\t")[:2] for row in rows if "\t" in row)
    translate = Translator(client, client.models.list().data[0].id, a.source, a.target, glossary)
    path = pathlib.Path(a.file)
    done = translate_document(path.read_text(), path.suffix.lower(), translate, a.parallel)
    if a.output == "-":
        sys.stdout.write(done)
    else:
        pathlib.Path(a.output).write_text(done)
    for why, sentence in translate.failures:
        print(f"translate: {why}: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    main()
