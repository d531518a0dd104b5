// safetensors.hpp: reads models in the format of Hugging Face's transformers: a folder with config.json, the weights in
// one or more .safetensors or PyTorch files (pytorch.hpp), and the tokenizer. A .safetensors file
// (github.com/huggingface/safetensors) is a uint64 with the length of a JSON header, the header, and the tensor data:
// {"name": {"dtype": "BF16", "shape": [512, 64], "data_offsets": [0, 65536]}, ...}, with offsets relative to the end of
// the header. The tensors fill the rest of the file without gaps.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint.hpp"
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
  if (dtype != "F32" && dtype != "F16" && dtype != "BF16")
    return refuse({"dtype: expected F32, F16 or BF16, found ", entry.find("dtype").describe()});
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
  const int64_t bytes = stored_bytes(out.dtype, out.shape);
  if (bytes < 0 || uint64_t(bytes) != end - begin)
    return refuse({"expected ", (bytes < 0 ? "fewer" : std::to_string(bytes)), " bytes for ", dtype, " of shape ",
                   shape_text(out.shape), ", found ", end - begin});
  out.offset = data + begin;
  out.bytes = end - begin;
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
// config.json
// ====================================================================================================================

/// Reads the RoPE settings. Newer files have rope_parameters instead of rope_scaling, with rope_theta in it; older ones
/// "type" instead of "rope_type".
inline bool read_hf_rope(const JsonValue& root, Config& c, std::string& error) {
  const char* settings = root.find("rope_parameters").missing() ? "rope_scaling" : "rope_parameters";
  const JsonValue rope = root.find(settings);
  if (!rope.missing() && !root.need(settings, JsonKind::object, error)) return false;
  double theta = c.rope_theta, factor = 1, low = 1, high = 4, rotated = 1;
  std::string type = "default";
  const auto numbers = [&](const JsonValue& v) {
    return v.get("rope_theta", theta, error) && v.get("partial_rotary_factor", rotated, error);
  };
  if (!numbers(root) || !numbers(rope)) return false;
  if (rotated != 1) return fail(error, {root.where(), ": \"partial_rotary_factor\": expected 1, found ", rotated});
  c.rope_theta = float(theta);
  if (rope.missing()) return true;
  const char* key = rope.find("rope_type").missing() ? "type" : "rope_type";
  if (!rope.get(key, type, error)) return false;
  if (type == "default") return true;
  if (type != "linear" && type != "llama3") return rope.refuse(key, "\"default\", \"linear\" or \"llama3\"", error);
  if (!rope.need("factor", JsonKind::number, error) || !rope.get("factor", factor, error)) return false;
  c.rope_factor = float(factor);
  c.rope_scaling = type == "linear" ? RopeScaling::linear : RopeScaling::llama3;
  if (type == "linear") return true;
  for (const char* needed : {"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"})
    if (!rope.need(needed, JsonKind::number, error)) return false;
  if (!rope.get("low_freq_factor", low, error) || !rope.get("high_freq_factor", high, error)) return false;
  c.rope_low_freq = float(low);
  c.rope_high_freq = float(high);
  return rope.get("original_max_position_embeddings", 0, INT32_MAX, c.rope_original_len, error);
}

/// Rejects settings for which the model computes another function. Absent settings have the defaults of transformers.
inline bool check_hf_variant(const JsonValue& root, std::string& error) {
  std::string type, activation = "silu";
  if (!root.need("model_type", JsonKind::string, error) || !root.get("model_type", type, error) ||
      !root.get("hidden_act", activation, error))
    return false;
  if (type != "llama" && type != "mistral") return root.refuse("model_type", "\"llama\"", error);
  if (activation != "silu") return root.refuse("hidden_act", "\"silu\"", error);
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    bool bias = false;
    if (!root.get(key, bias, error)) return false;
    if (bias) return root.refuse(key, "false", error);
  }
  if (!root.find("quantization_config").missing()) {
    const JsonValue method = root.find("quantization_config").find("quant_method");
    return root.refuse("quantization_config", {"none: quantized weights are not supported (", method.describe(), ")"},
                       error);
  }
  return true;
}

/// Mistral is a Llama if the context fits its sliding window. An absent window differs from null: it has a default.
inline bool check_mistral_window(const JsonValue& root, int max_seq_len, std::string& error) {
  int window = 4096;
  if (root.find("sliding_window").is(JsonKind::null)) return true;
  if (!root.get("sliding_window", 0, INT32_MAX, window, error)) return false;
  return window >= max_seq_len || root.refuse("sliding_window", "null, or at least max_position_embeddings", error);
}

inline constexpr FieldNames kHuggingFaceFields = {{{"dim", "hidden_size"},
                                                   {"hidden_dim", "intermediate_size"},
                                                   {"n_layers", "num_hidden_layers"},
                                                   {"n_heads", "num_attention_heads"},
                                                   {"n_kv_heads", "num_key_value_heads"},
                                                   {"max_seq_len", "max_position_embeddings"},
                                                   {"norm_eps", "rms_norm_eps"},
                                                   {"rope_factor", "factor"},
                                                   {"rope_low_freq", "low_freq_factor"},
                                                   {"rope_high_freq", "high_freq_factor"},
                                                   {"rope_original_len", "original_max_position_embeddings"}}};

/// Reads config.json. Absent keys have the defaults of transformers' LlamaConfig or MistralConfig.
inline bool read_hf_config(const JsonValue& root, Config& c, std::string& error) {
  if (!check_hf_variant(root, error)) return false;
  const bool mistral = root.find("model_type").string() == "mistral";
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"})
    if (!root.need(key, JsonKind::number, error)) return false;
  double eps = 1e-6;
  c.max_seq_len = mistral ? 4096 * 32 : 2048;
  constexpr int kAny = INT32_MAX;  // check_config() has the limits
  if (!root.get("hidden_size", 0, kAny, c.dim, error) || !root.get("intermediate_size", 0, kAny, c.hidden_dim, error) ||
      !root.get("num_hidden_layers", 0, kAny, c.n_layers, error) ||
      !root.get("num_attention_heads", 0, kAny, c.n_heads, error) ||
      !root.get("vocab_size", 0, kAny, c.vocab_size, error) || !root.get("rms_norm_eps", eps, error) ||
      !root.get("max_position_embeddings", 0, kAny, c.max_seq_len, error) ||
      !root.get("tie_word_embeddings", c.tied, error))
    return false;
  c.norm_eps = float(eps);
  c.n_kv_heads = mistral ? 8 : c.n_heads;
  c.head_dim = c.n_heads > 0 ? c.dim / c.n_heads : 0;
  if (root.find("head_dim").missing() && c.n_heads > 0 && c.dim % c.n_heads)
    return root.refuse("hidden_size", "a multiple of num_attention_heads", error);
  return root.get("num_key_value_heads", 0, kAny, c.n_kv_heads, error) &&
         root.get("head_dim", 0, kAny, c.head_dim, error) && read_hf_rope(root, c, error) &&
         (!mistral || check_mistral_window(root, c.max_seq_len, error));
}

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

/// Opens the shards of an index, which must agree with it.
inline bool open_shards(const std::string& folder, const JsonDocument& index, Checkpoint& c, FoundTensors& found,
                        std::string& error) {
  const JsonValue root = index.root(), map = root.find("weight_map");
  if (!root.need("weight_map", JsonKind::object, error)) return false;
  std::map<std::string, int> shards;
  std::map<std::string, std::string> shard_of;
  for (const auto& [tensor, shard] : map.members()) {
    const std::string name = shard.string();
    if (!is_plain_name(name)) return map.refuse(tensor, "the name of a file in the same folder", error);
    shards[name] = -1;
    shard_of[tensor] = name;
  }
  for (auto& [name, file] : shards) {
    if (!open_weight_file(folder, name, c, found, error)) return false;
    file = int(c.files.size()) - 1;
  }
  for (const auto& [tensor, name] : shard_of) {
    const auto it = found.find(tensor);
    if (it == found.end() || it->second.file != shards[name])
      return map.refuse(tensor, "a tensor of that shard", error);
  }
  for (const auto& [name, t] : found)
    if (shard_of.count(name) == 0) return map.refuse(name, "the name of the shard that it is in", error);
  return true;
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
  const bool adapter = is_file(join_path(folder, "adapter_config.json"));
  return fail(error, {folder, ": expected config.json, found ",
                      (adapter ? "a LoRA adapter; name its base model, and the adapter with --lora"
                               : "none; name a file, or a folder in the format of Hugging Face's transformers")});
}

/// Opens a folder.
inline bool open_hugging_face(const std::string& folder, const std::string& weights, bool own_tokenizer,
                              Checkpoint& out, std::string& error) {
  const std::string path = join_path(folder, "config.json");
  const std::string generation_path = join_path(folder, "generation_config.json");
  JsonDocument config, generation;
  if (!is_file(path)) return no_config(folder, error);
  if (!read_settings(path, config, error)) return false;
  if (!read_hf_config(config.root(), out.config, error) || !check_config(out.config, path, kHuggingFaceFields, error))
    return false;
  FoundTensors found;
  if (!open_weights(folder, weights, out, found, error)) return false;
  if (!bind_llama(out, found, folder, error)) return false;
  if (is_file(generation_path) && !read_settings(generation_path, generation, error)) return false;
  out.format = weights_format(out);
  out.name = config.root().find("_name_or_path").string();
  out.licence = licence_of_card(folder);
  HfTokenizer tokenizer(folder, out);
  if (!tokenizer.read(config.root(), own_tokenizer)) return fail(error, tokenizer.error);
  return read_hf_stop_ids(config.root(), out, error) && read_hf_stop_ids(generation.root(), out, error);
}

}  // namespace pocket
