// model_texts.hpp: the chat template of a model file, with the tokenizer that it is used with.
#pragma once

#include "engine.hpp"

namespace pocket {

/// Loads the chat template of an open model for its tokenizer, or another one, whose tokens in the template become control
/// tokens. On failure returns false with `error` set: the tokenizer does not suit the model, or a section is damaged.
inline bool load_chat_template(const Model& model, Tokenizer& tokenizer, ChatTemplate& chat, std::string& error) {
  const int vocab_size = model.config.vocab_size;
  if (tokenizer.size() > vocab_size)
    error = "tokenizer: expected at most the model's " + std::to_string(vocab_size) + " pieces, found " +
            std::to_string(tokenizer.size());
  else if (!chat.load(model.chat_bytes(), vocab_size))
    error = chat.error;
  else if (!tokenizer.make_control(chat.ids()))
    error = tokenizer.error;
  else
    return true;
  return false;
}

}  // namespace pocket
