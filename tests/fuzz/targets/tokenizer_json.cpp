// tokenizer.json of the tokenizers library.
#include "../../../export/tokenizer_json.hpp"
#include "use_tokenizer.hpp"

namespace fuzz::tokenizer_json {

using namespace pocket;

void run(std::string_view input) {
  Tokenizer::Vocabulary vocabulary;
  std::string error;
  if (!read_tokenizer_json("tokenizer.json", std::string(input), 300, vocabulary, error))
    return require(!error.empty(), "tokenizer.json: an error");
  use(vocabulary);
}

// Byte-level; with the words of SmolLM, Qwen2 and DeepSeek; SentencePiece, in both of its forms.
std::vector<std::string> seeds() {
  return {
      R"({"added_tokens": [{"id": 1, "content": "<s>", "special": true}, {"id": 2, "content": "<x>"}],
 "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}, "decoder": {"type": "ByteLevel"},
 "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]},
 "model": {"type": "BPE", "ignore_merges": true, "vocab": {"a": 0, "b": 3, "ab": 4}, "merges": ["a b"]}})",
      R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
 {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}]},
 "model": {"vocab": {"a": 0, "\u0120": 1, "\u0120a": 2}, "merges": [["\u0120", "a"]]}})",
      R"({"normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split",
 "pattern": {"Regex": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
 "behavior": "Isolated", "invert": false}, {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]},
 "model": {"vocab": {"a": 0, "b": 1, "ab": 2, "\u200d": 3}, "merges": ["a b"]}})",
      R"({"normalizer": {"type": "Sequence", "normalizers": []}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
 {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}"}, "behavior": "Isolated", "invert": false},
 {"type": "Split", "pattern": {"Regex": "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"}, "behavior": "Isolated", "invert": false},
 {"type": "Split", "pattern": {"Regex": "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"},
 "behavior": "Isolated", "invert": false}, {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]},
 "model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})",
      R"({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
 {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
 "decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " "}]},
 "model": {"unk_token": "<unk>", "fuse_unk": true, "vocab": {"<unk>": 0, "a": 3, "\u2581a": 4, "\u2581": 5},
 "merges": ["\u2581 a"]}})",
      R"({"pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": false},
 "model": {"unk_token": "a", "fuse_unk": true, "byte_fallback": false, "vocab": {"a": 0, "<s>": 1}, "merges": []}})"};
}

const Registered target({"tokenizer_json", run, seeds});

}  // namespace fuzz::tokenizer_json
