// output_file.hpp: the files that programs write. A file appears under its name once it is complete: until then it has a
// temporary name in the same folder, which a failure or a signal deletes, and an existing file stays as it is.
//
//     destination                                   what is done
//     none, or a regular file                       replaced by a rename; an existing file's mode and owner are kept
//     symbolic link to one of them                  the same for the target of the link; the link stays
//     FIFO, terminal, character device, /dev/fd/N   written directly, if the file is written sequentially
//     folder, block device, socket, dangling link   refused
#pragma once

#include <pthread.h>
#include <sys/stat.h>

#include <atomic>
#include <climits>
#include <csignal>
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

inline void delete_temporary(const char* name) {
  if (::unlink(name) != 0) ::rmdir(name);
}

/// Blocks the signals of this thread while it lives.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

}  // namespace output_detail

/// Deletes all temporary files. May be called by a signal handler that ends the process.
inline void remove_temporary_files() {
  for (int i = output_detail::kMostTemporaries - 1; i >= 0; i--)  // the files in a folder before the folder
    if (const char* name = output_detail::temporaries[i]) output_detail::delete_temporary(name);
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
    const output_detail::SignalsBlocked blocked;
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
    if (!name_.empty()) output_detail::delete_temporary(name_.c_str());
    release();
  }

 private:
  std::string name_;
  int slot_ = -1;  // of the table
};

/// Creates a regular file, which did not exist. Returns its descriptor, or -1 with errno set.
inline int create_file(const char* name, mode_t mode) {
  return ::open(name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
}

/// Makes the names in a folder durable, after a rename. False with `why` set if that fails.
inline bool sync_folder(const std::string& folder, std::string& why) {
  const int file = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (file < 0) return true;                                            // a folder that may be written, but not read
  const int error = ::fsync(file) == 0 || errno == EINVAL ? 0 : errno;  // EINVAL: not supported by this file system
  ::close(file);
  return error == 0 || fail(why, {"is complete, but its folder cannot be written to the disk: ", std::strerror(error)});
}

// ---- Output files ----

/// A file that is being written. Without finish() an existing file stays, and nothing is left.
class OutputFile {
 public:
  // random: the writer uses write_at(), which requires a regular file.
  enum class Access { sequential, random };

  OutputFile() = default;
  ~OutputFile() {
    if (file_ >= 0) ::close(file_);
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
      const ssize_t wrote = ::pwrite(file_, p, std::min(n, kMostAtOnce), off_t(at));
      if (!accept(wrote)) continue;
      p += wrote;
      at += uint64_t(wrote);
      n -= size_t(wrote);
    }
    return !failed();
  }
  // Sets the size, for write_at().
  bool resize(uint64_t bytes) { return ftruncate(file_, off_t(bytes)) == 0 || fail(errno); }

  // Completes the file: now it is under its name.
  bool finish() {
    flush();
    if (!direct_) synchronize();
    if (::close(std::exchange(file_, -1)) != 0) fail(errno);
    return !failed() && (direct_ || rename());
  }

  bool failed() const { return why_ != 0 || !reason_.empty(); }
  std::string error() const { return path_ + ": " + (reason_.empty() ? std::strerror(why_) : reason_); }
  const std::string& temporary_name() const { return temporary_.name(); }  // until finish()

 private:
  static constexpr size_t kBuffer = 1 << 16, kMostAtOnce = 1 << 30;
  static constexpr int kMostLinks = 40;

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
    path_ = target_ = path;
    if (path.empty() || path.back() == '/') return fail(path.empty() ? ENOENT : EISDIR);
    for (int links = 0;; links++) {
      if (links > kMostLinks) return fail(ELOOP);
      if (!find_folder()) return false;
      exists_ = !descriptor() && lstat(target_.c_str(), &info_) == 0;
      if (!exists_ && !descriptor() && errno != ENOENT) return fail(errno);
      if (exists_ && S_ISLNK(info_.st_mode)) {
        if (!follow_link()) return false;
        continue;
      }
      if (links > 0 && !exists_ && !descriptor())
        return fail("is a symbolic link to " + target_ + ", which does not exist");
      return check_type(access);
    }
  }

  // Replaces the folder of target_ by its path without symbolic links.
  bool find_folder() {
    char folder[PATH_MAX];
    if (!realpath(folder_of(target_).c_str(), folder)) return fail(errno);
    target_ = join_path(folder, base_name(target_));
    const std::string process = "/proc/" + std::to_string(getpid()) + "/", name = base_name(target_), in = folder;
    const bool descriptors = in.rfind(process, 0) == 0 && in.size() > 3 && in.compare(in.size() - 3, 3, "/fd") == 0;
    if (descriptors && name.size() < 8 && name.find_first_not_of("0123456789") == std::string::npos)
      descriptor_ = std::stoi(name);
    return true;
  }

  bool follow_link() {
    char link[PATH_MAX];
    const ssize_t n = readlink(target_.c_str(), link, sizeof link);
    if (n < 0) return fail(errno);
    const std::string to(link, size_t(n));
    target_ = to[0] == '/' ? to : join_path(folder_of(target_), to);
    return true;
  }

  bool check_type(Access access) {
    if (exists_ && S_ISDIR(info_.st_mode)) return fail(EISDIR);
    direct_ = descriptor() || (exists_ && (S_ISFIFO(info_.st_mode) || S_ISCHR(info_.st_mode)));
    if (exists_ && !direct_ && !S_ISREG(info_.st_mode))
      return fail("expected a regular file, found a block device or a socket");
    if (direct_ && access == Access::random) return fail("expected a regular file, found a device or a pipe");
    return true;
  }

  // Whether the path names an open file of this process, as /dev/stdout does.
  bool descriptor() const { return descriptor_ >= 0; }

  bool check_directly() {
    const bool good = descriptor() ? fcntl(descriptor_, F_GETFL) >= 0 : ::access(target_.c_str(), W_OK) == 0;
    return good || fail(errno);
  }

  // Opening a FIFO waits for its reader. A signal ends the wait.
  bool open_directly() {
    buffer_.reserve(kBuffer);
    file_ = descriptor() ? fcntl(descriptor_, F_DUPFD_CLOEXEC, 3)
                         : ::open(target_.c_str(), O_WRONLY | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC);
    return file_ >= 0 || fail(errno);
  }

  // Until synchronize() the new contents of a file are as private as can be.
  bool create() {
    buffer_.reserve(kBuffer);
    const auto make = [this](const char* name) {
      file_ = create_file(name, exists_ ? 0600 : 0666);
      return file_ >= 0;
    };
    return temporary_.create_beside(target_, make) || fail(errno);
  }

  // Evaluates the result of a write. Returns false if nothing was written.
  bool accept(ssize_t wrote) {
    if (wrote < 0 && errno == EINTR) return false;
    return wrote > 0 || fail(wrote < 0 ? errno : EIO);
  }

  bool write_all(const void* data, size_t n) {
    for (const char* p = static_cast<const char*>(data); n > 0 && !failed();) {
      const ssize_t wrote = ::write(file_, p, std::min(n, kMostAtOnce));
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

  // Keeps mode and owner of the file that is replaced, as far as permitted, and writes the data to the disk.
  void synchronize() {
    if (failed()) return;
    if (exists_) keep_attributes();
    if (fsync(file_) != 0 && errno != EINVAL) fail(errno);  // EINVAL: not supported by this file system
  }

  // Another group than the earlier one gets no permissions.
  void keep_attributes() {
    const bool group = fchown(file_, info_.st_uid, info_.st_gid) == 0 || fchown(file_, uid_t(-1), info_.st_gid) == 0;
    const bool mode = fchmod(file_, info_.st_mode & (group ? 0777 : 0707)) == 0;
    (void)mode;  // some file systems have no modes
  }

  bool rename() {
    struct stat now;
    if (lstat(target_.c_str(), &now) == 0 && !S_ISREG(now.st_mode))
      return fail("expected a regular file, found something else, which was created in the meantime");
    const std::string folder = folder_of(target_);
    if (std::rename(temporary_.name().c_str(), target_.c_str()) != 0) return fail(errno);
    temporary_.release();
    return sync_folder(folder, reason_);
  }

  std::string path_;     // as given
  std::string target_;   // the same without symbolic links
  int descriptor_ = -1;  // the number N of /dev/fd/N
  bool exists_ = false;  // there is a file, with this state:
  struct stat info_ = {};
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

/// Writes a whole file. False with `error` set if that fails.
inline bool write_whole_file(const std::string& path, std::string_view bytes, std::string& error) {
  OutputFile file;
  const bool written = file.open(path) && file.write(bytes.data(), bytes.size()) && file.finish();
  return written || fail(error, file.error());
}

}  // namespace pocket
