// target.hpp: what a fuzz target is, and the tools that targets share.
//
//     namespace fuzz::json {
//     void run(std::string_view input) { ... }                // every input is allowed
//     std::vector<std::string> seeds() { return {"[1]", ...}; }   // some valid ones
//     const Registered target({"json", run, seeds});
//     }  // namespace fuzz::json
//
// libFuzzer (driver.cpp) calls the target that its program is named after; the GoogleTest (fuzz_test.cpp) calls all.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "../support/files.hpp"

namespace fuzz {

struct Target {
  const char* name;  // of its file, its dictionary, and its folder of regressions
  void (*run)(std::string_view input);
  std::vector<std::string> (*seeds)();  // valid inputs, from which libFuzzer starts
  // Restores checksums and sizes of an input that was mutated, so that the input gets past them. At most `longest`
  // bytes. null: nothing to restore.
  void (*repair)(std::string& input, size_t longest) = nullptr;
};

// All targets.
inline std::vector<Target>& targets() {
  static std::vector<Target> all;
  return all;
}

struct Registered {
  explicit Registered(const Target& target) { targets().push_back(target); }
};

// Ends the program if a promise is broken, so that libFuzzer keeps the input.
inline void require(bool kept, const char* promise) {
  if (kept) return;
  std::fprintf(stderr, "broken promise: %s\n", promise);
  std::abort();
}

// The parts of an input with several files: separated by a zero byte, except that the last one may contain zeros.
// Missing parts are "".
inline std::vector<std::string> split(std::string_view input, size_t parts) {
  std::vector<std::string> all;
  while (all.size() + 1 < parts) {
    const size_t end = std::min(input.find('\0'), input.size());
    all.emplace_back(input.substr(0, end));
    input.remove_prefix(std::min(end + 1, input.size()));
  }
  all.emplace_back(input);
  return all;
}

inline std::string join(const std::vector<std::string>& parts) {
  std::string all;
  for (const std::string& part : parts) all += (&part == &parts[0] ? "" : std::string(1, '\0')) + part;
  return all;
}

// The bytes of a number.
template <class T> std::string raw(T value) { return {reinterpret_cast<const char*>(&value), sizeof value}; }

// The folder of this program's files, deleted at its end.
inline const TemporaryFolder& folder() {
  static const TemporaryFolder folder;
  return folder;
}

// A file for readers that take a path. It is overwritten for each input.
class ReusedFile {
 public:
  explicit ReusedFile(const std::string& name) : path_(folder().file(name)) {
    file_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  }
  ~ReusedFile() { ::close(file_); }
  ReusedFile(const ReusedFile&) = delete;
  ReusedFile& operator=(const ReusedFile&) = delete;

  // Returns the path.
  const std::string& write(std::string_view bytes) {
    require(pwrite(file_, bytes.data(), bytes.size(), 0) == ssize_t(bytes.size()) &&
                ftruncate(file_, off_t(bytes.size())) == 0,
            "the temporary file can be written");
    return path_;
  }

 private:
  std::string path_;
  int file_;
};

// A copy of an input on a 64-byte boundary, of exactly its size, so that ASan detects a read past the end.
class AlignedCopy {
 public:
  explicit AlignedCopy(std::string_view bytes) : size_(bytes.size()) {
    require(posix_memalign(&data_, 64, std::max<size_t>(1, size_)) == 0, "memory for a copy of the input");
    std::copy(bytes.begin(), bytes.end(), static_cast<char*>(data_));
  }
  ~AlignedCopy() { std::free(data_); }
  AlignedCopy(const AlignedCopy&) = delete;
  AlignedCopy& operator=(const AlignedCopy&) = delete;

  const void* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_;
};

}  // namespace fuzz
