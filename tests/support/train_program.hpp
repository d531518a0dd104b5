// train_program.hpp: shared by the tests of models/train: runs the program, and generates stories that it learns
// quickly.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <regex>
#include <string>
#include <vector>

#include "program.hpp"
#include "tiny_model.hpp"

// Runs models/train.
inline ProgramResult train(std::vector<std::string> args, const ProgramOptions& options = {}) {
  args.insert(args.begin(), POCKET_TRAIN);
  return run_program(args, options);
}

// Stories of one pattern, with a few random choices.
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

// Options of a model that trains in a second.
inline std::vector<std::string> tiny_shape() {
  return {"--dim", "16", "--layers", "1", "--ctx", "32", "--batch", "4", "--vocab", "320", "--threads", "1"};
}

inline std::vector<std::string> operator+(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Runs models/train with --steps 40, and interrupts it after step 20. A run that ends before the signal arrives is
// repeated, without the files of `output`.
inline ProgramResult interrupt_training(const std::vector<std::string>& args, const std::string& output) {
  ProgramOptions stop;
  stop.interrupt_after_output = "[step 20]";
  ProgramResult r;
  for (int attempt = 0; attempt < 10; attempt++) {
    r = train(args, stop);
    if (r.status != 0) break;
    for (const char* suffix : {"", ".checkpoint", ".own"}) std::filesystem::remove_all(output + suffix);
  }
  return r;
}

// Trains on `text` with `args`; with each of `ways` added; and interrupted and resumed. Expects the same model bit for
// bit. Leaves c.bin and its checkpoint in the folder.
inline void expect_same_model(const TemporaryFolder& t, const std::string& text, std::vector<std::string> args,
                              const std::vector<std::vector<std::string>>& ways) {
  args = args + std::vector<std::string>{text, "--steps", "40", "--every", "10", "-o"};
  ASSERT_EQ(train(args + std::vector<std::string>{t.file("a.bin")}).status, 0);
  const std::string expected = read_file(t.file("a.bin"));
  for (const auto& way : ways) {
    ASSERT_EQ(train(args + std::vector<std::string>{t.file("b.bin")} + way).status, 0);
    EXPECT_TRUE(read_file(t.file("b.bin")) == expected) << way[0] << " " << way[1];
  }
  const std::string c = t.file("c.bin");
  const ProgramResult stopped = interrupt_training(args + std::vector<std::string>{c}, c);
  ASSERT_EQ(stopped.status, 130) << stopped.err;
  EXPECT_NE(stopped.err.find("--resume"), std::string::npos) << stopped.err;
  EXPECT_EQ(t.list().find("c.bin\n"), std::string::npos) << t.list();
  const ProgramResult r = train({text, "-o", c, "--resume", "--threads", "2"});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("resuming after step "), std::string::npos);
  EXPECT_TRUE(read_file(c) == expected);
  for (const char* name : {"c.bin.checkpoint\n", "c.loss.csv\n", "c.loss.svg\n"})
    EXPECT_NE(t.list().find(name), std::string::npos) << t.list();
  EXPECT_EQ(t.list().find(".tmp"), std::string::npos) << t.list();
}

// The bits per character of the last validation.
inline double last_bits(const std::string& err) {
  const std::regex pattern("validation ([0-9.]+) nats per (?:token|byte), ([0-9.]+) bits per character");
  double bits = 1e9;
  for (auto it = std::sregex_iterator(err.begin(), err.end(), pattern); it != std::sregex_iterator(); ++it)
    bits = std::stod((*it)[2]);
  return bits;
}
