// instruction.hpp: how a story is ordered. What a model is trained on (models/instruct.hpp) and what `run --words` asks
// it for are written here, so that they are the same to the letter:
//
//   Words: dog, cake, sad
//   Features: Dialogue, Moral
//   Summary: Tim's dog ate the cake.
//   Story: Once upon a time ...
//
// Each of the first three lines may be missing; without any of them there is no "Story:" either.
#pragma once

#include <string>
#include <vector>

namespace pocket {

inline constexpr const char* kFeatures[] = {"Dialogue", "Moral", "Sad ending"};

inline std::string feature_names() {
  std::string names;
  for (const char* f : kFeatures) names += (names.empty() ? "" : ", ") + std::string(f);
  return names;
}

// What a trainer puts into the provenance of a model that knows this, and `run` looks for.
inline constexpr char kTakesInstructions[] = "writes on command: --words, --features, --summary\n";

struct Instruction {
  std::vector<std::string> words, features;  // features: some of kFeatures
  std::string summary;
  bool empty() const { return words.empty() && features.empty() && summary.empty(); }
};

// The text to go on with, up to "Story:"; the story follows behind a space. Of an empty instruction: "".
inline std::string instruction_prompt(const Instruction& i) {
  const auto list = [](const char* name, const std::vector<std::string>& entries) {
    std::string line;
    for (const std::string& e : entries) line += (line.empty() ? name : ", ") + e;
    return line.empty() ? line : line + "\n";
  };
  if (i.empty()) return "";
  return list("Words: ", i.words) + list("Features: ", i.features) +
         (i.summary.empty() ? "" : "Summary: " + i.summary + "\n") + "Story:";
}

}  // namespace pocket
