// calibration_file.hpp: the intermediate results of a calibration, in a file beside the model file. An interrupted
// calibration resumes from it; the model writer copies the matrices from it; then it is deleted.
//
//     0      FileHeader, then zeros
//     4096   two slots for the streams of activations, written alternately: the slot of the last complete layer stays
//     intact
//     ...    for each quantized matrix, in the order of the model: Record, panels
#pragma once

#include <sys/file.h>
#include <sys/stat.h>

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
  };

  std::string error;

  ~CalibrationFile() { close(); }

  // Opens or creates the file. key: a hash of everything the result depends on; a file with another key or a damaged
  // header is overwritten. stream_bytes: size of both streams together.
  bool open(const std::string& path, uint64_t key, uint64_t stream_bytes) {
    path_ = path;
    stream_bytes_ = round_up<uint64_t>(stream_bytes, kPage);
    file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (file_ < 0) return fail(std::strerror(errno));
    if (flock(file_, LOCK_EX | LOCK_NB) != 0) {
      ::close(file_);
      file_ = -1;
      return fail("in use by another process");
    }
    if (load_header(key)) return true;
    header_ = {{}, key, 0, kPage + 2 * stream_bytes_, 0, 0};
    std::memcpy(header_.magic, kMagic, sizeof header_.magic);
    records_.clear();
    return ftruncate(file_, 0) == 0 || fail(std::strerror(errno));
  }

  int layers() const { return int(header_.layers); }  // complete ones
  const std::vector<Record>& records() const { return records_; }

  // The streams after the last complete layer.
  bool read_streams(float* x, float* xq, size_t floats) {
    const uint64_t at = slot(header_.layers);
    if (!transfer(false, at, x, floats * 4) || !transfer(false, at + floats * 4, xq, floats * 4)) return false;
    return stream_hash(x, xq, floats) == header_.stream_hash || fail("damaged; delete it to restart");
  }

  bool append(const EncodedTensor& t) {
    Record r = {{}, t.error, t.drift};
    r.entry.type = uint32_t(t.type);
    r.entry.rows = uint32_t(t.spec.rows);
    r.entry.cols = uint32_t(t.spec.cols);
    r.entry.offset = end_of_records() + sizeof r;
    r.entry.bytes = t.bytes.size();
    std::memcpy(r.entry.codebook, t.codebook, sizeof r.entry.codebook);
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
    return transfer(true, 0, &header_, sizeof header_);
  }

  // A record's panels, for the model writer. Refers to this object.
  ReadyTensor ready(const Record& r) {
    ReadyTensor t = {Type(r.entry.type), {}, [this, r](uint64_t at, size_t n, void* out, std::string& why) {
                       return transfer(false, r.entry.offset + at, out, n) || pocket::fail(why, error);
                     }};
    std::memcpy(t.codebook, r.entry.codebook, sizeof t.codebook);
    return t;
  }

  void remove() {
    if (file_ >= 0) unlink(path_.c_str());
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
  static constexpr char kMagic[8] = {'P', 'K', 'T', 'L', 'C', 'A', 'L', '1'};

  bool fail(const std::string& why) { return pocket::fail(error, {path_, ": ", why}); }

  void close() {
    if (file_ >= 0) ::close(file_);
    file_ = -1;
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

  // Reads the header and records of an existing file; false if they cannot be used.
  bool load_header(uint64_t key) {
    struct stat st;
    if (fstat(file_, &st) != 0 || uint64_t(st.st_size) < kPage + 2 * stream_bytes_) return false;
    if (!transfer(false, 0, &header_, sizeof header_)) return false;
    if (std::memcmp(header_.magic, kMagic, sizeof kMagic) != 0 || header_.key != key ||
        header_.checksum != header_hash() || header_.end > uint64_t(st.st_size))
      return false;
    while (end_of_records() < header_.end) {
      Record r;
      const uint64_t at = end_of_records();
      if (!transfer(false, at, &r, sizeof r)) return false;
      if (r.entry.offset != at + sizeof r || r.entry.bytes > header_.end - r.entry.offset) return false;
      records_.push_back(r);
    }
    return true;
  }

  bool transfer(bool write, uint64_t at, void* data, size_t n) {
    for (char* p = static_cast<char*>(data); n > 0;) {
      const ssize_t moved = write ? pwrite(file_, p, n, off_t(at)) : pread(file_, p, n, off_t(at));
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
  uint64_t stream_bytes_ = 0;
  FileHeader header_ = {};
  std::vector<Record> records_;
};

}  // namespace pocket
