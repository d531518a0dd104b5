// describe_file.hpp: the kind of a file that is not a model, for error messages that say what to do with it.
#pragma once

#include "engine.hpp"

namespace pocket {

// llama2.c checkpoints have no magic number: dim, hidden_dim and n_layers come first.
inline bool looks_like_llama2c(const uint8_t* p, size_t n) {
  return n >= 28 && load<uint32_t>(p) - 1 < 1 << 16 && load<uint32_t>(p + 4) - 1 < 1 << 20 &&
         load<uint32_t>(p + 8) - 1 < 1 << 10;
}
// Whether a text begins with a line of base64, a space and a number: the vocabulary of OpenAI's tiktoken.
inline bool looks_like_tiktoken(std::string_view s) {
  constexpr std::string_view kBase64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=";
  const size_t space = s.find_first_not_of(kBase64);
  if (space == 0 || space == std::string_view::npos || s[space] != ' ' || space % 4) return false;
  const size_t end = s.find_first_not_of("0123456789", space + 1);
  return end != space + 1 && end != std::string_view::npos && (s[end] == '\n' || s[end] == '\r');
}
// Identifies a file that is not a model by its first n bytes. Returns "" if it cannot.
inline std::string known_kind(const uint8_t* p, size_t n) {
  const std::string_view s(reinterpret_cast<const char*>(p), std::min<size_t>(n, 64));
  const auto starts = [&](std::string_view with) { return s.substr(0, with.size()) == with; };
  if (n == 0) return "an empty file";
  if (starts("GGUF")) return "a GGUF file; convert it: export/convert FILE -o model.bin";
  if (starts("PK\x03\x04"))
    return "a zip archive (PyTorch saves such files); convert its folder: export/convert FOLDER -o model.bin";
  if (starts("version https://git-lfs")) return "a Git LFS pointer, not the file itself; fetch it with: git lfs pull";
  if (starts("<!") || starts("<html") || starts("<HTML")) return "a web page (HTML); the download failed";
  if (starts("\x1f\x8b") ||
      starts("\xFD"
             "7zXZ") ||
      starts("7z\xBC\xAF") || starts("\x28\xB5\x2F\xFD"))
    return "a compressed archive; unpack it first";
  if (starts("\x80\x02") || starts("\x80\x04")) return "a Python pickle (old PyTorch checkpoint)";
  if (looks_like_tiktoken(s))
    return "a vocabulary of tiktoken (Llama 3's own tokenizer.model); use the tokenizer.json of the model's "
           "Hugging Face version";
  if (n > 8 && p[8] == '{' && load<uint64_t>(p) < (1u << 30))
    return "a safetensors file; convert its folder: export/convert FOLDER -o model.bin";
  if (looks_like_llama2c(p, n))
    return "perhaps a llama2.c checkpoint; convert it: export/convert FILE -z TOKENIZER -o model.bin";
  return "";
}
// The same, but distinguishes text from unknown formats instead of returning "".
inline std::string describe_file(const uint8_t* p, size_t n) {
  const std::string known = known_kind(p, n);
  if (!known.empty()) return known;
  const auto text = [](uint8_t c) { return c >= 32 || c == '\n' || c == '\r' || c == '\t'; };
  return std::all_of(p, p + std::min<size_t>(n, 64), text) ? "a text file" : "an unknown format";
}

}  // namespace pocket
