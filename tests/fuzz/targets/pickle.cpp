// Pickles, as data.
#include "../../../export/pickle.hpp"
#include "../target.hpp"
#include "small_pickles.hpp"

namespace fuzz::pickle {

using namespace pocket;

void run(std::string_view input) {
  PickleReader reader;
  if (!reader.parse("data.pkl", std::string(input))) return require(!reader.error.empty(), "pickle: an error");
  reader.find(reader.root(), "model");
  for (const PickleValue* item : reader.items(reader.root(), 10)) reader.items(*item);
}

std::vector<std::string> seeds() { return small_pickles(); }

const Registered target({"pickle", run, seeds});

}  // namespace fuzz::pickle
