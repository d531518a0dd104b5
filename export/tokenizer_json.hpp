// tokenizer_json.hpp: reads tokenizer.json of the Hugging Face tokenizers library, of two kinds: byte-level BPE (GPT-2,
// SmolLM, Llama 3, Qwen2, ...), and converted SentencePiece models (Llama 2, TinyLlama). The first encodes exactly as that
// library, the second exactly as the original SentencePiece model. Unsupported settings are rejected by name.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint.hpp"
#include "json_reader.hpp"

namespace pocket {

inline constexpr uint64_t kLargestTokenizer = uint64_t(256) << 20;  // bytes of a file
inline constexpr size_t kLongestPiece = 256;  // bytes; SentencePiece's pieces have at most 16 characters of 4 bytes

// ====================================================================================================================
// Shared by tokenizer.json and GGUF
// ====================================================================================================================

/// GPT-2 writes the 256 bytes as printable characters: a byte that is printable in Latin-1 as itself, the others as
/// U+0100, U+0101, ... (github.com/openai/gpt-2, encoder.py, bytes_to_unicode.)
inline bool is_printable_byte(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}
/// The byte of each character; -1 if there is none.
inline const std::array<int16_t, 256 + 68>& printable_to_byte() {
  static const auto table = [] {
    std::array<int16_t, 256 + 68> t;
    t.fill(-1);
    int next = 256;
    for (int byte = 0; byte < 256; byte++) t[size_t(is_printable_byte(byte) ? byte : next++)] = int16_t(byte);
    return t;
  }();
  return table;
}

/// The type of a byte-level token with other characters. No text becomes it; its own text is what it is written as.
inline constexpr Tokenizer::PieceType kNotFromText = Tokenizer::PieceType::unused;

/// Converts printable characters to bytes. False, and nothing is converted, if a character represents no byte.
inline bool undo_printable(std::string_view printable, std::string& bytes) {
  const auto& table = printable_to_byte();
  std::string out;
  for (size_t at = 0; at < printable.size();) {
    const int32_t code = decode_utf8(printable, at);
    if (code < 0 || size_t(code) >= table.size() || table[size_t(code)] < 0) return false;
    out += char(table[size_t(code)]);
  }
  bytes = std::move(out);
  return true;
}

/// Adds merges, in order of rank, to a vocabulary with all its pieces. Merges that form a control or added token are left
/// out: the text of such a token never reaches them.
class MergeBuilder {
 public:
  explicit MergeBuilder(Tokenizer::Vocabulary& v) : v_(v) {
    for (size_t id = 0; id < v.pieces.size(); id++)
      (v.pieces[id].type == Tokenizer::PieceType::normal ? ids_ : others_).emplace(v.pieces[id].text, int(id));
  }

  // left, right: as in the file; byte-level pieces in printable form.
  bool add(std::string_view left, std::string_view right, const std::string& path, std::string& error) {
    std::string raw[2] = {std::string(left), std::string(right)};
    const std::string where =
        path + ": merge " + std::to_string(v_.merges.size()) + " \"" + raw[0] + " " + raw[1] + "\": ";
    if (v_.kind == Tokenizer::Kind::byte_level && (!undo_printable(left, raw[0]) || !undo_printable(right, raw[1])))
      return fail(error, {where, "expected GPT-2's printable characters"});
    const auto first = ids_.find(raw[0]), second = ids_.find(raw[1]);
    const bool parts = first != ids_.end() && second != ids_.end(), whole = ids_.count(raw[0] + raw[1]) > 0;
    if (parts && !whole && others_.count(raw[0] + raw[1])) return true;
    if (!parts || !whole) return fail(error, {where, "expected two tokens of the vocabulary that form a third"});
    v_.merges.push_back({first->second, second->second});
    return true;
  }

  // "left right"
  bool add(std::string_view both, const std::string& path, std::string& error) {
    const size_t space = both.find(' ');
    if (space == std::string_view::npos || both.find(' ', space + 1) != std::string_view::npos)
      return fail(error, {path, ": merge ", v_.merges.size(), ": expected two tokens with a space between, found \"",
                          both, "\""});
    return add(both.substr(0, space), both.substr(space + 1), path, error);
  }

  // Converts the ranks of merges to SentencePiece's scores. SentencePiece joins any two pieces that form a third,
  // highest score first. So there must be a merge for each way to split a piece; the ranks of its merges become its
  // score. Pieces with equal scores have interleaved ranks: merges are sorted by score, then by the lengths of the two
  // parts.
  bool turn_into_scores(const std::string& path, std::string& error) {
    std::vector<int> made;                       // by rank: the resulting piece
    std::vector<size_t> last(v_.pieces.size());  // by id: the last rank that results in it
    for (const auto& [left, right] : v_.merges) {
      const int id = ids_.at(v_.pieces[size_t(left)].text + v_.pieces[size_t(right)].text);
      last[size_t(id)] = made.size();
      made.push_back(id);
    }
    float score = 0;
    size_t end = 0;
    for (size_t rank = 0; rank < made.size(); rank++) {
      if (rank > end) score--;
      end = std::max(end, last[size_t(made[rank])]);
      v_.pieces[size_t(made[rank])].score = score;
    }
    const bool complete = has_all_merges(path, error);
    v_.merges.clear();
    return complete;
  }

  // Whether each of the 256 bytes is a token.
  bool has_all_bytes() const {
    for (int byte = 0; byte < 256; byte++)
      if (ids_.count(std::string(1, char(byte))) == 0) return false;
    return true;
  }

 private:
  bool has_all_merges(const std::string& path, std::string& error) const {
    const std::set<std::pair<int, int>> merges(v_.merges.begin(), v_.merges.end());
    for (const auto& [text, id] : ids_) {
      if (text.size() > kLongestPiece)
        return fail(error, {path, ": token ", id, ": expected at most ", kLongestPiece, " bytes, found ", text.size()});
      for (size_t cut = 1; cut < text.size(); cut++) {
        const auto left = ids_.find(text.substr(0, cut)), right = ids_.find(text.substr(cut));
        if (left != ids_.end() && right != ids_.end() && merges.count({left->second, right->second}) == 0)
          return fail(error,
                      {path, ": merges: expected one of \"", left->first, "\" and \"", right->first,
                       "\", which form a token, found none; this is not a SentencePiece tokenizer, and others with "
                       "byte_fallback or Metaspace are not supported"});
      }
    }
    return true;
  }

  Tokenizer::Vocabulary& v_;
  std::map<std::string, int> ids_, others_;  // of normal pieces, and of others
};

/// Removes the merges that form or use one of these tokens.
inline void remove_merges(Tokenizer::Vocabulary& v, const std::set<std::string>& tokens) {
  const auto text = [&](int id) -> const std::string& { return v.pieces[size_t(id)].text; };
  const auto uses = [&](const std::pair<int, int>& merge) {
    const auto& [left, right] = merge;
    return tokens.count(text(left)) || tokens.count(text(right)) || tokens.count(text(left) + text(right));
  };
  if (!tokens.empty()) v.merges.erase(std::remove_if(v.merges.begin(), v.merges.end(), uses), v.merges.end());
}

/// A token that was added to a vocabulary, with the settings of the tokenizers library.
struct AddedToken {
  std::string text;
  bool special = false;     // a control token
  bool normalized = false;  // found in the normalized text
  bool lstrip = false, rstrip = false, single_word = false;
};

/// Reads a token of added_tokens or added_tokens_decoder.
inline bool read_added_token(const JsonValue& token, AddedToken& out, std::string& error) {
  if (!token.need("content", JsonKind::string, error) || !token.get("content", out.text, error) ||
      !token.get("special", out.special, error))
    return false;
  out.normalized = !out.special;
  return (!out.text.empty() || token.refuse("content", "a text", error)) &&
         token.get("normalized", out.normalized, error) && token.get("lstrip", out.lstrip, error) &&
         token.get("rstrip", out.rstrip, error) && token.get("single_word", out.single_word, error);
}

/// Sets type and settings of the piece of an added token, which `file` declares. A piece that is unknown, a byte or a
/// control token remains one.
inline bool set_added_token(const AddedToken& token, Tokenizer::Piece& piece, const std::string& file,
                            std::string& error) {
  using PieceType = Tokenizer::PieceType;
  piece.strip = uint8_t((token.lstrip ? Tokenizer::kStripLeft : 0) | (token.rstrip ? Tokenizer::kStripRight : 0) |
                        (token.single_word ? Tokenizer::kSingleWord : 0));
  if (piece.type == PieceType::unknown || piece.type == PieceType::byte || piece.type == PieceType::control)
    return true;
  piece.type = token.special ? PieceType::control : token.normalized ? PieceType::added_normalized : PieceType::added;
  return token.special || !token.single_word ||
         fail(error, {file, ": token \"", token.text, "\": single_word: expected false, found true"});
}

/// Sets the flags of a SentencePiece vocabulary.
inline void set_sentencepiece(Tokenizer::Vocabulary& v, bool dummy_prefix, bool byte_fallback) {
  v.kind = Tokenizer::Kind::sentencepiece;
  v.split = Tokenizer::Split::none;
  v.add_bos = v.remove_extra_whitespaces = v.ignore_merges = v.nfc = false;
  v.prefix_only_at_start = v.metaspace = false;
  v.escape_whitespaces = true;
  v.add_dummy_prefix = dummy_prefix;
  v.byte_fallback = byte_fallback;
  v.unk_surface = kUnknownSurface;
}

/// Sets the flags of a byte-level vocabulary.
inline void set_byte_level(Tokenizer::Vocabulary& v, Tokenizer::Split split, bool ignore_merges, bool nfc) {
  v.kind = Tokenizer::Kind::byte_level;
  v.split = split;
  v.ignore_merges = ignore_merges;
  v.nfc = nfc;
  v.add_bos = v.add_dummy_prefix = v.remove_extra_whitespaces = v.escape_whitespaces = v.byte_fallback = false;
  v.unk_surface.clear();
}

// ====================================================================================================================
// tokenizer.json
// ====================================================================================================================

/// The regular expressions of pre-tokenizers, by model.
namespace split_pattern {
inline constexpr char kLlama3[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr char kQwen2[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr char kQwen35[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr char kGpt4o[] =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr char kTekken[] = R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
                                  R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
                                  R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr char kDeepSeekV3[] =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|)"
    R"( ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr char kEastAsian[] = "[一-龥ࠀ-一가-\xED\x9F\xBF]+";
inline constexpr char kHanOrKana[] = "[一-龥぀-ゟ゠-ヿ]+";
inline constexpr char kDeepSeekSigns[] = R"(\s?[!-/:-~！-／：-～‘-‟　-。]+)";
// clang-format off
inline constexpr char kDeepSeekLetters[] =
    "\\s?["
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1F7Dᾀ-ᾴ"
    "ᾶ-ᾼ\u1FBEῂ-ῄῆ-ῌῐ-\u1FD3ῖ-\u1FDBῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212A-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿ"
    "ﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
    "]+";
// clang-format on
}  // namespace split_pattern

/// Reads one tokenizer.json; unsupported settings are an error.
class TokenizerJson {
 public:
  // vocab_size: of the model.
  TokenizerJson(JsonValue root, std::string path, int vocab_size, Tokenizer::Vocabulary& out)
      : root_(root),
        model_(root.find("model")),
        path_(std::move(path)),
        vocab_size_(vocab_size),
        most_ids_(model_.find("vocab").size() + root.find("added_tokens").size() + kMostGaps),
        out_(out) {}

  std::string error;

  // False with `error` set.
  bool read() {
    return kind() && flags() && (sentencepiece_ ? spaces() : pre_tokenizer()) && decoder() && added_tokens() &&
           vocabulary() && unknown() && merges() && post_processor();
  }

 private:
  using PieceType = Tokenizer::PieceType;

  static std::string type_of(const JsonValue& v) { return v.find("type").string(); }
  bool refuse(Message why) { return fail(error, {path_, ": ", text_of(why)}); }

  // The steps of a normalizer, pre-tokenizer or decoder, which may be a sequence.
  static std::vector<JsonValue> steps_of(const JsonValue& v, const char* list) {
    std::vector<JsonValue> steps;
    if (type_of(v) != "Sequence") return v.missing() ? steps : std::vector<JsonValue>{v};
    steps.reserve(v.find(list).size());
    for (const JsonValue& step : v.find(list).elements()) steps.push_back(step);
    return steps;
  }

  bool kind() {
    if (!root_.need("model", JsonKind::object, error)) return false;
    if (!model_.find("type").missing() && type_of(model_) != "BPE") return model_.refuse("type", "\"BPE\"", error);
    const JsonValue normalizer = root_.find("normalizer");
    sentencepiece_ = model_.find("byte_fallback").boolean();
    for (const JsonValue& step : steps_of(normalizer, "normalizers"))
      sentencepiece_ = sentencepiece_ || type_of(step) == "Prepend" || type_of(step) == "Replace";
    for (const JsonValue& step : steps_of(root_.find("pre_tokenizer"), "pretokenizers"))
      sentencepiece_ = sentencepiece_ || type_of(step) == "Metaspace";
    for (const JsonValue& step : steps_of(normalizer, "normalizers")) {
      if (!sentencepiece_ && type_of(step) != "NFC") return step.refuse("type", "NFC, or no normalizer", error);
      nfc_ = true;
    }
    return true;
  }

  // Settings that change the encoding.
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
    if (!sentencepiece_) {
      set_byte_level(out_, Tokenizer::Split::none, ignore_merges, nfc_);
      return true;
    }
    bool byte_fallback = false;
    if (!model_.get("byte_fallback", byte_fallback, error)) return false;
    set_sentencepiece(out_, false, byte_fallback);
    return !ignore_merges || model_.refuse("ignore_merges", "false", error);
  }

  // A step Split. Of several ways to write the same, those of the constants above: \r and \n for the characters, and
  // Isolated for a pattern that matches all of a text, so that there is nothing else to be Removed.
  static std::string split_text(std::string_view pattern, std::string_view behavior, std::string_view invert) {
    constexpr std::string_view kRest = "|\\s+";
    if (pattern.size() > kRest.size() && pattern.substr(pattern.size() - kRest.size()) == kRest &&
        behavior == "Removed" && invert == "invert=true") {
      behavior = "Isolated";
      invert = "invert=false";
    }
    std::string text = "Split(";
    for (const char c : pattern)
      if (c == '\r' || c == '\n')
        text += c == '\r' ? "\\r" : "\\n";
      else
        text += c;
    return text_of({text, ", ", behavior, ", ", invert, ")"});
  }

  // A step with its relevant settings.
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
      return split_text(step.find("pattern").find("Regex").string(), step.find("behavior").string(),
                        flag("invert", false));
    if (type == "Punctuation") return "Punctuation(" + step.find("behavior").string() + ")";
    if (type == "Prepend") return "Prepend(" + step.find("prepend").string() + ")";
    if (type == "Replace")
      return "Replace(" + step.find("pattern").find("String").string() + ", " + step.find("content").string() + ")";
    if (type == "Strip") return "Strip(" + step.find("content").string() + ")";
    if (type == "Metaspace") {
      const JsonValue scheme = step.find("prepend_scheme");
      return "Metaspace(" + step.find("replacement").string() + ", " + (scheme.missing() ? "always" : scheme.string()) +
             ", " + flag("split", true) + ")";
    }
    return type.empty() ? step.describe() : type;
  }

  static std::string text_of_steps(const std::vector<JsonValue>& steps) {
    std::string text;
    for (const JsonValue& step : steps) text += (text.empty() ? "" : " ") + step_text(step);
    return text.empty() ? "null" : text;
  }

  // SentencePiece's treatment of spaces: one is added before every text, and each becomes U+2581. The library expresses
  // it in two ways. The second adds none before a space.
  bool spaces() {
    std::vector<JsonValue> steps = steps_of(root_.find("normalizer"), "normalizers");
    for (const JsonValue& step : steps_of(root_.find("pre_tokenizer"), "pretokenizers")) steps.push_back(step);
    const std::string found = text_of_steps(steps);
    const struct {
      const char* text;
      bool dummy_prefix, only_at_start, metaspace;
    } known[] = {{"Prepend(\u2581) Replace( , \u2581)", true, false, false},
                 {"Prepend( ) Replace( , \u2581)", true, false, false},
                 {"Replace( , \u2581) Prepend(\u2581)", true, false, false},
                 {"Replace( , \u2581)", false, false, false},
                 {"Metaspace(\u2581, first, split=false)", true, true, true},
                 {"Metaspace(\u2581, always, split=false)", true, false, true},
                 {"Metaspace(\u2581, never, split=false)", false, false, true}};
    for (const auto& [text, dummy_prefix, only_at_start, metaspace] : known) {
      out_.add_dummy_prefix = dummy_prefix;
      out_.prefix_only_at_start = only_at_start;
      out_.metaspace = metaspace;
      if (found == text) return true;
    }
    return refuse({"normalizer and pre_tokenizer: expected SentencePiece's Prepend(\u2581) Replace( , \u2581), found ",
                   found, "; use the model's tokenizer.model with -z"});
  }

  bool pre_tokenizer() {
    using Split = Tokenizer::Split;
    const auto isolated = [](const char* pattern) { return split_text(pattern, "Isolated", "invert=false"); };
    const std::string bytes = "ByteLevel(add_prefix_space=false, use_regex=false)";
    const std::string gpt2 = "ByteLevel(add_prefix_space=false, use_regex=true)";
    const std::string digits = "Digits(individual_digits=true)";
    namespace pattern = split_pattern;
    const struct {
      Split split;
      std::vector<std::string> steps;
    } known[] = {
        {Split::none, {bytes}},
        {Split::gpt2, {gpt2}},
        {Split::smollm, {digits, gpt2}},
        {Split::llama3, {isolated(pattern::kLlama3), bytes}},
        {Split::qwen2, {isolated(pattern::kQwen2), bytes}},
        {Split::qwen35, {isolated(pattern::kQwen35), bytes}},
        {Split::gpt4o, {isolated(pattern::kGpt4o), bytes}},
        {Split::tekken, {isolated(pattern::kTekken), bytes}},
        {Split::deepseek_coder,
         {isolated("[\\r\\n]"), isolated("\\s?\\p{L}+"), isolated("\\s?\\p{P}+"), isolated(pattern::kEastAsian), digits,
          bytes}},
        {Split::deepseek_llm,
         {isolated("[\\r\\n]"), isolated(pattern::kDeepSeekLetters), isolated(pattern::kDeepSeekSigns),
          isolated("\\s+$"), isolated(pattern::kEastAsian), digits, bytes}},
        {Split::deepseek_v3,
         {isolated("\\p{N}{1,3}"), isolated(pattern::kHanOrKana), isolated(pattern::kDeepSeekV3), bytes}},
        {Split::falcon,
         {"Punctuation(Contiguous)", gpt2, "Digits(individual_digits=false)", isolated("[0-9][0-9][0-9]")}},
    };
    const std::vector<JsonValue> steps = steps_of(root_.find("pre_tokenizer"), "pretokenizers");
    const auto has_text = [](const JsonValue& step, const std::string& text) { return step_text(step) == text; };
    for (const auto& each : known) {
      out_.split = each.split;
      if (std::equal(steps.begin(), steps.end(), each.steps.begin(), each.steps.end(), has_text)) return true;
    }
    return refuse(
        {"pre_tokenizer: expected that of GPT-2, SmolLM, Llama 3, Qwen2, GPT-4o, Tekken, DeepSeek or Falcon, "
         "found ",
         text_of_steps(steps)});
  }

  bool decoder() {
    const JsonValue decoder = root_.find("decoder");
    if (!sentencepiece_)
      return decoder.missing() || type_of(decoder) == "ByteLevel" || decoder.refuse("type", "\"ByteLevel\"", error);
    for (const JsonValue& step : steps_of(decoder, "decoders")) {
      const std::string text = step_text(step);
      if (text != "Replace(\u2581,  )" && text != "ByteFallback" && text != "Fuse" && text != "Strip( )" &&
          type_of(step) != "Metaspace")
        return refuse({"decoder: expected SentencePiece's, found ", text});
    }
    return true;
  }

  // Sets a piece. Ids that are not set yet are unused pieces.
  bool put(int id, std::string text, PieceType type) {
    if (text.empty()) return refuse({"token ", id, ": expected a text, found none"});
    if (size_t(id) >= most_ids_) return refuse({"token ", id, ": expected an id below ", most_ids_});
    fill_vocabulary(out_, size_t(id) + 1);
    Tokenizer::Piece& piece = out_.pieces[size_t(id)];
    if (piece.type != PieceType::unused)
      return refuse({"token ", id, ": expected one text, found \"", piece.text, "\" and \"", text, "\""});
    piece = {std::move(text), 0, type};
    return true;
  }

  // Added tokens are not in printable form. Tokens without a row in the model cannot occur and are skipped.
  bool added_tokens() {
    for (const JsonValue& entry : root_.find("added_tokens").elements()) {
      int id = -1;
      AddedToken token;
      if (!entry.need("id", JsonKind::number, error) || !entry.get("id", 0, INT32_MAX, id, error) ||
          !read_added_token(entry, token, error))
        return false;
      if (id >= vocab_size_) continue;
      if (!put(id, token.text, PieceType::normal) || !set_added_token(token, out_.pieces[size_t(id)], path_, error))
        return false;
    }
    return true;
  }

  bool vocabulary() {
    if (!model_.need("vocab", JsonKind::object, error)) return false;
    for (const auto& [printable, value] : model_.find("vocab").members()) {
      int64_t id = -1;
      if (!value.integer(id) || id < 0 || id >= vocab_size_)
        return fail(error, {value.where(), ": token \"", printable, "\": expected an id below the model's ",
                            vocab_size_, ", found ", value.describe()});
      const bool added = size_t(id) < out_.pieces.size() && out_.pieces[size_t(id)].type != PieceType::unused;
      if (added && out_.pieces[size_t(id)].text == printable) continue;
      std::string text = printable;
      PieceType type = PieceType::normal;
      if (!sentencepiece_ && !undo_printable(printable, text)) type = kNotFromText;
      if (out_.byte_fallback && tokenizer_detail::byte_value(text) >= 0) type = PieceType::byte;
      if (!put(int(id), std::move(text), type)) return false;
    }
    return true;
  }

  // Characters without a token. In SentencePiece consecutive ones are one unknown token.
  bool unknown() {
    std::string text;
    bool fuse = false;
    if (!sentencepiece_) return true;  // every byte has a token: see merges()
    if (!model_.get("unk_token", text, error) || !model_.get("fuse_unk", fuse, error)) return false;
    for (size_t id = 0; id < out_.pieces.size(); id++)
      if (out_.pieces[id].text == text) {
        out_.unk = int(id);
        out_.pieces[id].type = PieceType::unknown;
      }
    out_.bos = find_piece(out_, "<s>");
    out_.eos = find_piece(out_, "</s>");  // SentencePiece's names
    if (out_.byte_fallback) return has_byte_tokens();
    if (out_.unk < 0) return model_.refuse("unk_token", "a token of the vocabulary, or byte_fallback", error);
    return fuse || model_.refuse("fuse_unk", "true, as SentencePiece has it", error);
  }

  bool has_byte_tokens() {
    bool found[256] = {};
    for (const Tokenizer::Piece& piece : out_.pieces)
      if (piece.type == PieceType::byte) found[tokenizer_detail::byte_value(piece.text)] = true;
    for (bool each : found)
      if (!each) return model_.refuse("byte_fallback", "false, or tokens <0x00> to <0xFF>", error);
    return true;
  }

  // Each merge is "left right" or ["left", "right"].
  bool merges() {
    if (!model_.need("merges", JsonKind::array, error)) return false;
    MergeBuilder builder(out_);
    for (const JsonValue& merge : model_.find("merges").elements()) {
      const bool pair = merge.size() == 2 && merge.at(0).is(JsonKind::string) && merge.at(1).is(JsonKind::string);
      if (!pair && !merge.is(JsonKind::string))
        return fail(error, {merge.where(), ": expected a merge of two tokens, found ", merge.describe()});
      if (pair ? !builder.add(merge.at(0).string(), merge.at(1).string(), path_, error)
               : !builder.add(merge.string(), path_, error))
        return false;
    }
    if (sentencepiece_) return builder.turn_into_scores(path_, error);
    std::string unknown;
    if (!model_.get("unk_token", unknown, error)) return false;
    return unknown.empty() || builder.has_all_bytes() ||
           model_.refuse("unk_token", "none, or a token for each of the 256 bytes", error);
  }

  // A token before the text is BOS. A token after it would end a prompt, and is ignored.
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
  size_t most_ids_;  // with and without a token
  bool sentencepiece_ = false, nfc_ = false;
  Tokenizer::Vocabulary& out_;
};

/// Reads a tokenizer.json. vocab_size: of the model.
inline bool read_tokenizer_json(const JsonValue& root, const std::string& path, int vocab_size,
                                Tokenizer::Vocabulary& out, std::string& error) {
  TokenizerJson reader(root, path, vocab_size, out);
  return reader.read() || fail(error, reader.error);
}

/// The same for the text of one.
inline bool read_tokenizer_json(const std::string& path, std::string text, int vocab_size, Tokenizer::Vocabulary& out,
                                std::string& error) {
  JsonDocument document;
  if (!document.parse(path, std::move(text))) return fail(error, document.error);
  return read_tokenizer_json(document.root(), path, vocab_size, out, error);
}

}  // namespace pocket
