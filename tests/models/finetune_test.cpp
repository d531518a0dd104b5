// finetune_test.cpp: fine-tuning: examples in JSON Lines, adapters of frozen model files of every type, and what a model
// keeps of the one that it continues.
#include <gtest/gtest.h>

#include "../../export/adapter.hpp"
#include "../../models/train_texts.hpp"
#include "../support/test_data.hpp"
#include "../support/train_program.hpp"
#include "../support/training_model.hpp"

namespace finetune_test {

using namespace pocket;
using namespace training;

// ---- Adapters of frozen weights ----

// A model with random weights. Tied: the output matrix is the embedding table.
tiny::Bytes model_bytes(const Config& c, Type type) {
  return tiny::model_bytes(tiny::parts_of(c, type),
                           [&](TensorSpec spec, int64_t first, int64_t n, float* out, std::string& why) {
                             if (c.tied && spec.name == "output") spec.name = "token_embedding";
                             if (c.tied && spec.name == "token_embedding") spec.layout = Layout::panels;
                             return tiny::random_rows(spec, first, n, out, why);
                           });
}

// A frozen model with adapters whose B is not zero.
struct Frozen {
  tiny::MemoryModel file;
  LoraPlan plan;
  FrozenLlama weights;

  Frozen(const Config& c, Type type, int rank, float alpha)
      : file(model_bytes(c, type)), plan{rank, alpha, c.tied ? 0x7fu : 0xffu}, weights(file.model) {
    weights.adapt(adapters_for(c, plan));
    initialize(weights.adapters, 7);
    tiny::Random random(5);
    for (const Parameter& p : weights.adapters.parameters)
      for (int r = 0; r < p.spec.rows && p.spec.name.back() == 'B'; r++)
        for (int k = 0; k < p.spec.cols; k++)
          weights.adapters.values[p.offset + size_t(r) * p.stride + size_t(k)] = 0.1f * random.normal();
  }
};

// The same model with float32 weights, those that the file stands for.
std::unique_ptr<TrainModel> dequantized(const Frozen& f) {
  auto m = std::make_unique<TrainModel>(f.file.model.config);
  for (const auto& [spec, tensor] : tensors_of(f.file.model))
    for (const Parameter& p : m->parameters)
      if (p.spec.name == spec.name)
        for (int r = 0; r < p.spec.rows; r++)
          for (int k = 0; k < p.spec.cols; k++)
            m->values[p.offset + size_t(r) * p.stride + size_t(k)] = weight(*tensor, r, k);
  m->adapt(adapters_for(f.file.model.config, f.plan));
  std::memcpy(m->adapters.values.data(), f.weights.adapters.values.data(), m->adapters.values.size() * sizeof(float));
  return m;
}

TEST(FrozenLlama, GradientMatchesDifferencesForF32) {
  for (const bool tied : {true, false}) {
    const Config c = odd_config(tied, 2);
    Frozen f(c, Type::f32, tied ? 3 : 20, 6);
    Trainer trainer(f.weights, 2, c.max_seq_len, best());
    const auto batch = windows_for(c, 3, 1);
    trainer.learn(batch);
    const auto loss = [&] { return trainer.evaluate(batch) / double(count_targets(batch)); };
    expect_gradients(f.weights, trainer, loss, 0.02);
  }
}

// Inputs are rounded to int8, so that the loss has steps: its gradient is that of the model without them.
TEST(FrozenLlama, GradientMatchesThatOfDequantizedModel) {
  for (const Type type : {Type::f32, Type::q8, Type::q4})
    for (const bool tied : {true, false}) {
      if (tied && type == Type::q4) continue;  // the embedding has other bits than the output matrix
      const Config c = odd_config(tied, 2);
      Frozen f(c, type, 4, 4);
      const auto floats = dequantized(f);
      Trainer frozen(f.weights, 2, c.max_seq_len, best()), expected(*floats, 2, c.max_seq_len, best());
      const auto batch = windows_for(c, 3, 1);
      EXPECT_NEAR(frozen.learn(batch), expected.learn(batch), type == Type::f32 ? 1e-5 : 0.02);
      for (const Parameter& p : f.weights.adapters.parameters) {
        double difference = 0, norm = 0;
        for (size_t i = p.offset; i < p.offset + p.size(); i++) {
          difference += std::pow(double(frozen.gradient()[i] - expected.gradient()[i]), 2);
          norm += std::pow(double(expected.gradient()[i]), 2);
        }
        EXPECT_LT(std::sqrt(difference), (type == Type::f32 ? 1e-4 : 0.06) * std::sqrt(norm))
            << p.spec.name << ", " << type_name(type);
      }
    }
}

TEST(FrozenLlama, SameBitsForEveryKernelAndThreadCount) {
  const Config c = odd_config(true, 2);
  for (const Type type : {Type::f32, Type::q8, Type::q4}) {
    const tiny::MemoryModel file(c, type);
    const auto make = [&] {
      auto m = std::make_unique<FrozenLlama>(file.model);
      m->adapt(adapters_for(c, {3, 6, 0x7f}));
      initialize(m->adapters, 7);
      return m;
    };
    expect_same_bits(make, c.max_seq_len, [&](uint64_t seed) { return windows_for(c, 10, seed); });
  }
}

TEST(FrozenLlama, TrainsTheModelThatRuns) {
  Config c = odd_config(true, 2);
  c.max_seq_len = 200;
  for (const Type type : {Type::f32, Type::q8, Type::q4}) {
    Frozen f(c, type, 3, 5);
    const TemporaryFolder t;
    std::string error;
    ASSERT_TRUE(write_adapter(t.file("a"), f.plan, f.weights.adapters, error)) << error;
    LoadedAdapter adapter;
    ASSERT_TRUE(adapter.open({{t.file("a"), 1}}, f.file.model)) << adapter.error;
    Session session(f.file.model, {0, 1, KvType::f32, nullptr, &adapter.adapter()}),
        plain(f.file.model, {0, 1, KvType::f32});
    Trainer trainer(f.weights, 1, c.max_seq_len, best());
    const std::vector<int> ids = tiny::random_ids(150, c.vocab_size);  // more than a chunk of the engine
    const float *expected = session.forward(ids.data(), ids.size()), *without = plain.forward(ids.data(), ids.size());
    const float* found = trainer.next_logits(ids);
    ASSERT_TRUE(expected && without) << session.error;
    double change = 0;
    for (int i = 0; i < c.vocab_size; i++) {
      EXPECT_NEAR(found[i], expected[i], type == Type::f32 ? 1e-4 : 0.05) << i << ", " << type_name(type);
      change = std::max(change, std::fabs(double(without[i] - expected[i])));
    }
    EXPECT_GT(change, 0.1);
  }
}

TEST(FrozenLlama, LearnsABatch) {
  const Config c = odd_config(true, 2);
  Frozen f(c, Type::q4, 8, 16);
  Trainer trainer(f.weights, 1, c.max_seq_len, best());
  const auto batch = windows_for(c, 2, 1);
  const double loss = trainer.evaluate(batch) / double(count_targets(batch));
  EXPECT_LT(overfit(trainer, batch), 0.7 * loss);
  expect_zero_padding(f.weights.adapters.parameters, f.weights.adapters.values);
}

TEST(CrossEntropy, SmoothsLabels) {
  constexpr int n = 37, padded_n = 48, target = 5;
  const double share = 0.1;
  tiny::Random random(3);
  tiny::Floats logits(padded_n);
  for (int i = 0; i < n; i++) logits[size_t(i)] = random.normal();
  double sum = 0, mean = 0;
  for (int i = 0; i < n; i++) sum += std::exp(double(logits[size_t(i)]));
  for (int i = 0; i < n; i++) mean += double(logits[size_t(i)]) / n;
  const double expected = std::log(sum) - (1 - share) * double(logits[target]) - share * mean;
  for (const TrainKernels* k : kernel_sets()) {
    tiny::Floats row = logits;
    double loss = 0;
    k->cross_entropy({row.data(), n, padded_n, target, 2, float(share)}, &loss);
    EXPECT_NEAR(loss, expected, 1e-5);
    for (int i = 0; i < n; i++) {
      const double aim = share / n + (i == target ? 1 - share : 0);
      EXPECT_NEAR(row[size_t(i)], 2 * (std::exp(double(logits[size_t(i)])) / sum - aim), 1e-5) << k->name << " " << i;
    }
  }
}

// ---- Examples ----

// A tokenizer of stories, with or without BOS.
struct Words {
  Tokenizer tokenizer;
  explicit Words(bool bos = true) {
    Tokenizer::Vocabulary v;
    std::string error;
    EXPECT_TRUE(train_vocabulary(pattern_stories(40), 320, v, error)) << error;
    v.add_bos = bos;
    EXPECT_TRUE(tokenizer.load(Tokenizer::to_blob(v))) << tokenizer.error;
  }
};

TEST(Examples, CountCompletionsAndTheirEnd) {
  const Words words;
  const Tokenizer& k = words.tokenizer;
  const ChatTemplate none;
  for (const bool all : {false, true}) {
    ExampleReader reader(k, none, 100, all);
    TokenText text;
    ASSERT_TRUE(reader.add("d.jsonl", R"({"completion": " the cat", "prompt": "One day", "id": 3})", 1, text))
        << reader.error;
    std::vector<int> expected = ids_of(k, "One day the cat");
    const size_t before = ids_of(k, "One day").size();
    expected.push_back(k.eos());
    EXPECT_EQ(text.ids, expected);
    for (size_t i = 0; i < text.ids.size(); i++) EXPECT_EQ(text.counts[i], all || i >= before) << i;
    EXPECT_EQ(text.bytes, all ? 15u : 8u);
  }
}

// ChatML with ordinary tokens as control tokens.
ChatTemplate chat_template(const Tokenizer& k) {
  ChatTemplate chat;
  const int start = k.size() - 1, end = k.size() - 2;
  using Part = ChatTemplate::Part;
  chat.slot[ChatTemplate::kOpening] = {Part{start, "", 0}, Part{ChatTemplate::kText, "user\n", 0}};
  chat.slot[ChatTemplate::kUserPrefix] = chat.slot[ChatTemplate::kOpening];
  chat.slot[ChatTemplate::kUserSuffix] = {Part{end, "", 0}};
  chat.slot[ChatTemplate::kReplyPrefix] = {Part{start, "", 0}, Part{ChatTemplate::kText, "reply\n", 0}};
  chat.slot[ChatTemplate::kPastReplyPrefix] = chat.slot[ChatTemplate::kReplyPrefix];
  chat.slot[ChatTemplate::kReplySuffix] = {Part{end, "", 0}, Part{ChatTemplate::kText, " ", 0}};
  chat.stop_ids = {end};
  return chat;
}

TEST(Examples, LayOutConversationsAsTheChatDoes) {
  Words words;
  Tokenizer& k = words.tokenizer;
  const ChatTemplate chat = chat_template(k);
  ASSERT_TRUE(k.make_control(chat.ids()));
  ExampleReader reader(k, chat, 200, false);
  TokenText text;
  ASSERT_TRUE(reader.add("d.jsonl", R"({"messages": [{"role": "user", "content": "a ball?"},
      {"role": "assistant", "content": "a kite"}, {"role": "user", "content": "why"},
      {"role": "assistant", "content": "it was lost"}]})",
                         1, text))
      << reader.error;
  const Encode encode = [&](std::string_view s, bool bos) { return ids_of(k, s, bos); };
  // What the chat processes before each reply is a prefix, and does not count.
  ChatTemplate::Parts parts = chat_parts(chat, "", "a ball?", true);
  const std::vector<int> first = encode_parts(parts, encode, true);
  parts.push_back({ChatTemplate::kText, "a kite", 0});
  const ChatTemplate::Parts more = chat_parts(chat, "", "why", false);
  parts.insert(parts.end(), more.begin(), more.end());
  const std::vector<int> second = encode_parts(parts, encode, true);
  ASSERT_GT(text.ids.size(), second.size());
  EXPECT_TRUE(std::equal(first.begin(), first.end(), text.ids.begin()));
  EXPECT_TRUE(std::equal(second.begin(), second.end(), text.ids.begin()));
  EXPECT_EQ(text.ids.back(), chat.stop_ids[0]);
  std::vector<int> counted;
  for (size_t i = 0; i < text.ids.size(); i++)
    if (text.counts[i]) counted.push_back(text.ids[i]);
  EXPECT_EQ(text_of(k, counted).find("kite") != std::string::npos, true);
  EXPECT_EQ(text_of(k, counted).find("why"), std::string::npos);
  EXPECT_EQ(text_of(k, counted).find("ball"), std::string::npos);
  EXPECT_EQ(std::count(counted.begin(), counted.end(), chat.stop_ids[0]), 2);
  EXPECT_EQ(text.bytes, std::string("a kiteit was lost").size());
}

// Each part is encoded with all that is before it, which would take hours for a line of many short ones.
TEST(Examples, AreLeftOutOnceTheyAreTooLong) {
  Words words;
  Tokenizer& k = words.tokenizer;
  const ChatTemplate chat = chat_template(k);
  ASSERT_TRUE(k.make_control(chat.ids()));
  std::string prompts, messages;
  for (int i = 0; i < 20000; i++) {
    prompts += std::string(i ? "," : "") + R"("a")";
    messages +=
        std::string(i ? "," : "") + R"({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})";
  }
  for (const std::string& line : {R"({"prompt": [)" + prompts + R"(], "completion": [)" + prompts + "]}",
                                  R"({"messages": [)" + messages + "]}"}) {
    ExampleReader reader(k, chat, 64, false);
    TokenText text;
    ASSERT_TRUE(reader.add("d.jsonl", line, 1, text)) << reader.error;
    EXPECT_EQ(reader.too_long, 1u);
    EXPECT_LT(reader.longest, 200u);
    EXPECT_TRUE(text.ids.empty());
  }
}

TEST(Examples, WindowsHoldWholeExamplesThatDoNotSeeEachOther) {
  const Words words;
  const ChatTemplate none;
  ExampleReader reader(words.tokenizer, none, 64, false);
  TokenText text;
  const char* const names[] = {"Tom", "Lily", "Ben", "Anna", "Max", "Sue"};
  for (int i = 0; i < 30; i++) {
    const std::string line = std::string(R"({"prompt": "Where is )") + names[i % 6] + R"(?", "completion": " )" +
                             (i % 2 ? "Lost." : "Happy with the dog.") + "\"}";
    ASSERT_TRUE(reader.add("d.jsonl", line, 1, text)) << reader.error;
  }
  ASSERT_TRUE(reader.add("d.jsonl", R"({"prompt": "a", "completion": ")" + std::string(3000, 'b') + "\"}", 77, text));
  EXPECT_EQ(reader.too_long, 1u);
  EXPECT_EQ(reader.first_long, 77u);
  ASSERT_EQ(text.begins.size(), 30u);
  WindowStream stream(text, 64, 5);
  size_t examples = 0, counted = 0, packed = 0;
  for (int64_t i = 0, n = stream.windows(); i < n; i++) {
    const Window w = stream.next();
    EXPECT_LE(w.ids.size(), 64u);
    int here = 0;
    for (size_t t = 0; t < w.ids.size(); t++) {
      const bool begins = w.first[t] == int(t);
      here += begins;
      EXPECT_TRUE(t == 0 || w.first[t] == (begins ? int(t) : w.first[t - 1]));
      EXPECT_EQ(w.ids[t] == words.tokenizer.bos(), begins);
      EXPECT_TRUE(w.targets[t] < 0 || w.targets[t] == w.ids[t + 1]) << t;
      counted += w.targets[t] >= 0;
    }
    EXPECT_EQ(w.targets.back(), -1);
    examples += size_t(here);
    packed += here > 1;
  }
  EXPECT_EQ(examples, 30u);
  EXPECT_GT(packed, 0u);
  EXPECT_EQ(counted, size_t(std::count(text.counts.begin(), text.counts.end(), true)));
}

// Trains a base on stories, as f32 or another type, with a chat template, a second stop id, a licence and a name.
std::string base_model(const TemporaryFolder& t, Type type, const std::string& name,
                       const std::string& provenance = "") {
  const Words words;
  Tokenizer tokenizer;
  ModelParts parts;
  parts.config = odd_config(true, 2);
  parts.config.vocab_size = words.tokenizer.size();
  parts.type = type;
  parts.threads = 1;
  parts.chat = chat_template(words.tokenizer);
  parts.chat.stop_ids.push_back(words.tokenizer.eos());
  EXPECT_TRUE(tokenizer.load(words.tokenizer.blob()) && tokenizer.make_control(parts.chat.ids()));
  parts.tokenizer = tokenizer.blob();
  parts.provenance = "name: Parrot\nsource: a cage\nlicence: MIT\n" + provenance + "weights: f32\ntraining: none\n";
  parts.self_test_ids = {1, 2, 3};
  ModelWriter writer;
  EXPECT_TRUE(writer.write(t.file(name), parts, tiny::random_rows, nullptr)) << writer.error;
  return t.file(name);
}

std::string questions(int count) {
  const char* const what[] = {"ball", "kite", "cake", "boat", "drum", "book"};
  std::string lines;
  for (int i = 0; i < count; i++)
    lines += std::string(R"({"messages": [{"role": "user", "content": "Where is my )") + what[i % 6] +
             R"(?"}, {"role": "assistant", "content": "The )" + what[i % 6] + " was lost.\"}]}\n" + (i % 7 ? "" : "\n");
  return lines;
}

TEST(TrainInit, KeepsChatTemplateStopIdsLicenceAndName) {
  const TemporaryFolder t;
  const std::string adapters = provenance_line(kAdapters, kOfCheckpoint),
                    base = base_model(t, Type::f32, "base.bin", adapters), text = t.write("s.txt", pattern_stories(30));
  ASSERT_EQ(
      train({text, "--init", base, "--ctx", "32", "--steps", "2", "--licence", "CC0", "-o", t.file("a.bin")}).status,
      0);
  const ProgramResult again =
      train({text, "-o", t.file("b.bin"), "--resume", "--checkpoint", t.file("a.bin.checkpoint"), "--type", "f32"});
  ASSERT_EQ(again.status, 0) << again.err;
  Model from;
  ASSERT_TRUE(from.open(base.c_str())) << from.error;
  for (const char* name : {"a.bin", "b.bin"}) {
    Model to;
    ASSERT_TRUE(to.open(t.file(name).c_str())) << to.error;
    EXPECT_EQ(to.chat_bytes(), from.chat_bytes());
    EXPECT_EQ(to.stop_ids, from.stop_ids);
    EXPECT_EQ(to.tokenizer_bytes(), from.tokenizer_bytes());
    const std::string provenance(to.provenance());
    EXPECT_NE(provenance.find("name: Parrot\nsource: a cage; trained on s.txt\nlicence: MIT"), std::string::npos)
        << provenance;
    EXPECT_EQ(provenance.find("CC0") != std::string::npos, name[0] == 'a');
    EXPECT_NE(provenance.find("\n" + adapters), std::string::npos) << provenance;
  }
}

// An empty reply has tokens that count, but no characters.
TEST(TrainInit, WritesReadableCheckpointsIfValidationRepliesAreEmpty) {
  const TemporaryFolder t;
  const std::string base = base_model(t, Type::f32, "base.bin"), data = t.write("q.jsonl", questions(60));
  const std::string empty = t.write("e.jsonl", R"({"messages": [{"role": "user", "content": "a ball"}, )"
                                               R"({"role": "assistant", "content": ""}]})");
  const ProgramResult r = train({data, "--valid", empty, "--init", base, "--ctx", "64", "--batch", "2", "--steps", "4",
                                 "--every", "2", "-o", t.file("a.bin")});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find(" nats per token; training "), std::string::npos) << r.err;
  CheckpointFile file;
  std::string error;
  EXPECT_TRUE(file.read(t.file("a.bin.checkpoint"), error)) << error;
  Model model;
  ASSERT_TRUE(model.open(t.file("a.bin").c_str())) << model.error;
  EXPECT_EQ(model.provenance().find("bits a character"), std::string::npos) << model.provenance();
  expect_failed(train({data, "-o", t.file("a.bin"), "--resume"}), 1,
                {"is of a training on other texts; give the same text, and --valid if it was given"});
  EXPECT_EQ(train({data, "--valid", empty, "-o", t.file("a.bin"), "--resume"}).status, 0);
}

// Without BOS nothing predicts the first token of a story: neither it nor its bytes count.
TEST(TokenText, CountsTheBytesOfPredictedTokens) {
  const std::string story = "Once upon a time there was a child";
  for (const bool bos : {true, false}) {
    const Words words(bos);
    TokenText text;
    text.add(story, words.tokenizer);
    const std::string first = bos ? "" : text_of(words.tokenizer, {text.ids[0]});
    EXPECT_EQ(text.bytes, story.size() - first.size());
    EXPECT_EQ(first.empty(), bos);
  }
}

TEST(Train, VocabularyDoesNotSeeTheValidationStories) {
  const TemporaryFolder t;
  const std::string stories = pattern_stories(99);
  std::string tokenizers[2];
  for (int i = 0; i < 2; i++) {
    std::string last;
    for (int k = 0; k < 400; k++) last += i ? "zyzzyva quux " : "Lily was happy ";
    const std::string text = t.write("s.txt", stories + last.substr(0, 4000) + "\n"),
                      out = t.file("m" + std::to_string(i));
    const ProgramResult r = train(tiny_shape() + std::vector<std::string>{text, "--steps", "1", "-o", out});
    ASSERT_EQ(r.status, 0) << r.err;
    Model m;
    ASSERT_TRUE(m.open(out.c_str())) << m.error;
    tokenizers[i] = m.tokenizer_bytes();
  }
  EXPECT_EQ(tokenizers[0], tokenizers[1]);
}

// An adapter of a quantized model, on conversations: the same for any number of threads, kernel set and after an
// interruption; used at run time.
TEST(TrainLora, TrainsAdapterOfQuantizedModelOnConversations) {
  const TemporaryFolder t;
  const std::string data = t.write("q.jsonl", questions(60));
  for (const Type type : {Type::q8, Type::q4}) {
    const std::string name = type_name(type), base = base_model(t, type, name + ".bin"), before = read_file(base);
    const std::vector<std::string> args = {
        data, "--init",      base, "--ctx", "64",   "--batch", "4",    "--steps",           "40",   "--every",
        "10", "--lora-rank", "4",  "--lr",  "0.01", "--keep",  "best", "--label-smoothing", "0.05", "-o"};
    const auto file = [&](const std::string& folder) {
      return read_file(t.file(folder + "/adapter_model.safetensors"));
    };
    const ProgramResult r = train(args + std::vector<std::string>{t.file(name + "a")});
    ASSERT_EQ(r.status, 0) << r.err;
    EXPECT_NE(r.err.find("the best validation was after step"), std::string::npos) << r.err;
    std::smatch tokens;  // of a step: examples do not fill 4 windows of 64
    ASSERT_TRUE(std::regex_search(r.err, tokens, std::regex("--steps 40 of ([0-9]+) tokens"))) << r.err;
    EXPECT_LT(std::stoi(tokens[1]), 4 * 64);
    EXPECT_GT(std::stoi(tokens[1]), 4 * 64 / 2);
    for (const std::vector<std::string>& way : {std::vector<std::string>{"--threads", "3"}, {"--kernel", "portable"}}) {
      ASSERT_EQ(train(args + std::vector<std::string>{t.file(name + way[1])} + way).status, 0);
      EXPECT_TRUE(file(name + "a") == file(name + way[1])) << way[1];
    }
    const std::string c = t.file(name + "c");
    const ProgramResult stopped = interrupt_training(args + std::vector<std::string>{c}, c);
    ASSERT_EQ(stopped.status, 130) << stopped.err;
    EXPECT_NE(stopped.err.find("to continue, give the same text, --init and -o, and --resume"), std::string::npos)
        << stopped.err;
    expect_failed(train({data, "-o", c, "--resume"}), 2, {"--resume: requires --init MODEL"});
    const ProgramResult resumed = train({data, "-o", c, "--resume", "--init", base});
    ASSERT_EQ(resumed.status, 0) << resumed.err;
    EXPECT_TRUE(file(name + "a") == file(name + "c"));
    EXPECT_TRUE(read_file(base) == before);
    const auto perplexity = [&](const std::vector<std::string>& more) {
      const ProgramResult p = run_program(
          std::vector<std::string>{POCKET_RUN, base, "--perplexity",
                                   t.write("p.txt", "The ball was lost. The kite was lost. The cake was lost.")} +
          more);
      EXPECT_EQ(p.status, 0) << p.err;
      return p.out.size() > 11 ? std::stod(p.out.substr(11)) : 1e9;
    };
    EXPECT_LT(perplexity({"--lora", t.file(name + "a")}), 0.8 * perplexity({}));
    EXPECT_EQ(perplexity({"--lora", t.file(name + "a") + ":0"}), perplexity({}));
  }
}

// A copy of a model file with NaN as a weight, or as the scale of a row.
std::string with_nan(const TemporaryFolder& t, const std::string& path, const std::string& name, bool norm) {
  std::string bytes = read_file(path);
  const tiny::MemoryModel m(tiny::Bytes(bytes.begin(), bytes.end()));
  const Tensor& w = norm ? m.model.layers[1].ffn_norm : m.model.layers[1].w2;
  const size_t end = size_t(w.data - m.bytes.data()) + (w.type == Type::f32 ? 4 : panel_bytes(w.type, w.cols));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(&bytes[end - sizeof nan], &nan, sizeof nan);
  return t.write(name, bytes);
}

TEST(TrainLora, RefusesModelWithNan) {
  const TemporaryFolder t;
  const std::string data = t.write("q.jsonl", questions(60));
  for (const Type type : {Type::f32, Type::q8, Type::q4})
    for (const bool norm : {true, false}) {
      const std::string base = base_model(t, type, "base.bin"), bad = with_nan(t, base, "bad.bin", norm);
      const ProgramResult r = train({data, "--init", bad, "--lora-rank", "2", "--ctx", "64", "--batch", "2", "--steps",
                                     "3", "--every", "1", "--keep", "best", "-o", t.file("a")});
      EXPECT_EQ(r.status, 1) << type_name(type) << norm << r.err;
      EXPECT_NE(r.err.find("bad.bin: "), std::string::npos) << r.err;
      EXPECT_NE(r.err.find("finite"), std::string::npos) << r.err;
      EXPECT_EQ(r.err.find("--lr below"), std::string::npos) << r.err;
      EXPECT_EQ(t.list().find("a\n"), std::string::npos) << t.list();
    }
}

// Nothing would accept the adapter.
TEST(TrainLora, RefusesModelWithMultipliers) {
  const TemporaryFolder t;
  const std::string data = t.write("q.jsonl", questions(60));
  for (const Type type : {Type::f32, Type::q8}) {
    const std::string base = base_model(t, type, "base.bin", provenance_line(kAdapters, kOfCheckpoint));
    expect_failed(
        train({data, "--init", base, "--lora-rank", "2", "--ctx", "64", "--steps", "2", "-o", t.file("a")}), 2,
        {"--lora-rank: not valid for ", "base.bin: the weights of this model differ from those of the original",
         "train a model of type f32 without --lora-rank"});
  }
  EXPECT_EQ(t.list(), "base.bin\nq.jsonl\n");
}

// The last step diverges: nothing is written, and the checkpoint has the best adapter.
TEST(TrainLora, DivergenceKeepsTheBestAdapter) {
  const TemporaryFolder t;
  const std::string data = t.write("q.jsonl", questions(60)), base = base_model(t, Type::q8, "base.bin");
  for (const char* steps : {"1", "2", "40"}) {
    std::filesystem::remove(t.file("a.checkpoint"));
    const ProgramResult r = train({data, "--init", base, "--lora-rank", "2", "--ctx", "64", "--batch", "2", "--steps",
                                   steps, "--every", "1", "--keep", "best", "--lr", "1e30", "-o", t.file("a")});
    EXPECT_EQ(r.status, 1) << r.err;
    for (const char* word : {"the loss is not finite after step ", "--lr below", "a.checkpoint has the state after"})
      EXPECT_NE(r.err.find(word), std::string::npos) << r.err;
    EXPECT_EQ(r.err.find("nan"), std::string::npos) << r.err;
    EXPECT_EQ(t.list(), "a.checkpoint\na.loss.csv\nbase.bin\nq.jsonl\n");
    CheckpointFile file;
    std::string error;
    ASSERT_TRUE(file.read(t.file("a.checkpoint"), error)) << error;
    for (size_t at = 0; at < file.arrays.size(); at += sizeof(float))
      ASSERT_LT(std::fabs(load<float>(file.arrays.data() + at)), 10) << "of a state that has diverged";
  }
}

// Of one example, none is left for a validation.
TEST(TrainLora, NoticesDivergenceOfTheLastStepWithoutValidation) {
  const TemporaryFolder t;
  const std::string data = t.write("q.jsonl", questions(1)), base = base_model(t, Type::q8, "base.bin");
  const std::vector<std::string> args = {data,      "--init", base,      "--lora-rank", "2",  "--ctx",    "64",
                                         "--batch", "1",      "--steps", "1",           "-o", t.file("a")};
  const ProgramResult r = train(args + std::vector<std::string>{"--lr", "1e30"});
  EXPECT_EQ(r.status, 1) << r.err;
  for (const char* word : {"the loss is not finite after step 1", "--lr below", "has the state after step 0"})
    EXPECT_NE(r.err.find(word), std::string::npos) << r.err;
  EXPECT_EQ(t.list(), "a.checkpoint\na.loss.csv\nbase.bin\nq.jsonl\n");
  EXPECT_EQ(train(args).status, 0);
}

TEST(Examples, LinesBeginAfterAByteOrderMark) {
  const auto lines = numbered_lines("\xEF\xBB\xBF{}\n\n[]\n");
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].first, "{}");
  EXPECT_EQ(lines[0].second, 1u);
  EXPECT_EQ(lines[1].second, 3u);
}

TEST(Examples, ReportsInvalidOnesByLine) {
  const TemporaryFolder t;
  const std::string base = base_model(t, Type::q8, "base.bin"), good = R"({"prompt": "One", "completion": " day"})";
  const auto fine_tune = [&](const std::string& lines, const std::vector<std::string>& more = {}) {
    return train(std::vector<std::string>{t.write("d.jsonl", lines), "--init", base, "--lora-rank", "2", "--ctx", "64",
                                          "--steps", "2", "-o", t.file("o")} +
                 more);
  };
  const std::pair<std::string, std::string> cases[] = {
      {"{", "d.jsonl:4:"},
      {"[]", "d.jsonl:4:1: expected an object, found an"},
      {"{}", "d.jsonl:4:1: expected prompt and completion, or messages"},
      {R"({"prompt": "a"})", "expected a string or strings, found "},
      {R"({"prompt": "a", "completion": 5})", "\"completion\": expected a string or strings, found 5"},
      {R"({"prompt": "a", "completion": ""})", "\"completion\": expected a text that is not empty"},
      {R"({"prompt": "a", "prompt": "b", "completion": "c"})", "\"prompt\": expected once, found several times"},
      {R"({"prompt": "a", "completion": "c", "messages": []})", "expected prompt or messages, found both"},
      {R"({"messages": [{"role": "assistant", "content": "a"}]})", "\"role\": expected \"user\""},
      {R"({"messages": [{"role": "user", "content": "a"}]})", "expected a reply of the assistant at the end"},
      {"{\"prompt\": \"\xff\", \"completion\": \"c\"}", "d.jsonl:4:13: expected"},
  };
  for (const auto& [line, expected] : cases) {
    const ProgramResult r = fine_tune(good + "\n\n" + good + "\n" + line + "\n");
    expect_failed(r, 1, {"d.jsonl:4:", expected});
  }
  expect_failed(fine_tune(""), 1, {"d.jsonl: expected examples, one JSON object per line, found none"});
  expect_failed(fine_tune("\n \n"), 1, {"found none"});
  const std::string longer = R"({"prompt": "a", "completion": ")" + std::string(1 << 20, 'b') + "\"}\n";
  expect_failed(fine_tune(longer), 1, {"expected an example that fits --ctx 64, found none"});
  const ProgramResult some = fine_tune(longer + good + "\n" + good + "\n" + good);
  EXPECT_EQ(some.status, 0) << some.err;
  EXPECT_NE(some.err.find("left out 1 of 3 examples, which are longer than --ctx"), std::string::npos) << some.err;
  std::filesystem::remove_all(t.file("o"));
  EXPECT_EQ(fine_tune(good).status, 0) << "one example";
  std::filesystem::remove_all(t.file("o"));
  expect_failed(fine_tune(good, {"--keep", "best"}), 2, {"--keep best: requires validation texts"});
  expect_failed(fine_tune(good, {"--keep", "first"}), 2, {"--keep: expected last or best"});
  expect_failed(fine_tune(good, {"--loss-on", "none"}), 2, {"--loss-on: expected completions or all"});
  expect_failed(fine_tune(good, {"--lora-rank", "100"}), 2, {"--lora-rank: expected at most"});
}

}  // namespace finetune_test
