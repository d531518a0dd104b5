"""Prints the Unicode tables at the end of tokenizer.hpp.

Hugging Face's tokenizers use several versions of Unicode. The categories of regular expressions are those of Unicode
16.0; NFC is that of Unicode 9.0: characters added since neither decompose nor are reordered. The script asserts both.
Needs: pip install unicodedata2==16.0.0 tokenizers==0.23.3
"""
import unicodedata2 as unicode
from tokenizers import Regex, normalizers, pre_tokenizers

CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
DIGITS = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
# In the order of enum Category in tokenizer.hpp.
CATEGORIES = ["other", "upper", "lower", "caseless", "mark", "number", "punctuation", "symbol", "space"]
ALTERNATING = len(CATEGORIES)  # upper and lower case in turn
# The letters that the pre-tokenizer of DeepSeek LLM lists (a regular expression of its tokenizer.json).
DEEPSEEK_LETTERS = """41-5A 61-7A B5-B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376-377 37B-37D 37F-37F 386-386
388-38A 38C-38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B
1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59-1F59 1F5B-1F5B 1F5D-1F5D 1F5F-1F7D 1F80-1FB4
1FB6-1FBC 1FBE-1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102-2102 2107-2107 210A-2113
2115-2115 2119-211D 2124-2124 2126-2126 2128-2128 212A-212D 212F-2134 2139-2139 213C-213F 2145-2149 214E-214E 2183-2184
2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2-2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17
FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"""


def number(value):
    """In base 32, the lowest digit first; 32 is added to all digits but the last."""
    text = ""
    while value >= 32:
        text += DIGITS[32 + value % 32]
        value //= 32
    return text + DIGITS[value]


def signed(value):
    return number(2 * value if value >= 0 else -2 * value - 1)


def category(code):
    name = unicode.category(chr(code))
    if name[0] == "Z" or code in (9, 10, 11, 12, 13, 0x85):  # White_Space
        return "space"
    by_name = {"Lu": "upper", "Lt": "upper", "Ll": "lower", "Lm": "caseless", "Lo": "caseless"}
    by_letter = {"M": "mark", "N": "number", "P": "punctuation", "S": "symbol"}
    return by_name.get(name) or by_letter.get(name[0], "other")


def check_categories():
    for pattern, members in [(r"[\p{Lu}\p{Lt}]", "upper"), (r"\p{Ll}", "lower"), (r"[\p{Lm}\p{Lo}]", "caseless"),
                             (r"\p{M}", "mark"), (r"\p{N}", "number"), (r"\p{P}", "punctuation"), (r"\p{S}", "symbol"),
                             (r"\s", "space")]:
        step = pre_tokenizers.Split(Regex(pattern), "removed")
        for code in CODES:
            assert (step.pre_tokenize_str(chr(code)) == []) == (category(code) == members), (pattern, hex(code))


def category_runs():
    """(category, number of code points) of each run of equal or alternating categories."""
    runs = []
    for code in range(0x110000):
        index = CATEGORIES.index(category(code))
        if runs and runs[-1][0] == index:
            runs[-1][1] += 1
        else:
            runs.append([index, 1])
    at = 0
    while at < len(runs):
        end = at
        while end < len(runs) and runs[end][1] == 1 and CATEGORIES[runs[end][0]] == ("upper", "lower")[(end - at) % 2]:
            end += 1
        if end - at < 4:
            yield tuple(runs[at])
            at += 1
        else:
            yield ALTERNATING, end - at
            at = end


def deepseek_runs():
    """(code points since the last run, code points) of each run."""
    end = 0
    for run in DEEPSEEK_LETTERS.split():
        first, last = (int(code, 16) for code in run.split("-"))
        yield first - end, last + 1 - first
        end = last + 1


NFD, NFC = normalizers.NFD().normalize_str, normalizers.NFC().normalize_str


def combining_class(code):
    """0 for characters that the library does not know."""
    known = NFD(chr(code) + "\u0334") != chr(code) + "\u0334" or NFD("\u0345" + chr(code)) != "\u0345" + chr(code)
    return unicode.combining(chr(code)) if known else 0


def combining_runs():
    """(code points since the last run, code points, class) of each run with one class other than 0."""
    runs, end = [], 0
    for code in CODES:
        value = combining_class(code)
        if value and runs and end == code and runs[-1][2] == value:
            runs[-1][1] += 1
            end += 1
        elif value:
            runs.append([code - end, 1, value])
            end = code + 1
    return runs


def decompositions():
    """(composed, first, second or 0, whether NFC composes it) of all characters but Hangul."""
    for code in CODES:
        if 0xAC00 <= code < 0xD7A4 or NFD(chr(code)) == chr(code):
            continue
        parts = [int(part, 16) for part in unicode.decomposition(chr(code)).split()] + [0]
        assert NFD(chr(code)) == unicode.normalize("NFD", chr(code)), hex(code)
        yield code, parts[0], parts[1], NFC(NFD(chr(code))) == chr(code)


def decomposition_numbers():
    last = (0, 0, 0)
    for code, first, second, composes in decompositions():
        yield number(2 * (code - last[0]) + composes) + signed(first - last[1]) + signed(second - last[2])
        last = code, first, second


def table(name, numbers):
    text = "".join(numbers)
    print(f"inline const char UnicodeTables::{name}[] =")
    lines = [f'    "{text[at:at + 113]}"' for at in range(0, len(text), 113)]
    print("\n".join(lines) + ";")


assert unicode.unidata_version == "16.0.0"
check_categories()
print(f"// Printed by tests/tokenizer/unicode_tables.py: categories of Unicode {unicode.unidata_version}, normalization of "
      "Unicode 9.0.0.")
table("kCategories", (number(16 * length + index) for index, length in category_runs()))
table("kDeepSeekLetters", (number(value) for run in deepseek_runs() for value in run))
table("kCombiningClasses", (number(value) for run in combining_runs() for value in run))
table("kDecompositions", decomposition_numbers())
