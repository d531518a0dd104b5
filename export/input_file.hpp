// input_file.hpp: files that are read at offsets, with every read checked against the file size, and path helpers.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "message.hpp"
#include "platform.hpp"

namespace pocket {

/// The beginning of a text from a file, for a message, with '?' for characters other than printable ASCII.
inline std::string printable(std::string_view text) {
  std::string shown(text.substr(0, 100));
  for (char& c : shown)
    if (c < ' ' || c > '~') c = '?';
  return shown.size() < text.size() ? shown + "..." : shown;
}

/// A regular file that is open for reading. Threads may share it.
class InputFile {
 public:
  // Null with `error` set if the file does not exist or is a folder, a pipe or a device.
  static std::unique_ptr<InputFile> open(const std::string& path, std::string& error) {
    const int descriptor = platform::open_to_read(path);
    const int why = errno;
    const platform::FileInfo info = descriptor < 0 ? platform::info_of(path) : platform::info_of(descriptor);
    if (info.kind == platform::FileKind::file && descriptor >= 0)
      return std::unique_ptr<InputFile>(new InputFile(path, descriptor, info.size));
    if (descriptor >= 0) platform::close(descriptor);
    const bool folder = info.kind == platform::FileKind::folder;
    error = path + ": ";
    if (descriptor >= 0 || folder)
      error += std::string("expected a regular file, found ") + (folder ? "a folder" : "a pipe or a device");
    else
      error += std::strerror(why);
    return nullptr;
  }

  ~InputFile() { platform::close(descriptor_); }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }  // bytes, at open

  // Reads bytes offset ... offset + n - 1. False with `error` set if the file ends before.
  bool read(uint64_t offset, void* out, uint64_t n, std::string& error) const {
    if (offset > size_ || n > size_ - offset) return truncated(offset, n, size_, error);
    char* to = static_cast<char*>(out);
    for (uint64_t done = 0; done < n;) {
      const uint64_t most = std::min<uint64_t>(n - done, platform::kMostAtOnce);
      const int64_t got = platform::read_at(descriptor_, to + done, size_t(most), offset + done);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return fail(error, {path_, ": offset ", offset, ": ", std::strerror(errno)});
      if (got == 0) return truncated(offset, n, offset + done, error);  // the file has shrunk since open
      done += uint64_t(got);
    }
    return true;
  }

 private:
  InputFile(std::string path, int descriptor, uint64_t size)
      : path_(std::move(path)), descriptor_(descriptor), size_(size) {}

  bool truncated(uint64_t offset, uint64_t n, uint64_t size, std::string& error) const {
    return fail(error, {path_, ": offset ", offset, ": truncated: expected ", n, " bytes, found ",
                        size - std::min(size, offset)});
  }

  std::string path_;
  int descriptor_;
  uint64_t size_;
};

/// Reads a file sequentially through a small buffer. After the first failure ok() is false, error() has the reason, and
/// all values read are 0.
class FileCursor {
 public:
  explicit FileCursor(const InputFile& file, uint64_t at = 0) : file_(&file), at_(at) {}

  bool ok() const { return error_.empty(); }
  const std::string& error() const { return error_; }
  uint64_t position() const { return at_; }
  uint64_t left() const { return file_->size() - std::min(at_, file_->size()); }

  bool read(void* out, uint64_t n) {
    if (n > 0) std::memset(out, 0, size_t(n));
    if (!ok()) return false;
    if (at_ < start_ || at_ - start_ > buffer_.size() || n > buffer_.size() - (at_ - start_)) {
      if (n > kBuffer || n > left()) return advance(file_->read(at_, out, n, error_), n);
      buffer_.resize(size_t(std::min<uint64_t>(kBuffer, left())));
      start_ = at_;
      if (!file_->read(start_, buffer_.data(), buffer_.size(), error_)) return false;
    }
    if (n > 0) std::memcpy(out, buffer_.data() + (at_ - start_), size_t(n));
    return advance(true, n);
  }

  template <class T> T get() {
    T value;
    read(&value, sizeof value);
    return value;
  }

  // A string of n bytes. Allocates no more memory than the file has bytes.
  std::string get_string(uint64_t n) {
    std::string s(size_t(ok() && n <= left() ? n : 0), '\0');
    if (s.size() == n)
      read(s.data(), n);
    else
      skip(n);
    return s;
  }

  bool skip(uint64_t n) {
    if (!ok()) return false;
    if (n > left()) return file_->read(at_, nullptr, n, error_);  // fails, and sets error_
    return advance(true, n);
  }

 private:
  static constexpr uint64_t kBuffer = 1 << 16;

  bool advance(bool success, uint64_t n) {
    if (success) at_ += n;
    return success;
  }

  const InputFile* file_;
  uint64_t at_, start_ = 0;  // file offsets: of the next byte, and of the buffer
  std::vector<char> buffer_;
  std::string error_;
};

inline bool is_separator(char c) { return c != '\0' && std::strchr(platform::kSeparators, c); }

/// Joins a folder and a name. Both may be empty; the folder may end in a slash.
inline std::string join_path(const std::string& folder, const std::string& name) {
  if (folder.empty() || is_separator(folder.back())) return folder + name;
  return folder + "/" + name;
}

/// The folder of a path: "a" for "a/b", "." for "b", "/" for "/b"; on Windows "C:/" for "C:/b".
inline std::string folder_of(const std::string& path) {
  const size_t slash = path.find_last_of(platform::kSeparators);
  if (slash == std::string::npos) return ".";
  return path.substr(0, slash == 0 || path[slash - 1] == ':' ? slash + 1 : slash);
}

/// The last component of a path: "b" for "a/b" and for "a/b/".
inline std::string base_name(const std::string& path) {
  const size_t end = path.find_last_not_of(platform::kSeparators);
  if (end == std::string::npos) return path;
  const size_t slash = path.find_last_of(platform::kSeparators, end),
               start = slash == std::string::npos ? 0 : slash + 1;
  return path.substr(start, end - start + 1);
}

/// The extension of a file name, with its dot: ".gguf"; "" if there is none, and for ".gguf".
inline std::string extension_of(const std::string& name) {
  const size_t dot = name.rfind('.');
  return dot == std::string::npos || dot == 0 ? "" : name.substr(dot);
}

inline bool is_directory(const std::string& path) { return platform::info_of(path).kind == platform::FileKind::folder; }

inline bool is_file(const std::string& path) { return platform::info_of(path).kind == platform::FileKind::file; }

/// Whether a path names something, after symbolic links.
inline bool exists(const std::string& path) { return platform::info_of(path).kind != platform::FileKind::none; }

/// Whether two paths are names of one regular file, which may be links or differently spelled.
inline bool is_same_file(const std::string& a, const std::string& b) {
  const platform::FileInfo x = platform::info_of(a), y = platform::info_of(b);
  return x.kind == platform::FileKind::file && y.kind == x.kind && x.device == y.device && x.number == y.number;
}

/// Reads a whole file of at most `most` bytes.
inline bool read_small_file(const std::string& path, uint64_t most, std::string& out, std::string& error) {
  const auto file = InputFile::open(path, error);
  if (!file) return false;
  if (file->size() > most)
    return fail(error,
                path + ": expected at most " + std::to_string(most) + " bytes, found " + std::to_string(file->size()));
  out.resize(size_t(file->size()));
  return file->read(0, out.data(), out.size(), error);
}

}  // namespace pocket
