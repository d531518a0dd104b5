// requests_file.hpp: the file of requests, one JSON object a line, and the ids of its lines.
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include "../../export/engine.hpp"
#include "../../export/program.hpp"

namespace pocket::batch {

// The lines of a file that are not blank. Lines are read when they are needed; per line 24 bytes are kept.
class RequestsFile {
 public:
  static constexpr size_t kLongestLine = 8 << 20;  // bytes; JSON takes up to 20 times as much memory

  // Opens a file, or from its offset standard input, "-", and finds the lines. What is no regular file is copied to a
  // temporary one. salt: a part of all ids. Throws Failure.
  RequestsFile(const std::string& path, uint64_t salt) : name_(path == "-" ? "standard input" : path) {
    const int fd = path == "-" ? dup(0) : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    file_.reset(fd < 0 ? nullptr : fdopen(fd, "rb"));
    struct stat info = {};
    if (!file_ || fstat(fileno(file_.get()), &info) != 0) fail(std::strerror(errno));
    if (S_ISDIR(info.st_mode)) fail(std::strerror(EISDIR));
    std::unique_ptr<std::FILE, Close> copy(S_ISREG(info.st_mode) ? nullptr : std::tmpfile());
    if (!S_ISREG(info.st_mode) && !copy) fail(std::string("temporary file: ") + std::strerror(errno));
    find_lines(copy.get(), salt);
    if (copy) file_ = std::move(copy);
    make_ids_unique();
  }

  size_t size() const { return lines_.size(); }  // number of lines
  // Identifies the line among those of the file: a hash of the salt and the line.
  uint64_t id(size_t line) const { return lines_[line].id; }
  // The line with this id, or size().
  size_t find(uint64_t id) const {
    const auto at = std::lower_bound(by_id_.begin(), by_id_.end(), id,
                                     [this](uint32_t line, uint64_t value) { return lines_[line].id < value; });
    return at != by_id_.end() && lines_[*at].id == id ? *at : size();
  }
  // Reads a line. Returns false if it is longer than kLongestLine. Throws Failure.
  bool read(size_t line, std::string& text) const {
    const Line& l = lines_[line];
    if (l.size > kLongestLine) return false;
    text.resize(l.size);
    for (size_t done = 0; done < text.size();) {
      const ssize_t n = pread(fileno(file_.get()), &text[done], text.size() - done, off_t(l.at + done));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) fail(n < 0 ? std::strerror(errno) : "the file was truncated while in use");
      done += size_t(n);
    }
    return true;
  }
  const std::string& name() const { return name_; }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  struct Line {
    uint64_t at, id;
    uint32_t size;  // bytes; of longer ones kLongestLine + 1
  };

  [[noreturn]] void fail(const std::string& why) const { throw Failure{1, name_ + ": " + why}; }

  // Reads the file once, and copies it to `copy` unless that is null.
  void find_lines(std::FILE* copy, uint64_t salt) {
    std::vector<char> piece(1 << 16);
    const off_t first = copy ? 0 : lseek(fileno(file_.get()), 0, SEEK_CUR);
    if (first < 0) fail(std::strerror(errno));
    uint64_t at = uint64_t(first), begin = at;
    Hash64 hash;
    bool blank = true;
    const auto start_line = [&](uint64_t offset) {
      begin = offset;
      blank = true;
      hash = Hash64();
      hash.update(&salt, sizeof salt);
    };
    const auto add = [&](const char* data, size_t n) {
      for (size_t i = 0; i < n && blank; i++) blank = std::isspace(uint8_t(data[i])) != 0;
      hash_bytes_of_line(hash, data, n);
    };
    const auto end_line = [&](uint64_t end) {
      flush_hash(hash);
      if (blank) return;
      if (lines_.size() == UINT32_MAX) fail("expected at most 4294967295 requests, found more");
      lines_.push_back({begin, hash.digest(), uint32_t(std::min<uint64_t>(end - begin, kLongestLine + 1))});
    };
    start_line(at);
    while (const size_t n = read_piece(piece)) {
      if (copy && std::fwrite(piece.data(), 1, n, copy) != n)
        fail(std::string("temporary file: ") + std::strerror(errno));
      for (size_t i = 0; i < n;) {
        const char* newline = static_cast<const char*>(std::memchr(&piece[i], '\n', n - i));
        const size_t end = newline ? size_t(newline - piece.data()) : n;
        add(&piece[i], end - i);
        i = end;
        if (!newline) continue;
        end_line(at + end);
        start_line(at + ++i);
      }
      at += n;
    }
    end_line(at);
    if (copy && std::fflush(copy) != 0) fail(std::string("temporary file: ") + std::strerror(errno));
  }

  // The bytes read; 0 at the end of the file. Throws Failure, also after Ctrl-C.
  size_t read_piece(std::vector<char>& piece) const {
    while (true) {
      stop_if_interrupted();
      const ssize_t n = ::read(fileno(file_.get()), piece.data(), piece.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail(std::strerror(errno));
      return size_t(n);
    }
  }

  // Hash64 pads each update to 32 bytes, so that parts of a line are collected until they are whole.
  void hash_bytes_of_line(Hash64& hash, const char* data, size_t n) {
    while (n > 0) {
      const size_t part = std::min(n, sizeof held_ - held_size_);
      std::memcpy(held_ + held_size_, data, part);
      held_size_ += part;
      data += part;
      n -= part;
      if (held_size_ == sizeof held_) flush_hash(hash);
    }
  }
  void flush_hash(Hash64& hash) {
    hash.update(held_, held_size_);
    held_size_ = 0;
  }

  // Equal lines get different ids, in their order.
  void make_ids_unique() {
    const auto less = [this](uint32_t a, uint32_t b) {
      return lines_[a].id != lines_[b].id ? lines_[a].id < lines_[b].id : a < b;
    };
    by_id_.resize(lines_.size());
    for (size_t i = 0; i < by_id_.size(); i++) by_id_[i] = uint32_t(i);
    for (bool again = true; again;) {
      again = false;
      std::sort(by_id_.begin(), by_id_.end(), less);
      for (size_t i = 0; i + 1 < by_id_.size();) {
        const uint64_t first = lines_[by_id_[i]].id;
        uint64_t next = first;
        for (i++; i < by_id_.size() && lines_[by_id_[i]].id == first; i++) {
          next = hash_bytes(&next, sizeof next);
          lines_[by_id_[i]].id = next;
          again = true;
        }
      }
    }
  }

  std::string name_;
  std::unique_ptr<std::FILE, Close> file_;
  std::vector<Line> lines_;
  std::vector<uint32_t> by_id_;  // lines, by id
  char held_[4096];
  size_t held_size_ = 0;
};

}  // namespace pocket::batch
