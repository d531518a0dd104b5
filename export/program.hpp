// program.hpp: the library of the command-line programs: failures and exit statuses, options with --help and a man
// page, and signals.
//
//     struct Arguments { std::string model; int steps = 100; bool help = false; };
//     const pocket::Option<Arguments> kOptions[] = {
//         {"-n", "--steps", "N", "number of steps [100]", &Arguments::steps, 1, 1e6},
//         {"-h", "--help", "", "print this help", &Arguments::help},
//     };
//     int main(int argc, char** argv) {
//       return pocket::guarded("program", [&] {
//         Arguments a;
//         pocket::parse_options(argc, argv, kOptions, "one run trains one model", a);
//         if (a.help) return pocket::print_options(kOptions);
//         throw pocket::Failure{1, a.model + ": not implemented"};   // prints `program: ...`, exits with status 1
//       });
//     }
#pragma once

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "../tokenizer.hpp"
#include "output_file.hpp"

namespace pocket {

// A failure as the user sees it. guarded() prints `PROGRAM: what` on stderr and returns the status.
struct Failure {
  int status;        // exit status. 1: failed, 2: wrong usage, 130: interrupted by Ctrl-C
  std::string what;  // "subject: reason; hint"; empty: nothing is printed
};

// ---- Messages ----

// Prints `PROGRAM: text` as one line on stderr, whatever the text quotes from outside. Throws nothing.
inline void print_message(const char* program, const std::string& text) try {
  std::fprintf(stderr, "%s: %s\n", program, one_line(text).c_str());
} catch (const std::bad_alloc&) {
  std::fprintf(stderr, "%s: no memory for a message\n", program);
}

// ---- Options ----

// An option of the command line, and the member of A that it sets. An entry without a name is the heading of a group:
// `help` holds its title, and `value` the arguments of an example, or "".
template <class A> struct Option {
  const char* letter;  // "-n", or ""
  const char* name;    // "--steps"
  const char* value;   // placeholder of the value in --help; "" where the option takes none
  const char* help;    // one line
  std::variant<std::monostate, bool A::*, int A::*, float A::*, std::string A::*, std::vector<std::string> A::*> into =
      {};
  double low = 0, high = 0;  // range of a number
};

// Prints the options for --help. `program` precedes the examples of the headings.
template <class A, size_t N> void print_options(const Option<A> (&options)[N], const char* program = "") {
  for (const Option<A>& o : options) {
    if (*o.name)
      std::printf("  %-3s %-27s %s\n", o.letter, (std::string(o.name) + " " + o.value).c_str(), o.help);
    else
      std::printf(*o.value ? "\n%s:   %s %s\n" : "\n%s\n", o.help, program, o.value);
  }
}

// Escapes a text for troff, so that it is printed unchanged.
inline std::string man_text(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if ((c == '.' || c == '\'') && (out.empty() || out.back() == '\n')) out += "\\&";
    out += c == '\\' ? "\\e" : c == '-' ? "\\-" : c == '\'' ? "\\(aq" : c == '"' ? "\\(dq" : std::string{c};
  }
  return out;
}

// Prints a command as an indented paragraph of a man page.
inline void print_man_example(const std::string& text) {
  std::printf(".PP\n.in +4n\n.nf\n%s\n.fi\n.in\n", man_text(text).c_str());
}

// Prints the OPTIONS section of a man page.
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

// Levenshtein distance: the number of single-character edits that turn one word into the other.
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

// A name with at least so many edits is no suggestion for this word.
inline size_t edits_too_many(const std::string& word) { return std::min<size_t>(3, word.size() / 2 + 1); }

// Finds the option with this letter or name. Throws Failure with status 2, which suggests the nearest name, or for -n5
// "-n 5".
template <class A, size_t N> const Option<A>& find_option(const Option<A> (&options)[N], const std::string& word) {
  std::string nearest;
  size_t least = edits_too_many(word);
  const size_t value = word.find_first_of(".0123456789");
  for (const Option<A>& o : options) {
    if (!*o.name) continue;
    if (word == o.letter || word == o.name) return o;
    if (value != word.npos && *o.letter &&
        (word.substr(0, value) == o.letter || word.substr(0, value) == o.letter + std::string("=")))
      throw Failure{2, word + ": no such option; did you mean " + o.letter + " " + word.substr(value) + "?"};
    const size_t edits = distance(word, o.name);
    if (edits >= least) continue;
    least = edits;
    nearest = o.name;
  }
  throw Failure{2, word + ": no such option" + (nearest.empty() ? "; see --help" : "; did you mean " + nearest + "?")};
}

// Parses a decimal number in [low, high], a whole one if `whole`. Throws Failure with status 2; `name` is the option.
inline double number(const std::string& name, const std::string& text, double low, double high, bool whole) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  const bool plain = text.find_first_not_of("+-.0123456789eE") == std::string::npos;  // no nan, no inf, no hex
  if (text.empty() || *end || !plain || !(value >= low && value <= high) || (whole && value != std::floor(value))) {
    char range[80];
    std::snprintf(range, sizeof range, "%s from %.16g to %.16g", whole ? "a whole number" : "a number", low, high);
    throw Failure{2, name + ": expected " + range + ", found '" + text + "'"};
  }
  return value;
}

// Splits a list at its commas. "" is a list of one empty string.
inline std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= list.size(); at += parts.back().size() + 1)
    parts.push_back(list.substr(at, std::min(list.find(',', at), list.size()) - at));
  return parts;
}

// Stores the value of an option. Throws Failure with status 2 if the value is invalid.
template <class A> void set_option(A& a, const Option<A>& o, const std::string& name, const std::string& value) {
  const bool may_be_empty = std::strcmp(o.value, "TEXT") == 0 || std::holds_alternative<bool A::*>(o.into);
  if (value.empty() && !may_be_empty) throw Failure{2, name + " requires a value: " + o.value};
  if (auto flag = std::get_if<bool A::*>(&o.into)) a.*(*flag) = true;
  if (auto text = std::get_if<std::string A::*>(&o.into)) a.*(*text) = value;
  if (auto list = std::get_if<std::vector<std::string> A::*>(&o.into)) (a.*(*list)).push_back(value);
  if (auto whole = std::get_if<int A::*>(&o.into)) a.*(*whole) = int(number(name, value, o.low, o.high, true));
  if (auto real = std::get_if<float A::*>(&o.into)) a.*(*real) = float(number(name, value, o.low, o.high, false));
}

// Parses the command line into `a`: the options, and in a.model the one argument that is not an option. Returns the
// names of the given options. `hint` ends the message about a second such argument. Throws Failure with status 2.
template <class A, size_t N>
std::vector<std::string> parse_options(int argc, char** argv, const Option<A> (&options)[N], const char* hint, A& a) {
  std::vector<std::string> given;
  for (int i = 1; i < argc; i++) {
    std::string word = argv[i], value;
    if (word.empty()) throw Failure{2, "expected an option or a file name, found ''"};
    if (word.size() < 2 || word[0] != '-') {
      if (!a.model.empty()) throw Failure{2, "'" + word + "': one model only, found '" + a.model + "' before; " + hint};
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
        throw Failure{2, word + " requires a value: " + o.value};
    } else if (equals != std::string::npos) {
      throw Failure{2, word + ": takes no value"};
    }
    set_option(a, o, word.substr(0, equals), value);
    given.push_back(o.name);
  }
  return given;
}

// ---- Signals, time, files ----

inline std::atomic<int> interrupted{0};  // set by Ctrl-C (SIGINT); any thread may look
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may set it");

// Deletes temporary files and ends the process by the default action of a signal.
inline void end_by_signal(int number) {
  remove_temporary_files();
  platform::end_by_signal(number);
}

// The default handler of SIGINT. A second SIGINT ends the process.
inline void on_interrupt(int number) {
  const int error = errno;  // of what was interrupted
  std::signal(number, end_by_signal);
  interrupted = 1;
  errno = error;
}

// Throws Failure with status 130 after Ctrl-C.
inline void stop_if_interrupted() {
  if (interrupted) throw Failure{130, ""};
}

// Time of a monotonic clock, in seconds.
inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Throws Failure if an output is an input or another output, which it would replace. "": none.
inline void check_distinct(const std::vector<std::string>& outputs, const std::vector<std::string>& inputs) {
  for (const std::string& output : outputs)
    for (const std::string& input : inputs)
      if (is_same_file(output, input))
        throw Failure{1, output + ": expected another file to write than " + input + ", which is read"};
  for (size_t i = 0; i < outputs.size(); i++)
    for (size_t j = 0; j < i; j++)
      if (!outputs[i].empty() && (outputs[i] == outputs[j] || is_same_file(outputs[i], outputs[j])))
        throw Failure{1, outputs[i] + ": expected a file for each output, found one for two"};
}

// The largest text inputs in bytes, far above any legitimate one, so that an endless one (/dev/zero) ends with a message
// before it fills the memory.
inline constexpr uint64_t kLongestPrompt = 64 << 20;         // a prompt or a line of a chat; no context holds more
inline constexpr uint64_t kLongestMeasuredText = 256 << 20;  // of --perplexity and --kl: days of most models
inline constexpr uint64_t kLongestTokenizer = 64 << 20;      // a SentencePiece file

// A text to train on is kept in memory, with its tokens. Together, and while they are made, they take six times as much as
// the text (measured): an eighth of the machine's memory.
inline uint64_t longest_training_text() { return platform::physical_memory() / 8; }

// Reads a whole file of at most `most` bytes; "-" is standard input. Throws Failure, also after Ctrl-C if it `stops`.
inline std::string read_all(const std::string& name, uint64_t most, bool stops = true) {
  std::FILE* file = name == "-" ? stdin : platform::open_stream(name);
  bool too_long = false;
  if (file && file != stdin) {
    const platform::FileInfo info = platform::info_of(fileno(file));
    too_long = info.kind == platform::FileKind::file && info.size > most;
  }
  std::string text;
  char piece[65536];
  for (size_t n; file && !too_long && !std::feof(file) && (n = std::fread(piece, 1, sizeof piece, file)) > 0;) {
    text.append(piece, n);
    too_long = text.size() > most;
  }
  const bool good = file && !std::ferror(file);
  const int why = errno;
  if (file && file != stdin) std::fclose(file);
  if (stops) stop_if_interrupted();
  if (!good) throw Failure{1, name + ": " + std::strerror(why)};
  if (too_long) throw Failure{1, name + ": expected at most " + std::to_string(most) + " bytes, found more"};
  return text;
}

// ---- main ----

inline char bus_message[256];  // of on_bus_error()

// Handles SIGBUS, which the kernel raises if a mapped file was truncated or cannot be read.
inline void on_bus_error(int) {
  remove_temporary_files();
  [[maybe_unused]] const int64_t written = platform::write(2, bus_message, std::strlen(bus_message));
  _exit(1);
}

// Installs the handlers. SIGINT calls `handler`, which arranges that a second one ends the process. Other signals that
// end the process delete temporary files first.
inline void catch_signals(const char* program, void (*handler)(int), const char* bus_hint) {
  std::snprintf(bus_message, sizeof bus_message,
                "%s: a mapped file was truncated or became unreadable while in use; do not modify a model that is in "
                "use%s\n",
                program, bus_hint);
  platform::catch_interrupt(handler, false);
  platform::catch_ends(end_by_signal);
  platform::catch_bus_error(on_bus_error);
}

// Prepares standard input and output. Throws Failure if standard output is closed.
inline void check_standard_files() {
  if (!platform::prepare_standard_files()) throw Failure{1, "standard output: is closed"};
}

// Runs the body of a program and returns its exit status. A Failure is printed as one line on stderr. handler: of the
// first SIGINT. bus_hint: what else helps against SIGBUS, after "; ".
template <class F>
int guarded(const char* program, const F& body, void (*handler)(int) = on_interrupt, const char* bus_hint = "") {
  try {
    check_standard_files();
    catch_signals(program, handler, bus_hint);
    body();
    if (std::fflush(stdout) != 0 || std::ferror(stdout))
      throw Failure{1, std::string("standard output: ") + std::strerror(errno)};
    return 0;
  } catch (const Failure& f) {
    if (!f.what.empty()) print_message(program, f.what);
    return f.status;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "%s: out of memory\n", program);
    return 1;
  } catch (const std::exception& e) {
    print_message(program, e.what());
    return 1;
  }
}

}  // namespace pocket
