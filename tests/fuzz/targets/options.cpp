// Command lines of ./run: arguments that end in a zero byte.
#include "../../../apps/cli/options.hpp"
#include "../target.hpp"

namespace fuzz::options {

using namespace pocket;

void run(std::string_view input) {
  std::vector<std::string> words = split(input, size_t(std::count(input.begin(), input.end(), '\0')) + 1);
  words.insert(words.begin(), "run");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  try {
    cli::parse(int(argv.size()), argv.data());
  } catch (const Failure& failure) {
    require(failure.status == 2 && !failure.what.empty(), "options: wrong usage ends with status 2 and a message");
  }
}

std::vector<std::string> seeds() {
  return {join({"model.bin", "-i", "It was", "-n", "100", "--stop", "The end", "-t", "0.5", "--top-p=0.9"}),
          join({"--words", "dog, cake", "--features", "Dialogue", "--summary=A day."}),
          join({"m.bin", "-m", "chat", "-y", "Be brief", "--template", "chatml", "-k", "40", "--threads", "2"}),
          join({"m.bin", "--ids", "1,306,4658", "--logits", "out", "--kv", "q8", "--batch", "8", "-q", "--json"})};
}

const Registered target({"options", run, seeds});

}  // namespace fuzz::options
