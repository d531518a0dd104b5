// open_checkpoint.hpp: opens a checkpoint of any supported format, which is detected from the content.
#pragma once

#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint.hpp"
#include "gguf.hpp"
#include "llama2c.hpp"
#include "pytorch_folder.hpp"
#include "safetensors.hpp"
#include "tokenizer_json.hpp"

namespace pocket {

/// Reads a separate tokenizer file, whose format is detected from its content.
inline bool read_tokenizer_file(const std::string& path, Checkpoint& c, std::string& error) {
  std::string bytes;
  if (!read_small_file(path, kLargestTokenizer, bytes, error)) return false;
  const uint32_t first = bytes.size() < 4 ? 0 : load<uint32_t>(bytes.data());
  const size_t visible = bytes.find_first_not_of(" \t\r\n");
  Tokenizer::Vocabulary v;
  if (visible != std::string::npos && bytes[visible] == '{') {
    if (!read_tokenizer_json(path, std::move(bytes), c.config.vocab_size, v, error)) return false;
  } else if (first > 0 && first < 1 << 16) {
    if (!read_llama2c_tokenizer(path, bytes, c.config.vocab_size, v, error)) return false;
  } else if (std::string why; !Tokenizer::parse_sentencepiece(bytes, v, why)) {
    return not_sentencepiece(path, bytes, why, error);
  }
  c.vocabulary = std::move(v);
  return fit_vocabulary(c, path, error);
}

/// The path of the GGUF file in a folder: the only one, or a part of the only split one. "" if there is no such file.
inline std::string only_gguf_file(const std::string& folder) {
  constexpr std::string_view kPart = "-00000-of-00000.gguf";
  std::map<std::string, std::string> paths;  // by the names without the number of a part
  for (const std::string& name : platform::names_in(folder)) {
    const std::string path = join_path(folder, name);
    if (extension_of(name) != ".gguf" || !is_file(path)) continue;
    std::string end = path.substr(path.size() - std::min(path.size(), kPart.size()));
    for (char& c : end)
      if (c >= '0' && c <= '9') c = '0';
    paths[end == kPart ? path.substr(0, path.size() - kPart.size()) : path] = path;
  }
  return paths.size() == 1 ? paths.begin()->second : "";
}

/// Opens a folder; weights: the name of a file of tensors in it, "" for the default.
inline bool open_folder(const std::string& folder, const std::string& weights, bool own_tokenizer, Checkpoint& out,
                        std::string& error) {
  const bool own_config = !is_file(join_path(folder, "config.json")) && has_own_config(folder, weights);
  if (weights.empty() && !own_config && !is_file(join_path(folder, "config.json")))
    if (const std::string gguf = only_gguf_file(folder); !gguf.empty()) {
      auto file = InputFile::open(gguf, error);
      return file && open_gguf(std::move(file), own_tokenizer, out, error);
    }
  return (own_config ? open_pytorch_folder : open_hugging_face)(folder, weights, own_tokenizer, out, error);
}

/// The files that open_checkpoint() may read: the named file, and the files in its folder that are parts of checkpoints.
inline std::vector<std::string> files_of_checkpoint(const std::string& path) {
  std::vector<std::string> files = {path};
  const std::string folder = is_directory(path) ? path : folder_of(path);
  for (const std::string& name : platform::names_in(folder)) {
    const std::string extension = extension_of(name);
    bool part = name.rfind("pytorch_model", 0) == 0;
    for (const char* known : {".safetensors", ".gguf", ".pth", ".pt", ".json", ".yaml", ".jinja", ".model"})
      part = part || extension == known;
    if (part) files.push_back(join_path(folder, name));
  }
  return files;
}

inline bool open_checkpoint(const std::string& path, const std::string& tokenizer_path, Checkpoint& out,
                            std::string& error) try {
  out = Checkpoint();
  out.source = base_name(path);
  const bool own_tokenizer = tokenizer_path.empty();
  if (is_directory(path)) {
    if (!open_folder(path, "", own_tokenizer, out, error)) return false;
  } else {
    auto file = InputFile::open(path, error);
    if (!file) return false;
    char magic[4] = {};
    if (file->size() >= 4 && !file->read(0, magic, 4, error)) return false;
    const bool opened = std::memcmp(magic, "GGUF", 4) == 0 ? open_gguf(std::move(file), own_tokenizer, out, error)
                        : looks_like_safetensors(*file) || looks_like_zip(*file)
                            ? open_folder(folder_of(path), base_name(path), own_tokenizer, out, error)
                            : open_llama2c(std::move(file), out, error);
    if (!opened) return false;
  }
  return own_tokenizer || read_tokenizer_file(tokenizer_path, out, error);
} catch (const std::exception&) {
  return fail_out_of_memory(error);
}

}  // namespace pocket
