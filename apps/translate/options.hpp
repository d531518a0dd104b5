// options.hpp: the command line of translate.
#pragma once

#include <thread>

#include "translator.hpp"

namespace pocket::translate {

struct Arguments {
  std::string model, text, file, memory, kernel;
  int beams = Settings().beams, matches = Settings().matches, threads = 0;
  float trust = Settings().trust;
  bool has_text = false;  // --text, which may be empty
  bool no_mmap = false, quiet = false, help = false, version = false;

  Load load() const { return no_mmap ? Load::copy : Load::map; }
  Settings settings() const { return {beams, matches, trust}; }
  // Each thread translates lines of its own.
  int thread_count() const { return threads ? threads : std::max(1, int(std::thread::hardware_concurrency())); }
  SessionOptions session_options() const {
    return {0, 1, KvType::automatic, kernel.empty() ? nullptr : kernel.c_str()};
  }
  // The name of the text, for messages.
  std::string name() const { return has_text ? "--text" : file == "-" ? "standard input" : file; }
};

inline constexpr Option<Arguments> kOptions[] = {
    {"", "", "translate.bin -f text.txt --memory pairs.jsonl", "Text"},
    {"-f", "--file", "FILE", "text to translate, line by line; - is standard input [-]", &Arguments::file},
    {"-i", "--text", "TEXT", "text to translate, instead of a file", &Arguments::text},
    {"", "", "translate.bin -f text.txt --memory pairs.jsonl --matches 3 --beams 16", "What changes translations"},
    {"-m", "--memory", "FILE", "pairs in JSON Lines: {\"prompt\": SOURCE, \"completion\": TRANSLATION}",
     &Arguments::memory},
    {"", "--matches", "N", "pairs of the memory that are used for a line, the most similar ones, at most [2]",
     &Arguments::matches, 0, 16},
    {"", "--trust", "T", "how much the translations of those pairs count; those of the model count 1 [2]",
     &Arguments::trust, 0, 1000},
    {"", "--beams", "N", "hypotheses of the beam search; 1 is fastest [8]", &Arguments::beams, 1, 32},
    {"", "", "translate.bin -f text.txt --threads 1", "Speed and messages, which change no translation"},
    {"", "--threads", "N", "lines at once, one per thread [one per CPU]", &Arguments::threads, 1, 256},
    {"", "--kernel", "NAME", "a name from run --kernels [the first]", &Arguments::kernel},
    {"", "--no-mmap", "", "read the model into memory instead of mapping its file, which may then change",
     &Arguments::no_mmap},
    {"-q", "--quiet", "", "print no progress", &Arguments::quiet},
    {"-h", "--help", "", "print this help", &Arguments::help},
    {"", "--version", "", "print the version of the program and of the model format", &Arguments::version},
};

inline constexpr const char* kHelp =
    "translate: translates a text line by line on a CPU\n"
    "\n"
    "  translate translate.bin -i \"Open a file.\"\n"
    "  translate translate.bin -f help.txt --memory help-en-fi.train.jsonl > help.fi.txt\n"
    "\n"
    "The model is one that models/train made from pairs of a text and its translation (models/README.md). Each line of "
    "the\n"
    "text becomes one line of the translation; blank lines stay. A long line is translated sentence by sentence.\n"
    "\n"
    "A translation memory has pairs that people have translated, usually those that the model was trained on. The "
    "model "
    "sees\n"
    "the pairs that are most similar to a line before it translates the line, which makes the translation better. A "
    "line\n"
    "that the memory has is translated as there.\n"
    "\n"
    "The translation goes to stdout, progress to stderr. It depends on the line, the model, the memory and the options "
    "that\n"
    "change translations, not on other lines, threads or the machine.\n"
    "\n"
    "Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted; the lines before remain.\n";

inline void print_help() {
  std::printf("%s", kHelp);
  print_options(kOptions, "translate");
}

// Parses and checks the command line. Throws Failure.
inline Arguments parse(int argc, char** argv) {
  Arguments a;
  const std::vector<std::string> given = parse_options(argc, argv, kOptions, "a text is given with -f or -i", a);
  if (a.help || a.version) return a;
  const auto is_given = [&](const char* name) { return std::find(given.begin(), given.end(), name) != given.end(); };
  if (a.model.empty()) throw Failure{2, "expected a model: translate translate.bin -f text.txt; see --help"};
  if (is_given("--file") && is_given("--text")) throw Failure{2, "--file, --text: give only one of them"};
  for (const char* name : {"--matches", "--trust"})
    if (is_given(name) && a.memory.empty()) throw Failure{2, std::string(name) + ": requires --memory FILE"};
  a.has_text = is_given("--text");
  if (a.file.empty()) a.file = "-";
  return a;
}

}  // namespace pocket::translate
