// token_text.hpp: the text of single tokens, for lists of them.
#pragma once

#include "../../export/engine.hpp"

namespace pocket::cli {

// The text of a token in the middle of a text; the name of a control token.
class TokenText {
 public:
  explicit TokenText(const Tokenizer& tokenizer) : tokenizer_(tokenizer), stream_(tokenizer) {
    for (const int id : ids_of(tokenizer, "a", false)) stream_.push(id);
  }
  std::string operator()(int id) const {
    if (tokenizer_.type(id) == Tokenizer::PieceType::control) return std::string(tokenizer_.piece(id));
    Tokenizer::Stream stream = stream_;
    const std::string text = printed_text(tokenizer_, stream, id);
    return text + printed_rest(stream);
  }

 private:
  const Tokenizer& tokenizer_;
  Tokenizer::Stream stream_;  // after a first token
};

}  // namespace pocket::cli
