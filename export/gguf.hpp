// gguf.hpp: llama.cpp's model files (github.com/ggml-org/ggml, docs/gguf.md), versions 2 and 3.
//
//     "GGUF", uint32 version, uint64 number of tensors, uint64 number of metadata pairs
//     metadata: key, uint32 type, value                      a string is a uint64 length and its bytes
//     tensors:  name, uint32 dimensions, uint64 sizes (fastest first), uint32 type, uint64 offset
//     padding to general.alignment, then the tensor data; offsets are relative to its start
// The metadata are checked and skipped at open; values are read later by key. A model may be split into several files,
// NAME-00001-of-00003.gguf and so on: the metadata are in the first one, the tensors in all of them.
#pragma once

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint.hpp"
#include "hf_config.hpp"
#include "tokenizer_json.hpp"

namespace pocket {

// ====================================================================================================================
// The header: metadata and the list of tensors
// ====================================================================================================================

enum class GgufKind : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

inline constexpr uint32_t kGgufKinds = 13;
inline constexpr int kGgufKindBytes[kGgufKinds] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};  // 0: variable
inline constexpr int kGgufArrayDepth = 4;                                                   // nesting of arrays
inline constexpr uint64_t kLargestString = 16 << 20;                                        // bytes
inline constexpr int kGgufDimensions = 4;

/// The name of a ggml type number, supported or not.
inline const char* ggml_type_name(uint32_t type) {
  constexpr const char* kNames[] = {"F32",     "F16",    "Q4_0",    "Q4_1",  nullptr,  nullptr, "Q5_0",  "Q5_1",
                                    "Q8_0",    "Q8_1",   "Q2_K",    "Q3_K",  "Q4_K",   "Q5_K",  "Q6_K",  "Q8_K",
                                    "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS",
                                    "I8",      "I16",    "I32",     "I64",   "F64",    "IQ1_M", "BF16",  nullptr,
                                    nullptr,   nullptr,  "TQ1_0",   "TQ2_0", nullptr,  nullptr, nullptr, "MXFP4"};
  return type < sizeof kNames / sizeof *kNames && kNames[type] ? kNames[type] : "unknown";
}

/// Reads and checks the header of a file. Metadata values stay in the file until get() reads them.
class GgufHeader {
 public:
  // index: FoundTensor::file of its tensors.
  explicit GgufHeader(const InputFile& file, int index = 0) : file_(file), index_(index), in_(file) {}

  std::string error;
  uint32_t version = 0;
  std::string architecture;  // general.architecture, once read
  FoundTensors tensors;

  // A key of the model, whose name begins with the architecture.
  std::string key(std::string_view name) const { return architecture + "." + std::string(name); }

  bool read() {
    if (in_.get<uint32_t>() != 0x46554747) return refuse({"magic: expected \"GGUF\""});
    version = in_.get<uint32_t>();
    if (version == 0x02000000 || version == 0x03000000)
      return refuse({"a big-endian GGUF file, which is not supported"});
    if (in_.ok() && version == 1)
      return refuse({"a GGUF file of version 1; expected version 2 or 3: download the model again"});
    if (in_.ok() && version != 2 && version != 3) return refuse({"version: expected 2 or 3, found ", version});
    const uint64_t tensor_count = in_.get<uint64_t>(), pairs = in_.get<uint64_t>();
    for (uint64_t i = 0; i < pairs; i++)
      if (!read_pair(i)) return false;
    int alignment = 32;
    if (!get("general.alignment", 1, 1 << 20, alignment)) return false;
    if (alignment & (alignment - 1)) return refuse({"general.alignment: expected a power of 2, found ", alignment});
    for (uint64_t i = 0; i < tensor_count; i++)
      if (!read_tensor(i, uint64_t(alignment))) return false;
    if (!in_.ok()) return fail(error, in_.error());
    return place_tensors(round_up(in_.position(), uint64_t(alignment)));
  }

  bool has(std::string_view key) const { return values_.find(key) != values_.end(); }

  // Stores the value of a key in `out`. False with `error` set if it is of another kind or out of range; a missing key
  // leaves `out` unchanged and is not an error.
  bool get(std::string_view key, std::string& out) {
    return take(key, [&](FileCursor& in, const Value& v) {
      if (v.kind != GgufKind::string) return mismatch(key, "a string");
      out = in.get_string(in.get<uint64_t>());
      return true;
    });
  }
  bool get(std::string_view key, bool& out) {
    return take(key, [&](FileCursor& in, const Value& v) {
      if (v.kind != GgufKind::boolean) return mismatch(key, "true or false");
      out = in.get<uint8_t>() != 0;
      return true;
    });
  }
  bool get(std::string_view key, float& out) {
    return take(key, [&](FileCursor& in, const Value& v) {
      double value = 0;
      if (!number(in, v.kind, value)) return mismatch(key, "a number");
      out = float(value);
      return true;
    });
  }
  bool get(std::string_view key, int64_t low, int64_t high, int& out) {
    return take(key, [&](FileCursor& in, const Value& v) {
      double value = 0;  // exact up to 2^53, above every limit
      if (!number(in, v.kind, value) || value != std::floor(value) || value < double(low) || value > double(high))
        return mismatch(key, "an integer from " + std::to_string(low) + " to " + std::to_string(high));
      out = int(value);
      return true;
    });
  }
  // A token id; -1 for 2^32 - 1, which means none.
  bool get_id(std::string_view key, int& out) {
    return take(key, [&](FileCursor& in, const Value& v) {
      double value = 0;
      if (!number(in, v.kind, value) || value != std::floor(value) || value < -1 || value > double(UINT32_MAX))
        return mismatch(key, "a token id");
      out = value == double(UINT32_MAX) ? -1 : int(std::min(value, double(INT32_MAX)));
      return true;
    });
  }
  bool get(std::string_view key, std::vector<std::string>& out) {
    return take(key, [&](FileCursor& in, const Value& v) {
      if (v.kind != GgufKind::array || v.element != GgufKind::string) return mismatch(key, "an array of strings");
      out.reserve(size_t(v.count));  // read_pair() has checked that the file has as many
      for (uint64_t i = 0; i < v.count && in.ok(); i++) out.push_back(in.get_string(in.get<uint64_t>()));
      return true;
    });
  }
  bool get(std::string_view key, std::vector<float>& out) {
    return take(key, [&](FileCursor& in, const Value& v) {
      double value = 0;
      out.reserve(size_t(v.count));
      for (uint64_t i = 0; i < v.count && in.ok(); i++) {
        if (!number(in, v.element, value)) break;
        out.push_back(float(value));
      }
      return (v.kind == GgufKind::array && out.size() == v.count) || mismatch(key, "an array of numbers");
    });
  }

  // Reports a missing key.
  bool need(std::string_view key) { return has(key) || refuse({"metadata ", key, ": expected a value, found none"}); }
  bool refuse(Message why) {
    return in_.ok() ? fail(error, {file_.path(), ": ", text_of(why)}) : fail(error, in_.error());
  }

 private:
  struct Value {
    GgufKind kind = GgufKind::array;
    uint64_t at = 0;                     // offset of the value or of the first element
    GgufKind element = GgufKind::array;  // of an array
    uint64_t count = 0;                  // of an array
  };

  bool read_pair(uint64_t i) {
    const uint64_t length = in_.get<uint64_t>();
    if (length > 65535)
      return refuse({"metadata pair ", i, ": length of the key: expected at most 65535, found ", length});
    const std::string key = in_.get_string(length);
    Value v;
    v.kind = GgufKind(in_.get<uint32_t>());
    v.at = in_.position();
    if (v.kind == GgufKind::array) {
      v.element = GgufKind(in_.get<uint32_t>());
      v.count = in_.get<uint64_t>();
      v.at += 12;
      if (!skip_array(key, v.element, v.count, 1)) return false;
    } else if (!skip_value(key, v.kind, 0)) {
      return false;
    }
    if (!in_.ok()) return fail(error, in_.error());
    return values_.emplace(key, v).second || refuse({"metadata ", key, ": expected once, found twice"});
  }

  bool skip_value(std::string_view key, GgufKind kind, int depth) {
    if (!in_.ok()) return fail(error, in_.error());
    if (uint32_t(kind) >= kGgufKinds)
      return refuse({"metadata ", key, ": kind: expected 0 to 12, found ", uint32_t(kind)});
    if (kind == GgufKind::array) {
      const GgufKind element = GgufKind(in_.get<uint32_t>());
      return skip_array(key, element, in_.get<uint64_t>(), depth + 1);
    }
    const uint64_t bytes = kind == GgufKind::string ? in_.get<uint64_t>() : uint64_t(kGgufKindBytes[int(kind)]);
    if (kind == GgufKind::string && bytes > kLargestString)
      return refuse({"metadata ", key, ": length of a string: expected at most ", kLargestString, ", found ", bytes});
    return in_.skip(bytes) || fail(error, in_.error());
  }

  bool skip_array(std::string_view key, GgufKind element, uint64_t count, int depth) {
    if (!in_.ok()) return fail(error, in_.error());
    if (depth > kGgufArrayDepth) return refuse({"metadata ", key, ": expected at most 4 nested arrays"});
    if (uint32_t(element) >= kGgufKinds)
      return refuse({"metadata ", key, ": kind of its elements: expected 0 to 12, found ", uint32_t(element)});
    const uint64_t bytes = uint64_t(kGgufKindBytes[int(element)]), least = bytes ? bytes : 8;
    if (count > in_.left() / least)
      return refuse({"metadata ", key, ": length: expected an array within the file's ", file_.size(), " bytes, found ",
                     count, " elements"});
    if (bytes > 0) return in_.skip(count * bytes);
    for (uint64_t i = 0; i < count; i++)
      if (!skip_value(key, element, depth)) return false;
    return true;
  }

  bool read_tensor(uint64_t i, uint64_t alignment) {
    const uint64_t length = in_.get<uint64_t>();
    if (length > 1024) return refuse({"tensor ", i, ": length of the name: expected at most 1024, found ", length});
    const std::string name = in_.get_string(length), where = "tensor " + name + ": ";
    const uint32_t dimensions = in_.get<uint32_t>();
    if (in_.ok() && (dimensions < 1 || dimensions > kGgufDimensions))
      return refuse({where, "dimensions: expected 1 to 4, found ", dimensions});
    FoundTensor t{index_, 0, 0, DType::f32, {}};
    for (uint32_t d = 0; d < dimensions; d++) {
      const uint64_t size = in_.get<uint64_t>();
      if (size > uint64_t(INT64_MAX)) return refuse({where, "size: expected less than 2^63, found ", size});
      t.shape.insert(t.shape.begin(), int64_t(size));
    }
    const uint32_t type = in_.get<uint32_t>();
    t.offset = in_.get<uint64_t>();
    if (!in_.ok()) return fail(error, in_.error());
    if (!dtype_of(type, t.dtype))
      return refuse({where, "type: expected one of ", known_types(), ", found ", ggml_type_name(type), " (", type,
                     "), which is not supported"});
    const int64_t bytes = stored_bytes(t.dtype, t.shape);
    if (bytes < 0)
      return refuse({where, "expected rows of whole blocks, at most 2^62 bytes, found ", shape_text(t.shape)});
    if (t.offset % alignment)
      return refuse({where, "offset: expected a multiple of ", alignment, ", found ", t.offset});
    t.bytes = uint64_t(bytes);
    return tensors.emplace(name, std::move(t)).second || refuse({where, "expected once, found twice"});
  }

  static bool dtype_of(uint32_t type, DType& out) {
    for (int known = 0; known < kGgmlTypes; known++) {
      out = DType(known);
      if (std::string(dtype_info(out).name) == ggml_type_name(type)) return true;
    }
    return false;
  }

  static std::string known_types() {
    std::string names;
    for (int known = 0; known < kGgmlTypes; known++)
      names += (known ? " " : "") + std::string(dtype_info(DType(known)).name);
    return names;
  }

  // data: start of the tensor data.
  bool place_tensors(uint64_t data) {
    const uint64_t room = file_.size() - std::min(file_.size(), data);
    for (auto& [name, t] : tensors) {
      if (t.offset > room || t.bytes > room - t.offset)
        return refuse({"tensor ", name, ": expected ", t.bytes, " bytes at offset ", t.offset, ", found ",
                       room - std::min(room, t.offset), " (truncated?)"});
      t.offset += data;
    }
    return check_layout(file_.path(), tensors, index_, data, file_.size(), false, error);
  }

  template <class F> bool take(std::string_view key, F read) {
    const auto it = values_.find(key);
    if (it == values_.end()) return true;
    FileCursor in(file_, it->second.at);
    return read(in, it->second) && (in.ok() || fail(error, in.error()));
  }

  bool mismatch(std::string_view key, std::string_view expected) {
    return refuse({"metadata ", key, ": expected ", expected, ", found something else"});
  }

  static bool number(FileCursor& in, GgufKind kind, double& out) {
    const auto read = [&](auto type) {
      out = double(in.get<decltype(type)>());
      return true;
    };
    switch (kind) {
      case GgufKind::u8:
        return read(uint8_t());
      case GgufKind::i8:
        return read(int8_t());
      case GgufKind::u16:
        return read(uint16_t());
      case GgufKind::i16:
        return read(int16_t());
      case GgufKind::u32:
        return read(uint32_t());
      case GgufKind::i32:
        return read(int32_t());
      case GgufKind::u64:
        return read(uint64_t());
      case GgufKind::i64:
        return read(int64_t());
      case GgufKind::f32:
        return read(float());
      case GgufKind::f64:
        return read(double());
      default:
        return false;
    }
  }

  const InputFile& file_;
  int index_;
  FileCursor in_;
  std::map<std::string, Value, std::less<>> values_;
};

// ====================================================================================================================
// Split files
// ====================================================================================================================

/// A part of a split file, from its metadata. A file that is not split is part 0 of 1.
struct GgufPart {
  int number = 0, count = 1;  // split.no, split.count
  int tensors = -1;           // split.tensors.count: of all parts; -1: not in this file

  // False with h.error set.
  bool read(GgufHeader& h) {
    constexpr int kMost = UINT16_MAX;
    if (!h.get("split.count", 0, kMost, count)) return false;
    if (count == 0) count = 1;
    return h.get("split.no", 0, count - 1, number) && h.get("split.tensors.count", 0, INT32_MAX, tensors);
  }
};

/// "-00002-of-00003.gguf", the end of the name of part 1.
inline std::string gguf_part_suffix(int number, int count) {
  char suffix[40];
  std::snprintf(suffix, sizeof suffix, "-%05d-of-%05d.gguf", number + 1, count);
  return suffix;
}

/// The path of a part, from the path of another part. "" if that does not end in its number.
inline std::string gguf_part_path(const std::string& path, const GgufPart& part, int number) {
  const std::string suffix = gguf_part_suffix(part.number, part.count);
  if (path.size() < suffix.size() || path.compare(path.size() - suffix.size(), suffix.size(), suffix) != 0) return "";
  return path.substr(0, path.size() - suffix.size()) + gguf_part_suffix(number, part.count);
}

/// Opens a part of the file that `path` is another part of.
inline std::unique_ptr<InputFile> open_gguf_part(const std::string& path, const GgufPart& part, int number,
                                                 std::string& error) {
  const std::string name = gguf_part_path(path, part, number);
  if (name.empty()) {
    fail(error, {path, ": part ", part.number + 1, " of a GGUF file that is split into ", part.count,
                 ": expected a name that ends in ", gguf_part_suffix(part.number, part.count),
                 ", with the other parts beside it"});
    return nullptr;
  }
  auto file = InputFile::open(name, error);
  if (!file) error += "; the model is split into " + std::to_string(part.count) + " files, which are all needed";
  return file;
}

/// Opens parts 1 and up. Their tensors are added to the header of part 0, whose file is c.files[0].
inline bool open_other_gguf_parts(GgufHeader& h, const GgufPart& first, Checkpoint& c, std::string& error) {
  const std::string& path = c.files[0]->path();
  for (int number = 1; number < first.count; number++) {
    auto file = open_gguf_part(path, first, number, error);
    if (!file) return false;
    c.files.push_back(std::move(file));
    GgufHeader other(*c.files.back(), number);
    GgufPart part;
    if (!other.read() || !part.read(other)) return fail(error, other.error);
    if (part.number != number || part.count != first.count)
      return fail(error, {c.files.back()->path(), ": expected part ", number + 1, " of ", first.count, ", found part ",
                          part.number + 1, " of ", part.count});
    for (auto& [name, tensor] : other.tensors)
      if (!h.tensors.emplace(name, std::move(tensor)).second)
        return fail(error,
                    {c.files.back()->path(), ": tensor ", name, ": expected once, found also in an earlier part"});
  }
  return first.tensors < 0 || h.tensors.size() == size_t(first.tensors) ||
         fail(error, {path, ": split.tensors.count: expected ", first.tensors, " tensors in all parts, found ",
                      h.tensors.size(), "; a part is of another model"});
}

// ====================================================================================================================
// The model
// ====================================================================================================================

inline constexpr TensorNames kGgufNames = {"token_embd.weight",
                                           "blk.",
                                           {{{"attention_norm", ".attn_norm.weight"},
                                             {"wq", ".attn_q.weight"},
                                             {"wk", ".attn_k.weight"},
                                             {"wv", ".attn_v.weight"},
                                             {"wo", ".attn_output.weight"},
                                             {"ffn_norm", ".ffn_norm.weight"},
                                             {"w1", ".ffn_gate.weight"},
                                             {"w3", ".ffn_up.weight"},
                                             {"w2", ".ffn_down.weight"},
                                             {"bq", ".attn_q.bias"},
                                             {"bk", ".attn_k.bias"},
                                             {"bv", ".attn_v.bias"},
                                             {"bo", ".attn_output.bias"},
                                             {"q_norm", ".attn_q_norm.weight"},
                                             {"k_norm", ".attn_k_norm.weight"},
                                             {"b1", ".ffn_gate.bias"},
                                             {"b3", ".ffn_up.bias"},
                                             {"b2", ".ffn_down.bias"}}},
                                           "output_norm.weight",
                                           "output.weight"};

/// Rejects GGUF files that are not language models.
inline bool check_gguf_type(GgufHeader& h) {
  std::string type, architecture;
  if (!h.get("general.type", type) || !h.get("general.architecture", architecture)) return false;
  if (architecture == "clip") type = "mmproj";
  const struct {
    const char *type, *what;
  } others[] = {{"adapter",
                 "a LoRA adapter; convert its base model, and name the adapter's folder, as saved by PEFT, "
                 "with --lora"},
                {"mmproj", "the vision or audio encoder of a multimodal model; name the file of its language model"},
                {"imatrix", "an importance matrix for quantizing with llama.cpp, which is not a model"},
                {"vocab", "a vocabulary without a model"}};
  for (const auto& other : others)
    if (type == other.type) return h.refuse({"expected a language model, found ", other.what});
  return true;
}

/// What llama.cpp's code for an architecture does.
struct GgufFamily {
  const char* architecture;
  bool interleaved;  // the order of wq's and wk's rows, as in StoredTensor::interleaved_heads
  bool multipliers;  // has keys for them
};

inline constexpr GgufFamily kGgufFamilies[] = {
    {"llama", true, false},  {"mistral3", true, false}, {"qwen2", false, false},
    {"qwen3", false, false}, {"smollm3", true, false},  {"granite", true, true},
    {"minicpm", true, true}, {"phi3", false, false},    {"ernie4_5", true, false}};

/// Reads general.architecture. Null with header.error set if it is not supported.
inline const GgufFamily* find_gguf_family(GgufHeader& h) {
  std::string names;
  if (!h.need("general.architecture") || !h.get("general.architecture", h.architecture)) return nullptr;
  for (const GgufFamily& family : kGgufFamilies) {
    if (h.architecture == family.architecture) return &family;
    names += std::string(" ") + family.architecture;
  }
  h.refuse({"general.architecture: expected one of", names, ", found ", h.architecture});
  return nullptr;
}

/// Rejects models that compute another function: these keys must be absent or have the neutral value.
inline bool check_gguf_variant(GgufHeader& h, const GgufFamily& family) {
  const struct {
    std::string key;
    float neutral;
    bool multiplier;
  } numbers[] = {{h.key("expert_count"), 0, false},
                 {h.key("attention.clamp_kqv"), 0, false},
                 {h.key("attention.max_alibi_bias"), 0, false},
                 {h.key("attention.temperature_scale"), 0, false},
                 {h.key("attention.scale"), 0, true},
                 {h.key("logit_scale"), 1, true},
                 {h.key("residual_scale"), 1, true},
                 {h.key("embedding_scale"), 1, true},
                 {h.key("rope.scaling.attn_factor"), 1, false}};
  for (const auto& [key, neutral, multiplier] : numbers) {
    float value = neutral;
    if (multiplier && family.multipliers) continue;
    if (!h.get(key, value)) return false;
    if (value != neutral && value != 0) return h.refuse({key, ": expected ", neutral, ", found ", value});
  }
  bool causal = true, parallel = false, rotated = true;
  if (!h.get(h.key("attention.causal"), causal) || !h.get(h.key("use_parallel_residual"), parallel) ||
      (h.architecture == "granite" && !h.get("granite.rope.scaling.finetuned", rotated)))
    return false;
  if (!causal) return h.refuse({h.key("attention.causal"), ": expected true, found false"});
  if (!rotated) return h.refuse({"granite.rope.scaling.finetuned: expected true (with RoPE), found false"});
  return !parallel || h.refuse({h.key("use_parallel_residual"), ": expected false, found true"});
}

/// Reads the RoPE settings. As in llama.cpp, scaling without a type is linear.
inline bool read_gguf_rope(GgufHeader& h, Config& c) {
  std::string type = "linear";
  float factor = 0;
  if (!h.get(h.key("rope.freq_base"), c.rope_theta) || !h.get(h.key("rope.scaling.type"), type) ||
      !h.get(h.key("rope.scale_linear"), factor) || !h.get(h.key("rope.scaling.factor"), factor))
    return false;
  if (type == "none" || (type == "linear" && (factor == 0 || factor == 1))) return true;
  if (type != "linear") return h.refuse({h.key("rope.scaling.type"), ": expected none or linear, found ", type});
  c.rope_scaling = RopeScaling::linear;
  c.rope_factor = factor;
  return true;
}

inline constexpr FieldNames kGgufFields = {{{"dim", "embedding_length"},
                                            {"hidden_dim", "feed_forward_length"},
                                            {"n_layers", "block_count"},
                                            {"n_heads", "attention.head_count"},
                                            {"n_kv_heads", "attention.head_count_kv"},
                                            {"head_dim", "attention.key_length"},
                                            {"vocab_size", "vocab_size"},
                                            {"max_seq_len", "context_length"},
                                            {"norm_eps", "attention.layer_norm_rms_epsilon"},
                                            {"rope_theta", "rope.freq_base"},
                                            {"rope_factor", "rope.scaling.factor"}}};

/// Rejects a sliding window shorter than the context; 0 means none.
inline bool check_gguf_window(GgufHeader& h, const Config& c) {
  int window = 0;
  if (!h.get(h.key("attention.sliding_window"), 0, INT32_MAX, window)) return false;
  return window == 0 || window >= c.max_seq_len ||
         h.refuse({h.key("attention.sliding_window"), ": expected 0, or at least the context length, ", c.max_seq_len,
                   ", found ", window});
}

/// Reads the configuration.
inline bool read_gguf_config(GgufHeader& h, Config& c) {
  constexpr int kAny = INT32_MAX;  // check_config() has the limits
  for (const char* key : {"context_length", "embedding_length", "block_count", "feed_forward_length",
                          "attention.head_count", "attention.layer_norm_rms_epsilon"})
    if (!h.need(h.key(key))) return false;
  if (!h.get(h.key("context_length"), 0, kAny, c.max_seq_len) || !h.get(h.key("embedding_length"), 0, kAny, c.dim) ||
      !h.get(h.key("block_count"), 0, kAny, c.n_layers) ||
      !h.get(h.key("feed_forward_length"), 0, kAny, c.hidden_dim) ||
      !h.get(h.key("attention.head_count"), 0, kAny, c.n_heads) ||
      !h.get(h.key("attention.layer_norm_rms_epsilon"), c.norm_eps))
    return false;
  c.n_kv_heads = c.n_heads;
  c.head_dim = c.n_heads > 0 && c.dim % c.n_heads == 0 ? c.dim / c.n_heads : 0;
  if (!h.get(h.key("attention.head_count_kv"), 0, kAny, c.n_kv_heads) ||
      !h.get(h.key("attention.key_length"), 0, kAny, c.head_dim))
    return false;
  for (const char* key : {"attention.value_length", "rope.dimension_count"}) {
    int width = c.head_dim;
    if (!h.get(h.key(key), 0, kAny, width)) return false;
    if (width != c.head_dim) return h.refuse({h.key(key), ": expected head_dim, ", c.head_dim, ", found ", width});
  }
  const auto embedding = h.tensors.find("token_embd.weight");
  if (embedding != h.tensors.end()) c.vocab_size = int(std::min<int64_t>(embedding->second.shape[0], kAny));
  c.tied = h.tensors.count("output.weight") == 0;
  return h.get(h.key("vocab_size"), 0, kAny, c.vocab_size) && read_gguf_rope(h, c) && check_gguf_window(h, c);
}

/// Reads a multiplier; as in llama.cpp, 0 means none.
inline bool get_gguf_multiplier(GgufHeader& h, const std::string& key, double& out) {
  float value = 0;
  if (!h.get(key, value)) return false;
  if (value != 0) out = double(value);
  return is_multiplier(value != 0 ? out : 1) || h.refuse({key, ": expected ", kMultiplierRange, ", found ", value});
}

/// Reads the multipliers. Older files of MiniCPM lack them; llama.cpp assumes those of one model then.
inline bool read_gguf_multipliers(GgufHeader& h, const GgufFamily& family, Multipliers& m) {
  if (!family.multipliers) return true;
  double logits = 1;
  for (const char* key : {"logit_scale", "residual_scale", "embedding_scale"})
    if ((h.architecture == "minicpm" || key == std::string("logit_scale")) && !h.need(h.key(key))) return false;
  if (!get_gguf_multiplier(h, h.key("embedding_scale"), m.embedding) ||
      !get_gguf_multiplier(h, h.key("residual_scale"), m.residual) ||
      !get_gguf_multiplier(h, h.key("attention.scale"), m.attention) ||
      !get_gguf_multiplier(h, h.key("logit_scale"), logits))
    return false;
  m.logits = 1 / logits;
  return true;
}

/// Splits fused matrices and biases. Phi-3's ffn_up is gate and up.
inline bool split_gguf(const Checkpoint& c, GgufHeader& h, std::string& error) {
  const Config& k = c.config;
  for (int l = 0; l < k.n_layers; l++) {
    const std::string layer = "blk." + std::to_string(l) + ".";
    for (const char* kind : {".weight", ".bias"})
      if (!split_rows(c, layer + "attn_qkv" + kind, kind == std::string(".bias") ? 0 : k.dim,
                      {{layer + "attn_q" + kind, k.q_dim()},
                       {layer + "attn_k" + kind, k.kv_dim()},
                       {layer + "attn_v" + kind, k.kv_dim()}},
                      h.tensors, error))
        return false;
    if (h.architecture == "phi3" &&
        !split_rows(c, layer + "ffn_up.weight", k.dim,
                    {{layer + "ffn_gate.weight", k.hidden_dim}, {layer + "ffn_up.weight", k.hidden_dim}}, h.tensors,
                    error))
      return false;
  }
  return true;
}

/// Reads what a layer consists of. No key states the biases: the tensors decide. Files of SmolLM3 do not state the
/// layers without RoPE either; if config.json of the model is beside the file, it counts, else every fourth layer has
/// none, as llama.cpp assumes.
inline bool read_gguf_layer(const GgufHeader& h, const std::string& path, Config& c, std::string& error) {
  const auto has = [&](const char* name) { return h.tensors.count("blk.0." + std::string(name)) > 0; };
  c.qkv_bias = has("attn_q.bias") || has("attn_k.bias") || has("attn_v.bias");
  c.o_bias = has("attn_output.bias");
  c.mlp_bias = has("ffn_gate.bias") || has("ffn_up.bias") || has("ffn_down.bias");
  c.qk_norm = h.architecture == "qwen3";
  if (h.architecture != "smollm3") return true;
  JsonDocument config;
  std::string ignored;
  int64_t layers = 0, dim = 0;
  const std::string beside = join_path(folder_of(path), "config.json");
  const bool same = is_file(beside) && read_settings(beside, config, ignored) &&
                    config.root().find("model_type").string() == "smollm3" &&
                    config.root().find("num_hidden_layers").integer(layers) && layers == c.n_layers &&
                    config.root().find("hidden_size").integer(dim) && dim == c.dim;
  return read_no_rope_layers(same ? config.root() : JsonValue(), c, error);
}

/// Llama 3's RoPE scaling is stored as a tensor of factors (head_dim / 2) that divide the frequencies. Determines the
/// settings they were computed from: rope_factor is the last factor; low_freq_factor and high_freq_factor are 1 and 4
/// in all published models, and only their ratio matters; the original length follows from any factor between the
/// extremes, or is arbitrary within a range if there is none. False if these settings do not reproduce the factors.
inline bool express_rope_factors(const std::vector<float>& factors, Config& c) {
  constexpr double kTurn = 6.2831853071795865, kRounding = 3e-5;  // the factors were computed in float32
  const Config plain = c;
  const double last = c.rope_factor = factors.back();
  double length = 0, least = 1, most = 1 << 24;  // range of the original context length
  if (!std::isfinite(last)) return false;
  for (size_t i = 0; i < factors.size(); i++) {
    const double f = factors[i], wavelength = kTurn / rope_frequency(plain, int(i));
    if (!(f >= 1 && f <= last)) return false;
    if (f <= 1 + kRounding)
      least = 4 * wavelength;
    else if (f >= last * (1 - kRounding))
      most = std::min(most, wavelength);
    else
      length = wavelength * (1 + 3 * (1 / f - 1 / last) / (1 - 1 / last));
  }
  if (last == 1) return true;
  c.rope_scaling = factors[0] == last ? RopeScaling::linear : RopeScaling::llama3;
  if (c.rope_scaling == RopeScaling::llama3) {
    if (length == 0) length = std::sqrt(least * most);
    if (!(length < 1 << 24)) return false;
    c.rope_low_freq = 1;
    c.rope_high_freq = 4;
    c.rope_original_len = int(std::lround(length));
  }
  for (size_t i = 0; i < factors.size(); i++) {
    const double expected = rope_frequency(plain, int(i)) / factors[i];
    if (!(std::fabs(rope_frequency(c, int(i)) - expected) <= kRounding * expected)) return false;
  }
  return true;
}

/// Reads the tensor of factors, if there is one, and removes it from the list.
inline bool read_rope_factors(GgufHeader& h, Checkpoint& out, std::string& error) {
  for (const char* name : {"rope_factors_long.weight", "rope_factors_short.weight"})
    if (const auto t = h.tensors.find(name); t != h.tensors.end())
      return fail(error, {out.files[size_t(t->second.file)]->path(), ": tensor ", name,
                          ": expected none: long RoPE is not supported"});
  const auto it = h.tensors.find("rope_freqs.weight");
  if (it == h.tensors.end()) return true;
  const FoundTensor t = it->second;
  Config& c = out.config;
  const InputFile& file = *out.files[size_t(t.file)];
  const std::string where = file.path() + ": tensor rope_freqs.weight: ";
  const std::vector<int64_t> shape = {c.head_dim / 2};
  if (t.dtype != DType::f32 || t.shape != shape)
    return fail(error, {where, "expected F32 of shape ", shape_text(shape), ", found ", dtype_info(t.dtype).name, " ",
                        shape_text(t.shape)});
  std::vector<float> factors(size_t(c.head_dim) / 2);
  if (!file.read(t.offset, factors.data(), t.bytes, error)) return false;
  h.tensors.erase(it);
  if (c.rope_scaling != RopeScaling::none)
    return fail(error, {where, "expected no other scaling, found linear scaling (", h.key("rope.scaling.factor"), ")"});
  return express_rope_factors(factors, c) ||
         fail(error, where + "expected the factors of Llama 3's scaling, found other factors, which are not supported");
}

// ====================================================================================================================
// The tokenizer
// ====================================================================================================================

/// Reads the tokenizer from the metadata.
class GgufTokenizer {
 public:
  GgufTokenizer(GgufHeader& header, std::string path, Tokenizer::Vocabulary& out)
      : h_(header), path_(std::move(path)), v_(out) {}

  // False with header.error set.
  bool read() {
    std::string model;
    if (!h_.get("tokenizer.ggml.model", model)) return false;
    if (model != "llama" && model != "gpt2")
      return h_.refuse(
          {"tokenizer.ggml.model: expected llama or gpt2, found ", model, "; use another tokenizer with -z"});
    const bool sentencepiece = model == "llama";
    if (!pieces(!sentencepiece) || !(sentencepiece ? sentencepiece_flags() : byte_level())) return false;
    return strip_phi3() && special_id("tokenizer.ggml.bos_token_id", v_.bos) &&
           special_id("tokenizer.ggml.eos_token_id", v_.eos) && h_.get("tokenizer.ggml.add_bos_token", v_.add_bos);
  }

 private:
  using PieceType = Tokenizer::PieceType;

  // As in llama.cpp, an id outside the vocabulary leaves the default.
  bool special_id(const char* key, int& out) {
    int id = out;
    if (!h_.get_id(key, id)) return false;
    if (id < int(v_.pieces.size())) out = id;
    return true;
  }

  bool pieces(bool printable) {
    std::vector<std::string> tokens;
    std::vector<float> scores, types;
    for (const char* key : {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type"})
      if (!h_.need(key)) return false;
    if (!h_.get("tokenizer.ggml.tokens", tokens) || !h_.get("tokenizer.ggml.scores", scores) ||
        !h_.get("tokenizer.ggml.token_type", types))
      return false;
    const auto fits = [&](const char* key, size_t size) {
      return size == tokens.size() ||
             h_.refuse({key, ": expected one for each of ", tokens.size(), " tokens, found ", size});
    };
    if (printable) scores.resize(tokens.size());  // byte-level BPE has merge ranks instead of scores
    if (!fits("tokenizer.ggml.scores", scores.size()) || !fits("tokenizer.ggml.token_type", types.size())) return false;
    v_.pieces.reserve(tokens.size());
    for (size_t id = 0; id < tokens.size(); id++) {
      const std::string where = "tokenizer.ggml.tokens: token " + std::to_string(id) + ": ";
      if (!(types[id] >= 1 && types[id] <= 6)) return h_.refuse({where, "type: expected 1 to 6, found ", types[id]});
      PieceType type = PieceType(int(types[id]));
      std::string text = tokens[id];
      if (printable && type == PieceType::normal && !undo_printable(tokens[id], text)) type = kNotFromText;
      // llama.cpp's converter writes added tokens as user-defined, and llama.cpp treats both as added ones.
      if (type == PieceType::user_defined) type = PieceType::added;
      v_.pieces.push_back({std::move(text), scores[id], type});
      tokens[id] = std::string();
    }
    return !v_.pieces.empty() || h_.refuse({"tokenizer.ggml.tokens: expected tokens, found none"});
  }

  // GGUF does not store the settings of added tokens. As in llama.cpp, the name of the model tells Phi-3, whose tokens
  // strip the white space after them.
  bool strip_phi3() {
    std::string name;
    if (!h_.get("general.name", name)) return false;
    for (char& c : name) c = char(std::tolower(uint8_t(c)));
    if (name.find("phi-3") == std::string::npos && name.find("phi3") == std::string::npos) return true;
    for (Tokenizer::Piece& p : v_.pieces) {
      const bool added = p.type == PieceType::control || p.type == PieceType::added;
      if (added && p.text != "<s>" && p.text != "<|endoftext|>") p.strip = Tokenizer::kStripRight;
    }
    return true;
  }

  // Missing ids and flags have llama.cpp's defaults.
  bool sentencepiece_flags() {
    v_.kind = Tokenizer::Kind::sentencepiece;
    v_.split = Tokenizer::Split::none;
    v_.ignore_merges = v_.remove_extra_whitespaces = v_.prefix_only_at_start = v_.metaspace = false;
    v_.add_bos = v_.add_dummy_prefix = v_.escape_whitespaces = true;
    v_.unk = 0;
    v_.bos = 1;
    v_.eos = 2;
    v_.unk_surface = kUnknownSurface;
    v_.byte_fallback =
        std::any_of(v_.pieces.begin(), v_.pieces.end(), [](const auto& p) { return p.type == PieceType::byte; });
    if (h_.has("tokenizer.ggml.precompiled_charsmap"))
      return h_.refuse({"tokenizer.ggml.precompiled_charsmap: expected none: normalization is not supported"});
    return h_.get("tokenizer.ggml.unknown_token_id", 0, int(v_.pieces.size()) - 1, v_.unk) &&
           h_.get("tokenizer.ggml.add_space_prefix", v_.add_dummy_prefix) &&
           h_.get("tokenizer.ggml.remove_extra_whitespaces", v_.remove_extra_whitespaces);
  }

  bool byte_level() {
    std::string pre;
    std::vector<std::string> merges;
    if (!h_.get("tokenizer.ggml.pre", pre) || !h_.need("tokenizer.ggml.merges") ||
        !h_.get("tokenizer.ggml.merges", merges))
      return false;
    if (!pre_tokenizer(pre)) return false;
    MergeBuilder builder(v_);
    for (const std::string& merge : merges)
      if (!builder.add(merge, path_, h_.error)) return false;
    return true;
  }

  // Settings that the file does not have are those of the tokenizer.json of the models named; llama.cpp itself ignores
  // NFC. add_bos is llama.cpp's default.
  bool pre_tokenizer(const std::string& name) {
    using Split = Tokenizer::Split;
    constexpr bool kIgnoreMerges = true, kNfc = true, kAddBos = true;
    static constexpr struct {
      const char* name;
      Split split;
      bool ignore_merges = false, nfc = false, add_bos = false;
    } known[] = {{"gpt-2", Split::gpt2},
                 {"phi-2", Split::gpt2},
                 {"mpt", Split::gpt2, !kIgnoreMerges, kNfc},
                 {"smollm", Split::smollm},
                 {"starcoder", Split::smollm},
                 {"refact", Split::smollm},
                 {"command-r", Split::smollm, !kIgnoreMerges, kNfc},
                 {"llama-bpe", Split::llama3, kIgnoreMerges, !kNfc, kAddBos},
                 {"llama3", Split::llama3, kIgnoreMerges, !kNfc, kAddBos},
                 {"llama-v3", Split::llama3, kIgnoreMerges, !kNfc, kAddBos},
                 {"dbrx", Split::llama3},
                 {"qwen2", Split::qwen2, !kIgnoreMerges, kNfc},
                 {"deepseek-r1-qwen", Split::qwen2, !kIgnoreMerges, kNfc},
                 {"qwen35", Split::qwen35},
                 {"gpt-4o", Split::gpt4o},
                 {"tekken", Split::tekken, kIgnoreMerges, !kNfc, kAddBos},
                 {"deepseek-coder", Split::deepseek_coder},
                 {"deepseek-llm", Split::deepseek_llm},
                 {"deepseek-v3", Split::deepseek_v3},
                 {"falcon", Split::falcon}};
    std::string names;
    for (const auto& each : known) {
      names += names.empty() ? each.name : std::string(", ") + each.name;
      if (name != each.name) continue;
      set_byte_level(v_, each.split, each.ignore_merges, each.nfc);
      v_.add_bos = each.add_bos;
      return true;
    }
    return h_.refuse({"tokenizer.ggml.pre: expected one of ", names, "; found ", (name.empty() ? "none" : name),
                      "; use the model's tokenizer.json with -z"});
  }

  GgufHeader& h_;
  std::string path_;
  Tokenizer::Vocabulary& v_;
};

/// Reads name, source, licence and chat template.
inline bool read_gguf_texts(GgufHeader& h, Checkpoint& out) {
  for (const char* key : {"general.url", "general.repo_url", "general.source.url"})
    if (!h.get(key, out.source)) return false;
  return h.get("general.name", out.name) && h.get("general.license", out.licence) &&
         h.get("tokenizer.chat_template", out.chat_template);
}

/// Reads the end-of-text ids.
inline bool read_gguf_stop_ids(GgufHeader& h, Checkpoint& out, std::string& error) {
  for (const char* key :
       {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    int id = -1;
    if (!h.get_id(key, id)) return fail(error, h.error);
    if (!add_stop_id(
            out, id, [&] { return out.files[0]->path() + ": " + key; }, error))
      return false;
  }
  return true;
}

/// Opens a GGUF file, or all parts of a split one, of which `file` is any.
inline bool open_gguf(std::unique_ptr<InputFile> file, bool own_tokenizer, Checkpoint& out, std::string& error) {
  out.files.clear();
  out.files.push_back(std::move(file));
  const InputFile& in = *out.files[0];
  GgufHeader h(in);
  GgufPart part;
  if (!h.read() || !part.read(h)) return fail(error, h.error);
  if (part.number > 0) {
    auto first = open_gguf_part(in.path(), part, 0, error);
    if (!first) return false;
    return open_gguf(std::move(first), own_tokenizer, out, error);
  }
  if (!open_other_gguf_parts(h, part, out, error)) return false;
  const GgufFamily* family = check_gguf_type(h) ? find_gguf_family(h) : nullptr;
  Multipliers multipliers;
  if (!family || !check_gguf_variant(h, *family) || !read_gguf_config(h, out.config) ||
      !read_gguf_multipliers(h, *family, multipliers) || !read_gguf_texts(h, out))
    return fail(error, h.error);
  if (!check_config(out.config, in.path(), kGgufFields, error, h.key("")) || !read_rope_factors(h, out, error) ||
      !split_gguf(out, h, error) || !read_gguf_layer(h, in.path(), out.config, error) ||
      !bind_tensors(out, kGgufNames, family->interleaved, h.tensors, in.path(), error))
    return false;
  fold_multipliers(out, multipliers);
  out.interleaved_adapters = h.architecture == "ernie4_5";
  out.format = "GGUF v" + std::to_string(h.version);
  if (own_tokenizer && h.has("tokenizer.ggml.model")) {
    if (!GgufTokenizer(h, in.path(), out.vocabulary).read()) return fail(error, h.error);
    out.vocabulary.add_bos = out.vocabulary.add_bos && out.vocabulary.bos >= 0;
    if (!fit_vocabulary(out, in.path(), error)) return false;
  }
  return read_gguf_stop_ids(h, out, error);
}

}  // namespace pocket
