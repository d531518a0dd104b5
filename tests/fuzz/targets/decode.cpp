// Decoding of any ids: the same text at once and one by one, always in whole characters. The first byte chooses the
// tokenizer; every other byte is an id, some of them outside the vocabulary.
#include "use_tokenizer.hpp"

namespace fuzz::decode_ids {

using namespace pocket;
using PieceType = Tokenizer::PieceType;

Tokenizer make(Tokenizer::Kind kind, bool dummy_prefix, bool remove_spaces) {
  Tokenizer::Vocabulary v;
  v.kind = kind;
  v.add_dummy_prefix = dummy_prefix;
  v.remove_extra_whitespaces = remove_spaces;
  v.unk = 0;
  v.unk_surface = " \xE2\x81\x87 ";
  v.pieces = {{"<unk>", 0, PieceType::unknown},
              {"<s>", 0, PieceType::control},
              {"<user>", 0, PieceType::user_defined},
              {"x", 0, PieceType::unused},
              {"", 0, PieceType::normal}};
  for (const char* text : {"\xE2\x96\x81", "\xE2\x96\x81the", "the", " ", "a\xE2\x96\x81"})
    v.pieces.push_back({text, 0, PieceType::normal});
  if (kind == Tokenizer::Kind::byte_level)
    for (const char* text : {"\xC3", "\xA9", "\xF0\x9F", "\x98", "\xFF"})
      v.pieces.push_back({text, 0, PieceType::normal});
  for (const char* text : {"<0xE2>", "<0x96>", "<0x81>", "<0xF0>", "<0x9F>", "<0x41>", "<0xFF>"})
    if (kind == Tokenizer::Kind::sentencepiece) v.pieces.push_back({text, 0, PieceType::byte});
  Tokenizer tokenizer;
  require(tokenizer.load(Tokenizer::to_blob(v)), "the tokenizers of this target are valid");
  return tokenizer;
}

void run(std::string_view input) {
  static const Tokenizer all[] = {
      make(Tokenizer::Kind::sentencepiece, true, false), make(Tokenizer::Kind::sentencepiece, false, true),
      make(Tokenizer::Kind::sentencepiece, false, false), make(Tokenizer::Kind::byte_level, false, false)};
  if (input.empty()) return;
  const Tokenizer& tokenizer = all[uint8_t(input[0]) % 4];
  std::vector<int> ids;
  for (const char byte : input.substr(1)) ids.push_back(uint8_t(byte) % 32 - 2);
  Tokenizer::Stream stream(tokenizer);
  bool whole = true;
  for (const int id : ids) whole = is_utf8(stream.push(id)) && whole;
  require(whole && is_utf8(stream.flush()), "tokenizer: the stream gives whole characters");
  decode(tokenizer, ids);
}

std::vector<std::string> seeds() {
  std::vector<std::string> all;
  for (char tokenizer = 0; tokenizer < 4; tokenizer++)
    all.push_back(tokenizer + std::string("\3\x08\x0a\x0c\x0d\x0e\x0f\x10\x11\x12\x13\4\5\6\x1f\2"));
  return all;
}

const Registered target({"decode", run, seeds});

}  // namespace fuzz::decode_ids
