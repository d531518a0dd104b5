// instruction.hpp: the prompt format of instructions for stories. Training (models/instruct.hpp) and `run --words` both
// use this code, so that their prompts are identical:
//
//   Words: dog, cake, sad
//   Features: Dialogue, Moral
//   Summary: Tim's dog ate the cake.
//   Story: Once upon a time ...
//
// Each of the first three lines is optional. Without all of them "Story:" is omitted too.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace pocket {

inline constexpr const char* kFeatures[] = {"Dialogue", "Moral", "Sad ending"};

// The features as a list for messages.
inline std::string feature_names() {
  std::string names;
  for (const char* f : kFeatures) names += (names.empty() ? "" : ", ") + std::string(f);
  return names;
}

// This line in the provenance of a model file marks a model that was trained on instructions. Existing files contain
// it.
inline constexpr char kTakesInstructions[] = "writes on command: --words, --features, --summary\n";

// Whether the provenance of a model file has that line.
inline bool takes_instructions(std::string_view provenance) {
  return ("\n" + std::string(provenance)).find("\n" + std::string(kTakesInstructions)) != std::string::npos;
}

// The fields of an instruction.
struct Instruction {
  std::vector<std::string> words;
  std::vector<std::string> features;  // from kFeatures
  std::string summary;
  bool empty() const { return words.empty() && features.empty() && summary.empty(); }
};

// The prompt, up to "Story:"; the story follows after a space. Empty for an empty instruction.
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
