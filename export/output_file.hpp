// output_file.hpp: the files that programs write. A file appears under its name once it is complete: until then it has a
// temporary name in the same folder, which a failure or a signal deletes, and an existing file stays as it is.
//
//     destination                                   what is done
//     none, or a regular file                       replaced by a rename; an existing file's mode and owner are kept
//     symbolic link to one of them                  the same for the target of the link; the link stays
//     FIFO, terminal, character device, /dev/fd/N   written directly, if the file is written sequentially
//     folder, block device, socket, dangling link   refused
#pragma once

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>

#include "input_file.hpp"

namespace pocket {

// ---- Temporary files ----

namespace output_detail {

// The names of the temporary files and folders that exist, for signal handlers. More of them are not deleted by signals.
inline constexpr int kMostTemporaries = 16;
inline std::atomic<const char*> temporaries[kMostTemporaries];

}  // namespace output_detail

/// Deletes all temporary files. May be called by a signal handler that ends the process.
inline void remove_temporary_files() {
  for (int i = output_detail::kMostTemporaries - 1; i >= 0; i--)  // the files in a folder before the folder
    if (const char* name = output_detail::temporaries[i]) platform::remove(name);
}

/// A temporary file, or an empty folder, that the destructor deletes.
class Temporary {
 public:
  Temporary() = default;
  ~Temporary() { remove(); }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  // Creates it. make(name) does so, or returns false with errno set; then create() does so too. Signals wait, so that
  // their handlers delete the file, but no other file of this name.
  template <class Make> bool create(std::string name, const Make& make) {
    remove();
    [[maybe_unused]] const platform::SignalsBlocked blocked{};
    if (!make(name.c_str())) return false;
    name_.swap(name);
    for (int i = 0; i < output_detail::kMostTemporaries && slot_ < 0; i++)
      if (!output_detail::temporaries[i]) slot_ = i;
    if (slot_ >= 0) output_detail::temporaries[slot_] = name_.c_str();
    return true;
  }
  // The same beside `path`, under a name that is not in use.
  template <class Make> bool create_beside(const std::string& path, const Make& make) {
    constexpr size_t kLongest = 200;  // bytes of a name of at most 255 that are left for the name of the file
    const std::string stem =
        join_path(folder_of(path), base_name(path).substr(0, kLongest)) + ".tmp." + std::to_string(getpid());
    std::string name = stem;
    for (int n = 1; !create(name, make); n++) {
      if (errno != EEXIST || n == 1000) return false;
      name = stem + "." + std::to_string(n);  // the earlier one is of another process of that number, maybe of the past
    }
    return true;
  }
  // Owns a file that exists, or that will be created in a folder of this process.
  void own(const std::string& name) {
    create(name, [](const char*) { return true; });
  }

  const std::string& name() const { return name_; }  // "": none

  // Keeps the file. To be called when it was renamed.
  void release() {
    if (slot_ >= 0) output_detail::temporaries[slot_] = nullptr;
    slot_ = -1;
    name_.clear();
  }
  void remove() {
    if (!name_.empty()) platform::remove(name_.c_str());
    release();
  }

 private:
  std::string name_;
  int slot_ = -1;  // of the table
};

/// Makes the names in a folder durable, after a rename. False with `why` set if that fails.
inline bool sync_folder(const std::string& folder, std::string& why) {
  return platform::synchronize_folder(folder) ||
         fail(why, {"is complete, but its folder cannot be written to the disk: ", std::strerror(errno)});
}

// ---- Output files ----

/// A file that is being written. Without finish() an existing file stays, and nothing is left.
class OutputFile {
 public:
  // random: the writer uses write_at(), which requires a regular file.
  enum class Access { sequential, random };

  OutputFile() = default;
  ~OutputFile() {
    if (file_ >= 0) platform::close(file_);
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  bool open(const std::string& path, Access access = Access::sequential) {
    return find(path, access) && (direct_ ? open_directly() : create());
  }
  // Whether the file can be written. Creates and deletes a temporary file; does not open a FIFO or a device.
  bool check(const std::string& path, Access access = Access::sequential) {
    return find(path, access) && (direct_ ? check_directly() : create());
  }

  // Appends. After a failure all functions return false.
  bool write(const void* data, size_t n) {
    if (buffer_.size() + n > kBuffer) flush();
    if (n > kBuffer) return write_all(data, n);
    if (!failed()) buffer_.append(static_cast<const char*>(data), n);
    return !failed();
  }
  bool write_at(uint64_t at, const void* data, size_t n) {
    for (const char* p = static_cast<const char*>(data); n > 0 && !failed();) {
      const int64_t wrote = platform::write_at(file_, p, n, at);
      if (!accept(wrote)) continue;
      p += wrote;
      at += uint64_t(wrote);
      n -= size_t(wrote);
    }
    return !failed();
  }
  // Sets the size, for write_at().
  bool resize(uint64_t bytes) { return platform::set_size(file_, bytes) || fail(errno); }

  // Completes the file: now it is under its name. durable: and survives a power failure, which takes milliseconds of the
  // disk; not worth it for a file that is soon made again.
  bool finish(bool durable = true) {
    flush();
    if (!direct_) complete(durable);
    if (platform::close(std::exchange(file_, -1)) != 0) fail(errno);
    return !failed() && (direct_ || rename(durable));
  }

  bool failed() const { return why_ != 0 || !reason_.empty(); }
  std::string error() const { return path_ + ": " + (reason_.empty() ? std::strerror(why_) : reason_); }
  const std::string& temporary_name() const { return temporary_.name(); }  // until finish()

 private:
  static constexpr size_t kBuffer = 1 << 16;

  bool fail(int why) {
    if (!failed()) why_ = why;
    return false;
  }
  bool fail(const std::string& reason) {
    if (!failed()) reason_ = reason;
    return false;
  }

  // Finds out what is at the end of the symbolic links, and whether it can be written.
  bool find(const std::string& path, Access access) {
    path_ = path;
    if (path.empty() || is_separator(path.back())) return fail(path.empty() ? ENOENT : EISDIR);
    if (std::string why; !platform::find_destination(path, to_, why)) return fail(why);
    const platform::FileKind kind = to_.info.kind;
    if (kind == platform::FileKind::folder) return fail(EISDIR);
    if (kind == platform::FileKind::other) return fail("expected a regular file, found a block device or a socket");
    direct_ = to_.descriptor >= 0 || kind == platform::FileKind::stream;
    if (direct_ && access == Access::random) return fail("expected a regular file, found a device or a pipe");
    return true;
  }

  bool check_directly() { return platform::can_open_destination(to_) || fail(errno); }

  // Opening a FIFO waits for its reader. A signal ends the wait.
  bool open_directly() {
    buffer_.reserve(kBuffer);
    file_ = platform::open_destination(to_);
    return file_ >= 0 || fail(errno);
  }

  // Until complete() the new contents of a file are as private as can be.
  bool create() {
    buffer_.reserve(kBuffer);
    const auto make = [this](const char* name) {
      file_ = platform::create_file(name, exists());
      return file_ >= 0;
    };
    return temporary_.create_beside(to_.path, make) || fail(errno);
  }

  // Evaluates the result of a write. Returns false if nothing was written.
  bool accept(int64_t wrote) {
    if (wrote < 0 && errno == EINTR) return false;
    return wrote > 0 || fail(wrote < 0 ? errno : EIO);
  }

  bool write_all(const void* data, size_t n) {
    for (const char* p = static_cast<const char*>(data); n > 0 && !failed();) {
      const int64_t wrote = platform::write(file_, p, n);
      if (!accept(wrote)) continue;
      p += wrote;
      n -= size_t(wrote);
    }
    return !failed();
  }

  void flush() {
    write_all(buffer_.data(), buffer_.size());
    buffer_.clear();
  }

  bool exists() const { return to_.info.kind != platform::FileKind::none; }

  // Keeps mode and owner of the file that is replaced, as far as permitted, and writes the data to the disk.
  void complete(bool durable) {
    if (failed()) return;
    if (exists()) platform::keep_attributes(file_, to_.info);
    if (durable && !platform::synchronize(file_)) fail(errno);
  }

  bool rename(bool durable) {
    if (platform::is_not_replaceable(to_.path))
      return fail("expected a regular file, found something else, which was created in the meantime");
    const std::string folder = folder_of(to_.path);
    if (!platform::replace(temporary_.name(), to_.path)) return fail(errno);
    temporary_.release();
    return !durable || sync_folder(folder, reason_);
  }

  std::string path_;  // as given
  platform::Destination to_;
  bool direct_ = false;  // there is no temporary file
  Temporary temporary_;
  int file_ = -1;
  std::string buffer_;  // of write()
  int why_ = 0;         // errno of the first failure,
  std::string reason_;  // or its description
};

/// Checks that a file can be written, before the work whose result it gets. False with `error` set if not.
inline bool check_output(const std::string& path, OutputFile::Access access, std::string& error) {
  OutputFile file;
  return file.check(path, access) || fail(error, file.error());
}

/// Opens an existing file for writing, at the end of symbolic links. -1 with `error` set if that fails. The caller closes
/// the descriptor.
inline int open_existing(const std::string& path, std::string& error) {
  platform::Destination to;
  std::string why;
  const bool found = platform::find_destination(path, to, why);
  const int file = found ? platform::open_destination(to) : -1;
  if (file < 0) fail(error, {path, ": ", found ? std::strerror(errno) : why});
  return file;
}

/// Writes a whole file. False with `error` set if that fails.
inline bool write_whole_file(const std::string& path, std::string_view bytes, std::string& error) {
  OutputFile file;
  const bool written = file.open(path) && file.write(bytes.data(), bytes.size()) && file.finish();
  return written || fail(error, file.error());
}

}  // namespace pocket
