// examples.cpp: models/translate/examples, which makes training examples for a translator from pairs. See --help and
// ../README.md.

#include <memory>

#include "../../export/json_writer.hpp"
#include "memory.hpp"

namespace pocket {

struct ExampleOptions {
  std::string model;  // the pairs; parse_options() calls the first argument so
  std::string output, seed = "1";
  int copies = 8, rows = 4, bytes = 1600;
  bool help = false;
};

inline const Option<ExampleOptions> kExampleOptions[] = {
    {"", "", "", "Options"},
    {"-o", "--output", "FILE", "file of the examples, JSON Lines; it appears when it is complete",
     &ExampleOptions::output},
    {"", "--copies", "N", "examples for each pair [8]", &ExampleOptions::copies, 1, 1000},
    {"", "--rows", "N", "most rows of an example: similar pairs, and the pair [4]", &ExampleOptions::rows, 1, 16},
    {"", "--bytes", "N", "most bytes of the texts of an example with several rows [1600]", &ExampleOptions::bytes, 1,
     1 << 20},
    {"-s", "--seed", "N", "seed of the choice of rows [1]", &ExampleOptions::seed},
    {"-h", "--help", "", "print this help", &ExampleOptions::help},
};

// Makes examples: a pair and similar ones, as rows of a table (memory.hpp).
class ExampleMaker {
 public:
  ExampleMaker(const TranslationMemory& memory, const ExampleOptions& options)
      : memory_(memory), o_(options), random_(uint64_t(number("--seed", options.seed, 0, 9e15, true))) {}

  // The examples of a pair, one line each.
  std::string lines(size_t index) {
    const std::string& source = memory_.pairs[index].source;
    const std::vector<Match> near =
        memory_.nearest(source, size_t(o_.rows) * 2, [&](const Pair& p) { return p.source == source; });
    std::string out;
    for (int i = 0; i < o_.copies; i++) out += line(rows(index, near)) + "\n";
    return out;
  }

 private:
  size_t below(size_t n) { return size_t(next_random(random_) % n); }

  // Two to `rows` rows, nearest last. A nearer pair is more likely to be among them: each is passed over with a
  // probability of 3 in 10. The order of every second example is random, so that all pairs occur first too.
  std::vector<size_t> rows(size_t index, const std::vector<Match>& near) {
    std::vector<size_t> rows = {index};
    size_t bytes = bytes_of(index);
    const size_t wanted = o_.rows < 2 ? 1 : 2 + below(size_t(o_.rows) - 1);
    for (const Match& match : near) {
      if (rows.size() == wanted) break;
      if (below(10) < 3 || bytes + bytes_of(match.index) > size_t(o_.bytes)) continue;
      rows.push_back(match.index);
      bytes += bytes_of(match.index);
    }
    std::reverse(rows.begin(), rows.end());
    if (below(2))
      for (size_t i = rows.size(); i > 1; i--) std::swap(rows[i - 1], rows[below(i)]);
    return rows;
  }

  size_t bytes_of(size_t i) const { return memory_.pairs[i].source.size() + memory_.pairs[i].target.size(); }

  std::string line(const std::vector<size_t>& rows) const {
    std::vector<std::string> prompts, completions;
    for (const size_t i : rows) {
      prompts.push_back(json(row_prompt(memory_.pairs[i].source, prompts.empty())));
      completions.push_back(json(row_completion(memory_.pairs[i].target)));
    }
    return json_object({{"prompt", json_array(prompts)}, {"completion", json_array(completions)}});
  }

  const TranslationMemory& memory_;
  const ExampleOptions& o_;
  uint64_t random_;
};

inline void make_examples(const ExampleOptions& o) {
  TranslationMemory memory;
  memory.read(o.model);
  check_distinct({o.output}, {o.model});
  OutputFile file;
  if (!file.open(o.output)) throw Failure{1, file.error()};
  ExampleMaker maker(memory, o);
  for (size_t i = 0; i < memory.pairs.size(); i++) {
    const std::string lines = maker.lines(i);
    file.write(lines.data(), lines.size());
    stop_if_interrupted();
  }
  if (!file.finish()) throw Failure{1, file.error()};
}

}  // namespace pocket

int main(int argc, char** argv) {
  using namespace pocket;
  platform::take_arguments(argc, argv);
  return guarded("examples", [&] {
    ExampleOptions o;
    parse_options(argc, argv, kExampleOptions, "put all pairs in one file", o);
    if (o.help) {
      std::printf(
          "examples: makes training examples for a translator from pairs\n\n"
          "  models/translate/examples pairs.jsonl -o examples.jsonl\n\n");
      return print_options(kExampleOptions);
    }
    if (o.model.empty() || o.output.empty()) throw Failure{2, "expected PAIRS.jsonl -o EXAMPLES.jsonl"};
    make_examples(o);
  });
}
