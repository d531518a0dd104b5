// calibration_text.hpp: the text that a model is calibrated with, as windows of token ids: a file's, or the model's
// own.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "engine.hpp"
#include "calibrate.hpp"
#include "input_file.hpp"
#include "model_writer.hpp"

namespace pocket {

using Windows = std::vector<std::vector<int>>;

inline constexpr uint64_t kLongestText = 64 << 20;  // bytes
inline constexpr int kOwnTokens = 16384;            // that a model writes for itself

inline size_t count_tokens(const Windows& windows) {
  size_t n = 0;
  for (const auto& w : windows) n += w.size();
  return n;
}

// Tokens below which the moments of a model's widest matrix are mostly chance: as many as it has columns.
inline size_t enough_tokens(const Config& c) { return size_t(std::max({c.dim, c.q_dim(), c.hidden_dim})); }

inline int window_size(const Config& c) { return std::min(kWindow, c.max_seq_len); }

// Reads a text in UTF-8 and cuts it into windows; each begins with BOS, if the model's texts do.
inline bool read_text(const std::string& path, const Config& c, const Tokenizer& tokenizer, Windows& windows,
                      std::string& error) {
  std::string text;
  if (!read_small_file(path, kLongestText, text, error)) return false;
  for (size_t i = 0; i < text.size();) {
    const auto u = tokenizer_detail::read_utf8(std::string_view(text).substr(i));
    if (u.state != u.whole)
      return fail(error, path + ": expected a text in UTF-8, found other bytes at offset " + std::to_string(i));
    i += u.length;
  }
  const std::vector<int> ids = tokenizer.encode(text, false), bos = tokenizer.encode("", true);
  if (text.find_first_not_of(" \t\r\n") == std::string::npos || ids.empty())
    return fail(error, path + ": expected a text to calibrate with, found an empty one; about " +
                           std::to_string(enough_tokens(c) * 16 / 1000) + " kB or more is a good size");
  const size_t most = std::max<size_t>(1, size_t(window_size(c)) - std::min(bos.size(), size_t(window_size(c)) - 1));
  for (size_t i = 0; i < ids.size(); i += most) {
    windows.push_back(bos);
    windows.back().insert(windows.back().end(), ids.begin() + i, ids.begin() + std::min(ids.size(), i + most));
    if (windows.back().size() > size_t(window_size(c))) windows.back().resize(size_t(window_size(c)));
  }
  return true;
}

// The model writes its own text: windows that begin with BOS, or with a token of their own, each sampled as the model
// says it (temperature 1), with fixed seeds. progress(share) false: stop, and error is "".
inline bool write_own_text(const std::string& model_path, int bos, int threads,
                           const std::function<bool(double share)>& progress, Windows& windows, std::string& error) {
  Model model;
  if (!model.open(model_path.c_str())) return fail(error, model.error);
  const int size = window_size(model.config);
  Session session(model, {size, threads, KvType::automatic, nullptr});
  if (!session.error.empty()) return fail(error, session.error);
  const int count = kOwnTokens / size;
  for (int w = 0; w < count; w++) {
    Sampler pick({1.f, 1.f, uint64_t(w)});
    // Without a BOS the texts begin with tokens spread over the vocabulary.
    const int first =
        bos >= 0 ? bos : int((uint64_t(w) * 0x9E3779B97F4A7C15 >> 33) % uint64_t(model.config.vocab_size));
    std::vector<int> window = {first};
    session.rewind(0);
    const bool done = generate(session, pick, {first}, size - 1, {}, [&](int id) {
      window.push_back(id);
      return progress((w + double(window.size()) / size) / count);
    });
    if (!done) return fail(error, session.error);
    if (!progress(double(w + 1) / count)) return error.clear(), false;
    windows.push_back(window);
  }
  return true;
}

}  // namespace pocket
