// use_tokenizer.hpp: what targets do with a tokenizer that was loaded from an input.
#pragma once

#include "../../../export/engine.hpp"
#include "../target.hpp"

namespace fuzz {

inline bool is_utf8(std::string_view text) {
  using namespace pocket::tokenizer_detail;
  while (!text.empty()) {
    const Utf8 c = read_utf8(text);
    if (c.state != Utf8::whole) return false;
    text.remove_prefix(c.length);
  }
  return true;
}

// The text with U+FFFD in place of invalid bytes: one for each byte, or one for each maximal valid prefix.
inline std::string valid_utf8(std::string_view text, bool each_byte) {
  std::string valid;
  while (!text.empty()) pocket::tokenizer_detail::take_character(text, each_byte, valid);
  return valid;
}

// Decodes ids at once and one by one.
inline void decode(const pocket::Tokenizer& tokenizer, const std::vector<int>& ids) {
  pocket::Tokenizer::Stream stream(tokenizer);
  std::string text;
  for (const int id : ids) text += stream.push(id);
  text += stream.flush();
  require(text == tokenizer.decode(ids), "tokenizer: the stream gives the text of decode()");
}

// Encodes and decodes a text.
inline void use(const pocket::Tokenizer& tokenizer) {
  const std::vector<int> ids = tokenizer.encode(" Once upon a time, \xE2\x96\x81 \xFF 1234\n");
  for (const int id : ids) require(id >= 0 && id < tokenizer.size(), "tokenizer: ids within the vocabulary");
  decode(tokenizer, ids);
  tokenizer.find("</s>");
}

// The same for the vocabulary of a checkpoint; load() may still reject it.
inline void use(const pocket::Tokenizer::Vocabulary& vocabulary) {
  pocket::Tokenizer tokenizer;
  if (tokenizer.load(pocket::Tokenizer::to_blob(vocabulary)))
    use(tokenizer);
  else
    require(!tokenizer.error.empty(), "tokenizer: an error");
}

// A SentencePiece vocabulary with pieces of every type, with or without the 256 bytes.
inline pocket::Tokenizer::Vocabulary small_vocabulary(bool bytes) {
  using PieceType = pocket::Tokenizer::PieceType;
  pocket::Tokenizer::Vocabulary v;
  v.kind = pocket::Tokenizer::Kind::sentencepiece;
  v.pieces = {{"<unk>", 0, PieceType::unknown},      {"<s>", 0, PieceType::control}, {"</s>", 0, PieceType::control},
              {"\u2581", -1, PieceType::normal},     {"t", -2, PieceType::normal},   {"\u2581t", -3, PieceType::unused},
              {"<tool>", 0, PieceType::user_defined}};
  for (int byte = 0; bytes && byte < 256; byte++) {
    char text[8];
    std::snprintf(text, sizeof text, "<0x%02X>", unsigned(byte));
    v.pieces.push_back({text, 0, PieceType::byte});
  }
  v.bos = 1;
  v.eos = 2;
  v.unk = 0;
  v.add_bos = v.add_dummy_prefix = v.escape_whitespaces = true;
  v.byte_fallback = bytes;
  v.unk_surface = " ? ";
  return v;
}

}  // namespace fuzz
