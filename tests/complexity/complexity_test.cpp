// complexity_test.cpp: every reader takes time and memory in proportion to its input, also to input that was made to be
// slow: nested, repeated, with many small entries, with many lengths, with one huge value. Of input that doubles it takes
// at most 2.5 times the steps, and memory at most 20 times the input.
#include <gtest/gtest.h>

#include <functional>
#include <memory>

#include "../../apps/cli/session_file.hpp"
#include "../../export/chat_template.hpp"
#include "../../export/lora.hpp"
#include "../../export/open_checkpoint.hpp"
#include "../../models/megabyte/megabyte_checkpoint.hpp"
#include "../../models/training_state.hpp"
#include "../support/files.hpp"
#include "../support/gguf_file.hpp"
#include "../support/pytorch_files.hpp"
#include "../support/tiny_model.hpp"
#include "counters.hpp"

namespace complexity_test {

using namespace pocket;
using PieceType = Tokenizer::PieceType;
using Vocabulary = Tokenizer::Vocabulary;

/// The input: the files or texts of one reader.
using Input = std::vector<std::string>;

struct Case {
  const char* name;
  std::function<Input(size_t bytes)> input;     // of about so many bytes
  std::function<void(const Input& input)> run;  // accepts or rejects it
  double memory = 20;                           // bytes for each byte of the input, at most
};

size_t bytes_of(const Input& input) {
  size_t n = 0;
  for (const std::string& part : input) n += part.size();
  return n;
}

struct Cost {
  size_t bytes;
  uint64_t steps;
  size_t memory;
};

Cost cost_of(const Case& c, size_t bytes) {
  const Input input = c.input(bytes);
  const uint64_t steps = counters::steps();
  const size_t memory = counters::memory();
  counters::reset_peak();
  c.run(input);
  return {bytes_of(input), counters::steps() - steps, counters::peak() - memory};
}

void check(const std::vector<Case>& cases) {
  constexpr size_t kBytes = 48 << 10;
  constexpr double kMostSteps = 2.5, kOverheadSteps = 20000, kOverheadMemory = 256 << 10;
  for (const Case& c : cases) {
    const Cost one = cost_of(c, kBytes), two = cost_of(c, 2 * kBytes);
    if (std::getenv("POCKET_SHOW"))
      std::printf("%-50s %8zu bytes %10.1f steps/byte, x %.2f; memory x %.1f\n", c.name, two.bytes,
                  double(two.steps) / double(two.bytes), double(two.steps) / double(one.steps),
                  double(two.memory) / double(two.bytes));
    EXPECT_LE(double(two.steps), kMostSteps * double(one.steps) + kOverheadSteps) << c.name;
    EXPECT_LE(double(two.memory), c.memory * double(two.bytes) + kOverheadMemory) << c.name;
    EXPECT_LE(double(two.steps), 2000 * double(two.bytes)) << c.name;
  }
}

// ---- Generators ----

/// A part repeated up to a size.
std::string repeated(const std::string& part, size_t bytes) {
  std::string all;
  while (all.size() < bytes) all += part;
  return all;
}
/// The parts of 0, 1, 2, ... up to a size.
std::string numbered(size_t bytes, const std::function<std::string(size_t)>& part) {
  std::string all;
  for (size_t i = 0; all.size() < bytes; i++) all += part(i);
  return all;
}
std::string number(size_t i) { return std::to_string(i); }
std::function<Input(size_t)> text(const std::string& begin, const std::string& part, const std::string& end = "") {
  return [=](size_t bytes) { return Input{begin + repeated(part, bytes) + end}; };
}
std::function<Input(size_t)> list(const std::string& begin, const std::function<std::string(size_t)>& part,
                                  const std::string& end) {
  return [=](size_t bytes) { return Input{begin + numbered(bytes, part) + end}; };
}

// ---- Tokenizers ----

Vocabulary sentencepiece() {
  Vocabulary v;
  v.pieces = {{"<unk>", 0, PieceType::unknown}, {"a", 0, PieceType::normal}, {"\u2581", 0, PieceType::normal}};
  v.unk = 0;
  v.escape_whitespaces = true;
  return v;
}
Vocabulary byte_level(Tokenizer::Split split) {
  Vocabulary v;
  v.kind = Tokenizer::Kind::byte_level;
  v.split = split;
  for (int byte = 0; byte < 256; byte++) v.pieces.push_back({std::string(1, char(byte)), 0, PieceType::normal});
  return v;
}

/// Pieces of all lengths, a, aa, aaa, ..., with `end` after each, up to a total size.
void add_lengths(Vocabulary& v, size_t bytes, PieceType type, const std::string& end = "") {
  for (size_t n = 2, total = 0; total < bytes && n < 4000; n++) {
    v.pieces.push_back({std::string(n, 'a') + end, float(n), type});
    total += n + end.size();
  }
}
/// Merges of doubled pieces: aa, aaaa, ...
void add_doubled(Vocabulary& v, int a) {
  for (int left = a, n = 2; n <= 1024; n *= 2) {
    v.pieces.push_back({std::string(size_t(n), 'a'), float(-n), PieceType::normal});
    v.merges.push_back({left, left});
    left = int(v.pieces.size()) - 1;
  }
}

using MakeVocabulary = std::function<Vocabulary(size_t bytes)>;

Case loads(const char* name, const MakeVocabulary& make) {
  return {name, [=](size_t bytes) { return Input{Tokenizer::to_blob(make(bytes))}; },
          [](const Input& in) { Tokenizer().load(in[0]); }};
}

/// Encodes a text with a tokenizer that is loaded before.
Case encodes(const char* name, const Vocabulary& v, const std::string& part, const std::string& end = "") {
  const auto tokenizer = std::make_shared<Tokenizer>();
  EXPECT_TRUE(tokenizer->load(Tokenizer::to_blob(v))) << tokenizer->error;
  return {name, text("", part, end), [tokenizer](const Input& in) { tokenizer->encode(in[0]); }};
}

/// Loads a vocabulary that grows, and encodes a text that grows.
Case loads_and_encodes(const char* name, const MakeVocabulary& make, const std::string& part) {
  return {name,
          [=](size_t bytes) {
            return Input{Tokenizer::to_blob(make(bytes / 2)), repeated(part, bytes / 2)};
          },
          [](const Input& in) {
            Tokenizer tokenizer;
            EXPECT_TRUE(tokenizer.load(in[0])) << tokenizer.error;
            EXPECT_FALSE(tokenizer.encode(in[1]).empty());
          }};
}

TEST(Complexity, TokenizerBlob) {
  check({loads("pieces",
               [](size_t bytes) {
                 Vocabulary v = sentencepiece();
                 for (size_t i = 0; i < bytes / 12; i++) v.pieces.push_back({number(i), 0, PieceType::normal});
                 return v;
               }),
         loads("user-defined pieces of all lengths",
               [](size_t bytes) {
                 Vocabulary v = sentencepiece();
                 add_lengths(v, bytes, PieceType::user_defined);
                 return v;
               }),
         loads("user-defined pieces with one beginning",
               [](size_t bytes) {
                 Vocabulary v = byte_level(Tokenizer::Split::none);
                 for (size_t i = 0; i < bytes / 500; i++)
                   v.pieces.push_back({std::string(490, 'a') + number(i), 0, PieceType::user_defined});
                 return v;
               }),
         loads("one merge, repeated", [](size_t bytes) {
           Vocabulary v = byte_level(Tokenizer::Split::none);
           add_doubled(v, 'a');
           v.merges.resize(bytes / 8, v.merges[3]);
           return v;
         })});
}

std::string varint(uint64_t value) {
  std::string s;
  for (; value > 127; value >>= 7) s += char(value | 128);
  return s += char(value);
}
std::string field(int number, const std::string& bytes) {
  return varint(uint64_t(number) * 8 + 2) + varint(bytes.size()) + bytes;
}

TEST(Complexity, SentencePieceFile) {
  const auto run = [](const Input& in) { Tokenizer().load_sentencepiece(in[0]); };
  const std::string trainer = field(2, "\x18\x02");
  check({{"pieces",
          list(
              trainer, [](size_t i) { return field(1, field(1, number(i))); }, ""),
          run},
         {"empty pieces", text(trainer, field(1, "")), run},
         {"pieces of one byte", text(trainer, field(1, field(1, "a"))), run},
         {"texts of one piece", [=](size_t n) { return Input{trainer + field(1, repeated(field(1, "a"), n))}; }, run},
         {"trainer specs", text("", trainer), run},
         {"one piece", [=](size_t n) { return Input{trainer + field(1, field(1, std::string(n, 'a')))}; }, run},
         {"unknown surface", [=](size_t n) { return Input{field(2, "\x18\x02" + field(44, std::string(n, 'a')))}; },
          run}});
}

/// The pieces of the bytes.
void add_bytes(Vocabulary& v) {
  v.byte_fallback = true;
  for (int byte = 0; byte < 256; byte++) {
    char text[8];
    std::snprintf(text, sizeof text, "<0x%02X>", unsigned(byte));
    v.pieces.push_back({text, 0, PieceType::byte});
  }
}

TEST(Complexity, Encode) {
  Vocabulary doubled = sentencepiece(), growing = sentencepiece(), unused = sentencepiece(), words = sentencepiece();
  add_doubled(doubled, 1);
  doubled.merges.clear();
  add_lengths(growing, 5000, PieceType::normal);
  add_lengths(unused, 5000, PieceType::unused);
  words.remove_extra_whitespaces = words.add_dummy_prefix = true;
  Vocabulary bytes = byte_level(Tokenizer::Split::none);
  add_doubled(bytes, 'a');
  Vocabulary nfc = byte_level(Tokenizer::Split::qwen2), parts = doubled;
  nfc.nfc = true;
  parts.pieces.push_back({",", -1, PieceType::normal});
  // An invalid byte becomes U+FFFD, of three bytes, and these become three ids, or merge.
  Vocabulary fallback = doubled, whole = doubled, added = nfc, replacements = byte_level(Tokenizer::Split::llama3);
  for (Vocabulary* v : {&fallback, &whole}) add_bytes(*v);
  whole.pieces.push_back({"<tool>", 0, PieceType::user_defined});
  for (Vocabulary* v : {&added, &replacements}) v->pieces.push_back({"<tool>", 0, PieceType::added});
  std::string text = "\xEF";
  int left = 0xEF;
  const auto merge_with = [&](int right, const std::string& bytes) {
    text += bytes;
    replacements.pieces.push_back({text, 0, PieceType::normal});
    replacements.merges.push_back({left, right});
    left = int(replacements.pieces.size()) - 1;
  };
  merge_with(0xBF, "\xBF");
  merge_with(0xBD, "\xBD");
  for (int i = 0; i < 6; i++) merge_with(left, std::string(text));
  const auto user_defined = [](const std::string& end) {
    return [end](size_t n) {
      Vocabulary v = sentencepiece();
      add_lengths(v, n, PieceType::user_defined, end);
      return v;
    };
  };
  check({encodes("merges of equal pieces", doubled, "a"),
         encodes("merges of growing pieces", growing, "a"),
         encodes("unused pieces", unused, "a"),
         encodes("spaces", words, " "),
         encodes("words", words, "a  "),
         encodes("invalid UTF-8", doubled, "\xFF"),
         encodes("invalid UTF-8, byte fallback", fallback, "\xFF"),
         encodes("invalid UTF-8, user-defined pieces", whole, "\xFF"),
         encodes("spaces, user-defined pieces", whole, " "),
         encodes("invalid UTF-8, NFC and added tokens", added, "\xFF"),
         encodes("invalid UTF-8, merges of U+FFFD", replacements, "\xFF"),
         encodes("unknown characters", doubled, "\u20AC"),
         encodes("bytes", bytes, "a"),
         encodes("digits, Llama 3", byte_level(Tokenizer::Split::llama3), "1"),
         encodes("spaces, Llama 3", byte_level(Tokenizer::Split::llama3), " "),
         encodes("lines, Llama 3", byte_level(Tokenizer::Split::llama3), "\n "),
         encodes("signs, Llama 3", byte_level(Tokenizer::Split::llama3), "'"),
         encodes("letters, GPT-2", byte_level(Tokenizer::Split::gpt2), "a"),
         encodes("spaces, GPT-2", byte_level(Tokenizer::Split::gpt2), " "),
         encodes("digits, SmolLM", byte_level(Tokenizer::Split::smollm), "1"),
         encodes("words and digits, SmolLM", byte_level(Tokenizer::Split::smollm), " a1"),
         encodes("upper case, GPT-4o", byte_level(Tokenizer::Split::gpt4o), "A"),
         encodes("marks and upper case, GPT-4o", byte_level(Tokenizer::Split::gpt4o), "\u0301A"),
         encodes("contractions, GPT-4o", byte_level(Tokenizer::Split::gpt4o), "A's"),
         encodes("spaces, Tekken", byte_level(Tokenizer::Split::tekken), " \u2003"),
         encodes("spaces not at the end, DeepSeek", byte_level(Tokenizer::Split::deepseek_llm), "\u0E01    "),
         encodes("spaces before a digit, DeepSeek", byte_level(Tokenizer::Split::deepseek_llm), " ", "1"),
         encodes("controls, DeepSeek V3", byte_level(Tokenizer::Split::deepseek_v3), "\x01"),
         encodes("marks, NFC", nfc, "\u0345\u0323\u0301"),
         encodes("Hangul, NFC", nfc, "\u1100\u1161\u11A8"),
         encodes("parts", parts, "aa,"),
         loads_and_encodes("user-defined pieces of all lengths", user_defined(""), "a"),
         loads_and_encodes("user-defined pieces that almost occur", user_defined("b"), "a"),
         loads_and_encodes("user-defined pieces that occur", user_defined("b"), "aaaaaaab")});
}

TEST(Complexity, Decode) {
  Vocabulary v = sentencepiece();
  add_bytes(v);
  const auto tokenizer = std::make_shared<Tokenizer>();
  ASSERT_TRUE(tokenizer->load(Tokenizer::to_blob(v))) << tokenizer->error;
  const auto run = [tokenizer](const Input& in) {
    const std::vector<int> ids(in[0].begin(), in[0].end());
    std::string out;
    EXPECT_TRUE(tokenizer->decode(ids, out));
  };
  check({{"pieces", text("", "\1"), run},
         {"unknown pieces", text("", std::string(1, '\0')), run},
         {"spaces", text("", "\2"), run},
         {"bytes of characters that do not end", text("", "\x7f"), run}});
}

TEST(Complexity, ChatSection) {
  const auto run = [](const Input& in) { ChatTemplate().load(in[0], 100); };
  const auto word = [](uint32_t n) { return std::string(reinterpret_cast<const char*>(&n), sizeof n); };
  check({{"stop ids", text(word(UINT32_MAX), word(7)), run},
         {"parts", text(word(0) + word(0) + word(UINT32_MAX), word(7) + word(0)), run},
         {"one text", [=](size_t n) { return Input{word(0) + word(uint32_t(n)) + std::string(n, 'a')}; }, run}});
}

// ---- Chat templates ----

TEST(Complexity, JinjaTemplate) {
  Vocabulary v = byte_level(Tokenizer::Split::none);
  for (const char* token : {"<|im_start|>", "<|im_end|>", "<s>"}) v.pieces.push_back({token, 0, PieceType::control});
  v.pieces.push_back({std::string(4096, 'x'), 0, PieceType::control});
  v.eos = int(v.pieces.size()) - 1;
  v.bos = v.eos - 1;
  const auto tokenizer = std::make_shared<Tokenizer>();
  ASSERT_TRUE(tokenizer->load(Tokenizer::to_blob(v))) << tokenizer->error;
  const auto run = [tokenizer](const Input& in) {
    ChatTemplate chat;
    std::string family;
    recognise_chat_template(in[0], *tokenizer, chat, family);
  };
  const std::string mark = "<|im_start|>";
  const auto both = [=](const std::string& a, const std::string& b) {
    return [=](size_t n) { return Input{mark + repeated(a, n / 2) + repeated(b, n / 2)}; };
  };
  const std::string chat =
      "{% for message in messages %}{{ '<|im_start|>' + message.role + message.content + '<|im_end|>' }}{% endfor %}"
      "<|im_start|>assistant";
  std::vector<Case> cases = {
      {"parentheses", text(mark, "{{ " + std::string(500, '(') + "a" + std::string(500, ')') + " }}"), run},
      {"one tag of parentheses",
       [=](size_t n) { return Input{mark + "{{" + std::string(n / 2, '(') + "a" + std::string(n / 2, ')') + "}}"}; },
       run},
      {"open parentheses", text(mark + "{{", "("), run},
      {"nested ifs", text(mark, "{% if a %}b"), run},
      {"nested loops", text(mark, "{% for a in b %}c"), run},
      {"branches", text(mark + "{% if a %}", "{% elif b %}c"), run},
      {"else branches", text(mark + "{% if a %}", "{% else %}c"), run},
      {"steps in a long condition",
       [=](size_t n) {
         return Input{mark + "{% if " + std::string(n / 2, 'a') + " %}" + repeated("{% set a = 'b' %}", n / 2)};
       },
       run},
      {"steps in nested conditions", both("{% if " + std::string(500, 'a') + " %}", "{% set a = 'b' %}"), run},
      {"known steps", text(mark, "{% set add_generation_prompt = false %}"), run},
      {"outputs", text(mark, "{{ a | trim }}"), run},
      {"tokens", text(mark, "{{ eos_token }}"), run},
      {"concatenation", text(mark, "{{ 'a' + b ~ c.strip() }}"), run},
      {"strings", text(mark + "{{ ", "'a' "), run},
      {"one string", text(mark + "{{ '", "\\n"), run},
      {"words", text(mark + "{{ ", "word "), run},
      {"comments", text(mark, "{# a #}"), run},
      {"braces", text(mark, "{"), run},
      {"spaces", text(mark + "{{ a -}}", " "), run},
      {"lines", text(mark, "\n  {%- if a -%}  \n {%- endif -%}"), run},
      {"rendered statements", text("", "{% set a = 'b' %}", chat), run},
      {"doubled texts", text("{% set a = 'b' %}", "{% set a = a + a %}", chat), run},
      {"doubled lists", text("{% set a = [1, 2] %}", "{% for b in a %}{% for c in a %}{% endfor %}{% endfor %}", chat),
       run}};
  for (Case& c : cases) c.memory = 110;  // a token or a part of the tree for each byte; templates are at most 128 KiB
  check(cases);
}

// ---- JSON, and files that are JSON ----

TEST(Complexity, Json) {
  const auto run = [](const Input& in) {
    JsonDocument document;
    document.parse("file", in[0]);
    for (const auto& [key, value] : document.root().members()) value.number();
    for (const JsonValue& value : document.root().elements()) value.string();
    bool flag = false;
    std::string error;
    document.root().get("key", flag, error);
  };
  check({{"numbers", text("[0", ",0", "]"), run},
         {"arrays", text("[[]", ",[]", "]"), run},
         {"nested arrays", text("", "[[[[[[[[[[]]]]]]]]]]"), run},
         {"open arrays", text("", "["), run},
         {"keys",
          list(
              "{\"a\":0", [](size_t i) { return ",\"" + number(i) + "\":0"; }, "}"),
          run},
         {"one key", text("{\"key\":0", ",\"key\":0", "}"), run},
         {"empty keys", text("{\"\":0", ",\"\":0", "}"), run},
         {"one string", text("[\"", "a", "\"]"), run},
         {"one string of commas", text("[\"", ",", "\"]"), run},
         {"escapes", text("[\"", "\\u00e9\\n", "\"]"), run},
         {"surrogates", text("[\"", "\\ud83d\\ude00", "\"]"), run},
         {"one number", text("{\"key\":1", "0", "}"), run},
         {"spaces", text("[", " ", "]"), run},
         {"lines", text("[", "\n", "x"), run}});
}

TEST(Complexity, Yaml) {
  const auto run = [](const Input& in) { yaml_to_json(in[0]); };
  check({{"settings", text("", "a: 1\n"), run},
         {"nested settings", text("a:\n", "  b: c\n"), run},
         {"objects", text("", "a:\n  b: c\n"), run},
         {"lists", text("", "a:\n- 1\n"), run},
         {"empty lines", text("a: 1\n", "\n", "b: 1"), run},
         {"one line", text("a: ", "b: "), run},
         {"brackets", text("a: ", "["), run}});
}

/// Writes a file and returns its path.
std::string write(const TemporaryFolder& folder, const std::string& name, const std::string& bytes) {
  return folder.write(name, bytes);
}

std::string safetensors(const std::string& header) {
  const uint64_t n = header.size();
  return std::string(reinterpret_cast<const char*>(&n), sizeof n) + header;
}

TEST(Complexity, SafetensorsHeader) {
  const TemporaryFolder folder;
  const auto run = [&](const Input& in) {
    Checkpoint c;
    FoundTensors found;
    std::string error;
    write(folder, "file", safetensors(in[0]));
    open_weight_file(folder.path(), "file", c, found, error);
  };
  const std::string entry = "{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}";
  const auto tensors = [=](const std::string& name) {
    return list(
        "{\"a\":" + entry, [=](size_t i) { return ",\"" + name + number(i) + "\":" + entry; }, "}");
  };
  check({{"tensors", tensors(""), run},
         {"tensors with long names", tensors(std::string(200, 'a')), run},
         {"one tensor", text("{\"a\":" + entry, ",\"a\":" + entry, "}"), run},
         {"dimensions", text("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,0],\"shape\":[0", ",1", "]}}"), run},
         {"offsets", text("{\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0", ",1", "]}}"), run},
         {"metadata",
          list(
              "{\"__metadata__\":{\"a\":\"b\"", [](size_t i) { return ",\"" + number(i) + "\":\"\""; }, "}}"),
          run}});
}

constexpr char kConfig[] =
    "{\"model_type\":\"llama\",\"hidden_size\":8,\"intermediate_size\":6,\"num_hidden_layers\":1,"
    "\"num_attention_heads\":4,\"vocab_size\":100000,\"rms_norm_eps\":0.25";

TEST(Complexity, HuggingFaceConfig) {
  const TemporaryFolder folder;
  const auto run = [&](const Input& in) {
    JsonDocument document;
    Checkpoint c;
    HfModel model;
    std::string error;
    const std::string path = write(folder, "config.json", in[0]);
    read_settings(path, document, error) && read_hf_config(document.root(), model, error) &&
        read_hf_stop_ids(document.root(), c, error);
  };
  const auto config = [](const std::string& begin, const std::function<std::string(size_t)>& part,
                         const std::string& end) { return list(kConfig + begin, part, end); };
  check({{"end-of-text ids",
          config(
              ",\"eos_token_id\":[0", [](size_t i) { return "," + number(i % 90000); }, "]}"),
          run},
         {"one end-of-text id",
          config(
              ",\"eos_token_id\":[0", [](size_t) { return ",1"; }, "]}"),
          run},
         {"ids outside the vocabulary",
          config(
              ",\"eos_token_id\":[0", [](size_t i) { return "," + number(200000 + i); }, "]}"),
          run},
         {"invalid ids",
          config(
              ",\"eos_token_id\":[0", [](size_t) { return ",\"\""; }, "]}"),
          run},
         {"layers without RoPE",
          config(
              ",\"model_type\":\"smollm3\",\"no_rope_layers\":[0", [](size_t) { return ",1"; }, "]}"),
          run},
         {"layer types",
          config(
              ",\"layer_types\":[\"\"", [](size_t) { return ",\"full_attention\""; }, "]}"),
          run},
         {"RoPE settings",
          config(
              ",\"rope_parameters\":{\"factor\":1", [](size_t i) { return ",\"" + number(i) + "\":0"; }, "}}"),
          run},
         {"keys",
          config(
              "", [](size_t i) { return ",\"" + number(i) + "\":0"; }, "}"),
          run},
         {"one key",
          config(
              "", [](size_t) { return ",\"hidden_act\":\"silu\""; }, "}"),
          run},
         {"one value",
          config(
              ",\"model_type\":\"", [](size_t) { return "a"; }, "\"}"),
          run}});
}

TEST(Complexity, AddedTokens) {
  const auto run = [](const Input& in) {
    JsonDocument document;
    Checkpoint c;
    std::string error;
    c.config.vocab_size = 1 << 22;
    document.parse("file", in[0]);
    DeclaredTokens declared;
    for (const auto& [key, entry] : document.root().find("added_tokens_decoder").members()) {
      AddedToken token;
      read_added_token(entry, token, error);
      declared.add(id_of_key(key), std::move(token), "file", error);
    }
    add_declared_tokens(declared, "tokenizer.model", c, error);
  };
  const auto token = [](size_t id) { return "\"" + number(id) + "\":{\"content\":\"t" + number(id) + "\"}"; };
  check({{"tokens",
          list(
              "{\"added_tokens_decoder\":{" + token(0), [=](size_t i) { return "," + token(i + 1); }, "}}"),
          run, 30},
         {"tokens with gaps",
          list(
              "{\"added_tokens_decoder\":{" + token(0), [=](size_t i) { return "," + token(i * 50000); }, "}}"),
          run}});
}

TEST(Complexity, TokenizerJson) {
  const auto run = [](const Input& in) {
    Vocabulary v;
    std::string error;
    read_tokenizer_json("file", in[0], 1 << 22, v, error);
  };
  const std::string bytes = "\"model\":{\"type\":\"BPE\",",
                    spm =
                        "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":["
                        "{\"type\":\"Prepend\",\"prepend\":\"\u2581\"},{\"type\":\"Replace\",\"pattern\":{\"String\":"
                        "\" \"},\"content\":\"\u2581\"}]},\"model\":{\"fuse_unk\":true,\"unk_token\":\"u\",";
  const auto vocabulary = [](const std::string& begin, const std::function<std::string(size_t)>& text,
                             const std::string& end) {
    return list(
        "{" + begin + "\"vocab\":{\"u\":0", [=](size_t i) { return ",\"" + text(i) + "\":" + number(i + 1); },
        "}," + end + "}}");
  };
  const auto letters = [](size_t i) { return "a" + number(i); };
  const auto growing = [](size_t i) { return std::string(2 + i, 'a'); };
  check({{"tokens", vocabulary(bytes, letters, "\"merges\":[]"), run},
         {"tokens of SentencePiece", vocabulary(spm, letters, "\"merges\":[]"), run},
         {"tokens of all lengths", vocabulary(spm, growing, "\"merges\":[]"), run},
         {"one large id", text("{" + bytes + "\"vocab\":{\"a\":4194303},\"merges\":[\"", "a", "\"]}}"), run},
         {"merges", text("{" + bytes + "\"vocab\":{\"a\":0,\"aa\":1},\"merges\":[\"a a\"", ",\"a a\"", "]}}"), run},
         {"merges as arrays",
          text("{" + bytes + "\"vocab\":{\"a\":0,\"aa\":1},\"merges\":[[\"a\",\"a\"]", ",[\"a\",\"a\"]", "]}}"), run},
         {"added tokens",
          list(
              "{\"added_tokens\":[{\"id\":0,\"content\":\"x\"}",
              [](size_t i) { return ",{\"id\":" + number(i + 1) + ",\"content\":\"" + number(i) + "\"}"; },
              "]," + bytes + "\"vocab\":{},\"merges\":[]}}"),
          run},
         {"steps",
          text("{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{}", ",{}",
               "]}," + bytes + "\"vocab\":{},\"merges\":[]}}"),
          run}});
}

TEST(Complexity, Llama2cTokenizer) {
  const auto run = [](const Input& in) {
    Vocabulary v;
    std::string error;
    read_llama2c_tokenizer("file", in[0], 1 << 22, v, error);
  };
  const auto word = [](uint32_t n) { return std::string(reinterpret_cast<const char*>(&n), sizeof n); };
  check({{"pieces", text(word(4), word(0) + word(1) + "a"), run},
         {"pieces of spaces", text(word(100), word(0) + word(100) + std::string(100, ' ')), run},
         {"one piece",
          [=](size_t n) { return Input{word(1 << 30) + word(0) + word(uint32_t(n)) + std::string(n, ' ')}; }, run}});
}

// ---- Other checkpoints ----

TEST(Complexity, Gguf) {
  const TemporaryFolder folder;
  const auto run = [&](const Input& in) {
    Checkpoint c;
    std::string error;
    const std::string path = write(folder, "file", in[0]);
    auto file = InputFile::open(path, error);
    ASSERT_TRUE(file) << error;
    GgufHeader header(*file);
    if (!header.read()) return;
    Vocabulary v;
    GgufTokenizer(header, path, v).read();
  };
  const auto with_pairs = [](const std::function<std::string(size_t)>& value) {
    return [=](size_t bytes) {
      gguf::GgufFile file;
      for (size_t i = 0, n = 0; n < bytes;
           i++, n += 12 + file.metadata.back().first.size() + file.metadata.back().second.size())
        file.metadata.emplace_back(number(i), value(i));
      return Input{file.bytes()};
    };
  };
  const auto with_value = [](const std::function<std::string(size_t)>& value) {
    return [=](size_t bytes) {
      gguf::GgufFile file;
      file["tokenizer.ggml.model"] = gguf::string("llama");
      file["tokenizer.ggml.tokens"] = value(bytes);
      file["tokenizer.ggml.scores"] = gguf::floats({});
      file["tokenizer.ggml.token_type"] = gguf::floats({});
      return Input{file.bytes()};
    };
  };
  const auto tokens = [](size_t bytes) {
    gguf::GgufFile file;
    std::vector<std::string> texts;
    for (size_t i = 0; i < bytes / 21; i++) texts.push_back(number(i));
    file["tokenizer.ggml.model"] = gguf::string("llama");
    file["tokenizer.ggml.tokens"] = gguf::strings(texts);
    file["tokenizer.ggml.scores"] = gguf::floats(std::vector<float>(texts.size()));
    file["tokenizer.ggml.token_type"] = gguf::floats(std::vector<float>(texts.size(), 1));
    return Input{file.bytes()};
  };
  const std::string empty = gguf::kind(GgufKind::u8) + gguf::raw(uint64_t(0));  // array
  const auto arrays = [=](size_t bytes) {
    return gguf::array(GgufKind::array, bytes / empty.size(), repeated(empty, bytes / empty.size() * empty.size()));
  };
  check({{"pairs", with_pairs([](size_t) { return gguf::u32(1); }), run},
         {"strings", with_pairs([](size_t) { return gguf::string(""); }), run},
         {"tokens", tokens, run},
         {"empty tokens", with_value([](size_t n) { return gguf::strings(std::vector<std::string>(n / 8)); }), run},
         {"arrays", with_value(arrays), run},
         {"one string", with_value([](size_t n) { return gguf::string(std::string(n, 'a')); }), run},
         {"tensors",
          [](size_t bytes) {
            gguf::GgufFile file;
            for (size_t i = 0; i < bytes / 40; i++) file.tensors.push_back({number(i), {0}, gguf::kF32, ""});
            return Input{file.bytes()};
          },
          run}});
}

TEST(Complexity, Zip) {
  const TemporaryFolder folder;
  const auto run = [&](const Input& in) {
    std::string error;
    auto file = InputFile::open(write(folder, "file", in[0]), error);
    ASSERT_TRUE(file) << error;
    ZipDirectory(*file).read();
  };
  const auto members = [](const std::string& name) {
    return [=](size_t bytes) {
      std::vector<pytorch::Member> all;
      for (size_t i = 0, n = 0; n < bytes; i++, n += 160 + 2 * name.size()) all.push_back({name + number(i), ""});
      return Input{pytorch::zip_of(all)};
    };
  };
  check({{"members", members(""), run}, {"members with long names", members(std::string(2000, 'a')), run}});
}

TEST(Complexity, Pickle) {
  const TemporaryFolder folder;
  const auto run = [&](const Input& in) {
    std::string error;
    const auto members = pytorch::members_of(in[0], {"", ""});
    auto file = InputFile::open(write(folder, "file", pytorch::zip_of(members)), error);
    ASSERT_TRUE(file) << error;
    FoundTensors found;
    PyTorchFile pytorch(*file);
    if (pytorch.read(0, found)) pytorch.settings("model_args");
  };
  const auto pickle = [](const std::string& begin, const std::string& part, const std::string& end = "") {
    return text("\x80\x02" + begin, part, end + ".");
  };
  // A tensor whose parts are all in the memo: 0 the function, 1 the storage, 2 shape and strides, 3 a dictionary.
  const auto memo = [](const std::string& key, const std::string& shape) {
    return "ctorch._utils\n_rebuild_tensor_v2\nq" + std::string(1, '\0') + "(X\7" + std::string(3, '\0') +
           "storagectorch\nFloatStorage\nX" + gguf::raw(uint32_t(key.size())) + key + "X\3" + std::string(3, '\0') +
           "cpuK" + std::string(1, '\0') + "tQq\1" + shape + "q\2}q\3";
  };
  const std::string tensor = std::string("h\0(h\1K\0h\2h\2\x89h\3tR", 15);
  const auto tensors = [=](const std::string& key, const std::string& name) {
    return [=](const std::string& shape, size_t bytes) {
      return Input{"\x80\x02" + memo(key, shape) + "}(" +
                   numbered(bytes,
                            [&](size_t i) {
                              return "X" + gguf::raw(uint32_t(name.size() + number(i).size())) + name + number(i) +
                                     tensor;
                            }) +
                   "u."};
    };
  };
  const std::string none = "(K" + std::string(1, '\0') + "t";
  check({{"tensors", [=](size_t n) { return tensors("0", "")(none, n); }, run},
         {"tensors with long names", [=](size_t n) { return tensors("0", std::string(500, 'a'))(none, n); }, run},
         {"tensors of one long shape",
          [=](size_t n) { return tensors("0", "")("(" + repeated("K\1", n / 2) + "t", n / 2); }, run},
         {"tensors of a storage with a long key",
          [=](size_t n) { return tensors(std::string(n / 2, '0'), "")(none, n / 2); }, run},
         {"tensors with one long name",
          [=](size_t n) {
            return Input{"\x80\x02" + memo("0", none) + "X" + gguf::raw(uint32_t(n / 2)) + std::string(n / 2, 'a') +
                         "q\4}(" + repeated("h\4" + tensor, n / 2) + "u."};
          },
          run},
         {"dictionaries", pickle("", "}"), run},
         {"dictionaries in the memo", pickle("", "}\x94"), run},
         {"lists", pickle("", "]Na"), run},
         {"one list", pickle("](", "K\1", "e"), run},
         {"numbers", pickle("", "K\1"), run},
         {"None", pickle("", "N"), run},
         {"marks", pickle("", "("), run},
         {"tuples", pickle("N", "\x85"), run},
         {"texts", pickle("", "X\1" + std::string(3, '\0') + "a"), run},
         {"values of the memo", pickle("Nq\1", "h\1"), run},
         {"places of the memo", pickle("N", "\x94"), run},
         {"functions", pickle("", "ctorch\nSize\n"), run},
         {"calls", pickle("ccollections\nOrderedDict\nq\1", "h\1)R"), run},
         {"a call with many arguments", pickle("ctorch\nSize\nq\1(", "K\1", "tq\2h\1h\2R"), run},
         {"settings",
          list(
              "\x80\x02}X\x0a" + std::string(3, '\0') + "model_args}(",
              [](size_t i) { return "X" + gguf::raw(uint32_t(number(i).size())) + number(i) + "K\1"; }, "us."),
          run}});
}

TEST(Complexity, Llama2c) {
  const TemporaryFolder folder;
  const auto run = [&](const Input& in) {
    Checkpoint c;
    std::string error;
    auto file = InputFile::open(write(folder, "file", in[0]), error);
    ASSERT_TRUE(file) << error;
    open_llama2c(std::move(file), c, error);
  };
  const auto layers = [](size_t bytes) {  // a header with as many layers as the file has room for
    const int32_t n = int32_t(bytes / 4000);
    std::string file;
    for (int32_t value : {4, 4, n, 1, 1, 4, 4}) file += gguf::raw(value);
    return Input{file + std::string(bytes, '\0')};
  };
  check({{"layers", layers, run}, {"zeros", text("", std::string(1, '\0')), run}});
}

TEST(Complexity, LoraConfig) {
  const TemporaryFolder folder;
  Config base = tiny::small_config();
  base.n_layers = 40;
  write(folder, "adapter_model.safetensors", safetensors("{}"));
  const auto run = [&](const Input& in) {
    write(folder, "adapter_config.json", in[0]);
    LoraAdapter().open({folder.path(), 1}, base);
  };
  const std::string begin = "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":2,";
  check({{"targets", text(begin + "\"target_modules\":[\"q_proj\"", ",\"q_proj\"", "]}"), run},
         {"unknown targets",
          list(
              begin + "\"target_modules\":[\"q_proj\"", [](size_t i) { return ",\"" + number(i) + "\""; }, "]}"),
          run},
         {"ranks",
          list(
              begin + "\"rank_pattern\":{\"a\":1", [](size_t i) { return ",\"x" + number(i) + "\":1"; }, "}}"),
          run}});
}

TEST(Complexity, MegabyteConfig) {
  const auto run = [](const Input& in) {
    JsonDocument document;
    MegabyteCheckpoint out;
    std::string error;
    document.parse("file", in[0]);
    read_megabyte_config(document.root(), out, error);
  };
  check({{"one key", text("{\"num_tokens\":256", ",\"num_tokens\":256", "}"), run},
         {"stages", text("{\"num_tokens\":256,\"depth\":[1", ",1", "]}"), run},
         {"one unknown key", text("{\"", "a", "\":1}"), run}});
}

// ---- Our own files ----

TEST(Complexity, TrainingCheckpoint) {
  const TemporaryFolder folder;
  const auto run = [&](const Input& in) {
    CheckpointFile file;
    std::string error;
    EXPECT_TRUE(file.read(write(folder, "file", in[0]), error)) << error;
  };
  const auto checkpoint = [](size_t bytes) {
    TrainPlan plan;
    plan.config = tiny::small_config();
    plan.config.n_layers = 1;
    plan.config.dim = plan.config.hidden_dim = plan.config.head_dim = 4;
    plan.config.n_heads = plan.config.n_kv_heads = 1;
    plan.config.vocab_size = std::max(1, int(bytes / (16 * 4 * 3)) - 38);
    plan.config.tied = true;
    plan.steps = plan.every = plan.batch = 1;
    plan.context = 2;
    plan.rate = 1;
    ByteWriter out = checkpoint_head(plan, {}, {});
    out.bytes.resize(out.bytes.size() + 3 * floats_of(parameters_of(plan)) * sizeof(float));
    out.put(hash_bytes(out.bytes.data(), out.bytes.size()));
    return Input{out.bytes};
  };
  check({{"weights", checkpoint, run}});
}

TEST(Complexity, SavedSession) {
  const TemporaryFolder folder;
  Config c = tiny::small_config();
  c.n_layers = c.n_heads = c.n_kv_heads = 1;
  c.dim = c.hidden_dim = c.head_dim = 4;
  c.max_seq_len = 1 << 14;
  const tiny::MemoryModel m(c, Type::q8);
  Session session(m.model, {c.max_seq_len, 1, KvType::q8, nullptr});
  ASSERT_EQ(session.error, "");
  const size_t position = position_bytes(session);
  const auto run = [&](const Input& in) {
    try {
      cli::SessionFile(write(folder, "file", in[0]), m.model, nullptr).restore(session);
      EXPECT_GT(session.position(), 0);
    } catch (const Failure& f) {
      ADD_FAILURE() << f.what;
    }
  };
  const auto saved = [&](size_t positions, size_t ids, size_t held) {
    cli::SavedText text;
    text.ids.assign(ids, 1);
    text.held = std::string(held, 'a');
    const std::string note = text.to_bytes(), cache(positions * position, '\0');
    SavedSession head = {};
    std::memcpy(head.magic, kSessionMagic, sizeof head.magic);
    head.version = kSessionVersion;
    head.position = uint32_t(positions);
    head.context = uint32_t(c.max_seq_len);
    head.note_bytes = note.size();
    head.cache_bytes = cache.size();
    head.model = m.model.checksum();
    Hash64 hash;
    hash.update(note.data(), note.size());
    for (size_t i = 0; i < positions; i++) hash.update(&cache[i * position], position);
    head.data_checksum = hash.digest();
    head.checksum = hash_bytes(&head, sizeof head);
    return Input{std::string(reinterpret_cast<const char*>(&head), sizeof head) + note + cache};
  };
  check({{"positions", [=](size_t n) { return saved(n / (position + 4), n / (position + 4), 0); }, run},
         {"tokens", [=](size_t n) { return saved(1, n / 4, 0); }, run},
         {"held text", [=](size_t n) { return saved(1, 1, n); }, run}});
}

TEST(Complexity, ModelFile) {
  const TemporaryFolder folder;
  const auto run = [&](const Input& in) {
    Model model;
    EXPECT_TRUE(model.open(write(folder, "file", in[0]).c_str())) << model.error;
  };
  const auto with = [](const std::function<void(ModelParts&, size_t)>& set) {
    return [=](size_t bytes) {
      Config c = tiny::small_config();
      c.dim = c.hidden_dim = c.n_layers = 1;
      c.head_dim = 2;
      c.n_heads = c.n_kv_heads = 1;
      c.vocab_size = 2;
      ModelParts parts = tiny::parts_of(c, Type::f32);
      set(parts, bytes);
      const tiny::Bytes file = tiny::model_bytes(parts);
      return Input{std::string(reinterpret_cast<const char*>(file.data()), file.size())};
    };
  };
  check({{"stop ids", with([](ModelParts& p, size_t n) { p.chat.stop_ids.assign(n / 4, 1); }), run},
         {"tokenizer", with([](ModelParts& p, size_t n) { p.tokenizer = std::string(n, 'a'); }), run}});
}

}  // namespace complexity_test
