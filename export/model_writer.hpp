// model_writer.hpp: writes model files. run.cpp reads them, and describes the format.
// Tensors are read, encoded and written a few panels at a time, so that memory does not depend on the model's size. The
// file appears under its name once it is complete and the self-test has run.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "message.hpp"
#include "output_file.hpp"
#include "quantize.hpp"

namespace pocket {

/// Reads rows first ... first + count - 1 of a tensor as float32 (count, cols). False with `error` set if that fails.
using ReadRows =
    std::function<bool(const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& error)>;

/// Reads rows, and rejects infinity and NaN: such a checkpoint is damaged.
inline bool read_finite(const TensorSpec& spec, int64_t first, int64_t count, float* out, const ReadRows& read,
                        std::string& why) {
  if (!read(spec, first, count, out, why)) return false;
  for (int64_t i = 0; i < count * spec.cols; i++)
    if (!std::isfinite(out[i]))
      return fail(why, {spec.name, ": row ", first + i / spec.cols, ", column ", i % spec.cols,
                        ": expected a finite number, found ", out[i]});
  return true;
}

/// Called regularly while tensors are written; returns false to stop, and then no file is left behind.
using Progress = std::function<bool(const TensorSpec& spec, uint64_t bytes_done, uint64_t bytes_total)>;

/// A matrix that is already encoded as panels, which `read` returns in pieces, in order.
struct ReadyTensor {
  Type type;
  int8_t codebook[16];  // q4, else 0
  std::function<bool(uint64_t at, size_t n, void* out, std::string& error)> read;
};

struct ModelParts;

/// An architecture, for the writer.
struct Architecture {
  Header header = {};             // the fields of the shape; the writer sets the others
  std::vector<TensorSpec> specs;  // all tensors, in the order of the file
  // Opens the new file at `path` and runs parts.self_test_ids; hash: of the logits of the last id.
  std::function<bool(const std::string& path, const ModelParts& parts, uint64_t& hash, std::string& error)> self_test;
};

/// The contents of a model file, without the weights.
struct ModelParts {
  Config config;                             // of a Llama; for another architecture only the heads
  std::optional<Architecture> architecture;  // none: a Llama with that config
  Type type = Type::q4;                      // of the matrices; the embedding table is f32 in an f32 model, else q8
  bool head_q8 = false;                      // store the output matrix at q8
  std::string tokenizer;                     // blob
  ChatTemplate chat;
  std::string provenance;
  std::vector<int> self_test_ids;
  int threads = 2;
  std::map<std::string, ReadyTensor> ready;  // by name: matrices to copy
};

/// A line of the provenance; "" without a value. The value, often from a checkpoint, cannot add lines of its own.
inline std::string provenance_line(const std::string& name, const std::string& value) {
  return value.empty() ? "" : name + ": " + one_line(value) + "\n";
}

/// The ids of the self-test: spread over the vocabulary, the same for every model.
inline std::vector<int> self_test_prompt(int vocab_size, int bos, size_t count = 8) {
  std::vector<int> ids;
  if (bos >= 0) ids.push_back(bos);
  for (uint64_t i = 1; ids.size() < count; i++) ids.push_back(int(i * 0x9E3779B97F4A7C15 >> 33) % vocab_size);
  return ids;
}

/// Appends values to a string, as ByteReader reads them.
class ByteWriter {
 public:
  template <class T> void put(T value) { bytes.append(reinterpret_cast<const char*>(&value), sizeof value); }
  void put_string(const std::string& s) {
    put(uint32_t(s.size()));
    bytes += s;
  }
  void put_ids(const std::vector<int>& ids) {
    put(uint32_t(ids.size()));
    for (int id : ids) put(int32_t(id));
  }
  std::string bytes;
};

/// The chat section of a model file.
inline std::string chat_bytes(const ChatTemplate& chat) {
  ByteWriter out;
  out.put_ids(chat.stop_ids);
  out.put(int32_t(-1));  // where older files had a default system prompt
  const auto put_slot = [&](const ChatTemplate::Parts& slot) {
    out.put(uint32_t(slot.size()));
    for (const ChatTemplate::Part& part : slot) {
      out.put(int32_t(part.id < 0 ? part.id : part.id | part.strip << 24));
      out.put_string(part.text);
    }
  };
  for (int i = 0; i <= ChatTemplate::kReplySuffix; i++) put_slot(chat.slot[i]);
  out.put(chat.flags());
  for (int i = ChatTemplate::kReplySuffix + 1; i < ChatTemplate::kSlots; i++) put_slot(chat.slot[i]);
  out.put(uint32_t(chat.commands.size()));
  for (const std::string& command : chat.commands) out.put_string(command);
  return out.bytes;
}

/// Runs the ids, and hashes the logits of the last one. False with `error` set.
template <class AnySession>
bool hash_self_test(AnySession& session, const std::vector<int>& ids, uint64_t& hash, std::string& error) {
  const float* logits = session.error.empty() ? session.forward(ids.data(), ids.size()) : nullptr;
  if (!logits) return fail(error, {"self-test: ", session.error});
  hash = hash_logits(logits, session.vocab_size());
  return true;
}

/// Releases the memory of a layer's mapped weights. The self-test uses them once, so that converting needs much less
/// memory than the model.
inline void release(const Layer& layer) {
  const uint64_t begin = round_up<uint64_t>(uintptr_t(layer.attention_norm.data), kPage),
                 end = uintptr_t(layer.w2.data + layer.w2.bytes) / kPage * kPage;
  if (begin < end) platform::release_pages(uintptr_t(begin), size_t(end - begin));
}

/// The self-test of a Llama.
inline bool self_test_llama(const std::string& path, const ModelParts& parts, uint64_t& hash, std::string& error) {
  Model model;
  if (!model.open(path.c_str())) return fail(error, {"the new file cannot be opened: ", model.error});
  if (parts.self_test_ids.empty()) return true;
  Session session(model, {int(parts.self_test_ids.size()), parts.threads, KvType::automatic, nullptr});
  session.observe([&](const Observation& o) {
    if (o.kind == Observation::layer_output) release(model.layers[size_t(o.layer)]);
  });
  return hash_self_test(session, parts.self_test_ids, hash, error);
}

/// The architecture of a Llama.
inline Architecture llama_architecture(const Config& c) {
  Architecture a;
  Header& h = a.header;
  h.architecture = kLlama;
  h.dim = uint32_t(c.dim);
  h.hidden_dim = uint32_t(c.hidden_dim);
  h.n_layers = uint32_t(c.n_layers);
  h.n_heads = uint32_t(c.n_heads);
  h.n_kv_heads = uint32_t(c.n_kv_heads);
  h.head_dim = uint32_t(c.head_dim);
  h.vocab_size = uint32_t(c.vocab_size);
  h.max_seq_len = uint32_t(c.max_seq_len);
  h.tied = c.tied;
  h.norm_eps = c.norm_eps;
  h.rope_theta = c.rope_theta;
  h.rope_scaling = uint32_t(c.rope_scaling);
  h.rope_factor = c.rope_factor;
  h.rope_low_freq = c.rope_low_freq;
  h.rope_high_freq = c.rope_high_freq;
  h.rope_original_len = uint32_t(c.rope_original_len);
  h.parts = uint32_t(c.qkv_bias | c.o_bias << 1 | c.mlp_bias << 2 | c.qk_norm << 3);
  for (size_t l = 0; l < c.no_rope.size(); l++) h.no_rope[l / 8] |= uint8_t(c.no_rope[l] << l % 8);
  a.specs = tensor_specs(c);
  a.self_test = self_test_llama;
  return a;
}

/// Writes one model file.
class ModelWriter {
 public:
  std::string error;

  // Writes the model to `path`. On failure returns false with `error` set, and leaves no file behind.
  bool write(const std::string& path, const ModelParts& parts, const ReadRows& read, const Progress& progress) {
    path_ = path;
    lay_out(parts);
    OutputFile& file = file_.emplace();
    const bool written = check(file.open(path, OutputFile::Access::random) && file.resize(header_.file_bytes)) &&
                         write_contents(parts, read, progress) && check(file.finish());
    file_.reset();
    if (written) platform::read_back(path_);
    return written;
  }

  // Writes a file whose weights are a hole, which takes no space on most file systems. `run --info` shows the memory that
  // the model takes.
  bool write_outline(const std::string& path, const ModelParts& parts) {
    path_ = path;
    lay_out(parts);
    OutputFile& file = file_.emplace();
    const bool written = check(file.open(path, OutputFile::Access::random) && file.resize(header_.file_bytes)) &&
                         write_front(parts, 0) && check(file.finish());
    file_.reset();
    return written;
  }

  uint64_t file_bytes() const { return header_.file_bytes; }

 private:
  bool fail(const std::string& why) { return pocket::fail(error, {path_, ": ", why}); }
  // Passes on the result of a function of file_.
  bool check(bool good) { return good || pocket::fail(error, file_->error()); }

  bool write_contents(const ModelParts& parts, const ReadRows& read, const Progress& progress) {
    at_ = header_.tensors.offset;
    for (size_t i = 0; i < specs_.size(); i++)
      if (!write_tensor(specs_[i], entries_[i], parts, read, progress)) return false;
    header_.tensors_checksum = tensors_hash_.digest();
    if (!write_front(parts, 0)) return false;
    uint64_t hash = 0;
    std::string why;
    if (!architecture_.self_test(file_->temporary_name(), parts, hash, why)) return fail(why);
    return write_front(parts, hash);
  }

  static Section place(uint64_t& at, uint64_t bytes, uint64_t align) {
    const Section s = {round_up<uint64_t>(at, align), bytes};
    at = s.offset + bytes;
    return s;
  }

  static Type type_of(const TensorSpec& spec, const ModelParts& parts) {
    if (spec.layout == Layout::vector) return Type::f32;
    if (spec.name == "output" && parts.head_q8) return Type::q8;
    return spec.layout == Layout::rows && parts.type == Type::q4 ? Type::q8 : parts.type;
  }

  void lay_out(const ModelParts& parts) {
    architecture_ = parts.architecture ? *parts.architecture : llama_architecture(parts.config);
    specs_ = architecture_.specs;
    entries_.clear();
    tensors_hash_ = {};
    norm_squared_ = input_squared_ = output_squared_ = gate_squared_ = {};
    header_ = architecture_.header;
    std::memcpy(header_.magic, kMagic, sizeof kMagic);
    header_.version = kFormatVersion;
    uint64_t at = sizeof(Header);
    header_.tokenizer = place(at, parts.tokenizer.size(), kAlign);
    header_.chat = place(at, chat_bytes(parts.chat).size(), kAlign);
    header_.provenance = place(at, parts.provenance.size(), kAlign);
    header_.self_test = place(at, 4 + parts.self_test_ids.size() * 4 + 8, kAlign);
    header_.tensor_table = place(at, specs_.size() * sizeof(TensorEntry), kAlign);
    at = round_up<uint64_t>(at, kPage);
    header_.tensors.offset = at;
    for (const TensorSpec& spec : specs_) {
      const auto ready = parts.ready.find(spec.name);
      const Type type = ready == parts.ready.end() ? type_of(spec, parts) : ready->second.type;
      TensorEntry e = {};
      e.type = uint32_t(type);
      e.rows = uint32_t(spec.rows);
      e.cols = uint32_t(spec.cols);
      e.offset = at;
      e.bytes = tensor_bytes(spec, type);
      if (type == Type::q4)
        std::memcpy(e.codebook, ready == parts.ready.end() ? kCodebook : ready->second.codebook, sizeof e.codebook);
      entries_.push_back(e);
      at += e.bytes;
    }
    header_.tensors.bytes = at - header_.tensors.offset;
    header_.file_bytes = at;
  }

  // Writes the header and the sections before the tensors, with their checksum.
  bool write_front(const ModelParts& parts, uint64_t self_test_hash) {
    ByteWriter test;
    test.put_ids(parts.self_test_ids);
    test.put(self_test_hash);
    std::string front(header_.tensors.offset, '\0');
    const auto put = [&](const Section& s, const std::string& bytes) { front.replace(s.offset, s.bytes, bytes); };
    put(header_.tokenizer, parts.tokenizer);
    put(header_.chat, chat_bytes(parts.chat));
    put(header_.provenance, parts.provenance);
    put(header_.self_test, test.bytes);
    std::memcpy(&front[header_.tensor_table.offset], entries_.data(), entries_.size() * sizeof(TensorEntry));
    header_.checksum = 0;
    std::memcpy(&front[0], &header_, sizeof header_);
    header_.checksum = hash_bytes(front.data(), front.size());
    std::memcpy(&front[0], &header_, sizeof header_);
    return check(file_->write_at(0, front.data(), front.size()));
  }

  bool append(const std::string& bytes) {
    tensors_hash_.update(bytes.data(), bytes.size());
    const uint64_t at = at_;
    at_ += bytes.size();
    return check(file_->write_at(at, bytes.data(), bytes.size()));
  }

  bool write_tensor(const TensorSpec& spec, const TensorEntry& entry, const ModelParts& parts, const ReadRows& read,
                    const Progress& progress) {
    if (spec.layout == Layout::vector) return write_vector(spec, entry, read) && report(spec, progress);
    const auto ready = parts.ready.find(spec.name);
    if (ready != parts.ready.end()) return copy_tensor(spec, entry, ready->second, progress);
    if (spec.layout == Layout::panels) estimate_inputs(spec, parts);
    return encode_tensor(spec, entry, parts.threads, read, progress);
  }

  bool write_vector(const TensorSpec& spec, const TensorEntry& entry, const ReadRows& read) {
    std::vector<float> values(entry.bytes / sizeof(float));
    if (!read_finite(spec, 0, 1, values.data(), read, error)) return false;
    if (last_name(spec) != "bias") {
      norm_squared_.assign(size_t(padded(spec.cols)), 0.f);
      for (int k = 0; k < spec.cols; k++) norm_squared_[k] = values[k] * values[k];
    }
    return append(std::string(reinterpret_cast<const char*>(values.data()), entry.bytes));
  }

  // Batches of rows are read and encoded by all threads, panel by panel, and written at once.
  bool encode_tensor(const TensorSpec& spec, const TensorEntry& entry, int threads, const ReadRows& read,
                     const Progress& progress) {
    const Type type = Type(entry.type);
    const size_t unit = spec.layout == Layout::panels ? panel_bytes(type, spec.cols)
                                                      : kPanelRows * embedding_row_bytes(type, spec.cols);
    const int units = panels_of(spec.rows), batch = std::max(threads, int((4u << 20) / (unit * 2 + 1)));
    Pool pool(threads);
    std::vector<std::string> errors(size_t(pool.threads()));
    for (int first = 0; first < units; first += batch) {
      const int count = std::min(batch, units - first);
      std::string bytes(size_t(count) * unit, '\0');
      pool.parallel_for(count, [&](int task, int thread) {
        if (!errors[thread].empty()) return;
        encode_unit(spec, type, first + task, reinterpret_cast<uint8_t*>(&bytes[task * unit]), read, errors[thread]);
      });
      for (const std::string& e : errors)
        if (!e.empty()) return pocket::fail(error, e);
      const uint64_t left = entry.offset + entry.bytes - at_;  // the last unit of an embedding may have fewer rows
      if (bytes.size() > left) bytes.resize(left);
      if (!append(bytes) || !report(spec, progress)) return false;
    }
    return true;
  }

  static std::string last_name(const TensorSpec& spec) { return spec.name.substr(spec.name.rfind('.') + 1); }

  // Estimates the mean square of each input of a matrix from the weights alone: the outputs of a norm from its weights;
  // from those, as if they were independent, the output of attention from the rows of wv, and the input of w2 from the
  // rows of w1 and, if present, w3. Called in the order of the file.
  void estimate_inputs(const TensorSpec& spec, const ModelParts& parts) {
    const Config& c = parts.config;
    const std::string last = last_name(spec);
    std::vector<float> inputs(size_t(padded(spec.cols)), 0.f);
    for (int k = 0; k < spec.cols; k++) {
      const int value = k / c.head_dim / (c.n_heads / c.n_kv_heads) * c.head_dim + k % c.head_dim;
      inputs[k] = last == "wo"   ? output_squared_[value]
                  : last == "w2" ? (gate_squared_.empty() ? 1 : gate_squared_[k]) * output_squared_[k]
                                 : norm_squared_[k];
    }
    if (last == "w3") gate_squared_ = output_squared_;
    input_squared_ = inputs;
    output_squared_.assign(size_t(padded(spec.rows)), 0.f);
  }

  bool copy_tensor(const TensorSpec& spec, const TensorEntry& entry, const ReadyTensor& ready,
                   const Progress& progress) {
    for (uint64_t at = 0; at < entry.bytes;) {
      std::string piece(size_t(std::min<uint64_t>(4 << 20, entry.bytes - at)), '\0');
      if (!ready.read(at, piece.size(), &piece[0], error) || !append(piece) || !report(spec, progress)) return false;
      at += piece.size();
    }
    return true;
  }

  void encode_unit(const TensorSpec& spec, Type type, int unit, uint8_t* out, const ReadRows& read, std::string& why) {
    const int first = unit * kPanelRows, count = std::min(kPanelRows, spec.rows - first);
    const size_t width = size_t(padded(spec.cols));
    std::vector<float> rows(width * kPanelRows);
    for (int r = 0; r < count; r++)
      if (!read_finite(spec, first + r, 1, rows.data() + r * width, read, why)) return;
    if (spec.layout == Layout::panels) {
      for (int r = 0; r < count; r++)
        for (int k = 0; k < spec.cols; k++)
          output_squared_[first + r] += rows[r * width + k] * rows[r * width + k] * input_squared_[k];
      return PanelEncoder(type, spec.cols, input_squared_.data()).encode(rows.data(), out);
    }
    const size_t row_bytes = embedding_row_bytes(type, spec.cols);
    for (int r = 0; r < count; r++) encode_embedding_row(type, rows.data() + r * width, spec.cols, out + r * row_bytes);
  }

  bool report(const TensorSpec& spec, const Progress& progress) {
    const uint64_t start = header_.tensors.offset;
    return !progress || progress(spec, at_ - start, header_.tensors.bytes) || fail("interrupted");
  }

  std::string path_;
  std::optional<OutputFile> file_;  // while it is written
  uint64_t at_ = 0;
  Header header_ = {};
  Architecture architecture_;
  std::vector<TensorSpec> specs_;
  std::vector<TensorEntry> entries_;
  Hash64 tensors_hash_;
  // Estimated mean squares, up to a common factor: of the outputs of the last norm, and of the inputs and outputs of a
  // matrix; columns and rows padded to 64.
  std::vector<float> norm_squared_, input_squared_, output_squared_, gate_squared_;
};

}  // namespace pocket
