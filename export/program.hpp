// program.hpp: what the command-line programs share: failures and exit statuses, options with --help and the man page,
// interrupts, and files that appear when they are whole.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace pocket {

// A failure as the user sees it: one line, `PROGRAM: what: why; hint`. 1: it did not work; 2: wrong usage.
struct Failure {
  int status;
  std::string what;
};

// A line of --help, and what its option sets in A. No name: a heading, with an example in place of the value.
template <class A> struct Option {
  const char *letter, *name, *value, *help;
  std::variant<std::monostate, bool A::*, int A::*, float A::*, std::string A::*, std::vector<std::string> A::*> into =
      {};
  double low = 0, high = 0;
};

template <class A, size_t N> void print_options(const Option<A> (&options)[N], const char* program = "") {
  for (const Option<A>& o : options) {
    if (*o.name)
      std::printf("  %-3s %-27s %s\n", o.letter, (std::string(o.name) + " " + o.value).c_str(), o.help);
    else
      std::printf(*o.value ? "\n%s:   %s %s\n" : "\n%s\n", o.help, program, o.value);
  }
}

// A text for troff, as it is.
inline std::string man_text(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if ((c == '.' || c == '\'') && (out.empty() || out.back() == '\n')) out += "\\&";
    out += c == '\\' ? "\\e" : c == '-' ? "\\-" : c == '\'' ? "\\(aq" : c == '"' ? "\\(dq" : std::string{c};
  }
  return out;
}

inline void print_man_example(const std::string& text) {
  std::printf(".PP\n.in +4n\n.nf\n%s\n.fi\n.in\n", man_text(text).c_str());
}

// The OPTIONS section of a man page.
template <class A, size_t N> void print_man_options(const Option<A> (&options)[N], const std::string& program) {
  std::printf(".SH OPTIONS\n");
  for (const Option<A>& o : options) {
    if (!*o.name) {
      std::printf(".SS %s\n", man_text(o.help).c_str());
      if (*o.value) print_man_example(program + " " + o.value);
      continue;
    }
    const std::string letter = *o.letter ? "\\fB" + man_text(o.letter) + "\\fR, " : "";
    std::printf(".TP\n%s\\fB%s\\fR \\fI%s\\fR\n%s\n", letter.c_str(), man_text(o.name).c_str(),
                man_text(o.value).c_str(), man_text(o.help).c_str());
  }
}

// Single-character edits between two words (Levenshtein).
inline size_t distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); j++) row[j] = j;
  for (size_t i = 1; i <= a.size(); i++) {
    size_t diagonal = row[0]++;
    for (size_t j = 1; j <= b.size(); j++) {
      const size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

template <class A, size_t N> const Option<A>& find_option(const Option<A> (&options)[N], const std::string& word) {
  const Option<A>* nearest = nullptr;
  size_t least = 4;
  for (const Option<A>& o : options) {
    if (!*o.name) continue;
    if (word == o.letter || word == o.name) return o;
    if (distance(word, o.name) < least) least = distance(word, o.name), nearest = &o;
  }
  throw Failure{
      2, word + ": no such option" + (nearest ? std::string("; did you mean ") + nearest->name + "?" : "; see --help")};
}

inline double number(const std::string& name, const std::string& text, double low, double high, bool whole) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  const bool plain = text.find_first_not_of("+-.0123456789eE") == std::string::npos;  // no nan, no inf, no hex
  if (text.empty() || *end || !plain || !(value >= low && value <= high) || (whole && value != std::floor(value))) {
    char range[80];
    std::snprintf(range, sizeof range, "%s from %g to %g", whole ? "a whole number" : "a number", low, high);
    throw Failure{2, name + ": expected " + range + ", found '" + text + "'"};
  }
  return value;
}

// The strings between the commas.
inline std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= list.size(); at += parts.back().size() + 1)
    parts.push_back(list.substr(at, std::min(list.find(',', at), list.size()) - at));
  return parts;
}

template <class A> void set_option(A& a, const Option<A>& o, const std::string& name, const std::string& value) {
  const bool may_be_empty = std::strcmp(o.value, "TEXT") == 0 || std::holds_alternative<bool A::*>(o.into);
  if (value.empty() && !may_be_empty) throw Failure{2, name + ": expected " + o.value + ", found nothing"};
  if (auto flag = std::get_if<bool A::*>(&o.into)) a.** flag = true;
  if (auto text = std::get_if<std::string A::*>(&o.into)) a.** text = value;
  if (auto list = std::get_if<std::vector<std::string> A::*>(&o.into)) (a.**list).push_back(value);
  if (auto whole = std::get_if<int A::*>(&o.into)) a.** whole = int(number(name, value, o.low, o.high, true));
  if (auto real = std::get_if<float A::*>(&o.into)) a.** real = float(number(name, value, o.low, o.high, false));
}

// Sets a.model and what the options name; returns the names of the options that were given. hint: what to do with a
// second word that is no option.
template <class A, size_t N>
std::vector<std::string> parse_options(int argc, char** argv, const Option<A> (&options)[N], const char* hint, A& a) {
  std::vector<std::string> given;
  for (int i = 1; i < argc; i++) {
    std::string word = argv[i], value;
    if (word.size() < 2 || word[0] != '-') {
      if (!a.model.empty()) throw Failure{2, "'" + word + "': one model only, and it is '" + a.model + "'; " + hint};
      a.model = word;
      continue;
    }
    const size_t equals = word.rfind("--", 0) == 0 ? word.find('=') : std::string::npos;
    const Option<A>& o = find_option(options, word.substr(0, equals));
    if (!std::holds_alternative<bool A::*>(o.into)) {
      if (equals != std::string::npos)
        value = word.substr(equals + 1);
      else if (++i < argc)
        value = argv[i];
      else
        throw Failure{2, word + ": expected " + o.value + " behind it"};
    } else if (equals != std::string::npos) {
      throw Failure{2, word + ": takes no value"};
    }
    set_option(a, o, word.substr(0, equals), value);
    given.push_back(o.name);
  }
  return given;
}

inline volatile std::sig_atomic_t interrupted = 0;
inline void on_interrupt(int) { interrupted = 1; }

inline void stop_if_interrupted() {
  if (interrupted) throw Failure{130, ""};
}

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline std::string read_all(const std::string& name) {
  std::FILE* file = name == "-" ? stdin : std::fopen(name.c_str(), "rb");
  std::string text;
  char piece[65536];
  for (size_t n; file && (n = std::fread(piece, 1, sizeof piece, file)) > 0;) text.append(piece, n);
  const bool good = file && !std::ferror(file);
  const int why = errno;
  if (file && file != stdin) std::fclose(file);
  stop_if_interrupted();
  if (!good) throw Failure{1, name + ": " + std::strerror(why)};
  return text;
}

// A file that appears under its name when it is whole; until then it grows beside it. Throws Failure.
class NewFile {
 public:
  explicit NewFile(const std::string& name) : name_(name), temporary_(name + ".tmp." + std::to_string(getpid())) {
    file_ = std::fopen(temporary_.c_str(), "wb");
    if (!file_) throw Failure{1, temporary_ + ": " + std::strerror(errno)};
  }
  ~NewFile() {
    if (file_) std::fclose(file_);
    if (!finished_) std::remove(temporary_.c_str());
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  // False where it cannot; finish() then says why.
  bool write(const void* data, size_t n) {
    if (!why_ && std::fwrite(data, 1, n, file_) != n) why_ = errno;
    return !why_;
  }
  bool good() const { return !why_; }
  void finish() {
    const bool closed = std::fclose(std::exchange(file_, nullptr)) == 0;
    if (!why_ && (!closed || std::rename(temporary_.c_str(), name_.c_str()) != 0)) why_ = errno;
    if (why_) throw Failure{1, name_ + ": " + std::strerror(why_)};
    finished_ = true;
  }

 private:
  std::string name_, temporary_;
  std::FILE* file_;
  int why_ = 0;
  bool finished_ = false;
};

// A failed write to a file that may not grow is told by errno, not by a signal that kills.
inline void catch_signals(void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESETHAND;  // a second one kills
  sigaction(SIGINT, &action, nullptr);
  std::signal(SIGXFSZ, SIG_IGN);
}

// Were one of the three standard files closed, the next file opened would take its number.
inline void check_standard_files() {
  while (true) {
    const int fd = ::open("/dev/null", O_RDWR);
    if (fd == 1) throw Failure{1, "standard output: is closed"};
    if (fd > 2 || fd < 0) return void(fd > 2 && ::close(fd));
  }
}

// Runs a program's body; what it throws becomes one line on stderr and the exit status.
template <class F> int guarded(const char* program, const F& body, void (*handler)(int) = on_interrupt) {
  try {
    check_standard_files();
    catch_signals(handler);
    body();
    if (std::fflush(stdout) != 0 || std::ferror(stdout))
      throw Failure{1, std::string("standard output: ") + std::strerror(errno)};
    return 0;
  } catch (const Failure& f) {
    if (!f.what.empty()) std::fprintf(stderr, "%s: %s\n", program, f.what.c_str());
    return f.status;
  } catch (const std::bad_alloc&) {
    return std::fprintf(stderr, "%s: out of memory\n", program), 1;
  }
}

}  // namespace pocket
