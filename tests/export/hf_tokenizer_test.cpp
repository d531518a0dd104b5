// hf_tokenizer_test.cpp: the tokenizer of a folder of Hugging Face's transformers: where tokens may be declared, which
// declaration counts, and the ids of texts and conversations. Ids and precedence are those of transformers 4.57.6 with
// LlamaTokenizer, whose vocabulary, Llama 2's, has 32000 tokens.
#include "../../export/hf_tokenizer.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "../../export/chat_template.hpp"
#include "../support/test_data.hpp"

namespace hf_tokenizer_test {

using namespace pocket;
using Json = nlohmann::json;
using Ids = std::vector<int>;
using PieceType = Tokenizer::PieceType;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Json token(const std::string& text, bool special, const Json& settings = Json::object()) {
  Json json = {{"content", text}, {"special", special}, {"normalized", false}};
  json.update(settings);
  return json;
}

/// Files beside a vocabulary, and what is read from them.
struct Folder {
  TemporaryFolder files;
  Checkpoint c;
  std::string error;

  void write(const char* name, const Json& json) const { files.write(name, json.dump()); }

  /// The error; "" if it can be read. model: config.json.
  std::string read(const char* model = "{}", int vocab_size = 32010) {
    JsonDocument config;
    EXPECT_TRUE(config.parse("config.json", model));
    c = Checkpoint();
    c.config.vocab_size = vocab_size;
    HfTokenizer tokenizer(files.path(), c);
    return tokenizer.read(config.root(), true) ? "" : tokenizer.error;
  }
  PieceType type(int id) const { return c.vocabulary.pieces.at(size_t(id)).type; }
  std::string text(int id) const { return c.vocabulary.pieces.at(size_t(id)).text; }
  Ids encode(const std::string& text) const {
    Tokenizer tokenizer;
    EXPECT_TRUE(tokenizer.load(Tokenizer::to_blob(c.vocabulary))) << tokenizer.error;
    return tokenizer.encode(text);
  }
};

/// A folder with Llama 2's tokenizer.model, or "" if it is not there.
#define NEED_LLAMA2(FOLDER)                          \
  NEED_DATA(llama2, "hf-tinyllama/tokenizer.model"); \
  Folder FOLDER;                                     \
  FOLDER.files.write("tokenizer.model", read_file(llama2))

/// A tokenizer.json of the pieces <unk> 0, <s> 1, </s> 2, U+2581 3, a 4.
Json small_json(const Json& added = Json::array()) {
  const Json prepend = {{"type", "Prepend"}, {"prepend", "\u2581"}};
  const Json replace = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}};
  Json json = {{"added_tokens", added},
               {"normalizer", {{"type", "Sequence"}, {"normalizers", {prepend, replace}}}},
               {"post_processor",
                {{"type", "TemplateProcessing"},
                 {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}}}},
               {"model",
                {{"type", "BPE"},
                 {"unk_token", "<unk>"},
                 {"fuse_unk", true},
                 {"vocab", {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}, {"\u2581", 3}, {"a", 4}}},
                 {"merges", Json::array()}}}};
  for (int id = 0; id < 3; id++) {
    const char* texts[] = {"<unk>", "<s>", "</s>"};
    Json special = token(texts[id], true);
    special["id"] = id;
    json["added_tokens"].push_back(special);
  }
  return json;
}

// ---- Where tokens are declared ----

TEST(HfTokenizer, ReadsAddedTokensOfEveryFile) {
  NEED_LLAMA2(f);
  f.write("added_tokens.json", {{"<x y>", 32000}, {"<|end|>", 32001}});
  f.write("special_tokens_map.json", {{"eos_token", {{"content", "<|end|>"}}}, {"pad_token", "<pad>"}});
  Json json = token("<z>", false);
  json["id"] = 32003;
  f.write("tokenizer.json", {{"added_tokens", {json}}});
  ASSERT_EQ(f.read(), "");
  EXPECT_EQ(f.type(32000), PieceType::added);
  EXPECT_EQ(f.type(32001), PieceType::control) << "named by special_tokens_map.json";
  EXPECT_EQ(f.type(32003), PieceType::added);
  EXPECT_EQ(f.text(32004), "<pad>") << "the next id, since no file gives it one";
  EXPECT_EQ(f.type(32004), PieceType::control);
  EXPECT_EQ(f.c.vocabulary.eos, 32001);
  EXPECT_EQ(f.encode("a<x y>a"), (Ids{1, 263, 32000, 263}));
  f.write("tokenizer_config.json", {{"added_tokens_decoder", {{"32000", token("<x y>", true)}}}});
  ASSERT_EQ(f.read(), "");
  EXPECT_EQ(f.type(32000), PieceType::control) << "added_tokens_decoder counts alone";
  EXPECT_EQ(f.type(32003), PieceType::unused);
}

TEST(HfTokenizer, ReadsAddedTokensBesideATokenizerJson) {
  Folder f;
  f.write("tokenizer.json", small_json());
  f.write("added_tokens.json", {{"<x>", 5}});
  f.write("special_tokens_map.json", {{"additional_special_tokens", {"<y>", {{"content", "</s>"}}}}});
  ASSERT_EQ(f.read("{}", 10), "");
  EXPECT_EQ(f.type(5), PieceType::added_normalized);
  EXPECT_EQ(f.text(6), "<y>");
  EXPECT_EQ(f.type(6), PieceType::control);
  f.write("tokenizer_config.json", {{"added_tokens_decoder", {{"5", token("<x>", false)}}}});
  ASSERT_EQ(f.read("{}", 10), "");
  EXPECT_EQ(f.type(5), PieceType::added) << "its settings replace those of other files";
  EXPECT_EQ(f.encode("a<x>a"), (Ids{1, 3, 4, 5, 3, 4}));
}

TEST(HfTokenizer, SpecialTokensHaveThePrecedenceOfTransformers) {
  NEED_LLAMA2(f);
  f.write("tokenizer_config.json", {{"eos_token", "<unk>"}});
  f.write("special_tokens_map.json", {{"eos_token", "<s>"}, {"bos_token", nullptr}});
  ASSERT_EQ(f.read(), "");
  EXPECT_EQ(f.c.vocabulary.eos, 1) << "special_tokens_map.json";
  EXPECT_EQ(f.c.vocabulary.bos, -1);
  f.write("tokenizer_config.json", {{"eos_token", "<unk>"}, {"added_tokens_decoder", Json::object()}});
  ASSERT_EQ(f.read(), "");
  EXPECT_EQ(f.c.vocabulary.eos, 0) << "tokenizer_config.json, since it has added_tokens_decoder";
  f.write("tokenizer_config.json", {{"added_tokens_decoder", Json::object()}});
  ASSERT_EQ(f.read(), "");
  EXPECT_EQ(f.c.vocabulary.eos, 1) << "the only declaration";
  f.write("special_tokens_map.json", {{"eos_token", "<none>"}});
  EXPECT_TRUE(
      contains(f.read("{}", 32000), "special_tokens_map.json:1:14: \"eos_token\": expected a token of the vocab"));
}

TEST(HfTokenizer, SettingsOfSpecialTokensCountIfNothingElseDeclaresThem) {
  NEED_LLAMA2(f);
  f.write("special_tokens_map.json", {{"eos_token", token("</s>", true, {{"rstrip", true}})},
                                      {"pad_token", token("<pad>", true, {{"lstrip", true}})}});
  ASSERT_EQ(f.read(), "");
  EXPECT_EQ(f.c.vocabulary.pieces[2].strip, Tokenizer::kStripRight);
  EXPECT_EQ(f.c.vocabulary.pieces[32000].strip, Tokenizer::kStripLeft);
  f.write("tokenizer_config.json", {{"added_tokens_decoder", {{"2", token("</s>", true)}}}});
  ASSERT_EQ(f.read(), "");
  EXPECT_EQ(f.c.vocabulary.pieces[2].strip, 0);
}

TEST(HfTokenizer, ContradictionsNameBothFiles) {
  NEED_LLAMA2(f);
  const auto both = [&](const std::string& error, const char* first, const char* second, const char* why) {
    EXPECT_TRUE(contains(error, f.files.file(first)) && contains(error, f.files.file(second)) && contains(error, why))
        << error;
  };
  f.write("tokenizer_config.json", {{"added_tokens_decoder", {{"32000", token("<x>", true)}}}});
  f.write("added_tokens.json", {{"<x>", 32001}});
  both(f.read(), "tokenizer_config.json", "added_tokens.json", "token \"<x>\": expected the id 32001");
  f.write("added_tokens.json", {{"<y>", 32000}});
  both(f.read(), "tokenizer_config.json", "added_tokens.json", "token 32000: expected \"<y>\"");
  f.write("added_tokens.json", {{"<x>", 32000}});
  Json json = token("<z>", true);
  json["id"] = 32000;
  f.write("tokenizer.json", {{"added_tokens", {json}}});
  both(f.read(), "tokenizer.json", "added_tokens.json", "found \"<z>\"");
  f.files.write("tokenizer.json", "version https://git-lfs");
  EXPECT_EQ(f.read(), "") << "a damaged file does not matter beside tokenizer.model and added_tokens_decoder";
  f.write("tokenizer_config.json", {{"added_tokens_decoder", {{"1", token("<x>", true)}}}});
  f.write("added_tokens.json", Json::object());
  both(f.read(), "tokenizer_config.json", "tokenizer.model", "token 1: expected \"<s>\"");
  f.write("tokenizer_config.json", {{"added_tokens_decoder", {{"32000", token("</s>", true)}}}});
  both(f.read(), "tokenizer_config.json", "tokenizer.model", "token \"</s>\": expected the id 2");
}

TEST(HfTokenizer, SkipsTokensBeyondTheModel) {
  NEED_LLAMA2(f);
  f.write("tokenizer_config.json",
          {{"added_tokens_decoder", {{"31999", token("\u7ed9", false)}, {"32000", token("<x>", true)}}},
           {"pad_token", "<x>"}});
  ASSERT_EQ(f.read("{}", 32000), "");
  EXPECT_EQ(f.c.vocabulary.pieces.size(), 32000u);
}

TEST(HfTokenizer, RenamesPlaceholders) {
  Folder f;
  Json json = small_json();
  json["model"]["vocab"]["[UNUSED_TOKEN_1]"] = 5;
  f.write("tokenizer.json", json);
  f.write("tokenizer_config.json", {{"added_tokens_decoder", {{"5", token("<|im_start|>", true)}}}});
  ASSERT_EQ(f.read("{}", 10), "");
  EXPECT_EQ(f.text(5), "<|im_start|>");
  EXPECT_EQ(f.type(5), PieceType::control);
}

// ---- null ----

TEST(HfTokenizer, NullIsNotAbsent) {
  NEED_LLAMA2(f);
  const auto with = [&](const char* key, const Json& value) {
    Json json = {{"tokenizer_class", "LlamaTokenizer"}};
    if (!value.is_discarded()) json[key] = value;
    f.write("tokenizer_config.json", json);
    EXPECT_EQ(f.read(), "");
    return f.encode("Hi");
  };
  const Json absent(Json::value_t::discarded);
  EXPECT_EQ(with("add_bos_token", absent), (Ids{1, 6324}));
  EXPECT_EQ(with("add_bos_token", nullptr), (Ids{6324})) << "as false";
  EXPECT_EQ(with("add_bos_token", false), (Ids{6324}));
  EXPECT_EQ(with("add_prefix_space", nullptr), (Ids{1, 6324})) << "as absent";
  EXPECT_EQ(with("add_prefix_space", false), (Ids{1, 18567}));
  EXPECT_EQ(with("unk_token", nullptr), (Ids{1, 6324}));
  EXPECT_EQ(with("bos_token", nullptr), (Ids{6324}));
  EXPECT_EQ(with("eos_token", nullptr), (Ids{1, 6324}));
  EXPECT_EQ(f.c.vocabulary.eos, -1);
  EXPECT_EQ(with("legacy", nullptr), (Ids{1, 6324}));
  EXPECT_FALSE(f.c.vocabulary.prefix_only_at_start) << "as true";
}

TEST(HfTokenizer, PostProcessorAddsBosWhateverTheConfigurationSays) {
  Folder f;
  f.write("tokenizer.json", small_json());
  for (const Json& config : {Json::object(), Json{{"bos_token", nullptr}}, Json{{"add_bos_token", nullptr}},
                             Json{{"add_bos_token", false}}, Json{{"bos_token", nullptr}, {"eos_token", nullptr}}}) {
    f.write("tokenizer_config.json", config);
    ASSERT_EQ(f.read("{}", 10), "");
    EXPECT_EQ(f.encode("a"), (Ids{1, 3, 4})) << config;
  }
  f.write("tokenizer_config.json", {{"tokenizer_class", "LlamaTokenizerFast"}, {"add_bos_token", nullptr}});
  ASSERT_EQ(f.read("{}", 10), "");
  EXPECT_EQ(f.encode("a"), (Ids{3, 4})) << "this class sets the post-processor itself";
}

// ---- Ids ----

constexpr char kChatMl[] =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

TEST(HfTokenizer, EncodesLikeTransformers) {
  NEED_LLAMA2(f);
  const struct {
    Json legacy, settings;
    Ids text, spaced, chat;  // of "a<end of turn>b", "a <end of turn> b", and a conversation
  } all[] = {
      {true,
       Json::object(),
       {1, 263, 32002, 289},
       {1, 263, 29871, 32002, 29871, 289},
       {32000, 1788,  13,   3629, 11473, 29889, 32001, 29871, 13,    32000, 1404,
        13,    29871, 6324, 13,   32001, 29871, 13,    32000, 20255, 13}},
      {false, Json::object(), {1, 263, 32002, 29890}, {1, 263, 29871, 32002, 289}, {32000, 5205,  13,   3629,  11473,
                                                                                    29889, 32001, 13,   32000, 1792,
                                                                                    13,    29871, 6324, 13,    32001,
                                                                                    13,    32000, 465,  22137, 13}},
      {true,
       {{"rstrip", true}},
       {1, 263, 32002, 289},
       {1, 263, 29871, 32002, 289},
       {32000, 1788, 13, 3629, 11473, 29889, 32001, 32000, 1404, 13, 29871, 6324, 13, 32001, 32000, 20255, 13}},
      {false,
       {{"lstrip", true}},
       {1, 263, 32002, 29890},
       {1, 263, 32002, 289},
       {32000, 5205, 13, 3629, 11473, 29889, 32001, 32000, 1792, 13, 29871, 6324, 32001, 32000, 465, 22137, 13}},
      {false,
       {{"lstrip", true}, {"rstrip", true}},
       {1, 263, 32002, 29890},
       {1, 263, 32002, 29890},
       {32000, 5205, 13, 3629, 11473, 29889, 32001, 32000, 1792, 13, 29871, 6324, 32001, 32000, 465, 22137, 13}}};
  for (const auto& [legacy, settings, text, spaced, chat_ids] : all) {
    f.write("tokenizer_config.json", {{"legacy", legacy},
                                      {"added_tokens_decoder",
                                       {{"32000", token("<|im_start|>", true, settings)},
                                        {"32001", token("<|im_end|>", true, settings)},
                                        {"32002", token("<end of turn>", false, settings)}}}});
    ASSERT_EQ(f.read(), "");
    EXPECT_EQ(f.encode("a<end of turn>b"), text) << legacy << settings;
    EXPECT_EQ(f.encode("a <end of turn> b"), spaced) << legacy << settings;
    const Ids kept = f.encode("a<end of turn>\x1C");
    EXPECT_EQ(kept.back(), 0x1C + 3) << legacy << settings << ": white space of Python's strip(), not of these tokens";
    Tokenizer tokenizer;
    ASSERT_TRUE(tokenizer.load(Tokenizer::to_blob(f.c.vocabulary)));
    ChatTemplate chat;
    std::string family;
    ASSERT_TRUE(recognise_chat_template(kChatMl, tokenizer, chat, family)) << family;
    Ids ids = chat_turn(
        chat, [&](std::string_view part, bool bos) { return tokenizer.encode(part, bos); }, "Be brief.", "  Hi\n",
        true);
    ASSERT_EQ(ids[0], 1) << "added by the tokenizer; this template has no BOS";
    EXPECT_EQ(Ids(ids.begin() + 1, ids.end()), chat_ids) << legacy << settings;
  }
}

TEST(HfTokenizer, RejectsSingleWordTokensThatAreUsed) {
  NEED_LLAMA2(f);
  const Json single = {{"single_word", true}};
  f.write("tokenizer_config.json", {{"added_tokens_decoder", {{"32000", token("<x>", false, single)}}}});
  EXPECT_TRUE(contains(f.read(), "tokenizer_config.json: token \"<x>\": single_word: expected false, found true"));
  f.write("tokenizer_config.json",
          {{"added_tokens_decoder",
            {{"32000", token("<|im_start|>", true, single)}, {"32001", token("<|im_end|>", true)}}}});
  ASSERT_EQ(f.read(), "") << "text never becomes a control token";
  Tokenizer tokenizer;
  ASSERT_TRUE(tokenizer.load(Tokenizer::to_blob(f.c.vocabulary)));
  ChatTemplate chat;
  std::string reason;
  EXPECT_FALSE(recognise_chat_template(kChatMl, tokenizer, chat, reason));
  EXPECT_EQ(reason, "token <|im_start|>: single_word is not supported in a chat template");
}

}  // namespace hf_tokenizer_test
