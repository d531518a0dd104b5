// translate_test.cpp: what a translator is trained with: the translation memory, examples of several parts, dropout,
// Muon, and models/translate/examples.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "../../models/tokenizer_trainer.hpp"
#include "../../models/translate/memory.hpp"
#include "../support/train_program.hpp"
#include "../support/training_model.hpp"

namespace translate_test {

using namespace pocket;
using namespace training;

// ---- Translation memory ----

TranslationMemory memory_of(std::vector<Pair> pairs) {
  TranslationMemory memory;
  memory.pairs = std::move(pairs);
  memory.index();
  return memory;
}

std::vector<size_t> indices(const std::vector<Match>& matches) {
  std::vector<size_t> all;
  for (const Match& m : matches) all.push_back(m.index);
  return all;
}

TEST(TranslationMemory, FindsTheMostSimilarSources) {
  const TranslationMemory memory =
      memory_of({{"Close the window.", "a"}, {"Open the file.", "b"}, {"Opens a file.", "c"}, {"xyz", "d"}});
  EXPECT_EQ(indices(memory.nearest("Open the file", 9)), (std::vector<size_t>{1, 2, 0}));
  EXPECT_EQ(indices(memory.nearest("Open the file", 1)), (std::vector<size_t>{1}));
  EXPECT_EQ(indices(memory.nearest("close THE window.")), (std::vector<size_t>{0}));
  EXPECT_DOUBLE_EQ(memory.nearest("Open the file.")[0].score, 1);
  EXPECT_TRUE(memory.nearest("0123456").empty());
}

TEST(TranslationMemory, IsIndexedAgainWhenItHasChanged) {
  TranslationMemory memory = memory_of({{"Close the window.", "a"}, {"Open the file.", "b"}});
  memory.pairs = {{"Open the file.", "c"}, {"Save the file.", "d"}, {"Close it.", "e"}};
  memory.index();
  const TranslationMemory expected = memory_of(memory.pairs);
  EXPECT_EQ(memory.find("Open the file.")->target, "c");
  EXPECT_EQ(memory.find("Close the window."), nullptr);
  const auto found = memory.nearest("Open a file.", 9), same = expected.nearest("Open a file.", 9);
  EXPECT_EQ(indices(found), indices(same));
  for (size_t i = 0; i < same.size(); i++) EXPECT_EQ(found[i].score, same[i].score);
}

// The definition, computed for each pair: 2 * common / (a + b), with trigrams weighted by ln(1 + N / n).
TEST(TranslationMemory, ScoreMatchesDefinition) {
  const std::vector<Pair> pairs = {{"abab", ""}, {"ababab", ""}, {"bab", ""}, {"", ""}, {"abc", ""}};
  const TranslationMemory memory = memory_of(pairs);
  const auto counts = [](std::string text) {
    std::map<std::string, int> all;
    text = " " + text + " ";
    for (size_t i = 0; i + 3 <= std::max<size_t>(text.size(), 3); i++) all[text.substr(i, 3)]++;
    return all;
  };
  const auto weight = [&](const std::string& trigram) {
    int n = 0;
    for (const Pair& p : pairs) n += int(counts(p.source).count(trigram));
    return std::log(1 + double(pairs.size()) / std::max(n, 1));
  };
  for (const std::string text : {"abab", "bababc", "abq"}) {
    for (const Match& match : memory.nearest(text, 9)) {
      double common = 0, sum = 0;
      const auto a = counts(text), b = counts(pairs[match.index].source);
      for (const auto& [trigram, n] : a) {
        sum += weight(trigram) * n;
        if (b.count(trigram)) common += weight(trigram) * std::min(n, b.at(trigram));
      }
      for (const auto& [trigram, n] : b) sum += weight(trigram) * n;
      EXPECT_NEAR(match.score, 2 * common / sum, 1e-12) << text << " " << match.index;
    }
  }
}

TEST(TranslationMemory, PrefersTheFirstOfEqualPairsAndLeavesOut) {
  const TranslationMemory memory = memory_of({{"one two", "a"}, {"one two", "b"}, {"one three", "c"}});
  EXPECT_EQ(indices(memory.nearest("one two", 3)), (std::vector<size_t>{0, 1, 2}));
  const auto others = memory.nearest("one two", 3, [](const Pair& p) { return p.source == "one two"; });
  EXPECT_EQ(indices(others), (std::vector<size_t>{2}));
}

TEST(TranslationMemory, FindsTheFirstPairOfASource) {
  const TranslationMemory memory = memory_of({{"ONE", "a"}, {"one", "b"}, {" one", "c"}, {"two\tx", "d"}});
  EXPECT_EQ(memory.find("one")->target, "b");
  EXPECT_EQ(memory.find(" ONE\n")->target, "a");
  EXPECT_EQ(memory.find("two x")->target, "d");
  EXPECT_EQ(memory.find("One"), nullptr);
  EXPECT_EQ(memory.find(""), nullptr);
}

TEST(TranslationMemory, TextsOfAPairAreOneLine) {
  const TemporaryFolder t;
  TranslationMemory memory;
  memory.read(t.write("m.jsonl", R"({"prompt": "a\tb\n", "completion": "\nc\r\nd\te "})"));
  EXPECT_EQ(memory.pairs[0].source, "a b");
  EXPECT_EQ(memory.pairs[0].target, "c  d e");
}

TEST(TranslationMemory, ReportsInvalidPairsByLine) {
  const TemporaryFolder t;
  const std::pair<std::string, std::string> cases[] = {
      {"{", "m.jsonl:2:"},
      {"[]", "\"prompt\": expected a string, found"},
      {R"({"prompt": "a", "completion": ["b"]})", "\"completion\": expected a string, found an array"},
  };
  for (const auto& [line, expected] : cases) {
    const std::string path = t.write("m.jsonl", R"({"prompt": "a", "completion": "b"})"
                                                "\n" +
                                                    line + "\n");
    TranslationMemory memory;
    try {
      memory.read(path);
      ADD_FAILURE() << line;
    } catch (const Failure& f) {
      EXPECT_NE(f.what.find("m.jsonl:2:"), std::string::npos) << f.what;
      EXPECT_NE(f.what.find(expected), std::string::npos) << f.what;
    }
  }
}

// ---- Examples of several parts ----

TEST(Examples, CountEveryCompletionOfSeveralParts) {
  Tokenizer::Vocabulary v;
  Tokenizer k;
  std::string error;
  ASSERT_TRUE(train_vocabulary(pattern_stories(40), 320, v, error)) << error;
  ASSERT_TRUE(k.load(Tokenizer::to_blob(v)));
  const ChatTemplate none;
  ExampleReader reader(k, none, 100, false);
  TokenText text;
  ASSERT_TRUE(reader.add("d", R"({"prompt": ["One\t", " Two\t"], "completion": [" day\n", " cats\n"]})", 1, text))
      << reader.error;
  std::vector<int> expected;
  std::vector<bool> counts;
  bool counted = false;
  for (const char* part : {"One\t", "One\t day\n", "One\t day\n Two\t", "One\t day\n Two\t cats\n"}) {
    expected = ids_of(k, part);
    counts.resize(expected.size(), counted);
    counted = !counted;
  }
  expected.push_back(k.eos());
  counts.push_back(true);
  EXPECT_EQ(text.ids, expected);
  EXPECT_EQ(text.counts, counts);
  EXPECT_EQ(text.bytes, 11u);
}

TEST(Examples, ReportInvalidParts) {
  const Tokenizer none;
  const ChatTemplate chat;
  const std::pair<const char*, const char*> cases[] = {
      {R"({"prompt": [], "completion": []})", "\"prompt\": expected a string or strings, found"},
      {R"({"prompt": ["a", 5], "completion": ["a", "b"]})", "\"prompt\": expected a string or strings, found"},
      {R"({"prompt": ["a", "b"], "completion": ["a"]})", "\"completion\": expected one for each prompt, found"},
      {R"({"prompt": "a", "completion": ["a"]})", "\"completion\": expected one for each prompt, found"},
      {R"({"prompt": ["a"], "completion": [""]})", "\"completion\": expected a text that is not empty"},
  };
  for (const auto& [line, expected] : cases) {
    ExampleReader reader(none, chat, 100, false);
    TokenText text;
    EXPECT_FALSE(reader.add("d", line, 1, text)) << line;
    EXPECT_NE(reader.error.find(expected), std::string::npos) << reader.error;
  }
}

// A vocabulary for examples is trained on their texts, not on JSON.
TEST(Examples, VocabularyIsOfTheirTexts) {
  const std::string texts = texts_of_examples({R"({"prompt": "One", "completion": "day"})",
                                               R"({"prompt": ["a", "b"], "completion": ["c", "d\n"]})",
                                               R"({"messages": [{"role": "user", "content": "Hi"}]})", "no JSON"});
  EXPECT_EQ(split_stories(texts), (std::vector<std::string_view>{"One", "day", "a", "b", "c", "d", "Hi"}));
}

// ---- Dropout ----

TEST(Dropout, MaskDependsOnKeyPlacePositionAndColumn) {
  const auto mask = [](const Dropout& d, int place, int t) {
    std::vector<float> row(256, 1);
    d.apply(row.data(), 256, place, t);
    return row;
  };
  const uint64_t key = Dropout::key_of(1, 2, 3);
  const std::vector<float> a = mask({0.25f, key}, 4, 5);
  EXPECT_EQ(mask({0.25f, key}, 4, 5), a);
  std::set<std::vector<float>> all = {a};
  for (const auto& [place, t] : {std::pair{5, 5}, {4, 6}, {5, 4}}) all.insert(mask({0.25f, key}, place, t));
  for (const uint64_t other : {Dropout::key_of(2, 2, 3), Dropout::key_of(1, 3, 3), Dropout::key_of(1, 2, 4)})
    all.insert(mask({0.25f, other}, 4, 5));
  EXPECT_EQ(all.size(), 7u);
  int dropped = 0;
  for (int t = 0; t < 100; t++)
    for (const float f : mask({0.25f, key}, 0, t)) {
      dropped += f == 0;
      EXPECT_TRUE(f == 0 || std::fabs(f - 4 / 3.f) < 1e-6f) << f;
    }
  EXPECT_NEAR(dropped / 25600., 0.25, 0.01);
}

TEST(Dropout, GradientMatchesDifferences) {
  const Config c = odd_config(true, 2);
  TrainModel m(c);
  fill(m, 1);
  Trainer trainer(m, 2, c.max_seq_len, best());
  trainer.set_dropout(0.2f, 7);
  const auto batch = windows_for(c, 3, 1);
  trainer.learn(batch, 5);
  expect_gradients(m, trainer, [&] { return trainer.learn(batch, 5); });
}

TEST(Dropout, SameBitsForEveryKernelAndThreadCount) {
  const Config c = odd_config(true, 2);
  std::set<uint64_t> hashes;
  for (const float rate : {0.f, 0.3f})
    for (const TrainKernels* k : kernel_sets())
      for (const int threads : {1, 3}) {
        TrainModel m(c);
        fill(m, 1);
        Trainer trainer(m, threads, c.max_seq_len, *k);
        trainer.set_dropout(rate, 7);
        for (int step = 1; step < 4; step++) {
          trainer.learn(windows_for(c, 10, uint64_t(step)), step);
          trainer.update(AdamOptions(), 1e-2, step);
        }
        hashes.insert(hash_bytes(m.values.data(), m.values.size() * sizeof(float)));
      }
  EXPECT_EQ(hashes.size(), 2u);
}

// ---- Muon ----

TEST(Muon, StepOfAMatrixIsNearlyOrthogonal) {
  for (const auto& [rows, cols] : {std::pair{24, 40}, {40, 24}, {32, 32}, {1, 7}}) {
    const Parameter p = placed({{"w", Layout::panels, rows, cols}})[0];
    Floats value(p.size()), gradient(p.size()), momentum(p.size());
    tiny::Random random(3);
    for (int r = 0; r < rows; r++)
      for (int k = 0; k < cols; k++) gradient[size_t(r) * p.stride + size_t(k)] = random.normal();
    Muon muon(best(), 40, 40);
    muon.update(p, value.data(), gradient.data(), momentum.data(), 1, 1, 1);
    // Rows of the step, or its columns if there are fewer: about unit length and about orthogonal.
    const bool by_rows = rows <= cols;
    const int n = std::min(rows, cols), depth = std::max(rows, cols);
    const double scale = 0.2 * std::sqrt(double(depth));
    const auto at = [&](int i, int k) {
      return double(value[by_rows ? size_t(i) * p.stride + size_t(k) : size_t(k) * p.stride + size_t(i)]) / scale;
    };
    double off = 0;
    for (int i = 0; i < n; i++)
      for (int j = 0; j < n; j++) {
        double dot = 0;
        for (int k = 0; k < depth; k++) dot += at(i, k) * at(j, k);
        if (i == j) EXPECT_NEAR(dot, 0.9, 0.5) << rows << " " << cols;
        if (i != j) off += dot * dot;
      }
    EXPECT_LT(off / n, 0.3) << rows << " " << cols;
    for (size_t i = 0; i < p.size(); i++) EXPECT_TRUE(i % p.stride < size_t(cols) || value[i] == 0);
  }
}

TEST(Muon, SameBitsForEveryKernelAndThreadCountAndPaddingStaysZero) {
  const Config c = odd_config(false, 2);
  AdamOptions options;
  options.muon = true;
  std::set<uint64_t> hashes;
  for (const TrainKernels* k : kernel_sets())
    for (const int threads : {1, 3}) {
      TrainModel m(c);
      fill(m, 1);
      Trainer trainer(m, threads, c.max_seq_len, *k);
      for (int step = 1; step < 4; step++) {
        trainer.learn(windows_for(c, 3, uint64_t(step)));
        trainer.update(options, 1e-2, step);
      }
      expect_zero_padding(m.parameters, m.values);
      hashes.insert(hash_bytes(m.values.data(), m.values.size() * sizeof(float)));
    }
  EXPECT_EQ(hashes.size(), 1u);
}

// ---- The programs ----

// Pairs of a made-up language.
std::string pairs(int count) {
  tiny::Random random(1);
  const std::pair<const char*, const char*> verbs[] = {{"Open", "Avu"}, {"Close", "Kiu"}, {"Print", "Tuo"}},
                                            things[] = {{"file", "tosta"}, {"table", "tuku"}, {"page", "sivu"}};
  std::string lines;
  for (int i = 0; i < count; i++) {
    const auto &v = verbs[random.below(3)], &x = things[random.below(3)];
    const std::string n = std::to_string(i);
    lines += std::string("{\"prompt\": \"") + v.first + " the " + x.first + " " + n + ".\", \"completion\": \"" +
             v.second + " " + x.second + " " + n + ".\"}\n";
  }
  return lines;
}

ProgramResult examples(std::vector<std::string> args) {
  args.insert(args.begin(), POCKET_TRANSLATE_EXAMPLES);
  return run_program(args);
}

TEST(TranslateExamples, AreRowsOfOtherPairsAndTheSameForASeed) {
  const TemporaryFolder t;
  const std::string text = t.write("p.jsonl", pairs(40));
  for (const char* name : {"a", "b"})
    ASSERT_EQ(examples({text, "-o", t.file(name), "--copies", "3", "--rows", "3"}).status, 0);
  ASSERT_EQ(examples({text, "-o", t.file("c"), "--copies", "3", "--rows", "3", "-s", "2"}).status, 0);
  const std::string all = read_file(t.file("a"));
  EXPECT_EQ(read_file(t.file("b")), all);
  EXPECT_NE(read_file(t.file("c")), all);
  const auto lines = numbered_lines(all);
  ASSERT_EQ(lines.size(), 120u);
  for (const auto& [line, number] : lines) {
    JsonDocument document;
    ASSERT_TRUE(document.parse("a", std::string(line))) << document.error;
    std::set<std::string> sources;
    for (const JsonValue& v : document.root().find("prompt").elements()) {
      std::string source = v.string();
      EXPECT_EQ(source.back(), '\t');
      sources.insert(source[0] == ' ' ? source.substr(1) : source);
    }
    EXPECT_EQ(sources.size(), document.root().find("prompt").size()) << line;  // no source twice
    EXPECT_EQ(sources.size(), document.root().find("completion").size());
    EXPECT_GE(sources.size(), 1u);
    EXPECT_LE(sources.size(), 3u);
    EXPECT_TRUE(std::any_of(sources.begin(), sources.end(), [&, n = number](const std::string& s) {
      return s.find(" " + std::to_string((n - 1) / 3) + ".\t") != std::string::npos;
    })) << line;
  }
}

TEST(TranslateExamples, ReportWrongUsage) {
  const TemporaryFolder t;
  const std::string text = t.write("p.jsonl", pairs(4));
  expect_failed_in_a_line(examples({text}), "examples", 2, {"-o"});
  expect_failed_in_a_line(examples({text, "-o", text}), "examples", 1, {"expected another file"});
  expect_failed_in_a_line(examples({t.file("none.jsonl"), "-o", t.file("o")}), "examples", 1, {"none.jsonl: "});
  expect_failed_in_a_line(examples({t.write("e.jsonl", "\n"), "-o", t.file("o")}), "examples", 1, {"found none"});
  expect_failed_in_a_line(examples({text, "-o", t.file("o"), "--rows", "0"}), "examples", 2, {"--rows"});
  EXPECT_EQ(t.list().find("o\n"), std::string::npos);
}

TEST(Train, TranslatorIsTheSameForAnyThreadsAndKernelAndWhenResumed) {
  const TemporaryFolder t;
  const std::string text = t.write("p.jsonl", pairs(60));
  ASSERT_EQ(examples({text, "-o", t.file("e.jsonl")}).status, 0);
  expect_same_model(
      t, t.file("e.jsonl"),
      tiny_shape() + std::vector<std::string>{"--ctx", "96", "--dropout", "0.2", "--optimizer", "muon", "--lr", "0.01"},
      {{"--threads", "3"}, {"--kernel", "portable"}});
}

TEST(Train, ChecksOptionsOfTranslators) {
  const TemporaryFolder t;
  const std::string text = t.write("p.jsonl", pairs(6)), out = t.file("o.bin");
  expect_failed(train({text, "-o", out, "--dropout", "1"}), 2, {"--dropout"});
  expect_failed(train({text, "-o", out, "--optimizer", "sgd"}), 2,
                {"--optimizer: expected adamw or muon, found 'sgd'"});
  expect_failed(train({text, "-o", out, "--optimizer", "muon", "--init", "b.bin", "--lora-rank", "2"}), 2,
                {"--optimizer: is not valid for an adapter"});
  expect_failed(train({text, "-o", out, "--dropout", "0.1", "--init", "b.bin", "--lora-rank", "2"}), 2,
                {"--dropout: is not valid for an adapter"});
  const std::string story = t.write("s.txt", pattern_stories(60));
  expect_failed(train({story, "-o", out, "--dropout", "0.1", "--arch", "megabyte"}), 2, {"--dropout: is not valid"});
  expect_failed(train({text, "-o", out, "--dropout", "0.1", "--resume"}), 2, {"--dropout: is not valid with --resume"});
}

}  // namespace translate_test
