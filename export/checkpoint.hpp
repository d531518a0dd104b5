// checkpoint.hpp: a trained model in the format of another program: the parts that all formats share. Each format has
// its reader, gguf.hpp, safetensors.hpp, pytorch.hpp and llama2c.hpp; open_checkpoint.hpp detects the format. Input
// files are untrusted: everything is checked at open, in 64-bit arithmetic, against the real size of the file. Weights
// stay in the file until read_rows() reads some of them as float32.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "describe_file.hpp"
#include "dtype.hpp"
#include "engine.hpp"
#include "input_file.hpp"

namespace pocket {

// ====================================================================================================================
// A checkpoint
// ====================================================================================================================

/// A matrix (rows, cols) in one of the checkpoint's files, row-major, contiguous. The weights of a norm and a bias are
/// one row.
struct StoredTensor {
  int file;         // index into Checkpoint::files
  uint64_t offset;  // of its first byte
  DType dtype;
  int64_t rows, cols;
  // More than 0: the number of heads whose rows are in "interleaved" RoPE order (Meta, llama2.c, GGUF): the two rows
  // that rotate together are adjacent. The engine uses the "half-split" order of Hugging Face. In a bias the elements
  // are in this order.
  int interleaved_heads = 0;
  // More than 0: the rows are stored in blocks of block_rows; a block starts every block_stride rows.
  int64_t block_rows = 0, block_stride = 0;
  // More than 0: the number of consecutive weights that share a float32 scale; the scales are at offset `scales`, in
  // order.
  int64_t group = 0;
  uint64_t scales = 0;
  float scale = 1;  // a multiplier of all weights: fold_multipliers()

  int64_t row_bytes() const { return cols / dtype_info(dtype).block * dtype_info(dtype).block_bytes; }

  // The stored row that is row r in the engine's order.
  int64_t stored_row(int64_t r) const {
    if (block_rows > 0) return r / block_rows * block_stride + r % block_rows;
    return rows == 1 ? r : interleaved(r, rows);
  }

  // The position in interleaved order of element i of n, which is in half-split order.
  int64_t interleaved(int64_t i, int64_t n) const {
    if (interleaved_heads == 0) return i;
    const int64_t head_dim = n / interleaved_heads, half = head_dim / 2, in_head = i % head_dim;
    return i - in_head + 2 * (in_head % half) + in_head / half;
  }
};

/// An open checkpoint.
struct Checkpoint {
  Config config;
  std::string format;                 // "GGUF v3", "safetensors", "llama2.c"
  std::string name, licence, source;  // "" if the files do not contain them
  bool has_tokenizer = false;
  Tokenizer::Vocabulary vocabulary;
  std::string chat_template;         // Jinja source; "" if none
  std::string bos_token, eos_token;  // texts; "" if none
  // The texts of all special tokens by their names, such as "cls_token"; none if the file does not give names.
  std::optional<std::map<std::string, std::string>> special_tokens;
  std::vector<int> stop_ids;       // end-of-text tokens
  std::vector<std::string> notes;  // what was ignored or decided and a user may care about; a line each
  std::vector<std::unique_ptr<InputFile>> files;
  std::map<std::string, StoredTensor> tensors;  // all tensors, by the engine's names (tensor_specs in run.cpp)
  bool interleaved_adapters = false;  // LoRA adapters have q and k in interleaved order (StoredTensor), as ERNIE 4.5

  // Whether the tensors differ from those that LoRA adapters are trained with: multipliers are folded into them, or
  // rows are in another order.
  bool differs_for_adapters() const {
    for (const auto& [name, tensor] : tensors)
      if (tensor.scale != 1) return true;
    return interleaved_adapters;
  }

  // Reads rows first ... first + count - 1 of a tensor as float32 (count, cols), in the engine's order. False with
  // `error` set if that fails. Threads may read concurrently.
  bool read_rows(const std::string& tensor, int64_t first, int64_t count, float* out, std::string& error) const try {
    const auto found = tensors.find(tensor);
    if (found == tensors.end()) return fail(error, {"tensor ", tensor, ": not in this checkpoint"});
    const StoredTensor& t = found->second;
    if (first < 0 || count < 0 || first > t.rows || count > t.rows - first)
      return fail(error,
                  {"tensor ", tensor, ": expected rows within ", t.rows, ", found ", count, " from row ", first});
    const std::unique_ptr<uint8_t[]> bytes(new (std::nothrow) uint8_t[size_t(t.row_bytes())]);
    if (!bytes) return fail(error, {"tensor ", tensor, ": not enough memory"});
    for (int64_t i = 0; i < count; i++) {
      const int64_t row = t.stored_row(first + i);
      const uint64_t at = t.offset + uint64_t(row) * uint64_t(t.row_bytes());
      if (!files[size_t(t.file)]->read(at, bytes.get(), uint64_t(t.row_bytes()), error)) return false;
      dtype_info(t.dtype).decode(bytes.get(), t.cols / dtype_info(t.dtype).block, out + i * t.cols);
      if (t.group > 0 && !scale_row(t, row, out + i * t.cols, error)) return false;
      if (t.scale != 1)
        for (int64_t k = 0; k < t.cols; k++) out[i * t.cols + k] *= t.scale;
    }
    if (t.rows == 1 && t.interleaved_heads > 0) {
      const std::vector<float> stored(out, out + count * t.cols);
      for (size_t k = 0; k < stored.size(); k++) out[k] = stored[size_t(t.interleaved(int64_t(k), t.cols))];
    }
    return true;
  } catch (const std::exception&) {
    return fail_out_of_memory(error);
  }

 private:
  // Multiplies stored row `row` with its scales. A group may span two rows.
  bool scale_row(const StoredTensor& t, int64_t row, float* out, std::string& error) const {
    const int64_t begin = row * t.cols, first = begin / t.group, last = (begin + t.cols - 1) / t.group;
    std::vector<float> scales(size_t(last - first + 1));
    const uint64_t at = t.scales + uint64_t(first) * sizeof(float);
    if (!files[size_t(t.file)]->read(at, scales.data(), scales.size() * sizeof(float), error)) return false;
    for (int64_t i = 0; i < t.cols; i++) out[i] *= scales[size_t((begin + i) / t.group - first)];
    return true;
  }
};

/// Opens a checkpoint: a folder or a file, whose format is detected from its content. tokenizer_path "": the
/// checkpoint's own tokenizer, if it has one; else a SentencePiece model, a tokenizer.json, or llama2.c's
/// tokenizer.bin. False with `error` set if the checkpoint is invalid or is not a Llama that the engine can run.
inline bool open_checkpoint(const std::string& path, const std::string& tokenizer_path, Checkpoint& out,
                            std::string& error);

// ====================================================================================================================
// Shared by the readers
// ====================================================================================================================

/// The names of Config's fields in a file format, where they differ: pairs, then zeros.
using FieldNames = std::array<std::pair<std::string_view, const char*>, 12>;

/// Checks the limits of run.cpp; the message uses the names of the file format, after `prefix`.
inline bool check_config(const Config& c, const std::string& file, const FieldNames& names, std::string& error,
                         const std::string& prefix = "") {
  return check_config(c, [&](const char* field, const std::string& expected, const std::string& found) {
    std::string shown = field;
    for (const auto& [ours, theirs] : names)
      if (ours == field) shown = prefix + theirs;
    return fail(error, {file, ": ", shown, ": expected ", expected, ", found ", found});
  });
}

/// A tensor as listed in a file. Readers ensure that its bytes are within the file.
struct FoundTensor {
  int file;
  uint64_t offset, bytes;
  DType dtype;
  std::vector<int64_t> shape;                // slowest index first
  int64_t block_rows = 0, block_stride = 0;  // as in StoredTensor
};
using FoundTensors = std::map<std::string, FoundTensor>;  // by the format's names
inline constexpr size_t kMostDimensions = 8;              // of a tensor; a Llama's have two

/// "(2, 3)".
inline std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (int64_t n : shape) text += (text.empty() ? "(" : ", ") + std::to_string(n);
  return text.empty() ? "()" : text + ")";
}

/// Whether a tensor follows from the configuration: tables of RoPE and causal masks, which are saved by modules that
/// registered them as buffers. They are ignored, whatever their type.
inline bool is_derivable(std::string_view name, const std::vector<int64_t>& shape) {
  const auto ends = [&](std::string_view with) {
    if (name.size() < with.size() || name.substr(name.size() - with.size()) != with) return false;
    return name.size() == with.size() || name[name.size() - with.size() - 1] == '.';
  };
  for (const char* table : {"rotary_emb.inv_freq", "rotary_emb.original_inv_freq", "rotary_emb.cos_cached",
                            "rotary_emb.sin_cached", "rope.freqs", "freqs_cos", "freqs_sin", "freqs_cis"})
    if (ends(table)) return true;
  const size_t n = shape.size();
  const bool square = n >= 2 && shape[n - 1] == shape[n - 2];  // unlike the bias of a projection
  for (const char* attention : {"attention", "attn", "self_attn"}) {
    const std::string module = attention;
    if (ends(module + ".masked_bias") || (square && (ends(module + ".mask") || ends(module + ".bias")))) return true;
  }
  return false;
}

/// The size in bytes of a tensor of this shape; -1 if a row is not a whole number of blocks, or from 2^62 bytes.
inline int64_t stored_bytes(DType type, const std::vector<int64_t>& shape) {
  const int64_t row = shape.empty() ? 1 : shape.back();
  if (row < 0 || row % dtype_info(type).block) return -1;
  uint64_t bytes = uint64_t(dtype_info(type).block_bytes);
  for (size_t i = 0; i < shape.size(); i++) {
    const int64_t n = i + 1 < shape.size() ? shape[i] : shape[i] / dtype_info(type).block;
    if (n < 0 || (n > 0 && bytes > (uint64_t(1) << 62) / uint64_t(n))) return -1;
    bytes *= uint64_t(n);
  }
  return int64_t(bytes);
}

/// Rejects tensors that overlap; with no_gaps also bytes between `start` and `end` that belong to no tensor.
inline bool check_layout(const std::string& path, const FoundTensors& found, int file, uint64_t start, uint64_t end,
                         bool no_gaps, std::string& error) {
  std::map<std::pair<uint64_t, uint64_t>, const std::string*> by_offset;  // (offset, end); without empty tensors
  for (const auto& [name, t] : found)
    if (t.file == file && t.bytes > 0 && !by_offset.insert({{t.offset, t.offset + t.bytes}, &name}).second)
      return fail(error, {path, ": tensor ", name, ": expected no overlap, found the bytes of ",
                          *by_offset[{t.offset, t.offset + t.bytes}]});
  uint64_t at = start;
  const std::string* before = nullptr;
  for (const auto& [extent, name] : by_offset) {
    if (extent.first < at)
      return fail(error, {path, ": tensor ", *name, ": offset ", extent.first,
                          ": expected no overlap, found the bytes of ", (before ? *before : "the header")});
    if (no_gaps && extent.first > at)
      return fail(error, {path, ": tensor ", *name, ": expected offset ", at, ", found ", extent.first, ": a gap"});
    at = extent.second;
    before = name;
  }
  if (no_gaps && at != end) return fail(error, {path, ": expected ", at, " bytes, found ", end});
  return true;
}

/// The tensor names of a format.
struct TensorNames {
  struct OfLayer {
    const char *ours, *theirs;  // by the name in Layer, the suffix after the layer number
  };
  const char* token_embedding;
  const char* layers;  // prefix before the layer number
  std::array<OfLayer, 18> of_layer;
  const char *final_norm, *output;

  // The suffix of a tensor of a layer; null if the format has no such tensor.
  const char* suffix(std::string_view ours) const {
    for (const OfLayer& t : of_layer)
      if (t.ours && t.ours == ours) return t.theirs;
    return nullptr;
  }
  // The name of a tensor of tensor_specs(); ours, if the format has no such tensor.
  std::string name(const std::string& ours) const {
    if (ours == "token_embedding") return token_embedding;
    if (ours == "final_norm") return final_norm;
    if (ours == "output") return output;
    const size_t number = ours.find('.') + 1, dot = ours.find('.', number);  // layers.NUMBER.NAME
    const char* const theirs = suffix(std::string_view(ours).substr(dot + 1));
    return theirs ? layers + ours.substr(number, dot - number) + theirs : ours;
  }
};

/// Finds every tensor of the model in `found` and stores it in c.tensors. where: the file or folder for messages about
/// missing tensors. With c.config.tied the output matrix is the embedding, even if the file has another one. Remaining
/// tensors are an error: they belong to another architecture.
inline bool bind_tensors(Checkpoint& c, const TensorNames& names, bool interleaved, FoundTensors& found,
                         const std::string& where, std::string& error) {
  for (const TensorSpec& spec : tensor_specs(c.config)) {
    const std::string name = names.name(spec.name);
    if (c.config.tied && spec.name == "output") {
      c.tensors[spec.name] = c.tensors["token_embedding"];
      found.erase(name);
      continue;
    }
    std::vector<int64_t> shape = {spec.rows, spec.cols};
    if (spec.layout == Layout::vector) shape.erase(shape.begin());
    const auto it = found.find(name);
    if (it == found.end())
      return fail(error,
                  where + ": tensor " + name + ": expected shape " + shape_text(shape) + ", found no such tensor");
    const FoundTensor& t = it->second;
    const std::string& path = c.files[size_t(t.file)]->path();
    if (t.shape != shape)
      return fail(error,
                  {path, ": tensor ", name, ": expected shape ", shape_text(shape), ", found ", shape_text(t.shape)});
    const std::string_view last = std::string_view(spec.name).substr(spec.name.rfind('.') + 1);
    const bool q = last == "wq" || last == "bq", k = last == "wk" || last == "bk";
    const int heads = !interleaved ? 0 : q ? c.config.n_heads : k ? c.config.n_kv_heads : 0;
    c.tensors[spec.name] = {t.file, t.offset, t.dtype, spec.rows, spec.cols, heads, t.block_rows, t.block_stride};
    found.erase(it);
  }
  if (found.empty()) return true;
  const auto& [name, t] = *found.begin();
  return fail(error, {c.files[size_t(t.file)]->path(), ": tensor ", name,
                      ": expected the tensors of a Llama, found another tensor, ", shape_text(t.shape),
                      "; this is another architecture"});
}

/// Splits a fused matrix (rows, cols), or a bias (rows) if cols is 0, into parts with these names and numbers of rows, in
/// order. groups: the matrix holds so many groups, each with its share of every part. Does nothing if the file has no
/// such tensor.
inline bool split_rows(const Checkpoint& c, const std::string& fused, int64_t cols,
                       const std::vector<std::pair<std::string, int64_t>>& parts, FoundTensors& found,
                       std::string& error, int64_t groups = 1) {
  const auto it = found.find(fused);
  if (it == found.end()) return true;
  const auto shape = [&](int64_t rows) {
    return cols > 0 ? std::vector<int64_t>{rows, cols} : std::vector<int64_t>{rows};
  };
  int64_t rows = 0;
  for (const auto& part : parts) rows += part.second;
  FoundTensor t = it->second;
  const std::string where = c.files[size_t(t.file)]->path() + ": tensor ";
  if (t.shape != shape(rows))
    return fail(error, {where, fused, ": expected shape ", shape_text(shape(rows)), ", found ", shape_text(t.shape)});
  found.erase(it);
  for (const auto& [name, count] : parts) {
    t.shape = shape(count);
    const int64_t bytes = stored_bytes(t.dtype, t.shape);
    if (bytes < 0) return fail(error, {where, fused, ": expected parts of whole blocks, found ", shape_text(t.shape)});
    t.bytes = uint64_t(bytes);
    if (groups > 1) {
      t.block_rows = count / groups;
      t.block_stride = rows / groups;
    }
    if (!found.emplace(name, t).second)
      return fail(error, {where, name, ": expected no such tensor beside ", fused, ", found one"});
    t.offset += t.bytes / uint64_t(groups);
  }
  return true;
}

/// Multipliers that some model types apply to intermediate results.
struct Multipliers {
  double embedding = 1;  // of the embedding of a token
  double residual = 1;   // of what a block adds to the residual stream
  double attention = 0;  // of q . k; 0: 1 / sqrt(head_dim)
  double logits = 1;     // of the logits
};

/// Whether a multiplier is in a range that holds all real models and is far from the limits of float.
inline bool is_multiplier(double value) { return value >= 1e-6 && value <= 1e6; }
inline constexpr char kMultiplierRange[] = "a number from 0.000001 to 1000000";

/// Folds multipliers into the weights, so that the engine needs none.
inline void fold_multipliers(Checkpoint& c, const Multipliers& m) {
  const double q = m.attention > 0 ? m.attention * std::sqrt(double(c.config.head_dim)) : 1;
  for (auto& [name, t] : c.tensors) {
    const std::string_view last = std::string_view(name).substr(name.rfind('.') + 1);
    if (last == "token_embedding") t.scale = float(m.embedding);
    if (last == "output") t.scale = float(m.logits);
    if (last == "wo" || last == "bo" || last == "w2" || last == "b2") t.scale = float(m.residual);
    if (c.config.qk_norm ? last == "q_norm" : last == "wq" || last == "bq") t.scale = float(q);
  }
  c.config.tied = c.config.tied && m.embedding == m.logits;
}

/// Adds an end-of-text id from a file; -1 means none. An id outside the vocabulary is ignored. where() names the place in
/// the file, for a message.
template <class Where> bool add_stop_id(Checkpoint& c, int64_t id, const Where& where, std::string& error) {
  constexpr size_t kMostStopIds = 256;  // far above real models; the list is searched for every id
  constexpr size_t kMostNotes = 8;
  if (id >= c.config.vocab_size || id < -1) {
    if (c.notes.size() < kMostNotes)
      c.notes.push_back(
          text_of({where(), ": expected an id below ", c.config.vocab_size, ", found ", id, "; ignored"}));
    return true;
  }
  if (id < 0 || std::find(c.stop_ids.begin(), c.stop_ids.end(), int(id)) != c.stop_ids.end()) return true;
  if (c.stop_ids.size() == kMostStopIds)
    return fail(error, {where(), ": expected at most ", kMostStopIds, " end-of-text ids, found more"});
  c.stop_ids.push_back(int(id));
  return true;
}

// SentencePiece's default text for an unknown piece: U+2047 between spaces.
inline constexpr char kUnknownSurface[] = " \u2047 ";

/// The id of the piece with this text, -1 if there is none. A control piece takes precedence over others with the same
/// text.
inline int find_piece(const Tokenizer::Vocabulary& v, std::string_view text) {
  int found = -1;
  for (size_t i = 0; i < v.pieces.size(); i++) {
    if (v.pieces[i].text != text) continue;
    if (v.pieces[i].type == Tokenizer::PieceType::control) return int(i);
    if (found < 0) found = int(i);
  }
  return found;
}

/// Tokenizer files with fewer tokens than ids: the most ids without a token. A short file with a large id must not
/// make a large vocabulary.
inline constexpr size_t kMostGaps = 1 << 12;

/// Extends a vocabulary to `size` tokens with unused pieces.
inline void fill_vocabulary(Tokenizer::Vocabulary& v, size_t size) {
  while (v.pieces.size() < size)
    v.pieces.push_back({"<unused" + std::to_string(v.pieces.size()) + ">", 0, Tokenizer::PieceType::unused});
}

/// Matches the vocabulary with the model's size. A model may have a few more rows than its tokenizer has pieces, often
/// rounded up; the vocabulary is extended with unused pieces. A larger difference is an error: the tokenizer is of
/// another model. Also sets the end-of-text id.
inline bool fit_vocabulary(Checkpoint& c, const std::string& path, std::string& error) {
  constexpr size_t kMostUnused = 1024;
  Tokenizer::Vocabulary& v = c.vocabulary;
  const size_t expected = size_t(c.config.vocab_size), found = v.pieces.size();
  if (found > expected || expected - found > kMostUnused)
    return fail(error, {path, ": expected the model's ", expected, " tokens, found ", found,
                        "; this is the tokenizer of another model"});
  fill_vocabulary(v, expected);
  const struct {
    const char* name;
    int id;
  } special[] = {{"bos", v.bos}, {"eos", v.eos}, {"unk", v.unk}};
  for (const auto& [name, id] : special)
    if (id < -1 || id >= c.config.vocab_size)
      return fail(error, {path, ": ", name, " token: expected an id below ", expected, ", found ", id});
  if (v.bos >= 0) c.bos_token = v.pieces[size_t(v.bos)].text;
  if (v.eos >= 0) c.eos_token = v.pieces[size_t(v.eos)].text;
  c.has_tokenizer = true;
  return add_stop_id(
      c, v.eos, [&] { return path + ": eos token"; }, error);
}

inline constexpr char kResavePyTorch[] =
    "; load the model in Python and save it again in the format of PyTorch 1.6 or later (torch.save(torch.load(OLD), "
    "NEW)) or as safetensors";

inline constexpr char kReadableFormats[] = "a folder with config.json, safetensors, PyTorch, GGUF or llama2.c";

/// Describes an unsupported file and how to obtain a supported one.
inline std::string describe_unreadable(const InputFile& file) {
  uint8_t head[64] = {};
  std::string error;
  const size_t n = size_t(std::min<uint64_t>(file.size(), sizeof head));
  if (!file.read(0, head, n, error)) return error;
  const std::string_view s(reinterpret_cast<const char*>(head), n);
  const auto starts = [&](std::string_view with) { return s.substr(0, with.size()) == with; };
  if (starts("\x80\x02") || starts("\x80\x04")) return describe_file(head, n) + kResavePyTorch;
  if (starts("PKTLLAMA"))
    return "a model file, which is converted already; run it with ./run FILE (only a Llama of type f32 can be "
           "converted again)";
  if (starts("lmgg") || starts("tjgg") || starts("fmgg"))
    return "a GGML file, the predecessor of GGUF; download the model as GGUF";
  if (starts("algg")) return "a LoRA adapter in GGML's format; download it in the format of PEFT, and use --lora";
  if (n > 12 && s.substr(8, 4) == "blk.") return "an importance matrix of llama.cpp, which is not a model";
  if (starts("\x89HDF")) return "an HDF5 file (TensorFlow); download the model as safetensors";
  if (n > 2 && head[0] == 8 && head[1] < 32 && head[2] == 0x12)
    return "an ONNX model; download it as safetensors or GGUF";
  if (n > 4 && head[0] == '\n' && s.substr(2, 1) == "\n")
    return "a SentencePiece tokenizer, not a model; use it with -z";
  if (starts("{")) return "a JSON file; name its folder instead";
  if (looks_like_llama2c(head, n)) return "perhaps a damaged llama2.c checkpoint";
  return describe_file(head, n);
}

/// Sets the error for a tokenizer file that cannot be read.
inline bool not_sentencepiece(const std::string& path, std::string_view bytes, const std::string& why,
                              std::string& error) {
  return fail(error, {path, ": expected a tokenizer (SentencePiece, tokenizer.json or llama2.c), found ",
                      describe_file(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()), " (", why, ")"});
}

}  // namespace pocket
