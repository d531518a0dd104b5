// text_model.hpp: a model file opened together with its tokenizer.
#pragma once

#include "../../export/engine.hpp"
#include "../../export/program.hpp"

namespace pocket::bench {

struct TextModel {
  std::string file;
  Model model;
  Tokenizer tokenizer;

  /// Throws Failure if the file is not a Llama model with a tokenizer.
  explicit TextModel(const std::string& path) : file(path) {
    if (!model.open(path.c_str())) throw Failure{1, model.error};
    if (!tokenizer.load(model.tokenizer_bytes())) throw Failure{1, path + ": " + tokenizer.error};
    if (tokenizer.size() > model.config.vocab_size)
      throw Failure{1, path + ": tokenizer: expected at most " + std::to_string(model.config.vocab_size) +
                           " pieces, found " + std::to_string(tokenizer.size())};
  }
};

/// Throws the Failure of a session: interrupted, or its error.
[[noreturn]] inline void throw_failure(const Session& session) {
  stop_if_interrupted();
  throw Failure{1, session.error};
}

/// Throws Failure if the session could not be opened.
inline void check_open(const Session& session) {
  if (!session.error.empty()) throw_failure(session);
}

}  // namespace pocket::bench
