// help.hpp: one table of options makes --help and the man page, and says what each option sets.
#ifndef POCKET_HELP_HPP
#define POCKET_HELP_HPP

#include <cstdio>
#include <string>
#include <variant>
#include <vector>

namespace pocket::cli {

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

}  // namespace pocket::cli
#endif  // POCKET_HELP_HPP
