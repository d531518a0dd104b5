// calibration_file.hpp: the intermediate results of a calibration, in a file beside the model file. An interrupted
// calibration resumes from it; the model writer copies the matrices from it; then it is deleted.
//
//     0      FileHeader, then zeros
//     4096   two slots for the streams of activations, written alternately: the slot of the last complete layer stays
//     intact
//     ...    for each quantized matrix, in the order of the model: Record, panels
//
// Everything that is read is covered by a checksum. A file without the magic number is neither changed nor deleted.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model_writer.hpp"

namespace pocket {

/// A quantized matrix.
struct EncodedTensor {
  TensorSpec spec;
  Type type;
  int8_t codebook[16];
  std::vector<uint8_t> bytes;  // panels
  double error = 0;            // relative RMS error of its outputs: from its own weights,
  double drift = 0;            // and from everything up to this matrix

  Tensor tensor() const {
    Tensor t = {type, spec.rows, spec.cols, bytes.data(), bytes.size()};
    std::memcpy(t.codebook, codebook, sizeof codebook);
    return t;
  }
};

/// See above. One process at a time.
class CalibrationFile {
 public:
  struct Record {
    TensorEntry entry;  // entry.offset: of the panels in this file
    double error, drift;
    uint64_t checksum;  // of this record with checksum 0, and of the panels
  };

  std::string error;

  CalibrationFile() = default;
  ~CalibrationFile() { close(); }
  CalibrationFile(const CalibrationFile&) = delete;
  CalibrationFile& operator=(const CalibrationFile&) = delete;

  // Opens or creates the file. key: a hash of everything the result depends on; a file of another key is an error, a
  // damaged file is overwritten. stream_bytes: size of both streams together. matrices: of the model, in its order.
  // Without a complete layer the file is temporary: the destructor deletes it, and another calibration overwrites it.
  bool open(const std::string& path, uint64_t key, uint64_t stream_bytes, const std::vector<TensorSpec>& matrices) {
    stream_bytes_ = round_up<uint64_t>(stream_bytes, kPage);
    if (!open_existing(path) || (file_ < 0 && !create())) return false;
    if (!platform::lock(file_)) {
      new_.release();
      close();
      return fail("in use by another process");
    }
    if (load(key, matrices)) return true;
    if (is_of_another(key)) {
      close();
      return fail(
          "is of an interrupted calibration with another text, model or options; delete the file to start "
          "another calibration");
    }
    if (new_.name().empty()) new_.own(path);
    header_ = {{}, key, 0, kPage + 2 * stream_bytes_, 0, 0};
    std::memcpy(header_.magic, kMagic, sizeof header_.magic);
    records_.clear();
    if (!platform::set_size(file_, 0)) return fail(std::strerror(errno));
    return transfer(true, 0, &header_, sizeof header_);
  }

  // Checks that open() will not meet a file that is not of a calibration. False with `error` set.
  bool check(const std::string& path) {
    const bool good = open_existing(path);
    close();
    return good;
  }

  int layers() const { return int(header_.layers); }  // complete ones
  // Whether the same calibration can continue from the file.
  bool resumable() const { return file_ >= 0 && header_.layers > 0; }
  const std::vector<Record>& records() const { return records_; }

  // The streams after the last complete layer. If they are damaged, the file is no longer resumable.
  bool read_streams(float* x, float* xq, size_t floats) {
    const uint64_t at = slot(header_.layers);
    if (!transfer(false, at, x, floats * 4) || !transfer(false, at + floats * 4, xq, floats * 4)) return false;
    if (stream_hash(x, xq, floats) == header_.stream_hash) return true;
    header_.layers = 0;
    return fail("damaged; repeat the command to restart");
  }

  bool append(const EncodedTensor& t) {
    Record r = {{}, t.error, t.drift, 0};
    r.entry.type = uint32_t(t.type);
    r.entry.rows = uint32_t(t.spec.rows);
    r.entry.cols = uint32_t(t.spec.cols);
    r.entry.offset = end_of_records() + sizeof r;
    r.entry.bytes = t.bytes.size();
    std::memcpy(r.entry.codebook, t.codebook, sizeof r.entry.codebook);
    Hash64 hash = hash_of(r);
    hash.update(t.bytes.data(), t.bytes.size());
    r.checksum = hash.digest();
    if (!transfer(true, r.entry.offset - sizeof r, &r, sizeof r)) return false;
    if (!transfer(true, r.entry.offset, const_cast<uint8_t*>(t.bytes.data()), t.bytes.size())) return false;
    records_.push_back(r);
    return true;
  }

  // Commits all records so far and the streams.
  bool finish_layer(const float* x, const float* xq, size_t floats) {
    const uint64_t at = slot(header_.layers + 1);
    if (!transfer(true, at, const_cast<float*>(x), floats * 4)) return false;
    if (!transfer(true, at + floats * 4, const_cast<float*>(xq), floats * 4)) return false;
    header_.layers++;
    header_.end = end_of_records();
    header_.stream_hash = stream_hash(x, xq, floats);
    header_.checksum = header_hash();
    if (!transfer(true, 0, &header_, sizeof header_)) return false;
    new_.release();
    return true;
  }

  // A record's panels, for the model writer, which reads them in order. Refers to this object.
  ReadyTensor ready(const Record& r) {
    ReadyTensor t = {Type(r.entry.type), {}, {}};
    std::memcpy(t.codebook, r.entry.codebook, sizeof t.codebook);
    t.read = [this, r, hash = Hash64()](uint64_t at, size_t n, void* out, std::string& why) mutable {
      if (at == 0) hash = hash_of(r);
      if (!transfer(false, r.entry.offset + at, out, n)) return pocket::fail(why, error);
      hash.update(out, n);
      return at + n < r.entry.bytes || hash.digest() == r.checksum ||
             pocket::fail(why, {path_, ": changed while it was in use"});
    };
    return t;
  }

  void remove() {
    if (file_ >= 0) platform::remove(path_.c_str());
    new_.release();
    close();
  }

 private:
  struct FileHeader {
    char magic[8];
    uint64_t key;
    uint64_t layers;       // complete ones
    uint64_t end;          // offset after their records
    uint64_t stream_hash;  // of the streams after them
    uint64_t checksum;     // of this header with checksum 0
  };
  static constexpr char kMagic[8] = {'P', 'K', 'T', 'L', 'C', 'A', 'L', '2'};
  static constexpr size_t kAnyVersion = 7;  // bytes of the magic number that all versions share
  static constexpr size_t kLayerMatrices = 7;

  bool fail(const std::string& why) { return pocket::fail(error, {path_, ": ", why}); }

  void close() {
    if (file_ >= 0) platform::close(file_);
    file_ = -1;
  }

  // Opens the file, if there is one: a regular file with the magic number.
  bool open_existing(const std::string& path) {
    path_ = path;
    file_ = platform::open_to_change(path);
    if (file_ < 0) return errno == ENOENT || fail(std::strerror(errno));
    char magic[kAnyVersion] = {};
    const bool regular = platform::info_of(file_).kind == platform::FileKind::file;
    if (regular && platform::read_at(file_, magic, sizeof magic, 0) == sizeof magic &&
        std::memcmp(magic, kMagic, sizeof magic) == 0)
      return true;
    close();
    return fail(
        "expected the file of an interrupted calibration, found another file; move it, or choose another name "
        "for the model");
  }

  bool create() {
    const auto make = [this](const char* name) { return (file_ = platform::create_file(name, false)) >= 0; };
    return new_.create(path_, make) || fail(std::strerror(errno));
  }

  uint64_t slot(uint64_t layers) const { return kPage + layers % 2 * stream_bytes_; }
  uint64_t end_of_records() const {
    return records_.empty() ? kPage + 2 * stream_bytes_ : records_.back().entry.offset + records_.back().entry.bytes;
  }
  uint64_t header_hash() const {
    FileHeader h = header_;
    h.checksum = 0;
    return hash_bytes(&h, sizeof h);
  }
  static uint64_t stream_hash(const float* x, const float* xq, size_t floats) {
    Hash64 hash;
    hash.update(x, floats * 4);
    hash.update(xq, floats * 4);
    return hash.digest();
  }

  static Hash64 hash_of(Record r) {
    r.checksum = 0;
    Hash64 hash;
    hash.update(&r, sizeof r);
    return hash;
  }

  // Reads the header and the records of an existing file; false if they cannot be used.
  bool load(uint64_t key, const std::vector<TensorSpec>& matrices) {
    if (platform::info_of(file_).size < kPage + 2 * stream_bytes_) return false;
    if (!transfer(false, 0, &header_, sizeof header_)) return false;
    if (std::memcmp(header_.magic, kMagic, sizeof kMagic) != 0 || header_.key != key ||
        header_.checksum != header_hash() || header_.layers > matrices.size() / kLayerMatrices)
      return false;
    while (records_.size() < header_.layers * kLayerMatrices)
      if (!load_record(matrices[records_.size()])) return false;
    return end_of_records() == header_.end;
  }

  // Whether an existing file has complete layers of a calibration with another key.
  bool is_of_another(uint64_t key) {
    return platform::info_of(file_).size >= sizeof header_ && transfer(false, 0, &header_, sizeof header_) &&
           std::memcmp(header_.magic, kMagic, sizeof kMagic) == 0 && header_.checksum == header_hash() &&
           header_.layers > 0 && header_.key != key;
  }

  bool load_record(const TensorSpec& spec) {
    Record r;
    const uint64_t at = end_of_records();
    if (!transfer(false, at, &r, sizeof r)) return false;
    const TensorEntry& e = r.entry;
    if (e.type != uint32_t(Type::q4) || e.rows != uint32_t(spec.rows) || e.cols != uint32_t(spec.cols) ||
        e.offset != at + sizeof r || e.bytes != tensor_bytes(spec, Type::q4))
      return false;
    Hash64 hash = hash_of(r);
    std::vector<uint8_t> panels(e.bytes);
    if (!transfer(false, e.offset, panels.data(), panels.size())) return false;
    hash.update(panels.data(), panels.size());
    records_.push_back(r);
    return hash.digest() == r.checksum;
  }

  bool transfer(bool write, uint64_t at, void* data, size_t n) {
    for (char* p = static_cast<char*>(data); n > 0;) {
      const int64_t moved = write ? platform::write_at(file_, p, n, at) : platform::read_at(file_, p, n, at);
      if (moved < 0 && errno == EINTR) continue;
      if (moved <= 0) return fail(moved < 0 ? std::strerror(errno) : write ? "cannot write" : "truncated");
      p += moved;
      at += uint64_t(moved);
      n -= size_t(moved);
    }
    return true;
  }

  std::string path_;
  int file_ = -1;
  Temporary new_;  // the file, until a layer is complete
  uint64_t stream_bytes_ = 0;
  FileHeader header_ = {};
  std::vector<Record> records_;
};

}  // namespace pocket
