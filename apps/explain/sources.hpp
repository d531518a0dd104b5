// sources.hpp: the lines of run.cpp that compute what a view shows. They are read from the file when a page is written, by
// the head of the function, so that no line number is kept anywhere.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "../../export/program.hpp"

namespace pocket::explain {

struct Source {
  const char* name;  // in the page
  const char* head;  // how the function begins in run.cpp; unique there
};
inline constexpr Source kSources[] = {
    {"forward", "  const float* forward(int id, int position) try {"},
    {"rmsnorm", "  Vector rmsnorm(Vector x, const Tensor& weights) const {"},
    {"matmul", "  Vector matmul(const Tensor& w, Vector x, const Tensor& bias = {}) const {"},
    {"rope", "  void rope(Vector& x) const {"},
    {"attention", "  Vector attention(int l, const Vector& x) {"},
    {"softmax", "  static void softmax(Vector& score) {"},
    {"feed_forward", "  Vector feed_forward(const Layer& w, const Vector& x) const {"},
    {"add", "  static void add(Vector& x, const Vector& y) {"},
    {"choose", "  int choose(float top, int best) {"},
    {"keep_top_p", "  double keep_top_p(double total) {"},
    {"KvBlock", "struct KvBlock {"},
};

struct Excerpt {
  int line = 0;      // of the head, from 1; 0: not found
  std::string text;  // the comment before it, and the function
};

/// A function of a source text, with the comment before it.
inline Excerpt find_function(std::string_view text, std::string_view head) {
  size_t at = text.find(head);
  while (at != text.npos && at > 0 && text[at - 1] != '\n') at = text.find(head, at + 1);
  if (at == text.npos) return {};
  const std::string indent(head.substr(0, head.find_first_not_of(' ')));
  const std::string close = "\n" + indent + "}";
  size_t end = at;
  do {  // the end of the line that closes it; "} catch" does not
    const size_t found = text.find(close, end);
    if (found == text.npos) return {};
    end = std::min(text.find('\n', found + 1), text.size());
    if (text.compare(found + close.size(), 6, " catch") != 0) break;
  } while (true);
  size_t begin = at;
  while (begin > 0) {  // lines of the comment
    const size_t newline = begin - 1, line = newline == 0 ? 0 : text.rfind('\n', newline - 1) + 1;
    if (text.substr(line, indent.size() + 2) != indent + "//") break;
    begin = line;
  }
  Excerpt e;
  for (size_t i = 0; i < at; i++) e.line += text[i] == '\n';
  e.line++;
  const std::string_view lines = text.substr(begin, end - begin);
  for (size_t i = 0; i < lines.size();) {  // without the common indentation
    const size_t newline = std::min(lines.find('\n', i), lines.size());
    std::string_view line = lines.substr(i, newline - i);
    line.remove_prefix(std::min(line.size(), indent.size()));
    e.text += std::string(line) + "\n";
    i = newline + 1;
  }
  return e;
}

/// The text of run.cpp: beside the program, or where `make install` puts it. "": there is none that can be read.
inline std::string engine_source() {
  const std::string folder = folder_of(platform::program_path());
  for (const char* place : {"run.cpp", "../include/pocketllama/run.cpp"}) {
    const std::string file = join_path(folder, place);
    if (platform::info_of(file).kind != platform::FileKind::file) continue;
    try {
      return read_all(file, 4 << 20, false);  // a page is written after Ctrl-C too
    } catch (const Failure&) {
    }
  }
  return "";
}

}  // namespace pocket::explain
