// open_model.hpp: opens a model file of any supported architecture.
#pragma once

#include "llama.hpp"
#include "megabyte.hpp"
#include "options.hpp"

namespace pocket::cli {

// Opens the model of the command line, and rejects options that it does not support. Throws Failure.
inline std::unique_ptr<LanguageModel> open_model(const Arguments& a) {
  std::unique_ptr<LanguageModel> model;
  if (is_megabyte(a.model.c_str()))
    model = std::make_unique<Megabyte>(a.model, a.load());
  else
    model = std::make_unique<Llama>(a.model, a.tokenizer, a.kernel, a.load(), a.lora);
  for (const UnsupportedOption& o : model->unsupported_options())
    if (a.is_given(o.name)) throw Failure{o.status, a.model + ": " + o.name + " is not supported: " + o.reason};
  return model;
}

}  // namespace pocket::cli
