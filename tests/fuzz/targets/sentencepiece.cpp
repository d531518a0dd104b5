// SentencePiece's .model files.
#include "use_tokenizer.hpp"

namespace fuzz::sentencepiece {

using namespace pocket;

void run(std::string_view input) {
  Tokenizer tokenizer;
  if (!tokenizer.load_sentencepiece(input)) return require(!tokenizer.error.empty(), "SentencePiece: an error");
  use(tokenizer);
}

// A field of a protobuf message: a short text, or a small number.
std::string tag(int number, int wire_type) {
  const int value = number * 8 + wire_type;
  return value < 128 ? std::string{char(value)} : std::string{char(value | 128), char(value >> 7)};
}
std::string field(int number, const std::string& value) { return tag(number, 2) + char(value.size()) + value; }
std::string field(int number, int value) { return tag(number, 0) + char(value); }

std::vector<std::string> seeds() {
  std::string pieces;
  for (const Tokenizer::Piece& p : small_vocabulary(false).pieces)
    pieces += field(1, field(1, p.text) + tag(2, 5) + raw(p.score) + field(3, int(p.type)));
  const std::string bpe = field(3, 2), identity = field(1, "identity");
  return {pieces + field(2, bpe) + field(3, identity), pieces + field(2, bpe + field(44, " ? ") + field(46, "<s>")) +
                                                           field(3, identity + field(3, 0) + field(4, 0))};
}

const Registered target({"sentencepiece", run, seeds});

}  // namespace fuzz::sentencepiece
