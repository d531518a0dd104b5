#!/usr/bin/env python3
"""Mutates chat templates, and compares converted ones with Jinja: tests/export/chat_template_judge.py PROGRAM

  cmake --build build --target chat_template_judge
  tests/export/chat_template_judge.py build/tests/chat_template_judge [--count N] [--seed N] [TEMPLATE.jinja ...]

Each mutated template is rendered for several conversations by the environment of transformers' apply_chat_template. The
converter must refuse the template, or give the same text for each conversation, byte for byte. Prints the numbers of
templates that are equal, refused and different, and the different ones, and exits with 1 if there are any. The seeds are
the templates of chat_vectors.py and those on the command line. Requires the packages jinja2 and transformers.
"""
import argparse
import collections
import json
import random
import re
import subprocess
import sys

from jinja2.exceptions import TemplateError
from transformers.utils import chat_template_utils

import chat_vectors

WORDS = [
    "messages", "loop_messages", "messages[1:]", "messages[0]", "messages[-1]", "message", "message['content']",
    "message['role']", "message.content", "content", "system_message", "bos_token", "eos_token", "loop.first", "loop.last",
    "loop.index0 == 0", "loop.index0 % 2 == 0", "loop.index", "add_generation_prompt", "tools", "tools is defined",
    "tools is not none", "not tools", "documents", "true", "false", "none", "undefined_name", "'system'", "'user'",
    "'assistant'", "'tool'", "messages[0]['role'] == 'system'", "message['role'] != 'system'", "message is string",
    "message['content'] is string", "messages | length > 1", "'x' in message", "strftime_now('%d %b %Y')", "''", "' '",
    "message['content'] | length", "loop.previtem", "loop.nextitem is defined", "namespace(a=1)", "message.tool_calls",
    "'</think>' in message['content']", "message['content'].split('</think>')[-1]", "enable_thinking is defined"]
SUFFIXES = [" | trim", ".strip()", ".lstrip()", ".rstrip()", ".lstrip('\\n')", ".strip('\\n')", " | upper", " | string", "|length",
            " | default('')", " + ' '", " ~ '\\n'", " + bos_token", ".replace('a', 'b')", ".split('</think>')[-1]", "[0]", "[1:]",
            " is defined", " | first", ".startswith('<')", " or ''", " and 'x'", " if loop.first else ''", ".title()"]
BLOCKS = [
    "{% if tools is defined %}@{% endif %}", "{% if tools %}@{% endif %}", "{% if not loop.first %}@{% endif %}",
    "{% if message['role'] == 'user' %}@{% endif %}", "{% if loop.index0 %}@{% else %}x{% endif %}",
    "{% for message in loop_messages %}@{% endfor %}", "{% generation %}@{% endgeneration %}", "{% set x %}@{% endset %}{{ x }}",
    "{%+ if true +%}@{%+ endif +%}", "\n  {% if true %}\n@\n  {% endif %}\n", "{# note #}@", "{#- note +#}\n@",
    "{% if false %}@{% elif true %}b{% endif %}", "{% set content = message['content'] | trim %}@",
    "{% set message = messages[0] %}@", "{% set messages = messages[1:] %}@", "{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}@",
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}@",
    "{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}@", "{% break %}@",
    "{% if loop.last %}{% continue %}{% endif %}@", "{% macro f(x) %}{{ x }}{% endmacro %}@"]
TEXTS = [" ", "\n", "\n\n", "  \n", "x", "-", "+", "{", "}", "'", "|", "(", ")", "\t", "\r\n", ".", "%", "#"]
ATOM = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"|[A-Za-z_][\w.]*(?:\[[^\]]*\])*|\{[{%#][-+]?|[-+]?[}%#]\}|\s+|.", re.S)
CONTENTS = ["Hi there", "  Why?\n", "\n\n\tBecause. \n", "\u3000\u4e3a\u4ec0\u4e48\uff1f\u00a0", "a {{ messages }} {% endfor %}",
            "</s><|im_end|>[INST] <s>", "<think>\nHm.\n</think>\n\nYes.\n", "</think> x", "x\x1f", "A\u0301 b", "{bos_token}", "Be brief. /no_think"]
def conversations(chooser):
    """Conversations that end with a message of the user."""
    found = []
    for system in (False, True):
        for turns in (1, 2, 3, 5):
            messages = [{"role": "system", "content": chooser.choice(CONTENTS)}] if system else []
            for i in range(turns):
                messages.append({"role": "user", "content": chooser.choice(CONTENTS)})
                messages.append({"role": "assistant", "content": chooser.choice(CONTENTS + ["", " \n"])})
            found.append(messages[:-1])
    return found


def mutate(seeds, chooser):
    text = chooser.choice(seeds)
    for _ in range(chooser.choice((0, 1, 1, 1, 2, 2, 3))):
        atoms = ATOM.findall(text) or [" "]
        i = chooser.randrange(len(atoms))
        names = [k for k, a in enumerate(atoms) if re.match(r"[A-Za-z_'\"]", a)]
        marks = [k for k, a in enumerate(atoms) if re.fullmatch(r"\{[{%#][-+]?|[-+]?[}%#]\}", a)]
        strings = [k for k, a in enumerate(atoms) if len(a) > 1 and a[0] in "'\""]
        kind = chooser.randrange(10)
        if kind == 0 and names:  # an operation on a value
            atoms[chooser.choice(names)] += chooser.choice(SUFFIXES)
        elif kind == 1 and names:  # another value
            atoms[chooser.choice(names)] = chooser.choice(WORDS)
        elif kind == 2 and marks:  # white space control
            k = chooser.choice(marks)
            brackets = atoms[k].strip("-+")
            sign = chooser.choice(["", "-", "+"])
            atoms[k] = brackets + sign if brackets[0] == "{" else sign + brackets
        elif kind == 3:  # a block around a part
            before, after = chooser.choice(BLOCKS).split("@")
            tags = [0] + [m.end() for m in re.finditer(r"[}%#]\}", text)] + [len(text)]
            a, b = sorted(chooser.choices(tags, k=2))
            atoms = [text[:a], before, text[a:b], after, text[b:]]
        elif kind == 4 and strings:  # another string
            k = chooser.choice(strings)
            at = chooser.randrange(1, len(atoms[k]))
            atoms[k] = atoms[k][:at] + chooser.choice([" ", "\\n", "x", "user", "</s>"]) + atoms[k][at:]
        elif kind == 5:  # removes some
            del atoms[i:i + chooser.randrange(1, 4)]
        elif kind == 6:  # some of another template
            other = ATOM.findall(chooser.choice(seeds))
            k = chooser.randrange(len(other))
            atoms[i:i] = other[k:k + chooser.randrange(1, 12)]
        elif kind == 7:  # a tag more than once, or moved
            tags = re.findall(r"\{[{%].*?[}%]\}", text, re.S)
            atoms.insert(i, chooser.choice(tags) if tags else "")
        elif kind == 8:
            atoms.insert(i, chooser.choice(TEXTS))
        elif names:
            a, b = chooser.choice(names), chooser.choice(names)
            atoms[a], atoms[b] = atoms[b], atoms[a]
        text = "".join(atoms)
    return text


def render(jinja, messages):
    """The text, or None if the template raises an exception."""
    try:
        texts, _ = chat_template_utils.render_jinja_template([messages], chat_template=jinja, add_generation_prompt=True,
                                                             bos_token="<s>", eos_token="</s>")
        return texts[0]
    except (TemplateError, TypeError, ValueError, AttributeError, KeyError, IndexError, OverflowError, SyntaxError,
            RecursionError, ZeroDivisionError, AssertionError) as error:
        return None


def judge(line, jinja, found):
    answer = json.loads(line)
    if "refused" in answer:
        return "refused"
    for messages, text in zip(found, answer["texts"]):
        expected = render(jinja, messages)
        if text is None and messages[0]["role"] == "system":
            continue
        if text != expected:
            return f"{json.dumps(messages)}\n  Jinja: {json.dumps(expected)}\n  ours:  {json.dumps(text)}"
    return "equal"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("templates", nargs="*")
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_intermixed_args()
    chooser = random.Random(arguments.seed)
    seeds = [template[4] for template in chat_vectors.TEMPLATES] + [open(path).read() for path in arguments.templates]
    cases = [(mutate(seeds, chooser), conversations(chooser)) for _ in range(arguments.count)]
    lines = "".join(json.dumps({"jinja": jinja, "conversations": found}) + "\n" for jinja, found in cases)
    answers = subprocess.run([arguments.program], input=lines, stdout=subprocess.PIPE, text=True, check=True).stdout
    numbers, reasons = collections.Counter(), collections.Counter()
    for line, (jinja, found) in zip(answers.splitlines(), cases, strict=True):
        verdict = judge(line, jinja, found)
        different = verdict not in ("equal", "refused")
        numbers["different" if different else verdict] += 1
        if verdict == "refused":
            valid = all(render(jinja, messages) is not None for messages in found)
            reasons[("valid: " if valid else "raises: ") + re.sub(r"^line \d+: |'[^']*'", "", json.loads(line)["refused"])] += 1
        if different:
            print(f"different: {json.dumps(jinja)}\n  {verdict}\n")
    print(dict(numbers))
    for reason, number in reasons.most_common(25):
        print(f"{number:6} {reason}")
    sys.exit(numbers["different"] > 0)


if __name__ == "__main__":
    main()
