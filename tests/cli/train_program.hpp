// train_program.hpp: what the tests of models/train share: the program itself, and stories that are soon learnt.
#pragma once

#include <gtest/gtest.h>

#include <regex>
#include <string>
#include <vector>

#include "../tiny_model.hpp"
#include "program.hpp"

inline ProgramResult train(std::vector<std::string> args, const ProgramOptions& options = {}) {
  args.insert(args.begin(), POCKET_TRAIN);
  return run_program(args, options);
}

// Stories of one pattern: whoever reads some knows what the next may say.
inline std::string pattern_stories(int count) {
  tiny::Random random(1);
  const auto one_of = [&](std::initializer_list<const char*> all) {
    return std::string(all.begin()[random.below(int(all.size()))]);
  };
  std::string text;
  for (int i = 0; i < count; i++) {
    const std::string name = one_of({"Tom", "Lily", "Ben", "Anna", "Max", "Sue"});
    const std::string what = one_of({"ball", "kite", "cake", "boat", "drum", "book"});
    const std::string friend_name = one_of({"dog", "cat", "bird", "frog"});
    text += "Once upon a time there was a child named " + name + ". " + name + " had a big red " + what +
            ". One day the " + what + " was lost. \"Where is my " + what + "?\" said " + name + ". A little " +
            friend_name + " came and said, \"I found it!\" " + name + " and the " + friend_name +
            " were happy.\n<|endoftext|>\n";
  }
  return text;
}

// A model so small that it learns in a second.
inline std::vector<std::string> tiny_shape() {
  return {"--dim", "16", "--layers", "1", "--ctx", "32", "--batch", "4", "--vocab", "320", "--threads", "1"};
}

inline std::vector<std::string> operator+(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

inline double last_bits(const std::string& err) {
  const std::regex pattern("validation ([0-9.]+) nats a (?:token|byte), ([0-9.]+) bits a character");
  double bits = 1e9;
  for (auto it = std::sregex_iterator(err.begin(), err.end(), pattern); it != std::sregex_iterator(); ++it)
    bits = std::stod((*it)[2]);
  return bits;
}
