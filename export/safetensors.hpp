// safetensors.hpp: reads models in the format of Hugging Face's transformers: a folder with config.json, the weights in
// one or more .safetensors or PyTorch files (pytorch.hpp), and the tokenizer. A .safetensors file
// (github.com/huggingface/safetensors) is a uint64 with the length of a JSON header, the header, and the tensor data:
// {"name": {"dtype": "BF16", "shape": [512, 64], "data_offsets": [0, 65536]}, ...}, with offsets relative to the end of
// the header. The tensors fill the rest of the file without gaps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint.hpp"
#include "hf_config.hpp"
#include "hf_tokenizer.hpp"
#include "json_reader.hpp"
#include "llama_names.hpp"
#include "pytorch.hpp"

namespace pocket {

inline constexpr uint64_t kLargestHeader = 100000000;  // bytes; the format's own limit

// ====================================================================================================================
// .safetensors files
// ====================================================================================================================

/// Whether a file begins like a safetensors file: bytes 9 and 10 start a JSON object. In a llama2.c header these bytes
/// would mean 2,600 layers or more.
inline bool looks_like_safetensors(const InputFile& file) {
  char head[10];
  std::string error;
  return file.size() >= sizeof head && file.read(0, head, sizeof head, error) && head[8] == '{' &&
         std::string_view("\"} \n\r\t").find(head[9]) != std::string_view::npos;
}

/// Reads one entry of a header. data: file offset of the tensor data.
inline bool read_safetensors_entry(const JsonValue& entry, const std::string& name, const InputFile& file,
                                   uint64_t data, FoundTensor& out, std::string& error) {
  const auto refuse = [&](Message why) { return fail(error, {file.path(), ": tensor ", name, ": ", text_of(why)}); };
  const std::string dtype = entry.find("dtype").string();
  const auto unknown_dtype = [&] {
    return refuse({"dtype: expected F32, F16 or BF16, found ", entry.find("dtype").describe()});
  };
  if (!entry.find("dtype").is(JsonKind::string)) return unknown_dtype();
  out.dtype = dtype == "F32" ? DType::f32 : dtype == "F16" ? DType::f16 : DType::bf16;
  const auto numbers = [&](const char* key, std::vector<int64_t>& to) {
    for (const JsonValue& element : entry.find(key).elements()) {
      int64_t n = -1;
      if (!element.integer(n) || n < 0) return refuse({key, ": expected whole numbers, found ", element.describe()});
      if (to.size() == kMostDimensions)
        return refuse({key, ": expected at most ", kMostDimensions, " numbers, found more"});
      to.push_back(n);
    }
    return entry.find(key).is(JsonKind::array) ||
           refuse({key, ": expected an array, found ", entry.find(key).describe()});
  };
  std::vector<int64_t> offsets;
  if (!numbers("shape", out.shape) || !numbers("data_offsets", offsets)) return false;
  if (offsets.size() != 2) return refuse({"data_offsets: expected 2 numbers, found ", offsets.size()});
  const uint64_t begin = uint64_t(offsets[0]), end = uint64_t(offsets[1]);
  if (begin > end || end > file.size() - data)
    return refuse({"data_offsets: expected a range within ", file.size() - data, " bytes, found ", begin, " to ", end});
  out.offset = data + begin;
  out.bytes = end - begin;
  if (dtype != "F32" && dtype != "F16" && dtype != "BF16") return is_derivable(name, out.shape) || unknown_dtype();
  const int64_t bytes = stored_bytes(out.dtype, out.shape);
  if (bytes < 0 || uint64_t(bytes) != end - begin)
    return refuse({"expected ", (bytes < 0 ? "fewer" : std::to_string(bytes)), " bytes for ", dtype, " of shape ",
                   shape_text(out.shape), ", found ", end - begin});
  return true;
}

/// Adds a tensor; an error if the name exists.
inline bool add_tensor(const Checkpoint& c, const std::string& name, FoundTensor tensor, FoundTensors& found,
                       std::string& error) {
  const std::string& path = c.files[size_t(tensor.file)]->path();
  const auto [before, is_new] = found.emplace(name, std::move(tensor));
  return is_new || fail(error, {path, ": tensor ", name, ": expected once, found also in ",
                                c.files[size_t(before->second.file)]->path()});
}

/// Adds the tensors of c.files[file] to `found`.
inline bool list_safetensors(const Checkpoint& c, int file, FoundTensors& found, std::string& error) {
  const InputFile& in = *c.files[size_t(file)];
  uint64_t length = 0;
  if (in.size() < sizeof length || !looks_like_safetensors(in))
    return fail(error, {in.path(), ": expected a safetensors or PyTorch file, found ", describe_unreadable(in)});
  if (!in.read(0, &length, sizeof length, error)) return false;
  const uint64_t rest = in.size() - sizeof length;
  if (length > rest || length > kLargestHeader)
    return fail(error, {in.path(), ": header length: expected at most ", std::min(rest, kLargestHeader), ", found ",
                        length, (length > rest ? " (truncated?)" : "")});
  std::string text(size_t(length), '\0');
  if (!in.read(sizeof length, text.data(), length, error)) return false;
  JsonDocument header;
  if (!header.parse(in.path() + ": header", std::move(text))) return fail(error, header.error);
  if (!header.root().is(JsonKind::object)) return fail(error, {in.path(), ": header: expected an object"});
  const uint64_t data = sizeof length + length;
  for (const auto& [name, entry] : header.root().members()) {
    if (name == "__metadata__") continue;
    FoundTensor tensor{file, 0, 0, DType::f32, {}};
    if (!read_safetensors_entry(entry, name, in, data, tensor, error)) return false;
    if (!add_tensor(c, name, std::move(tensor), found, error)) return false;
  }
  return check_layout(in.path(), found, file, data, in.size(), true, error);
}

// ====================================================================================================================
// End-of-text ids
// ====================================================================================================================

/// Reads eos_token_id, a number or a list of numbers.
inline bool read_hf_stop_ids(const JsonValue& root, Checkpoint& c, std::string& error) {
  const JsonValue eos = root.find("eos_token_id");
  const auto add = [&](const JsonValue& value, const char* expected) {
    int64_t id = -1;
    if (!value.integer(id)) return root.refuse("eos_token_id", expected, error);
    return add_stop_id(
        c, id, [&] { return value.where() + ": \"eos_token_id\""; }, error);
  };
  for (const JsonValue& element : eos.elements())
    if (!add(element, "ids")) return false;
  return eos.missing() || eos.is(JsonKind::array) || add(eos, "an id or a list of ids");
}

// ====================================================================================================================
// The folder
// ====================================================================================================================

/// Whether a name is of a file in the same folder, so that a shard cannot be elsewhere.
inline bool is_plain_name(const std::string& name) {
  return !name.empty() && name[0] != '.' && name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
}

/// Opens a file of tensors, whose format is detected from its content.
inline bool open_weight_file(const std::string& folder, const std::string& name, Checkpoint& c, FoundTensors& found,
                             std::string& error) {
  auto file = InputFile::open(join_path(folder, name), error);
  if (!file) return false;
  const int index = int(c.files.size());
  c.files.push_back(std::move(file));
  if (!looks_like_zip(*c.files.back())) return list_safetensors(c, index, found, error);
  FoundTensors tensors;
  PyTorchFile pytorch(*c.files.back());
  if (!pytorch.read(index, tensors)) return fail(error, pytorch.error);
  for (auto& [tensor_name, tensor] : tensors)
    if (!add_tensor(c, tensor_name, std::move(tensor), found, error)) return false;
  return true;
}

/// Opens the shards of an index: all files that it names. Tensors are in the file that contains them, whatever the index
/// says.
inline bool open_shards(const std::string& folder, const JsonDocument& index, Checkpoint& c, FoundTensors& found,
                        std::string& error) {
  const JsonValue root = index.root(), map = root.find("weight_map");
  if (!root.need("weight_map", JsonKind::object, error)) return false;
  std::set<std::string> shards;
  std::vector<std::string> tensors;
  for (const auto& [tensor, shard] : map.members()) {
    const std::string name = shard.string();
    if (!is_plain_name(name)) return map.refuse(tensor, "the name of a file in the same folder", error);
    shards.insert(name);
    tensors.push_back(tensor);
  }
  for (const std::string& name : shards)
    if (!open_weight_file(folder, name, c, found, error)) return false;
  const auto stale = [&](const std::string& name) { return found.count(name) == 0 && !is_derivable(name, {}); };
  const auto first = std::find_if(tensors.begin(), tensors.end(), stale);
  if (first != tensors.end())
    c.notes.push_back(text_of({map.where(), ": names ", std::count_if(first, tensors.end(), stale),
                               " tensors that are in none of the shards, such as ", printable(*first), "; ignored"}));
  return true;
}

/// Whether a name is of one of several shards: NAME-00001-of-00002.safetensors or .bin.
inline bool is_shard_name(const std::string& name) {
  const size_t of = name.rfind("-of-"), dot = name.rfind('.');
  if (of == std::string::npos || dot == std::string::npos || of < 6 || dot < of + 5) return false;
  const std::string number = name.substr(of - 5, 5), count = name.substr(of + 4, dot - of - 4);
  const auto is_number = [](const std::string& s) { return s.find_first_not_of("0123456789") == std::string::npos; };
  return name[of - 6] == '-' && is_number(number) && is_number(count) &&
         count.find_first_not_of('0') != std::string::npos && count != "00001";
}

/// A shard in a folder; "" if there is none.
inline std::string find_shard(const std::string& folder) {
  for (const std::string& name : platform::names_in(folder)) {
    const std::string extension = extension_of(name);
    if (is_shard_name(name) && (extension == ".safetensors" || extension == ".bin")) return name;
  }
  return "";
}

/// The names of the weights in a folder, single file and index of shards; the first existing one is read.
struct WeightsName {
  const char *single, *index;
};
inline constexpr WeightsName kWeightsNames[] = {{"model.safetensors", "model.safetensors.index.json"},
                                                {"pytorch_model.bin", "pytorch_model.bin.index.json"},
                                                {"lit_model.pth", ""},
                                                {"consolidated.00.pth", ""}};

/// Opens the weights. weights: the name of a file, "" for the default of the folder.
inline bool open_weights(const std::string& folder, const std::string& weights, Checkpoint& c, FoundTensors& found,
                         std::string& error) {
  for (const WeightsName& name : kWeightsNames) {
    const std::string index_path = join_path(folder, name.index);
    const bool has_single = is_file(join_path(folder, name.single)), has_index = is_file(index_path);
    JsonDocument index;
    if (has_index && !index.parse_file(index_path, kLargestHeader)) return fail(error, index.error);
    bool is_shard = weights.empty() && !has_single;
    for (const auto& [tensor, shard] : index.root().find("weight_map").members())
      is_shard = is_shard || shard.string() == weights;
    if (is_shard && has_index) return open_shards(folder, index, c, found, error);
    if (weights.empty() && has_single) return open_weight_file(folder, name.single, c, found, error);
  }
  const std::string shard = weights.empty() ? find_shard(folder) : is_shard_name(weights) ? weights : "";
  if (!shard.empty())
    return fail(error, {join_path(folder, shard), ": one of several shards: expected their index beside it (such as ",
                        kWeightsNames[shard.rfind(".bin") == std::string::npos ? 0 : 1].index,
                        "), found none; download it too"});
  if (!weights.empty()) return open_weight_file(folder, weights, c, found, error);
  return fail(error, {folder,
                      ": expected weights (model.safetensors, pytorch_model.bin, or the index of shards), "
                      "found none; to read a file with another name, name the file"});
}

/// The format of the weights, for the provenance.
inline const char* weights_format(const Checkpoint& c) {
  return looks_like_zip(*c.files[0]) ? "PyTorch" : "safetensors";
}

/// The licence from the header of the model card (README.md), `license: mit`; "" if there is none.
inline std::string licence_of_card(const std::string& folder) {
  std::string text, ignored;
  const std::string path = join_path(folder, "README.md"), key = "\nlicense:";
  if (!is_file(path) || !read_small_file(path, kLargestConfig, text, ignored) || text.rfind("---\n", 0) != 0) return "";
  const size_t at = text.substr(0, text.find("\n---", 3)).find(key);
  if (at == std::string::npos) return "";
  const size_t start = text.find_first_not_of(" ", at + key.size());
  return start == std::string::npos ? "" : text.substr(start, text.find_first_of("\r\n", start) - start);
}

/// Sets the error for a folder without config.json.
inline bool no_config(const std::string& folder, std::string& error) {
  std::string found = "none; name a file, or a folder in the format of Hugging Face's transformers";
  for (const std::string& name : platform::names_in(folder)) {
    if (extension_of(name) == ".gguf") found = "GGUF files; name one of them";
    if (extension_of(name) == ".safetensors") found = "weights without it; download config.json too";
  }
  if (is_file(join_path(folder, "adapter_config.json")))
    found = "a LoRA adapter; name its base model, and the adapter with --lora";
  return fail(error, {folder, ": expected config.json, found ", found});
}

/// Opens a folder.
inline bool open_hugging_face(const std::string& folder, const std::string& weights, bool own_tokenizer,
                              Checkpoint& out, std::string& error) {
  const std::string path = join_path(folder, "config.json");
  const std::string generation_path = join_path(folder, "generation_config.json");
  JsonDocument config, generation;
  if (!is_file(path)) return no_config(folder, error);
  HfModel model;
  if (!read_settings(path, config, error)) return false;
  if (!read_hf_config(config.root(), model, error) || !check_config(model.config, path, kHuggingFaceFields, error))
    return false;
  out.config = model.config;
  FoundTensors found;
  if (!open_weights(folder, weights, out, found, error)) return false;
  if (!bind_llama(out, found, folder, model.interleaved, error)) return false;
  fold_multipliers(out, model.multipliers);
  out.interleaved_adapters = model.interleaved;
  if (is_file(generation_path) && !read_settings(generation_path, generation, error)) return false;
  out.format = weights_format(out);
  out.name = config.root().find("_name_or_path").string();
  out.licence = licence_of_card(folder);
  HfTokenizer tokenizer(folder, out);
  if (!tokenizer.read(config.root(), own_tokenizer)) return fail(error, tokenizer.error);
  return read_hf_stop_ids(config.root(), out, error) && read_hf_stop_ids(generation.root(), out, error);
}

}  // namespace pocket
