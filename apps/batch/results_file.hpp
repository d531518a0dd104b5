// results_file.hpp: where results go. The file of the results appears once all are there. Until then they are in
// RESULTS.partial, in the order in which they were finished: each is written at once, so that nothing is done twice after
// an interruption of any kind. Standard output gets them at once, or in the order of the requests.
#pragma once

#include <sys/file.h>

#include <map>

#include "../openai/response.hpp"
#include "requests_file.hpp"

namespace pocket::batch {

inline constexpr const char* kIdPrefix = "batch_req_";

using openai::hex;

// A result of an earlier run.
struct EarlierResult {
  size_t line;  // of the requests; their number if it is the result of none
  bool failed;
};

inline EarlierResult read_result(const RequestsFile& requests, std::string_view text) try {
  const openai::Json result = openai::parse_json(text);
  const std::string id = result.at("id").get<std::string>(), prefix = kIdPrefix;
  const uint64_t number = std::strtoull(id.substr(std::min(id.size(), prefix.size())).c_str(), nullptr, 16);
  return {id == prefix + hex(number) ? requests.find(number) : requests.size(), !result.at("error").is_null()};
} catch (const openai::Refusal&) {
  return {requests.size(), false};
} catch (const openai::Json::exception&) {  // another type than expected
  return {requests.size(), false};
}

// Receives the results of the lines of requests, without line breaks. All functions throw Failure.
class Results {
 public:
  virtual ~Results() = default;
  virtual bool has(size_t line) const = 0;
  virtual void add(size_t line, const std::string& result) = 0;
  // Completes the output, when all results are there.
  virtual void finish() = 0;
  virtual size_t held_bytes() const { return 0; }  // results in memory that wait for others
};

class ResultsStream : public Results {
 public:
  explicit ResultsStream(bool in_order) : in_order_(in_order) {}

  bool has(size_t) const override { return false; }
  void add(size_t line, const std::string& result) override {
    if (!in_order_) return print(result);
    held_bytes_ += result.size();
    held_[line] = result;
    while (!held_.empty() && held_.begin()->first == next_) {
      held_bytes_ -= held_.begin()->second.size();
      print(held_.begin()->second);
      held_.erase(held_.begin());
      next_++;
    }
  }
  void finish() override {}
  size_t held_bytes() const override { return held_bytes_; }

 private:
  static void print(const std::string& result) {
    if (std::fprintf(stdout, "%s\n", result.c_str()) < 0 || std::fflush(stdout) != 0)
      throw Failure{1, std::string("standard output: ") + std::strerror(errno)};
  }

  bool in_order_;
  std::map<size_t, std::string> held_;  // by line
  size_t next_ = 0;                     // the line that is printed next
  size_t held_bytes_ = 0;
};

class ResultsFile : public Results {
 public:
  // Opens RESULTS.partial, with the results that it has. The requests must outlive this object.
  ResultsFile(const std::string& path, const RequestsFile& requests, bool in_order)
      : path_(path), partial_(path + ".partial"), requests_(requests), in_order_(in_order), places_(requests.size()) {
    std::string error;
    if (!check_output(path, OutputFile::Access::random, error)) throw Failure{1, error};
    file_ = ::open(partial_.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
    struct stat info = {};
    if (file_ < 0 || fstat(file_, &info) != 0) fail(std::strerror(errno));
    if (!S_ISREG(info.st_mode)) fail("expected a regular file, found something else");
    if (flock(file_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) fail("another run-batch is writing this file");
    load();
  }
  ~ResultsFile() override {
    if (file_ < 0) return;
    if (end_ == 0) ::unlink(partial_.c_str());
    ::close(file_);
  }
  ResultsFile(const ResultsFile&) = delete;
  ResultsFile& operator=(const ResultsFile&) = delete;

  bool has(size_t line) const override { return places_[line].size > 0; }
  // Number of results of an earlier run, and of errors among them.
  size_t loaded() const { return loaded_; }
  size_t loaded_failures() const { return loaded_failures_; }

  void add(size_t line, const std::string& result) override {
    const std::string bytes = result + "\n";
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t n = pwrite(file_, bytes.data() + done, bytes.size() - done, off_t(end_ + done));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) fail(std::string(std::strerror(n < 0 ? errno : EIO)) + continue_hint());
      done += size_t(n);
    }
    place(line, bytes.size());
  }

  void finish() override {
    OutputFile out;
    bool good = out.open(path_);
    std::string piece;
    const auto copy = [&](uint64_t at, size_t n) {
      piece.resize(n);
      if (pread(file_, &piece[0], n, off_t(at)) != ssize_t(n)) fail("the file changed while in use");
      good = good && out.write(piece.data(), n);
    };
    constexpr size_t kPiece = 1 << 20;
    if (in_order_)
      for (const Place& place : places_) copy(place.at, place.size);
    else
      for (uint64_t at = 0; at < end_; at += kPiece) copy(at, size_t(std::min<uint64_t>(kPiece, end_ - at)));
    if (!good || !out.finish()) throw Failure{1, out.error() + continue_hint()};
    if (::unlink(partial_.c_str()) != 0) fail(std::strerror(errno));
    ::close(std::exchange(file_, -1));
  }

 private:
  struct Place {
    uint64_t at = 0;
    size_t size = 0;  // bytes with the line break; 0: there is no result
  };

  [[noreturn]] void fail(const std::string& why) const { throw Failure{1, partial_ + ": " + why}; }
  std::string continue_hint() const {
    return "; " + std::to_string(results_) + " results are kept; repeat the command to resume";
  }

  void place(size_t line, size_t size) {
    places_[line] = {end_, size};
    end_ += size;
    results_++;
  }

  // Reads the results of an earlier run. A line that was cut off is overwritten.
  void load() {
    std::string text, piece(1 << 16, 0);
    uint64_t at = 0;
    for (size_t number = 1;;) {
      const ssize_t n = pread(file_, &piece[0], piece.size(), off_t(at));
      if (n < 0) fail(std::strerror(errno));
      if (n == 0) break;
      at += uint64_t(n);
      size_t begin = 0;
      for (size_t end; (end = piece.find('\n', begin)) < size_t(n); begin = end + 1) {
        text.append(piece, begin, end - begin);
        load_line(text, number++);
        text.clear();
      }
      text.append(piece, begin, size_t(n) - begin);
    }
    if (ftruncate(file_, off_t(end_)) != 0) fail(std::strerror(errno));
    loaded_ = results_;
  }

  void load_line(const std::string& text, size_t number) {
    const auto [line, failed] = read_result(requests_, text);
    if (line == requests_.size() || has(line))
      fail("line " + std::to_string(number) + ": expected a result of a line of " + requests_.name() +
           " with this model and these options, found another; complete it with its own command, or delete it");
    place(line, text.size() + 1);
    loaded_failures_ += failed;
  }

  std::string path_, partial_;
  const RequestsFile& requests_;
  bool in_order_;
  std::vector<Place> places_;  // by line
  int file_ = -1;
  uint64_t end_ = 0;  // bytes of the whole results in the file
  size_t results_ = 0, loaded_ = 0, loaded_failures_ = 0;
};

}  // namespace pocket::batch
