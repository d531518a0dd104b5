// Pickles, as data.
#include "../../../export/pickle.hpp"
#include "../target.hpp"
#include "small_pickles.hpp"

namespace fuzz::pickle {

using namespace pocket;

void run(std::string_view input) {
  PickleReader reader;
  if (!reader.parse("data.pkl", input)) return require(!reader.error.empty(), "pickle: an error");
  reader.find(reader.root(), "model");
  for (const uint32_t item : reader.root().items) pickle_kind_name(reader[item].kind);
}

std::vector<std::string> seeds() { return small_pickles(); }

const Registered target({"pickle", run, seeds});

}  // namespace fuzz::pickle
