// draft_test.cpp: draft models: the file of a teacher's own text, the texts themselves, the tokens and the embedding
// table of a draft, and models/train from a teacher to a draft.
#include "../../models/draft.hpp"

#include <gtest/gtest.h>

#include <fstream>

#include "../../models/own_text.hpp"
#include "../../models/tokenizer_trainer.hpp"
#include "../support/train_program.hpp"
#include "../support/training_model.hpp"

namespace draft_test {

using namespace pocket;

// ---- The file ----

OwnText text_of_ids(const std::vector<int>& ids) {
  OwnText text = {{ids[0], {}}};
  for (size_t i = 1; i < ids.size(); i++) text.push_back({ids[i], {{ids[i], 0.75f}, {1, 0.125f}}});
  return text;
}

const OwnTextSource kSource = {50, 0x1234567890abcdef, 9, 4};

void write_texts(const std::string& path, const std::vector<OwnText>& texts, const OwnTextSource& source = kSource) {
  OwnTextFile file;
  ASSERT_TRUE(file.open(path, &source)) << file.error;
  for (const OwnText& text : texts) ASSERT_TRUE(file.append(text)) << file.error;
}

const std::vector<OwnText> kTexts = {text_of_ids({3, 5, 49}), text_of_ids({0, 7}), text_of_ids({2, 8, 8, 8})};

TEST(OwnTextFile, KeepsTexts) {
  const TemporaryFolder t;
  write_texts(t.file("a.own"), kTexts);
  OwnTextFile file;
  ASSERT_TRUE(file.read(t.file("a.own"), kSource)) << file.error;
  EXPECT_EQ(file.source.seed, 9u);
  EXPECT_EQ(file.source.messages, 4u);
  ASSERT_EQ(file.texts.size(), 3u);
  for (size_t i = 0; i < 3; i++) {
    ASSERT_EQ(file.texts[i].size(), kTexts[i].size());
    for (size_t j = 0; j < kTexts[i].size(); j++) {
      EXPECT_EQ(file.texts[i][j].id, kTexts[i][j].id);
      ASSERT_EQ(file.texts[i][j].candidates.size(), j > 0 ? 2u : 0u);
      if (j == 0) continue;
      EXPECT_EQ(file.texts[i][j].candidates[1].id, 1);
      EXPECT_NEAR(file.texts[i][j].candidates[0].p, 0.75f, 1e-5);
    }
  }
  EXPECT_EQ(file.count_texts(4), 2u);
  EXPECT_EQ(file.count_texts(1000), 3u);
}

// Whatever part of the last text an interruption leaves: it is removed, and the file continues to the same bytes.
TEST(OwnTextFile, ContinuesAfterIncompleteText) {
  const TemporaryFolder t;
  write_texts(t.file("two.own"), {kTexts[0], kTexts[1]});
  write_texts(t.file("three.own"), kTexts);
  const std::string two = read_file(t.file("two.own")), three = read_file(t.file("three.own"));
  for (size_t size = two.size(); size < three.size(); size++) {
    const std::string path = t.write("x.own", three.substr(0, size));
    OwnTextFile file;
    ASSERT_TRUE(file.read(path, kSource)) << size << file.error;
    ASSERT_EQ(file.texts.size(), 2u) << size;
    ASSERT_TRUE(file.open(path) && file.append(kTexts[2])) << file.error;
    EXPECT_TRUE(read_file(path) == three) << size;
  }
}

TEST(OwnTextFile, RejectsDamage) {
  const TemporaryFolder t;
  write_texts(t.file("a.own"), kTexts);
  const std::string good = read_file(t.file("a.own"));
  const auto error_of = [&](const std::string& bytes, const OwnTextSource& source = kSource) {
    OwnTextFile file;
    EXPECT_FALSE(file.read(t.write("x.own", bytes), source));
    return file.error;
  };
  EXPECT_NE(error_of("hello").find("x.own: is not a file of a model's own text"), std::string::npos);
  for (size_t size = 8; size < 40; size++) EXPECT_NE(error_of(good.substr(0, size)), "") << size;
  std::string version = good, middle = good;
  version[8]++;
  middle[53] ^= 4;  // in the first text
  EXPECT_NE(error_of(version).find("another version"), std::string::npos);
  EXPECT_NE(error_of(middle).find("x.own: text 1: checksum mismatch; the file is damaged"), std::string::npos);
  EXPECT_NE(error_of(good, {50, 1, 9, 4}).find("is the text of another model"), std::string::npos);
  // Valid checksums around an id beyond the vocabulary, and too many candidates.
  OwnText many = text_of_ids({1, 2});
  many[1].candidates.resize(kMostCandidates + 1, {1, 0.01f});
  for (const OwnText& text : {text_of_ids({3, 50}), many}) {
    write_texts(t.file("b.own"), {text});
    EXPECT_NE(error_of(read_file(t.file("b.own"))).find("text 1: invalid token"), std::string::npos);
  }
  write_texts(t.file("c.own"), {OwnText()});
  EXPECT_NE(error_of(read_file(t.file("c.own"))).find("text 1: expected at least one token, found none"),
            std::string::npos);
}

TEST(OwnTextFile, HasOneWriter) {
  const TemporaryFolder t;
  OwnTextFile first, second;
  ASSERT_TRUE(first.open(t.file("a.own"), &kSource));
  ASSERT_TRUE(second.read(t.file("a.own"), kSource));
  EXPECT_FALSE(second.open(t.file("a.own")));
  EXPECT_NE(second.error.find("a.own: is in use by another process"), std::string::npos) << second.error;
}

// ---- Texts ----

// A random model of 320 tokens. chat: with a template, and every 16th token ends a reply.
struct RandomTeacher {
  TemporaryFolder folder;
  Model model;
  Tokenizer tokenizer;

  explicit RandomTeacher(bool chat, int context = 200, bool date = false) {
    Tokenizer::Vocabulary v;
    std::string error;
    EXPECT_TRUE(train_vocabulary(pattern_stories(100), 320, v, error)) << error;
    Config c = tiny::small_config();
    c.vocab_size = 320;
    c.max_seq_len = context;
    ModelParts parts = tiny::parts_of(c, Type::q8);
    parts.tokenizer = Tokenizer::to_blob(v);
    for (int id = 3; id < 320 && chat; id += 16) parts.chat.stop_ids.push_back(id);
    if (chat) {
      parts.chat.slot[ChatTemplate::kOpening] = {{ChatTemplate::kText, "a child: "}};
      if (date) parts.chat.slot[ChatTemplate::kOpening].push_back({ChatTemplate::kDate, "%d %b %Y"});
      parts.chat.slot[ChatTemplate::kUserSuffix] = {{ChatTemplate::kText, "\n"}};
      parts.chat.slot[ChatTemplate::kReplyPrefix] = {{ChatTemplate::kText, "the dog: "}};
    }
    ModelWriter writer;
    EXPECT_TRUE(writer.write(path(), parts, tiny::random_rows, nullptr)) << writer.error;
    EXPECT_TRUE(model.open(path().c_str())) << model.error;
    EXPECT_TRUE(tokenizer.load(model.tokenizer_bytes())) << tokenizer.error;
  }

  std::string path() const { return folder.file("t.bin"); }
  OwnTextSource source() const { return {model.vocab_size(), model.checksum(), 5, 0}; }

  // Writes, or continues, the file of this name; returns its bytes.
  std::string write(const std::string& name, int64_t tokens, int threads, const Messages& messages = {}) const {
    const std::string own = folder.file(name);
    OwnTextFile file;
    const OwnTextSource created = source();
    const bool opened = std::ifstream(own) ? file.read(own, created) && file.open(own) : file.open(own, &created);
    EXPECT_TRUE(opened) << file.error;
    const TextSource texts(model, tokenizer, file.source.seed, messages);
    OwnTextWriter(texts, file, threads).write(tokens);
    return read_file(own);
  }
  std::vector<OwnText> texts(int64_t tokens, const Messages& messages = {}) const {
    write("texts.own", tokens, 2, messages);
    OwnTextFile file;
    EXPECT_TRUE(file.read(folder.file("texts.own"), source())) << file.error;
    return file.texts;
  }
};

TEST(OwnText, SameForAnyThreadsAndInterruptions) {
  for (const bool chat : {true, false}) {
    const RandomTeacher t(chat);
    const std::string expected = t.write("a.own", 2000, 1);
    for (const int threads : {2, 5}) EXPECT_TRUE(t.write("b" + std::to_string(threads), 2000, threads) == expected);
    for (const int64_t tokens : {300, 500, 501, 2000}) t.write("c.own", tokens, 2);
    EXPECT_TRUE(read_file(t.folder.file("c.own")) == expected);
    EXPECT_TRUE(t.write("a.own", 500, 1) == expected);  // it has enough already
  }
}

TEST(OwnText, DoesNotDependOnTheDate) {
  const RandomTeacher t(true, 200, true);
  const TextSource source(t.model, t.tokenizer, 5);
  EXPECT_EQ(text_of(t.tokenizer, source.opening()), "a child: 26 Jul 2024");
  EXPECT_EQ(text_of(t.tokenizer, source.until_reply("Hi")).rfind("a child: 26 Jul 2024Hi\n", 0), 0u);
}

TEST(OwnText, HasTheProbabilitiesOfTheModel) {
  const RandomTeacher t(true);
  for (const OwnText& text : t.texts(2000)) {
    Session session(t.model, {200, 1});
    for (size_t i = 1; i < text.size(); i++) {
      const float* logits = session.forward(&text[i - 1].id, 1);
      ASSERT_TRUE(logits);
      if (text[i].candidates.empty()) continue;
      double sum = 0;
      for (int id = 0; id < 320; id++) sum += std::exp(double(logits[id]));
      std::vector<float> sorted(logits, logits + 320);
      std::sort(sorted.rbegin(), sorted.rend());
      ASSERT_LE(text[i].candidates.size(), kMostCandidates);
      for (size_t k = 0; k < text[i].candidates.size(); k++) {
        const Candidate& c = text[i].candidates[k];
        EXPECT_EQ(logits[c.id], sorted[k]);
        EXPECT_NEAR(double(c.p), std::exp(double(logits[c.id])) / sum, 2e-5);
      }
    }
  }
}

TEST(OwnText, ChatModelWritesMessagesAndReplies) {
  const RandomTeacher t(true);
  const std::vector<OwnText> texts = t.texts(4000);
  const TextSource source(t.model, t.tokenizer, 5);
  size_t replies = 0;
  for (const OwnText& text : texts) {
    std::vector<int> ids, given;
    for (const OwnToken& token : text) ids.push_back(token.id);
    EXPECT_LE(text.size(), 200u);
    const std::string whole = text_of(t.tokenizer, ids);
    EXPECT_EQ(whole.rfind("a child:", 0), 0u) << whole;
    EXPECT_TRUE(text[0].candidates.empty());
    const size_t at = whole.find("\nthe dog: ");
    if (at == whole.npos) continue;
    replies++;
    const std::vector<int> before = source.until_reply(whole.substr(9, at - 9));
    ASSERT_LT(before.size(), ids.size());
    EXPECT_TRUE(std::equal(before.begin(), before.end(), ids.begin())) << whole;
    for (size_t i = before.size(); i < text.size(); i++) EXPECT_FALSE(text[i].candidates.empty());
  }
  EXPECT_GT(replies, texts.size() / 2);
}

TEST(OwnText, MessagesBeginAsGiven) {
  const RandomTeacher t(true);
  Messages messages;
  std::string error;
  ASSERT_TRUE(messages.read(t.folder.write("m.txt", "# greetings\nhello\r\n\nwhat is"), error)) << error;
  ASSERT_EQ(messages.lines, (std::vector<std::string>{"hello", "what is"}));
  size_t hello = 0;
  const std::vector<OwnText> texts = t.texts(3000, messages);
  for (const OwnText& text : texts) {
    std::vector<int> ids;
    for (const OwnToken& token : text) ids.push_back(token.id);
    const std::string whole = text_of(t.tokenizer, ids);
    EXPECT_TRUE(whole.find("hello") == 9 || whole.find("what is") == 9) << whole;
    hello += whole.find("hello") == 9;
  }
  EXPECT_GT(hello, texts.size() / 4);
  EXPECT_LT(hello, texts.size() * 3 / 4);
  EXPECT_TRUE(t.write("a.own", 3000, 1, messages) == read_file(t.folder.file("texts.own")));
}

TEST(OwnText, OtherModelWritesFromBos) {
  const RandomTeacher t(false);
  const auto texts = t.texts(2000);
  for (const OwnText& text : texts) {
    EXPECT_EQ(text[0].id, t.tokenizer.bos());
    EXPECT_TRUE(text[0].candidates.empty());
    for (size_t i = 1; i < text.size(); i++) EXPECT_FALSE(text[i].candidates.empty());
  }
  EXPECT_NE(texts[0][1].id * 1000 + texts[0][2].id, texts[1][1].id * 1000 + texts[1][2].id);
}

// A context that has room for a message only: texts end, and are valid.
TEST(OwnText, FitsSmallContexts) {
  for (const int context : {16, 40}) {
    const RandomTeacher t(true, context);
    for (const OwnText& text : t.texts(500)) EXPECT_LE(text.size(), size_t(context));
  }
}

// ---- Drafts ----

// Tokens 10, 20, 30 occur three times or more.
std::vector<OwnText> common_texts() {
  std::vector<OwnText> texts;
  for (int i = 0; i < 3; i++) {
    OwnText text = {{10, {}}, {20, {{30, 0.5f}, {40, 0.25f}, {20, 0.125f}}}, {30, {{30, 1}}}};
    text.push_back({41 + i, {{41 + i, 1}}});
    texts.push_back(text);
  }
  return texts;
}

TEST(DraftVocabulary, HasCommonTokens) {
  const DraftVocabulary v(common_texts(), 50);
  EXPECT_EQ(v.size(), 4);
  EXPECT_EQ(v.whole_size(), 50);
  for (const int i : {0, 1, 2}) EXPECT_EQ(v.id(i), 10 * (i + 1));
  for (int id = 0; id < 50; id++)
    EXPECT_EQ(v.trained(id), id >= 10 && id <= 30 && id % 10 == 0 ? id / 10 - 1 : v.rare());
}

TEST(DraftText, MapsTokensAndCandidates) {
  const RandomTeacher t(false);
  const DraftVocabulary v(common_texts(), 320);
  const auto texts = common_texts();
  const TokenText text = draft_text(texts.data(), texts.data() + 2, v, t.tokenizer);
  EXPECT_EQ(text.ids, (std::vector<int>{0, 1, 2, 3, 0, 1, 2, 3}));
  EXPECT_EQ(text.begins, (std::vector<size_t>{0, 4}));
  EXPECT_EQ(text.likeliest, (std::vector<int>{-1, 2, 2, 3, -1, 2, 2, 3}));
  EXPECT_EQ(text.likely_at, (std::vector<size_t>{0, 0, 2, 3, 3, 3, 5, 6, 6}));
  EXPECT_EQ(text.likely[0].id, 2);  // 0.5 and 0.125, without the rare token
  EXPECT_FLOAT_EQ(text.likely[0].p, 0.8f);
  EXPECT_EQ(text.likely[1].id, 1);
  EXPECT_FLOAT_EQ(text.likely[1].p, 0.2f);
}

// Every target comes with the candidates of its token, whatever the order of the texts; given tokens and tokens without
// trained candidates do not count.
TEST(DraftText, WindowsHaveTheCandidatesOfTheirTargets) {
  const RandomTeacher t(false);
  const auto texts = common_texts();
  const TokenText text = draft_text(texts.data(), texts.data() + 3, DraftVocabulary(texts, 320), t.tokenizer);
  WindowStream stream(text, 5, 1);
  std::vector<Window> windows = validation_windows(text, 3);
  for (int i = 0; i < 20; i++) windows.push_back(stream.next());
  size_t counted = 0;
  for (const Window& w : windows) {
    ASSERT_EQ(w.likely.size(), w.ids.size());
    for (size_t i = 0; i < w.ids.size(); i++) {
      const int n = int(w.likely[i].end - w.likely[i].begin);
      if (w.targets[i] < 0) continue;
      counted++;
      EXPECT_EQ(w.targets[i], w.ids[i] + 1);
      EXPECT_EQ(n, w.ids[i] == 0 ? 2 : 1);
      EXPECT_EQ(w.likeliest[i], 2);
    }
  }
  EXPECT_GT(counted, 20u);
  for (const Window& w : validation_windows(text, 100)) {
    EXPECT_EQ(w.targets, (std::vector<int>{1, 2, -1}));
    EXPECT_EQ(w.likeliest, (std::vector<int>{2, 2, 3}));
  }
}

// The student approaches the stored probabilities.
TEST(StoredTeacher, TeachesItsProbabilities) {
  const RandomTeacher t(false);
  const auto texts = common_texts();
  const DraftVocabulary v(texts, 320);
  const TokenText text = draft_text(texts.data(), texts.data() + 3, v, t.tokenizer);
  Config c = training::odd_config(true, 2);
  c.vocab_size = v.size();
  TrainModel m(c);
  initialize(m, 1);
  StoredTeacher teacher(v.size());
  teacher.share = 1;
  Trainer trainer(m, 2, 75, training::best(), &teacher);
  const auto windows = validation_windows(text, 75);
  double loss = 0;
  for (int step = 1; step <= 200; step++) {
    loss = trainer.learn(windows);
    trainer.update({}, 1e-2, step);
  }
  EXPECT_LT(loss, 0.01);
  EXPECT_EQ(trainer.agreements(windows), 6u);  // of 9: the rare token is never proposed
  const float* logits = trainer.next_logits({0});
  EXPECT_NEAR(std::exp(logits[2] - logits[1]), 4, 0.5);
}

// A table of rank 3: three directions keep its centered inner products, up to the scale.
TEST(ReducedEmbedding, KeepsTheShapeOfTheTable) {
  const RandomTeacher t(false);
  const ReadRows rows = [](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& error) {
    if (spec.name != "token_embedding") return tiny::random_rows(spec, first, count, out, error);
    for (int64_t r = first; r < first + count; r++)
      for (int k = 0; k < spec.cols; k++) {
        *out = 1;
        for (int i = 0; i < 3; i++) *out += float(3 - i) * std::sin(float(r * (i + 2))) * std::cos(float(k * (i + 1)));
        out++;
      }
    return true;
  };
  Config c = tiny::small_config();
  tiny::MemoryModel model(tiny::model_bytes(tiny::parts_of(c, Type::f32), rows));
  std::vector<OwnText> texts;
  for (int id = 0; id < 100; id++) texts.push_back(OwnText(3, {id, {}}));
  const DraftVocabulary v(texts, 100);
  Pool pool(2);
  const std::vector<float> reduced = reduced_embedding(pool, model.model, v, 3);
  const std::vector<float> wider = reduced_embedding(pool, model.model, v, 80);
  ASSERT_EQ(reduced.size(), 101u * 3);
  std::vector<double> mean(64), row(64);
  std::vector<std::vector<double>> table;
  std::vector<float> x(64);
  for (int id = 0; id < 100; id++) {
    ASSERT_TRUE(model.model.read_row(model.model.token_embedding, id, x.data()));
    table.emplace_back(x.begin(), x.end());
    for (size_t k = 0; k < 64; k++) mean[k] += double(x[k]) / 100;
  }
  const auto product = [](const auto* a, const auto* b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += double(a[i]) * double(b[i]);
    return sum;
  };
  for (auto& r : table)
    for (size_t k = 0; k < 64; k++) r[k] -= mean[k];
  const double scale = product(&reduced[0], &reduced[0], 3) / product(table[0].data(), table[0].data(), 64);
  const double wide = product(&wider[0], &wider[0], 80) / product(table[0].data(), table[0].data(), 64);
  for (int a = 0; a < 100; a++)
    for (int b = 0; b < 100; b++) {
      const double expected = product(table[size_t(a)].data(), table[size_t(b)].data(), 64);
      EXPECT_NEAR(product(&reduced[size_t(a) * 3], &reduced[size_t(b) * 3], 3) / scale, expected, 1);
      EXPECT_NEAR(product(&wider[size_t(a) * 80], &wider[size_t(b) * 80], 80) / wide, expected, 1);
    }
  for (int i = 0; i < 3; i++) EXPECT_EQ(reduced[300 + size_t(i)], 0);
}

// ---- The program ----

std::vector<std::string> draft_of(const std::string& teacher, const std::string& output) {
  return {"--teacher", teacher, "-o",       output, "--own-tokens", "3000", "--steps", "40", "--every", "10",
          "--dim",     "16",    "--layers", "1",    "--ctx",        "32",   "--batch", "4",  "--type",  "f32"};
}

TEST(TrainDraft, WritesTextAndTrains) {
  const TemporaryFolder t;
  const std::string stories = std::string(POCKET_SOURCE_DIR) + "/models/stories.bin";
  const ProgramResult r = train(draft_of(stories, t.file("d.bin")));
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("of 100 first choices of the teacher, the draft proposes "), std::string::npos) << r.err;
  Model teacher, draft;
  ASSERT_TRUE(teacher.open(stories.c_str()));
  ASSERT_TRUE(draft.open(t.file("d.bin").c_str())) << draft.error;
  EXPECT_EQ(draft.tokenizer_bytes(), teacher.tokenizer_bytes());
  EXPECT_EQ(draft.vocab_size(), teacher.vocab_size());
  EXPECT_EQ(draft.config.max_seq_len, teacher.config.max_seq_len);
  EXPECT_NE(draft.provenance().find("own text of stories.bin"), std::string::npos) << draft.provenance();
  EXPECT_EQ(run_program({POCKET_RUN, t.file("d.bin"), "--selftest"}).status, 0);
  // All rare tokens have one logit.
  Session session(draft, {32, 1});
  const int id = 1;
  const float* logits = session.forward(&id, 1);
  std::map<float, int> counts;
  for (int i = 0; i < draft.vocab_size(); i++) counts[logits[i]]++;
  int same = 0;
  for (const auto& [logit, count] : counts) same = std::max(same, count);
  EXPECT_GT(same, 100);

  // The same file for other threads, kernels and after interruptions, and the text is not written again.
  const std::string expected = read_file(t.file("d.bin")), own = read_file(t.file("d.bin.own"));
  const ProgramResult again = train(draft_of(stories, t.file("e.bin")) +
                                    std::vector<std::string>{"--own-text", t.file("d.bin.own"), "--threads", "3"});
  ASSERT_EQ(again.status, 0) << again.err;
  EXPECT_EQ(again.err.find("writes its own text"), std::string::npos) << again.err;
  EXPECT_TRUE(read_file(t.file("e.bin")) == expected);
  EXPECT_TRUE(read_file(t.file("d.bin.own")) == own);
  const ProgramResult stopped = interrupt_training(draft_of(stories, t.file("f.bin")), t.file("f.bin"));
  ASSERT_EQ(stopped.status, 130) << stopped.err;
  const ProgramResult resumed = train({"--teacher", stories, "-o", t.file("f.bin"), "--resume", "--type", "f32"});
  ASSERT_EQ(resumed.status, 0) << resumed.err;
  EXPECT_TRUE(read_file(t.file("f.bin")) == expected);

  t.write("f.bin.own", own.substr(0, own.size() / 2));
  expect_failed(train({"--teacher", stories, "-o", t.file("f.bin"), "--resume"}), 1,
                {"f.bin.own: expected the ", " texts of this training, found "});
  expect_failed(train({t.write("s.txt", pattern_stories(50)), "-o", t.file("f.bin"), "--resume"}), 2,
                {"--resume: the training is of a draft"});
}

TEST(TrainDraft, RejectsBadInput) {
  const TemporaryFolder t;
  const RandomTeacher teacher(false), other(true);
  const std::string out = t.file("d.bin");
  expect_failed(train({"-o", out}), 2, {"expected a text to train on, or --teacher MODEL"});
  expect_failed(train({"--teacher", t.file("none.bin"), "-o", out}), 1, {"none.bin"});
  expect_failed(train({"--teacher", t.write("x.bin", "hello"), "-o", out}), 1, {"x.bin"});
  const std::string text = t.write("s.txt", pattern_stories(50));
  expect_failed(train({text, "-o", out, "--own-tokens", "5000"}), 2,
                {"--own-tokens: is only valid with --teacher and without a text"});
  for (const char* option : {"--tokenizer", "--init", "--valid"})
    expect_failed(train({"--teacher", teacher.path(), "-o", out, option, text}), 2,
                  {option, "is not valid without a text"});
  expect_failed(train({"--teacher", teacher.path(), "-o", out, "--vocab", "512"}), 2, {"--vocab"});
  write_texts(t.file("a.own"), kTexts);
  expect_failed(train({"--teacher", teacher.path(), "-o", out, "--own-text", t.file("a.own")}), 1,
                {"a.own: is the text of another model"});
  expect_failed(train({"--teacher", teacher.path(), "-o", out, "--own-text", teacher.path()}), 1,
                {"is not a file of a model's own text"});
  expect_failed(train({"--teacher", teacher.path(), "-o", out, "--own-text", out}), 2,
                {"--own-text: expected another file than those of the draft, found ", "d.bin"});
  expect_failed(train({"--teacher", other.path(), "-o", out, "--own-tokens", "1000", "--ctx", "4000"}), 1,
                {"d.bin.own: expected more tokens than --ctx 4000"});
  const std::string messages = t.write("m.txt", "hello\n"), empty = t.write("e.txt", "# nothing\n\n");
  const auto with_messages = [&](const std::string& path, const std::string& file, std::vector<std::string> more) {
    std::vector<std::string> args = {"--teacher", path, "-o", out, "--messages", file};
    args.insert(args.end(), more.begin(), more.end());
    return train(args);
  };
  expect_failed(with_messages(teacher.path(), messages, {"--own-text", t.file("m.own")}), 2,
                {"--messages: requires a chat model as the teacher"});
  expect_failed(with_messages(other.path(), empty, {}), 1, {"e.txt: expected messages, one per line, found none"});
  expect_failed(with_messages(other.path(), t.file("none.txt"), {}), 1, {"none.txt"});
  expect_failed(with_messages(other.path(), messages, {"--own-text", t.write("c.own", read_file(t.file("d.bin.own")))}),
                1, {"c.own: was begun with no --messages; to continue, give the same"});
  expect_failed(with_messages(other.path(), messages, {"--own-text", t.file("c.own"), "--own-tokens", "1000"}), 1,
                {"c.own: was written with no --messages; give another --own-text"});
  expect_failed(with_messages(other.path(), messages, {"--resume"}), 2, {"--messages: is not valid with --resume"});
  const std::string lengthy = t.write("l.txt", std::string(5000, 'x'));
  expect_failed(with_messages(other.path(), lengthy, {"--own-text", t.file("l.own")}), 1,
                {"l.txt: expected messages of fewer than 100 tokens, found"});
  EXPECT_EQ(t.list().find("d.bin\n"), std::string::npos) << t.list();
}

// The last text, which is for validation, has rare tokens only, none of which counts.
TEST(TrainDraft, TrainsWithoutValidationIfNoTokenOfItCounts) {
  const TemporaryFolder t;
  const RandomTeacher teacher(false);
  std::vector<OwnText> texts;
  for (int i = 0; i < 60; i++) {
    std::vector<int> ids;
    for (int k = 0; k < 20; k++) ids.push_back(10 * (1 + (i + k) % 3));
    texts.push_back(text_of_ids(ids));
  }
  OwnText rare = {{100, {}}};
  for (int id = 101; id < 120; id++) rare.push_back({id, {{id, 1}}});
  texts.push_back(rare);
  write_texts(t.file("a.own"), texts, teacher.source());
  const std::vector<std::string> args = {"--teacher",    teacher.path(),
                                         "--own-text",   t.file("a.own"),
                                         "--own-tokens", "1220",
                                         "--dim",        "16",
                                         "--layers",     "1",
                                         "--ctx",        "32",
                                         "--batch",      "2",
                                         "--steps",      "4",
                                         "--every",      "2",
                                         "-o",           t.file("d.bin")};
  const ProgramResult r = train(args);
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(r.err.find("nan"), std::string::npos) << r.err;
  CheckpointFile file;
  std::string error;
  EXPECT_TRUE(file.read(t.file("d.bin.checkpoint"), error)) << error;
  Model draft;
  ASSERT_TRUE(draft.open(t.file("d.bin").c_str())) << draft.error;
  EXPECT_EQ(draft.provenance().find("it has not seen"), std::string::npos) << draft.provenance();
  expect_failed(train(args + std::vector<std::string>{"--keep", "best"}), 2,
                {"--keep best: requires validation texts; give more --own-tokens"});
}

TEST(TrainDraft, RejectsMegabyteTeacher) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(50));
  ASSERT_EQ(train({text, "-o", t.file("m.bin"), "--arch", "megabyte", "--dim", "16", "--local-dim", "16", "--layers",
                   "1", "--ctx", "64", "--steps", "1", "--batch", "1"})
                .status,
            0);
  expect_failed(train({"--teacher", t.file("m.bin"), "-o", t.file("d.bin")}), 1,
                {"m.bin", "expected 1 (llama), found 2 (megabyte)"});
}

}  // namespace draft_test
