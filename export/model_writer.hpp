// model_writer.hpp: the one writer of model.bin; its one reader is section 4 of run.cpp, which draws the file.
//
// Tensors are read, encoded and written a few panels at a time, so that memory stays small whatever the model's size.
// The file grows under a temporary name beside its own and gets that only when all of it is there and has been run.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine.hpp"
#include "quantize.hpp"

namespace pocket {

// Rows first ... first + count - 1 of a tensor as float32 (count, cols). False with `error` set if they cannot be had.
using ReadRows =
    std::function<bool(const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& error)>;

// A weight that is not a finite number would spoil every answer; such a checkpoint is damaged.
inline bool read_finite(const TensorSpec& spec, int64_t first, int64_t count, float* out, const ReadRows& read,
                        std::string& why) {
  if (!read(spec, first, count, out, why)) return false;
  for (int64_t i = 0; i < count * spec.cols; i++)
    if (!std::isfinite(out[i]))
      return why = spec.name + ": row " + std::to_string(first + i / spec.cols) + ", column " +
                   std::to_string(i % spec.cols) + ": expected a finite number, found " + std::to_string(out[i]),
             false;
  return true;
}

// Called now and then while a tensor is written; returns false to give up (then nothing is left behind).
using Progress = std::function<bool(const TensorSpec& spec, uint64_t bytes_done, uint64_t bytes_total)>;

// A matrix whose panels exist already.
struct ReadyTensor {
  Type type;
  int8_t codebook[16];  // q4, else 0
  std::function<bool(uint64_t at, size_t n, void* out, std::string& error)> read;
};

struct ModelParts;

// What the writer has to know of an architecture.
struct Architecture {
  Header header = {};             // the fields of the shape; the writer fills in the others
  std::vector<TensorSpec> specs;  // every tensor, in the order of the file
  // Opens the new file at `path` and runs parts.self_test_ids; gives the hash of the logits of the last one.
  std::function<bool(const std::string& path, const ModelParts& parts, uint64_t& hash, std::string& error)> self_test;
};

struct ModelParts {
  Config config;                             // of a Llama; of another architecture the heads only
  std::optional<Architecture> architecture;  // other than a Llama of that config
  Type type = Type::q4;                      // of the matrices; the embedding table is f32 in an f32 model, else q8
  bool head_q8 = false;                      // the output matrix at q8, whatever the others are
  std::string tokenizer;                     // blob
  ChatTemplate chat;
  std::string provenance;
  std::vector<int> self_test_ids;
  int threads = 2;
  std::map<std::string, ReadyTensor> ready;  // by name: matrices that are copied, not encoded
};

// The ids that the self-test runs: spread over the vocabulary, the same for every model.
inline std::vector<int> self_test_prompt(int vocab_size, int bos, size_t count = 8) {
  std::vector<int> ids;
  if (bos >= 0) ids.push_back(bos);
  for (uint64_t i = 1; ids.size() < count; i++) ids.push_back(int(i * 0x9E3779B97F4A7C15 >> 33) % vocab_size);
  return ids;
}

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

inline std::string chat_bytes(const ChatTemplate& chat) {
  ByteWriter out;
  out.put_ids(chat.stop_ids);
  out.put_string(chat.default_system);
  for (const auto& slot : chat.slot) {
    out.put(uint32_t(slot.size()));
    for (const ChatTemplate::Part& part : slot) {
      out.put(int32_t(part.id));
      out.put_string(part.text);
    }
  }
  if (chat.trim) out.put(uint32_t(chat.trim));
  return out.bytes;
}

// Runs the ids and takes the hash of the last one's logits. The caller opens model and session. False with `error` set.
template <class AnySession>
bool hash_self_test(AnySession& session, const std::vector<int>& ids, uint64_t& hash, std::string& error) {
  const float* logits = session.error.empty() ? session.forward(ids.data(), ids.size()) : nullptr;
  if (!logits) return error = "self-test: " + session.error, false;
  for (int i = 0; i < session.vocab_size(); i++)
    if (!std::isfinite(logits[i]))
      return error = "self-test: the model's logits are not finite; is the checkpoint whole?", false;
  hash = hash_logits(logits, session.vocab_size());
  return true;
}

// Takes a layer's weights out of this process's memory once they have been used, which is once, so that converting
// needs much less memory than the model.
inline void release(const Layer& layer) {
  const uintptr_t begin = round_up(uintptr_t(layer.attention_norm.data), kPage),
                  end = uintptr_t(layer.w2.data + layer.w2.bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

inline bool self_test_llama(const std::string& path, const ModelParts& parts, uint64_t& hash, std::string& error) {
  Model model;
  if (!model.open(path.c_str())) return error = "the file just written is refused: " + model.error, false;
  if (parts.self_test_ids.empty()) return true;
  Session session(model, {int(parts.self_test_ids.size()), parts.threads, KvType::automatic, nullptr});
  session.observe([&](const Observation& o) {
    if (o.kind == Observation::layer_output) release(model.layers[size_t(o.layer)]);
  });
  return hash_self_test(session, parts.self_test_ids, hash, error);
}

inline Architecture llama_architecture(const Config& c) {
  Architecture a;
  Header& h = a.header;
  h.architecture = kLlama;
  h.dim = uint32_t(c.dim), h.hidden_dim = uint32_t(c.hidden_dim);
  h.n_layers = uint32_t(c.n_layers), h.n_heads = uint32_t(c.n_heads);
  h.n_kv_heads = uint32_t(c.n_kv_heads), h.head_dim = uint32_t(c.head_dim);
  h.vocab_size = uint32_t(c.vocab_size), h.max_seq_len = uint32_t(c.max_seq_len);
  h.tied = c.tied, h.norm_eps = c.norm_eps;
  h.rope_theta = c.rope_theta, h.rope_scaling = uint32_t(c.rope_scaling);
  h.rope_factor = c.rope_factor, h.rope_low_freq = c.rope_low_freq;
  h.rope_high_freq = c.rope_high_freq, h.rope_original_len = uint32_t(c.rope_original_len);
  a.specs = tensor_specs(c);
  a.self_test = self_test_llama;
  return a;
}

class ModelWriter {
 public:
  std::string error;

  ~ModelWriter() { discard(); }

  // Writes the whole model to `path`. On failure returns false with `error` set, and leaves no file of its own.
  bool write(const std::string& path, const ModelParts& parts, const ReadRows& read, const Progress& progress) {
    path_ = path;
    temporary_ = path + ".tmp." + std::to_string(getpid());
    lay_out(parts);
    file_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (file_ < 0) return temporary_.clear(), fail(std::strerror(errno));  // what is there is somebody else's
    if (ftruncate(file_, off_t(header_.file_bytes)) != 0) return fail(std::strerror(errno));
    at_ = header_.tensors.offset;
    for (size_t i = 0; i < specs_.size(); i++)
      if (!write_tensor(specs_[i], entries_[i], parts, read, progress)) return discard(), false;
    header_.tensors_checksum = tensors_hash_.digest();
    if (!write_front(parts, 0)) return discard(), false;
    uint64_t hash = 0;
    std::string why;
    if (!architecture_.self_test(temporary_, parts, hash, why)) return fail(why);
    if (!write_front(parts, hash)) return discard(), false;
    if (fsync(file_) != 0 && errno != EINVAL) return fail(std::strerror(errno));  // EINVAL: no disk, nothing to sync
    read_back();
    if (::close(file_) != 0) return file_ = -1, fail(std::strerror(errno));
    file_ = -1;
    if (std::rename(temporary_.c_str(), path.c_str()) != 0) return fail(std::strerror(errno));
    temporary_.clear();
    return true;
  }

  uint64_t file_bytes() const { return header_.file_bytes; }

 private:
  bool fail(const std::string& why) {
    error = path_ + ": " + why;
    discard();
    return false;
  }

  // What writing leaves in the system's cache lies there in small pages. Dropped and read back it lies there in pages
  // of 2 MiB, where the system has such for files, and a model is then read a tenth faster by whoever maps it.
  void read_back() {
#ifdef POSIX_FADV_DONTNEED
    if (posix_fadvise(file_, 0, 0, POSIX_FADV_DONTNEED) != 0) return;
    std::vector<char> piece(1 << 20);
    off_t at = 0;
    for (ssize_t n; (n = pread(file_, piece.data(), piece.size(), at)) > 0;) at += n;
#endif
  }

  void discard() {
    if (file_ >= 0) ::close(file_);
    file_ = -1;
    if (!temporary_.empty()) unlink(temporary_.c_str());
    temporary_.clear();
  }

  static Section place(uint64_t& at, uint64_t bytes, uint64_t align) {
    const Section s = {round_up(at, align), bytes};
    at = s.offset + bytes;
    return s;
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
    at = round_up(at, kPage);
    header_.tensors.offset = at;
    for (const TensorSpec& spec : specs_) {
      const auto ready = parts.ready.find(spec.name);
      const Type type = ready != parts.ready.end()                              ? ready->second.type
                        : spec.name == "output" && parts.head_q8                ? Type::q8
                        : spec.layout == Layout::vector                         ? Type::f32
                        : spec.layout == Layout::rows && parts.type == Type::q4 ? Type::q8
                                                                                : parts.type;
      TensorEntry e = {};
      e.type = uint32_t(type), e.rows = uint32_t(spec.rows), e.cols = uint32_t(spec.cols);
      e.offset = at, e.bytes = tensor_bytes(spec, type);
      if (type == Type::q4)
        std::memcpy(e.codebook, ready == parts.ready.end() ? kCodebook : ready->second.codebook, sizeof e.codebook);
      entries_.push_back(e);
      at += e.bytes;
    }
    header_.tensors.bytes = at - header_.tensors.offset;
    header_.file_bytes = at;
  }

  // The header and the sections before the tensors, with the checksum over both.
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
    return write_at(0, front.data(), front.size());
  }

  bool write_at(uint64_t at, const void* data, size_t n) {
    for (const char* p = static_cast<const char*>(data); n > 0;) {
      const ssize_t wrote = pwrite(file_, p, n, off_t(at));
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote <= 0) return fail(std::string("cannot write: ") + std::strerror(errno));
      p += wrote, at += uint64_t(wrote), n -= size_t(wrote);
    }
    return true;
  }

  bool append(const std::string& bytes) {
    tensors_hash_.update(bytes.data(), bytes.size());
    const uint64_t at = at_;
    at_ += bytes.size();
    return write_at(at, bytes.data(), bytes.size());
  }

  // A batch of rows is read and encoded by all threads, panel by panel, and written in one piece.
  bool write_tensor(const TensorSpec& spec, const TensorEntry& entry, const ModelParts& parts, const ReadRows& read,
                    const Progress& progress) {
    const Type type = Type(entry.type);
    if (spec.layout == Layout::vector) {
      std::vector<float> values(entry.bytes / sizeof(float));
      if (!read_finite(spec, 0, 1, values.data(), read, error)) return false;
      if (last_name(spec) != "bias") {
        norm_squared_.assign(size_t(padded(spec.cols)), 0.f);
        for (int k = 0; k < spec.cols; k++) norm_squared_[k] = values[k] * values[k];
      }
      return append(std::string(reinterpret_cast<const char*>(values.data()), entry.bytes)) && report(spec, progress);
    }
    const auto ready = parts.ready.find(spec.name);
    if (ready != parts.ready.end()) return copy_tensor(spec, entry, ready->second, progress);
    const bool panels = spec.layout == Layout::panels;
    if (panels) guess_inputs(spec, parts);
    const size_t unit = panels ? panel_bytes(type, spec.cols) : kPanelRows * embedding_row_bytes(type, spec.cols);
    const int units = panels_of(spec.rows), batch = std::max(parts.threads, int((4u << 20) / (unit * 2 + 1)));
    Pool pool(parts.threads);
    std::vector<std::string> errors(size_t(pool.threads()));
    for (int first = 0; first < units; first += batch) {
      const int count = std::min(batch, units - first);
      std::string bytes(size_t(count) * unit, '\0');
      pool.parallel_for(count, [&](int task, int thread) {
        if (!errors[thread].empty()) return;
        encode_unit(spec, type, first + task, reinterpret_cast<uint8_t*>(&bytes[task * unit]), read, errors[thread]);
      });
      for (const std::string& e : errors)
        if (!e.empty()) return error = e, false;
      const uint64_t left = entry.offset + entry.bytes - at_;  // of the last 16 embedding rows some are not there
      if (bytes.size() > left) bytes.resize(left);
      if (!append(bytes) || !report(spec, progress)) return false;
    }
    return true;
  }

  static std::string last_name(const TensorSpec& spec) { return spec.name.substr(spec.name.rfind('.') + 1); }

  // How large the inputs of a matrix are, column by column, without any text: a norm's weights say it of its outputs;
  // as if those were independent, the rows of wv say it of what attention averages, and those of w1, and w3 if there
  // is one, of their product. To be called in the order of the file.
  void guess_inputs(const TensorSpec& spec, const ModelParts& parts) {
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

  std::string path_, temporary_;
  int file_ = -1;
  uint64_t at_ = 0;
  Header header_ = {};
  Architecture architecture_;
  std::vector<TensorSpec> specs_;
  std::vector<TensorEntry> entries_;
  Hash64 tensors_hash_;
  // Mean squares, up to a common factor, as guessed from the weights: what the last norm gives, and the inputs and
  // outputs of a matrix; columns and rows padded to 64.
  std::vector<float> norm_squared_, input_squared_, output_squared_, gate_squared_;
};

}  // namespace pocket
