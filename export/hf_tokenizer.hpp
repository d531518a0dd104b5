// hf_tokenizer.hpp: the tokenizer of a folder in the format of Hugging Face's transformers. The vocabulary is in
// tokenizer.model or tokenizer.json. Tokens that were added to it, and the texts of BOS, EOS and other special tokens,
// are declared in up to four files, with the precedence of transformers: if tokenizer_config.json has
// added_tokens_decoder, it declares the added tokens, and added_tokens.json does not. If not, added_tokens.json and
// tokenizer.json declare them, and special tokens in special_tokens_map.json replace those of tokenizer_config.json.
// Files that give an id two texts, or a text two ids, are an error.
#pragma once

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint.hpp"
#include "json_reader.hpp"
#include "tokenizer_json.hpp"

namespace pocket {

// ====================================================================================================================
// Added tokens
// ====================================================================================================================

/// Parses an id that is a key of an object; -1 if it is not a number.
inline int64_t id_of_key(const std::string& key) {
  int64_t id = key.empty() ? -1 : 0;
  for (char c : key) id = c < '0' || c > '9' || id < 0 || id > INT32_MAX ? -1 : id * 10 + (c - '0');
  return id;
}

/// The text of a token: a string, or an object with the text as "content".
inline std::string token_text(const JsonValue& token) {
  return token.is(JsonKind::object) ? token.find("content").string() : token.string();
}

/// Added tokens by id, each with the file that declares it.
class DeclaredTokens {
 public:
  struct Token {
    AddedToken added;
    std::string file;
  };

  // Adds a token; a later file replaces the settings of an earlier one. False with `error` set if they contradict.
  bool add(int64_t id, AddedToken added, const std::string& file, std::string& error) {
    const auto same_id = tokens_.find(id);
    if (same_id != tokens_.end() && same_id->second.added.text != added.text)
      return contradiction(file, {"token ", id, ": expected \"", same_id->second.added.text, "\""},
                           same_id->second.file, {"\"", added.text, "\""}, error);
    const auto [same_text, is_new] = ids_.emplace(added.text, id);
    if (!is_new && same_text->second != id)
      return contradiction(file, {"token \"", added.text, "\": expected the id ", same_text->second},
                           tokens_.at(same_text->second).file, {id}, error);
    tokens_[id] = {std::move(added), file};
    return true;
  }

  bool empty() const { return tokens_.empty(); }
  const std::map<int64_t, Token>& tokens() const { return tokens_; }

  static bool contradiction(const std::string& file, Message expected, const std::string& other, Message found,
                            std::string& error) {
    return fail(error, {file, ": ", text_of(expected), ", as in ", other, ", found ", text_of(found)});
  }

 private:
  std::map<int64_t, Token> tokens_;
  std::map<std::string, int64_t> ids_;
};

/// Whether the text of a piece is that of a placeholder ("[UNUSED_TOKEN_7]", "<reserved_8>"), which a file may rename.
inline bool is_placeholder(const Tokenizer::Piece& piece) {
  std::string text = piece.text;
  for (char& c : text) c = char(std::tolower(uint8_t(c)));
  const bool bracket = text[0] == '<' || text[0] == '[';
  return bracket && (text.find("unused") != std::string::npos || text.find("reserved") != std::string::npos);
}

/// Adds tokens to a vocabulary, whose file is `path`. Tokens without a row in the model cannot occur and are skipped.
inline bool add_declared_tokens(const DeclaredTokens& declared, const std::string& path, Checkpoint& c,
                                std::string& error) {
  auto& pieces = c.vocabulary.pieces;
  std::map<std::string, int64_t> ids;
  for (size_t id = 0; id < pieces.size() && !declared.empty(); id++) ids.emplace(pieces[id].text, id);
  const size_t most = pieces.size() + declared.tokens().size() + kMostGaps;
  for (const auto& [id, token] : declared.tokens()) {
    if (id >= c.config.vocab_size) continue;
    const std::string& text = token.added.text;
    if (size_t(id) >= most) return fail(error, {token.file, ": token ", id, ": expected an id below ", most});
    fill_vocabulary(c.vocabulary, size_t(id) + 1);
    Tokenizer::Piece& piece = pieces[size_t(id)];
    if (piece.text != text && !is_placeholder(piece))
      return DeclaredTokens::contradiction(token.file, {"token ", id, ": expected \"", piece.text, "\""}, path,
                                           {"\"", text, "\""}, error);
    if (const auto other = ids.find(text); piece.text != text && other != ids.end())
      return DeclaredTokens::contradiction(token.file, {"token \"", text, "\": expected the id ", other->second}, path,
                                           {id}, error);
    piece.text = text;
    if (!set_added_token(token.added, piece, token.file, error)) return false;
  }
  return true;
}

// ====================================================================================================================
// The folder
// ====================================================================================================================

/// Reads the tokenizer of a folder to a Checkpoint.
class HfTokenizer {
 public:
  HfTokenizer(const std::string& folder, Checkpoint& c) : folder_(folder), c_(c), v_(c.vocabulary) {}

  std::string error;

  // Reads the chat template and, if own_tokenizer, the tokenizer if there is one. model: config.json, which has the
  // special ids that the other files lack. False with `error` set.
  bool read(const JsonValue& model, bool own_tokenizer) {
    if (!settings("tokenizer_config.json", config_) || !chat_template()) return false;
    const std::string spm = file("tokenizer.model");
    sentencepiece_ = is_file(spm);
    path_ = sentencepiece_ ? spm : file("tokenizer.json");
    if (!own_tokenizer || !is_file(path_)) return true;
    return settings("special_tokens_map.json", map_) && settings("added_tokens.json", added_) && read_json() &&
           vocabulary() && declared_tokens() && special_tokens() && bos_and_eos(model) &&
           fit_vocabulary(c_, path_, error);
  }

 private:
  std::string file(const char* name) const { return join_path(folder_, name); }

  bool settings(const char* name, JsonDocument& document) {
    return !is_file(file(name)) || read_settings(file(name), document, error);
  }

  // chat_template is a string or a list: [{"name": "default", "template": ...}, ...].
  bool chat_template() {
    const JsonValue found = config_.root().find("chat_template");
    c_.chat_template = found.string();
    for (const JsonValue& choice : found.elements())
      if (choice.find("name").string() == "default") c_.chat_template = choice.find("template").string();
    const std::string jinja = file("chat_template.jinja");
    return !is_file(jinja) || read_small_file(jinja, kLargestConfig, c_.chat_template, error);
  }

  bool has_decoder() const { return config_.root().find("added_tokens_decoder").is(JsonKind::object); }

  // Parses tokenizer.json. Beside a tokenizer.model it only declares added tokens, and with added_tokens_decoder not even
  // these: then a damaged file does not matter.
  bool read_json() {
    const std::string path = file("tokenizer.json");
    if (!is_file(path) || json_.parse_file(path, kLargestTokenizer)) return true;
    return (sentencepiece_ && has_decoder()) || fail(error, json_.error);
  }

  bool vocabulary() {
    const JsonValue config = config_.root();
    if (!sentencepiece_) {
      if (!read_tokenizer_json(json_.root(), path_, c_.config.vocab_size, v_, error)) return false;
      json_adds_bos_ = v_.add_bos;
      // This class overrides the file's post_processor.
      if (config.find("tokenizer_class").string().rfind("LlamaTokenizer", 0) == 0) return add_bos(config);
      return true;
    }
    std::string bytes, why;
    if (!read_small_file(path_, kLargestTokenizer, bytes, error)) return false;
    if (!Tokenizer::parse_sentencepiece(bytes, v_, why)) return not_sentencepiece(path_, bytes, why, error);
    bool legacy = true;
    if (!config.get("legacy", legacy, error) || !config.get("add_prefix_space", v_.add_dummy_prefix, error))
      return false;
    v_.prefix_only_at_start = !legacy;
    return add_bos(config);
  }

  // Absent means true, and null false.
  bool add_bos(const JsonValue& config) {
    v_.add_bos = !config.find("add_bos_token").is(JsonKind::null);
    return config.get("add_bos_token", v_.add_bos, error);
  }

  // What a file declares as a special token: the one that counts. A value may be null.
  JsonValue special_token(const char* key) const {
    const JsonValue config = config_.root().find(key), map = map_.root().find(key);
    const JsonValue& first = has_decoder() ? config : map;
    return first.is(JsonKind::absent) ? (has_decoder() ? map : config) : first;
  }

  // All special tokens, in the order in which transformers adds those that the vocabulary lacks.
  std::vector<AddedToken> all_special_tokens() const {
    std::vector<AddedToken> tokens;
    const auto add = [&](const JsonValue& token) {
      const auto flag = [&](const char* key) { return token.find(key).boolean(); };
      if (const std::string text = token_text(token); !text.empty())
        tokens.push_back({text, true, false, flag("lstrip"), flag("rstrip"), flag("single_word")});
    };
    for (const char* key : kSpecialTokens) add(special_token(key));
    for (const JsonValue& root : {config_.root(), map_.root()})
      for (const char* key : {"additional_special_tokens", "extra_special_tokens"}) {
        for (const JsonValue& token : root.find(key).elements()) add(token);
        for (const auto& [name, token] : root.find(key).members()) add(token);
      }
    return tokens;
  }

  // Reads all declarations, so that contradictions are found, and applies those that count.
  bool declared_tokens() {
    DeclaredTokens all, decoder;
    if (!read_added_tokens_json(all) || !read_json_added_tokens(all) || !read_decoder(all, decoder)) return false;
    const DeclaredTokens& counts = has_decoder() ? decoder : all;
    for (const auto& [id, token] : counts.tokens()) declared_.insert(token.added.text);
    return add_declared_tokens(counts, path_, c_, error);
  }

  bool read_added_tokens_json(DeclaredTokens& all) {
    std::set<std::string> special;
    for (const AddedToken& token : all_special_tokens()) special.insert(token.text);
    const JsonValue root = added_.root();
    for (const auto& [text, value] : root.members()) {
      int64_t id = -1;
      if (!value.integer(id) || id < 0 || text.empty()) return root.refuse(text, "an id", error);
      AddedToken token{text};
      token.special = special.count(text) > 0;
      token.normalized = !sentencepiece_ && !token.special;
      if (!all.add(id, std::move(token), file("added_tokens.json"), error)) return false;
    }
    return true;
  }

  bool read_json_added_tokens(DeclaredTokens& all) {
    for (const JsonValue& entry : json_.root().find("added_tokens").elements()) {
      int id = -1;
      AddedToken token;
      if (!entry.need("id", JsonKind::number, error) || !entry.get("id", 0, INT32_MAX, id, error) ||
          !read_token(entry, token) || !all.add(id, std::move(token), file("tokenizer.json"), error))
        return false;
    }
    return true;
  }

  // {"32000": {"content": ..., "special": ...}}
  bool read_decoder(DeclaredTokens& all, DeclaredTokens& decoder) {
    const JsonValue config = config_.root();
    const std::string path = file("tokenizer_config.json");
    for (const auto& [key, entry] : config.find("added_tokens_decoder").members()) {
      const int64_t id = id_of_key(key);
      AddedToken token;
      if (id < 0) return config.refuse("added_tokens_decoder", "ids and texts", error);
      if (!read_token(entry, token) || !all.add(id, token, path, error) || !decoder.add(id, token, path, error))
        return false;
    }
    return true;
  }

  // SentencePiece's normalizer does not see the tokens that were added to it.
  bool read_token(const JsonValue& entry, AddedToken& token) {
    if (!read_added_token(entry, token, error)) return false;
    token.normalized = token.normalized && !sentencepiece_;
    return true;
  }

  // Special tokens become control tokens. Those that the vocabulary lacks have the next ids, if the model has rows for
  // them. Their settings count if nothing else declares them.
  bool special_tokens() {
    std::map<std::string, size_t> ids;
    for (size_t id = 0; id < v_.pieces.size(); id++) ids.emplace(v_.pieces[id].text, id);
    std::set<std::string> changed;
    for (const AddedToken& token : all_special_tokens()) {
      const auto [found, is_new] = ids.emplace(token.text, v_.pieces.size());
      if (is_new && v_.pieces.size() < size_t(c_.config.vocab_size))
        v_.pieces.push_back({token.text, 0, Tokenizer::PieceType::added});
      if (found->second >= v_.pieces.size()) continue;
      Tokenizer::Piece& piece = v_.pieces[found->second];
      if (piece.type == Tokenizer::PieceType::normal) changed.insert(token.text);
      const uint8_t strip = piece.strip;
      if (!set_added_token(token, piece, path_, error)) return false;
      if (declared_.count(token.text)) piece.strip = strip;
    }
    remove_merges(v_, changed);
    return true;
  }

  bool bos_and_eos(const JsonValue& model) {
    if (!sentencepiece_) {
      const JsonValue eos = model.find("eos_token_id");
      int64_t id = -1;
      if (v_.bos < 0 && model.find("bos_token_id").integer(id) && id < c_.config.vocab_size) v_.bos = int(id);
      if ((eos.is(JsonKind::array) ? eos.at(0) : eos).integer(id) && id < c_.config.vocab_size) v_.eos = int(id);
    }
    // bos_token null does not change what the file's post_processor adds.
    if (!(special_token("bos_token").is(JsonKind::null) && json_adds_bos_) && !set_id("bos_token", v_.bos))
      return false;
    if (!set_id("eos_token", v_.eos)) return false;
    c_.special_tokens.emplace();
    for (const char* key : kSpecialTokens)
      if (const std::string text = token_text(special_token(key)); !text.empty()) (*c_.special_tokens)[key] = text;
    v_.add_bos = v_.add_bos && v_.bos >= 0;
    return true;
  }

  // Sets the id of a special token: absent leaves it unchanged, null and "" mean none.
  bool set_id(const char* key, int& id) {
    const JsonValue token = special_token(key);
    if (token.is(JsonKind::absent)) return true;
    const bool none = token.is(JsonKind::null) || (token.is(JsonKind::string) && token_text(token).empty());
    id = none ? -1 : find_piece(v_, token_text(token));
    return none || id >= 0 ||
           fail(error,
                {token.where(), ": \"", key, "\": expected a token of the vocabulary, found ", token.describe()});
  }

  static constexpr const char* kSpecialTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                                   "pad_token", "cls_token", "mask_token"};
  std::string folder_, path_;  // path_: of the vocabulary
  Checkpoint& c_;
  Tokenizer::Vocabulary& v_;
  JsonDocument config_, map_, added_, json_;
  std::set<std::string> declared_;  // the texts of added tokens
  bool sentencepiece_ = false;
  bool json_adds_bos_ = false;  // by its post_processor
};

}  // namespace pocket
