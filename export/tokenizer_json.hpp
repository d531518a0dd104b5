// tokenizer_json.hpp: tokenizer.json as the Hugging Face tokenizers library writes it, of the kind that GPT-2, SmolLM
// and Llama 3 use: byte-level BPE. What this version cannot do exactly as that library does is refused by its name.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "checkpoint.hpp"
#include "json.hpp"

namespace pocket {

inline constexpr uint64_t kLargestTokenizer = uint64_t(256) << 20;  // bytes of a file

// ====================================================================================================================
// What tokenizer.json and GGUF have in common
// ====================================================================================================================

// GPT-2 writes the 256 bytes as 256 printable characters: itself where a byte is printable in Latin-1, else the next
// character from U+0100 on. (github.com/openai/gpt-2, encoder.py, bytes_to_unicode.)
inline bool stands_for_itself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}
inline const std::array<int16_t, 256 + 68>& printable_to_byte() {  // -1: no such character
  static const auto table = [] {
    std::array<int16_t, 256 + 68> t;
    t.fill(-1);
    int next = 256;
    for (int byte = 0; byte < 256; byte++) t[size_t(stands_for_itself(byte) ? byte : next++)] = int16_t(byte);
    return t;
  }();
  return table;
}

// The bytes that a printable text stands for. False if one of its characters stands for none.
inline bool undo_printable(std::string_view printable, std::string& bytes) {
  const auto& table = printable_to_byte();
  bytes.clear();
  for (size_t at = 0; at < printable.size();) {
    const int32_t code = decode_utf8(printable, at);
    if (code < 0 || size_t(code) >= table.size() || table[size_t(code)] < 0) return false;
    bytes += char(table[size_t(code)]);
  }
  return true;
}

// Adds merges, in order of rank, to a vocabulary whose pieces are all there.
class MergeBuilder {
 public:
  explicit MergeBuilder(Tokenizer::Vocabulary& v) : v_(v) {
    for (size_t id = 0; id < v.pieces.size(); id++)
      if (v.pieces[id].type == Tokenizer::PieceType::normal) ids_.emplace(v.pieces[id].text, int(id));
  }

  // Left and right in printable form.
  bool add(std::string_view left, std::string_view right, const std::string& path, std::string& error) {
    std::string raw[2];
    const std::string where = path + ": merge " + std::to_string(v_.merges.size()) + " \"" + std::string(left) + " " +
                              std::string(right) + "\": ";
    if (!undo_printable(left, raw[0]) || !undo_printable(right, raw[1]))
      return fail(error, where + "expected GPT-2's printable characters");
    const auto first = ids_.find(raw[0]), second = ids_.find(raw[1]);
    if (first == ids_.end() || second == ids_.end() || ids_.count(raw[0] + raw[1]) == 0)
      return fail(error, where + "expected two tokens of the vocabulary that make a third");
    v_.merges.push_back({first->second, second->second});
    return true;
  }

  // "left right"
  bool add(std::string_view both, const std::string& path, std::string& error) {
    const size_t space = both.find(' ');
    if (space == std::string_view::npos || both.find(' ', space + 1) != std::string_view::npos)
      return fail(error, path + ": merge " + std::to_string(v_.merges.size()) +
                             ": expected two tokens with a space between, found \"" + std::string(both) + "\"");
    return add(both.substr(0, space), both.substr(space + 1), path, error);
  }

  // Whether each of the 256 bytes is a token by itself.
  bool has_all_bytes() const {
    for (int byte = 0; byte < 256; byte++)
      if (ids_.count(std::string(1, char(byte))) == 0) return false;
    return true;
  }

 private:
  Tokenizer::Vocabulary& v_;
  std::unordered_map<std::string, int> ids_;  // of normal pieces
};

inline void set_byte_level(Tokenizer::Vocabulary& v, Tokenizer::Split split, bool ignore_merges) {
  v.kind = Tokenizer::Kind::byte_level;
  v.split = split;
  v.ignore_merges = ignore_merges;
  v.add_bos = v.add_dummy_prefix = v.remove_extra_whitespaces = v.escape_whitespaces = v.byte_fallback = false;
  v.unk_surface.clear();
}

// ====================================================================================================================
// tokenizer.json
// ====================================================================================================================

// Reads one tokenizer.json into a Vocabulary; false with `error` set where it differs from what the engine can do.
class TokenizerJson {
 public:
  // vocab_size: tokens that the model has.
  TokenizerJson(JsonValue root, std::string path, int vocab_size, Tokenizer::Vocabulary& out)
      : root_(root), model_(root.find("model")), path_(std::move(path)), vocab_size_(vocab_size), out_(out) {}

  std::string error;

  bool read() {
    return kind() && flags() && pre_tokenizer() && decoder() && added_tokens() && vocabulary() && merges() &&
           post_processor();
  }

 private:
  using PieceType = Tokenizer::PieceType;

  static std::string type_of(const JsonValue& v) { return v.find("type").string(); }
  bool refuse(const std::string& what) { return fail(error, path_ + ": " + what); }

  bool kind() {
    if (!root_.need("model", JsonKind::object, error)) return false;
    const JsonValue normalizer = root_.find("normalizer"), first = normalizer.find("normalizers").at(0);
    if (model_.find("byte_fallback").boolean() || type_of(root_.find("pre_tokenizer")) == "Metaspace" ||
        type_of(normalizer) == "Prepend" || type_of(first) == "Prepend")
      return refuse(
          "expected byte-level BPE, found a SentencePiece tokenizer, which this version does not read from a "
          "tokenizer.json; put the model's tokenizer.model beside it, or name that with -z");
    if (!model_.find("type").missing() && type_of(model_) != "BPE") return model_.refuse("type", "\"BPE\"", error);
    if (!normalizer.missing()) return normalizer.refuse("type", "no normalizer", error);
    return true;
  }

  // Settings that change how a text is cut.
  bool flags() {
    double dropout = 0;
    std::string prefix, suffix;
    bool ignore_merges = false;
    if (!model_.get("dropout", dropout, error) || !model_.get("continuing_subword_prefix", prefix, error) ||
        !model_.get("end_of_word_suffix", suffix, error) || !model_.get("ignore_merges", ignore_merges, error))
      return false;
    if (dropout != 0) return model_.refuse("dropout", "none", error);
    if (!prefix.empty()) return model_.refuse("continuing_subword_prefix", "none", error);
    if (!suffix.empty()) return model_.refuse("end_of_word_suffix", "none", error);
    set_byte_level(out_, Tokenizer::Split::none, ignore_merges);
    return true;
  }

  // One step of a pre-tokenizer with all that matters of it.
  static std::string step_text(const JsonValue& step) {
    const auto flag = [&](const char* name, bool otherwise) {
      const JsonValue v = step.find(name);
      return std::string(name) + ((v.missing() ? otherwise : v.boolean()) ? "=true" : "=false");
    };
    const std::string type = type_of(step);
    if (type == "Digits") return "Digits(" + flag("individual_digits", false) + ")";
    if (type == "ByteLevel")
      return "ByteLevel(" + flag("add_prefix_space", true) + ", " + flag("use_regex", true) + ")";
    if (type == "Split")
      return "Split(" + step.find("pattern").find("Regex").string() + ", " + step.find("behavior").string() + ", " +
             flag("invert", false) + ")";
    return type.empty() ? step.describe() : type;
  }

  bool pre_tokenizer() {
    const JsonValue whole = root_.find("pre_tokenizer");
    std::string found;
    if (type_of(whole) == "Sequence") {
      for (const JsonValue& step : whole.find("pretokenizers").elements())
        found += (found.empty() ? "" : " ") + step_text(step);
    } else {
      found = step_text(whole);
    }
    const struct {
      const char* text;
      Tokenizer::Split split;
    } known[] = {
        {"ByteLevel(add_prefix_space=false, use_regex=true)", Tokenizer::Split::gpt2},
        {"Digits(individual_digits=true) ByteLevel(add_prefix_space=false, use_regex=true)", Tokenizer::Split::smollm},
        {"Split((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
         "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+, Isolated, invert=false) ByteLevel(add_prefix_space=false, use_regex=false)",
         Tokenizer::Split::llama3},
        {"ByteLevel(add_prefix_space=false, use_regex=false)", Tokenizer::Split::none},
    };
    for (const auto& [text, split] : known)
      if (found == text) return out_.split = split, true;
    return refuse("pre_tokenizer: expected GPT-2's, SmolLM's or Llama 3's, found " + found);
  }

  bool decoder() {
    const JsonValue decoder = root_.find("decoder");
    return decoder.missing() || type_of(decoder) == "ByteLevel" || decoder.refuse("type", "\"ByteLevel\"", error);
  }

  // Ids that nothing was put at so far are unused pieces with no text.
  bool put(int id, std::string text, PieceType type) {
    if (text.empty()) return refuse("token " + std::to_string(id) + ": expected some text, found none");
    fill_vocabulary(out_, size_t(id) + 1);
    Tokenizer::Piece& piece = out_.pieces[size_t(id)];
    if (piece.type != PieceType::unused)
      return refuse("token " + std::to_string(id) + ": expected one text, found \"" + piece.text + "\" and \"" + text +
                    "\"");
    piece = {std::move(text), 0, type};
    return true;
  }

  // They are written as they are, while the vocabulary is in printable form. Those that the model has no row for can
  // never come up.
  bool added_tokens() {
    for (const JsonValue& token : root_.find("added_tokens").elements()) {
      int id = -1;
      std::string text;
      bool special = false, single_word = false, lstrip = false, rstrip = false;
      if (!token.need("id", JsonKind::number, error) || !token.get("id", 0, INT32_MAX, id, error) ||
          !token.need("content", JsonKind::string, error) || !token.get("content", text, error) ||
          !token.get("special", special, error) || !token.get("single_word", single_word, error) ||
          !token.get("lstrip", lstrip, error) || !token.get("rstrip", rstrip, error))
        return false;
      // Typed text never becomes a control token, so that how one is looked for in a text matters to the others only.
      if (!special && (single_word || lstrip || rstrip))
        return token.refuse(single_word ? "single_word" : lstrip ? "lstrip" : "rstrip", "false", error);
      if (id < vocab_size_ && !put(id, text, special ? PieceType::control : PieceType::user_defined)) return false;
    }
    return true;
  }

  bool vocabulary() {
    if (!model_.need("vocab", JsonKind::object, error)) return false;
    for (const auto& [printable, value] : model_.find("vocab").members()) {
      int64_t id = -1;
      if (!value.integer(id) || id < 0 || id >= vocab_size_)
        return fail(error, value.where() + ": token \"" + printable + "\": expected an id below the model's " +
                               std::to_string(vocab_size_) + ", found " + value.describe());
      const bool added = size_t(id) < out_.pieces.size() && out_.pieces[size_t(id)].type != PieceType::unused;
      if (added && out_.pieces[size_t(id)].text == printable) continue;
      std::string raw;
      if (!undo_printable(printable, raw))
        return fail(error, value.where() + ": token \"" + printable + "\": expected GPT-2's printable characters");
      if (!put(int(id), std::move(raw), PieceType::normal)) return false;
    }
    return true;
  }

  // Each merge is "left right" or ["left", "right"].
  bool merges() {
    if (!model_.need("merges", JsonKind::array, error)) return false;
    MergeBuilder builder(out_);
    for (const JsonValue& merge : model_.find("merges").elements()) {
      const bool pair = merge.size() == 2 && merge.at(0).is(JsonKind::string) && merge.at(1).is(JsonKind::string);
      if (!pair && !merge.is(JsonKind::string))
        return fail(error, merge.where() + ": expected a merge of two tokens, found " + merge.describe());
      if (pair ? !builder.add(merge.at(0).string(), merge.at(1).string(), path_, error)
               : !builder.add(merge.string(), path_, error))
        return false;
    }
    std::string unknown;
    if (!model_.get("unk_token", unknown, error)) return false;
    return unknown.empty() || builder.has_all_bytes() ||
           model_.refuse("unk_token", "none, or a token for each of the 256 bytes", error);
  }

  // What is put in front of a text is BOS. What is put behind one would end a prompt before its time, and is left out.
  bool post_processor() {
    JsonValue processor = root_.find("post_processor");
    for (const JsonValue& step : processor.find("processors").elements())
      if (type_of(step) != "ByteLevel") processor = step;
    const std::string type = type_of(processor);
    if (processor.missing() || type == "ByteLevel" || type == "Sequence") return true;
    if (type != "TemplateProcessing") return processor.refuse("type", "\"TemplateProcessing\"", error);
    const JsonValue first = processor.find("single").at(0).find("SpecialToken");
    if (first.missing()) return true;
    if (!processor.find("single").at(1).find("SpecialToken").missing())
      return processor.refuse("single", "one token before the text", error);
    out_.bos = find_piece(out_, first.find("id").string());
    out_.add_bos = true;
    return out_.bos >= 0 || first.refuse("id", "a token of the vocabulary", error);
  }

  JsonValue root_, model_;
  std::string path_;
  int vocab_size_;
  Tokenizer::Vocabulary& out_;
};

inline bool read_tokenizer_json(const std::string& path, std::string text, int vocab_size, Tokenizer::Vocabulary& out,
                                std::string& error) {
  JsonDocument document;
  if (!document.parse(path, std::move(text))) return fail(error, document.error);
  TokenizerJson reader(document.root(), path, vocab_size, out);
  return reader.read() || fail(error, reader.error);
}

}  // namespace pocket
