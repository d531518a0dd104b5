// instruct_test.cpp: generated instructions describe their stories, depend only on the seed, and have the format of
// `run --words`.
#include "../../models/instruct.hpp"

#include <gtest/gtest.h>

#include <map>

#include "../../models/tokenizer_trainer.hpp"
#include "../support/program.hpp"
#include "../support/test_data.hpp"
#include "../support/tiny_model.hpp"

namespace instruct_test {

using namespace pocket;
using Strings = std::vector<std::string>;

TEST(InstructionPrompt, ContainsGivenFields) {
  EXPECT_EQ(instruction_prompt({}), "");
  EXPECT_EQ(instruction_prompt({{"dog"}, {}, ""}), "Words: dog\nStory:");
  EXPECT_EQ(instruction_prompt({{"dog", "cake"}, {"Dialogue", "Moral"}, "A dog ate."}),
            "Words: dog, cake\nFeatures: Dialogue, Moral\nSummary: A dog ate.\nStory:");
}

TEST(Features, AreDetectedInStory) {
  using instruct_detail::features_of;
  EXPECT_EQ(features_of("Tom said, \"Hi.\" Sue said, \"Hello.\" They went home."), Strings{"Dialogue"});
  EXPECT_EQ(features_of("Tom fell. He learned to be careful."), Strings{"Moral"});
  EXPECT_EQ(features_of("Tom lost his dog. He was sad and cried."), Strings{"Sad ending"});
  EXPECT_EQ(features_of("Tom was sad. His dog came. He was not sad any more."), Strings{});
  EXPECT_EQ(features_of("Tom was sad. His dog came home."), Strings{});
  EXPECT_EQ(features_of(""), Strings{});
}

TEST(Instructions, DependOnSeed) {
  NEED_DATA(file, "text/tinystories-valid.txt");
  const std::string text = read_file(file), one = instruct_stories(split_stories(text), 1);
  EXPECT_EQ(instruct_stories(split_stories(text), 1), one);
  EXPECT_NE(instruct_stories(split_stories(text), 2), one);
}

// The fields of an example; the story is the field "".
std::map<std::string, std::string> fields_of(std::string_view example) {
  std::map<std::string, std::string> fields;
  for (const std::string name : {"Words", "Features", "Summary"}) {
    if (example.substr(0, name.size() + 2) != name + ": ") continue;
    const size_t end = example.find('\n');
    fields[name] = example.substr(name.size() + 2, end - name.size() - 2);
    example.remove_prefix(end + 1);
  }
  if (!fields.empty()) {
    EXPECT_EQ(example.substr(0, 7), "Story: ");
    example.remove_prefix(7);
  }
  fields[""] = example;
  return fields;
}

// No story is lost or changed; every field is often present and often absent; its content is in the story.
TEST(Instructions, DescribeTheirStories) {
  NEED_DATA(file, "text/tinystories-train.txt");
  const std::string text = read_file(file), made = instruct_stories(split_stories(text), 7);
  const auto stories = split_stories(text), examples = split_stories(made);
  ASSERT_EQ(examples.size(), stories.size());
  std::map<std::string, int> seen, features;
  for (size_t i = 0; i < stories.size(); i++) {
    auto fields = fields_of(examples[i]);
    ASSERT_EQ(fields[""], stories[i]);
    for (const auto& field : fields) seen[field.first]++;
    seen["plain"] += fields.size() == 1;
    std::istringstream words(fields["Words"]), names(fields["Features"]);
    for (std::string word; std::getline(words >> std::ws, word, ',');)
      EXPECT_NE(stories[i].find(word), stories[i].npos) << word;
    for (std::string name; std::getline(names >> std::ws, name, ',');) features[name]++;
    EXPECT_NE(stories[i].find(fields["Summary"]), stories[i].npos) << fields["Summary"];
  }
  const int n = int(stories.size());
  for (const char* field : {"Words", "Features", "Summary", "plain"}) {
    EXPECT_GT(seen[field], n / 20) << field;
    EXPECT_LT(seen[field], n * 4 / 5) << field;
  }
  for (const char* feature : kFeatures) EXPECT_GT(features[feature], 20) << feature;
  EXPECT_EQ(features.size(), std::size(kFeatures));
}

TEST(Instructions, ExcludeCommonWordsAndNames) {
  std::string text;
  for (int i = 0; i < 20; i++)
    text += std::string("The boy Max saw a ") + (i % 10 ? "tree" : "dragon") + ".\n<|endoftext|>\n";
  const std::string made = instruct_stories(split_stories(text), 3);
  EXPECT_NE(made.find("Words: dragon\n"), made.npos);
  for (const char* word : {"Words: Max", "Words: tree", "Words: saw", "Words: boy"})
    EXPECT_EQ(made.find(word), made.npos) << word;
}

// ---- run --words ----

class RunOnCommand : public testing::Test {
 protected:
  static std::string write(const std::string& name, const std::string& provenance) {
    ModelParts parts = tiny::parts_of(tiny::small_config(), Type::f32);
    Tokenizer::Vocabulary v;
    std::string error, text;
    for (int i = 0; i < 9; i++) text += "Words: dog, cake, sad.\nStory: Once upon a time there was a sad dog. ";
    EXPECT_TRUE(train_vocabulary(text, 300, v, error)) << error;
    parts.config.vocab_size = 300;
    parts.config.max_seq_len = 256;
    parts.tokenizer = Tokenizer::to_blob(v);
    parts.provenance = provenance;
    parts.self_test_ids = {1, 2};
    return folder.write(name, tiny::text_of(tiny::model_bytes(parts)));
  }
  static ProgramResult run(std::vector<std::string> args) {
    args.insert(args.begin(), POCKET_RUN);
    return run_program(args);
  }

  inline static TemporaryFolder folder;
};

// run prints the same story as for the prompt by -i, without the prompt.
TEST_F(RunOnCommand, UsesPromptOfTraining) {
  const std::string model = write("m.bin", std::string("source: test\n") + kTakesInstructions);
  const Strings rest = {"-t", "0", "-n", "30", "-q"};
  const auto with = [&](Strings args) {
    args.insert(args.begin(), model);
    args.insert(args.end(), rest.begin(), rest.end());
    const ProgramResult r = run(args);
    EXPECT_EQ(r.status, 0) << r.err;
    return r.out;
  };
  const std::string prompt = instruction_prompt({{"dog", "sad cake"}, {"Moral"}, "A dog."});
  const std::string story = with({"--words", "dog, sad cake", "--features=Moral", "--summary", "A dog."});
  const std::string by_hand = with({"-i", prompt});
  EXPECT_FALSE(story.empty());
  EXPECT_TRUE(by_hand == prompt + story || by_hand == prompt + " " + story) << by_hand << "\n---\n" << story;
}

TEST_F(RunOnCommand, RejectsInvalidInstructions) {
  const std::string trained = write("m.bin", kTakesInstructions), plain = write("plain.bin", "source: test\n");
  const auto fails = [&](int status, Strings args, const Strings& words) {
    expect_failed_in_a_line(run(args), "run", status, words);
  };
  fails(1, {plain, "--words", "dog"}, {plain, "not trained on instructions", "-i"});
  fails(2, {trained, "--words", "dog", "-i", "x"}, {"--words", "remove -i"});
  fails(2, {trained, "--words", "dog", "-f", "x"}, {"remove -i, -f"});
  fails(2, {trained, "--words", "dog", "-m", "chat"}, {"-m chat"});
  fails(2, {trained, "--words", "dog,,cat"}, {"--words", "between the commas"});
  fails(2, {trained, "--words", ""}, {"--words requires a value"});
  fails(2, {trained, "--features", "Dragons"}, {"Dialogue", "'Dragons'"});
  fails(2, {trained, "--summary", "one\ntwo"}, {"one line"});
}

}  // namespace instruct_test
