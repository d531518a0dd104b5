// chat_template_test.cpp: Jinja templates of known families are converted to strings, which give the same conversations
// as Jinja; the expected texts were rendered by the Python package jinja2.
#include "../../export/chat_template.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "../../apps/cli/conversation.hpp"
#include "../support/test_data.hpp"
#include "../support/tiny_model.hpp"

namespace chat_template_test {

using namespace pocket;

// From the tokenizer_config.json of SmolLM2-Instruct, TinyLlama-Chat, Llama-2-chat and Llama-3-Instruct.
constexpr char kSmolLm2[] =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nY"
    "ou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>"
    "' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_promp"
    "t %}{{ '<|im_start|>assistant\n' }}{% endif %}";
constexpr char kTinyLlama[] =
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content']"
    " + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token"
    " }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token"
    " }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{%"
    " endfor %}";
constexpr char kLlama2[] =
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message ="
    " messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{%"
    " endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0)"
    " %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif"
    " %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message"
    " + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif"
    " %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif"
    " message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor"
    " %}";
constexpr char kLlama3[] =
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>'"
    " + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0"
    " == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_promp"
    "t %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

using TokenizerPtr = std::shared_ptr<const Tokenizer>;

/// A tokenizer with a token for each byte, these control tokens, and BOS and EOS among them.
TokenizerPtr tokenizer_with(const std::vector<std::string>& control, int bos, int eos, bool add_bos) {
  Tokenizer::Vocabulary v;
  v.kind = Tokenizer::Kind::byte_level;
  for (const std::string& text : control) v.pieces.push_back({text, 0, Tokenizer::PieceType::control});
  for (int byte = 0; byte < 256; byte++) v.pieces.push_back({std::string(1, char(byte)), 0});
  v.bos = bos;
  v.eos = eos;
  v.add_bos = add_bos;
  const auto tokenizer = std::make_shared<Tokenizer>();
  EXPECT_TRUE(tokenizer->load(Tokenizer::to_blob(v))) << tokenizer->error;
  return tokenizer;
}
TokenizerPtr chatml_tokenizer() { return tokenizer_with({"<|im_start|>", "<|im_end|>"}, 0, 1, false); }
TokenizerPtr llama2_tokenizer() { return tokenizer_with({"<unk>", "<s>", "</s>"}, 1, 2, true); }
TokenizerPtr llama3_tokenizer() {
  return tokenizer_with({"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}, 0, 3, true);
}

/// "Hi there", "Hello!", "Why?", as the token ids of a chat.
std::vector<int> conversation(const ChatTemplate& chat, const Tokenizer& tokenizer, const std::string& system,
                              const std::string& reply) {
  const Encode encode = [&](std::string_view text, bool bos) { return tokenizer.encode(text, bos); };
  std::vector<int> ids;
  const auto add = [&](const std::vector<int>& more) { ids.insert(ids.end(), more.begin(), more.end()); };
  add(chat_turn(chat, encode, system, "Hi there", true));
  add(encode(reply, false));
  add(chat_turn(chat, encode, system, "Why?", false));
  return ids;
}

struct Case {
  const char *family, *jinja;
  TokenizerPtr tokenizer;
  const char *without_system, *with_system;
};

std::vector<Case> cases() {
  return {
      {"ChatML", kSmolLm2, chatml_tokenizer(),
       "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_star"
       "t|>user\nHi there<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_"
       "start|>assistant\n",
       "<|im_start|>system\nBe {kind}.<|im_end|>\n<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\nHello!"
       "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"},
      {"Zephyr", kTinyLlama, llama2_tokenizer(),
       "<|user|>\nHi there</s>\n<|assistant|>\nHello!</s>\n<|user|>\nWhy?</s>\n<|assistant|>\n",
       "<|system|>\nBe {kind}.</s>\n<|user|>\nHi there</s>\n<|assistant|>\nHello!</s>\n<|user|>\nWhy?</s>\n<|assistan"
       "t|>\n"},
      {"Llama 2", kLlama2, llama2_tokenizer(), "<s>[INST] Hi there [/INST] Hello! </s><s>[INST] Why? [/INST]",
       "<s>[INST] <<SYS>>\nBe {kind}.\n<</SYS>>\n\nHi there [/INST] Hello! </s><s>[INST] Why? [/INST]"},
      {"Llama 3", kLlama3, llama3_tokenizer(),
       "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|><|start_header_id|>assistant<|"
       "end_header_id|>\n\nHello!<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_i"
       "d|>assistant<|end_header_id|>\n\n",
       "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe {kind}.<|eot_id|><|start_header_id|>user<|e"
       "nd_header_id|>\n\nHi there<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|><|start_"
       "header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"},
  };
}

// decode() outputs the texts of control tokens, so that conversations can be compared as texts.
TEST(ChatTemplate, MatchesJinjaOutput) {
  for (const Case& c : cases()) {
    ChatTemplate chat;
    std::string family;
    ASSERT_TRUE(recognise_chat_template(c.jinja, *c.tokenizer, chat, family)) << c.family << ": " << family;
    EXPECT_EQ(family, c.family);
    const std::string reply = family == "Llama 2" ? " Hello!" : "Hello!";  // the model's reply begins with a space
    const std::string bos = family == "Zephyr" ? "<s>" : "";               // not in the template; the tokenizer adds it
    EXPECT_EQ(c.tokenizer->decode(conversation(chat, *c.tokenizer, "", reply)), bos + c.without_system);
    EXPECT_EQ(c.tokenizer->decode(conversation(chat, *c.tokenizer, "Be {kind}.", reply)), bos + c.with_system);
    ASSERT_EQ(chat.stop_ids.size(), 1u) << c.family;
    const std::string_view stop = c.tokenizer->piece(chat.stop_ids[0]);
    EXPECT_EQ(stop, family == "ChatML" ? "<|im_end|>" : family == "Llama 3" ? "<|eot_id|>" : "</s>");
  }
}

/// The prompt of a chat with this template for these messages; the last message is the user's. "" if the model takes no
/// system prompt.
std::string prompt_of(const ChatTemplate& chat, const Tokenizer& tokenizer, const nlohmann::json& messages) {
  const auto encode = [&](std::string_view text, bool bos) { return tokenizer.encode(text, bos); };
  cli::Conversation conversation(chat, encode, "");
  for (const auto& message : messages) {
    const std::string role = message["role"], content = message["content"];
    if (role == "system" && !chat.takes(content)) return "";
    if (role == "system") conversation.system = content;
    if (role == "user") conversation.turns.push_back({content, "", {}});
    if (role == "assistant") conversation.turns.back().reply = content;
  }
  return tokenizer.decode(conversation.ids());
}

/// The expected text of a conversation, with {date:FORMAT} filled in, and BOS if the tokenizer adds it. "" for null.
std::string expected_text(const nlohmann::json& text, const Tokenizer& tokenizer) {
  if (text.is_null()) return "";
  std::string out(tokenizer.adds_bos() ? tokenizer.piece(tokenizer.bos()) : "");
  if (!out.empty() && std::string(text).rfind(out, 0) == 0) out.clear();
  for (const ChatTemplate::Part& part : with_dates(text))
    out += part.id == ChatTemplate::kDate ? written_date(part.text, std::time(nullptr)) : part.text;
  return out;
}

// Conversations of 1, 2 and 6 turns, with and without a system prompt, of each family, byte by byte: with the template
// recognised in the checkpoint, and with the template selected by name.
TEST(ChatTemplate, EveryFamilyMatchesRenderedConversations) {
  const std::string path = std::string(POCKET_SOURCE_DIR) + "/tests/export/chat_vectors.json";
  NEED_FILE(vectors, std::filesystem::exists(path) ? path : "",
            "tests/export/chat_vectors.json (created by tests/setup)");
  std::vector<std::string> families;
  for (const auto& v : nlohmann::json::parse(read_file(vectors))) {
    const TokenizerPtr tokenizer = tokenizer_with(v["control"], v["bos"], v["eos"], v["add_bos"]);
    ChatTemplate recognised, named;
    std::string family;
    ASSERT_TRUE(recognise_chat_template(v["jinja"], *tokenizer, recognised, family)) << v["family"] << ": " << family;
    EXPECT_EQ(family, v["family"]);
    ASSERT_NE(find_chat_family(family), nullptr);
    ASSERT_TRUE(make_chat_template(*find_chat_family(family), *tokenizer, named, family)) << family;
    for (const auto& c : v["conversations"]) {
      const std::string expected = expected_text(c["text"], *tokenizer);
      EXPECT_EQ(prompt_of(recognised, *tokenizer, c["messages"]), expected) << v["family"];
      if (!v["named"]) continue;
      EXPECT_EQ(prompt_of(named, *tokenizer, c["messages"]), expected) << v["family"];
    }
    EXPECT_EQ(v["conversations"].size(), 6u);
    if (v["named"]) families.push_back(v["family"]);
  }
  for (const ChatFamily& family : chat_families())
    EXPECT_EQ(std::count(families.begin(), families.end(), family.name), 1) << family.name;
}

TEST(ChatTemplate, FindsFamiliesByName) {
  for (const ChatFamily& family : chat_families()) {
    EXPECT_EQ(find_chat_family(family.key), &family);
    EXPECT_EQ(find_chat_family(family.name), &family);
    EXPECT_NE((", " + chat_family_keys() + ",").find(std::string(", ") + family.key + ","), std::string::npos);
  }
  EXPECT_EQ(find_chat_family("llama3"), find_chat_family("LLAMA_3"));
  for (const char* none : {"", "llama", "-", "zephyr2", "plain text"}) EXPECT_EQ(find_chat_family(none), nullptr);
}

TEST(ChatTemplate, RequiresTokensOfFamily) {
  ChatTemplate chat;
  chat.stop_ids = {99};
  std::string error;
  EXPECT_FALSE(make_chat_template(*find_chat_family("chatml"), *llama2_tokenizer(), chat, error));
  EXPECT_EQ(error, "expected the token <|im_start|> in the vocabulary, found none");
  EXPECT_EQ(chat.stop_ids, std::vector<int>{99});
  const TokenizerPtr bare = tokenizer_with({"<unk>"}, -1, -1, false);
  EXPECT_FALSE(make_chat_template(*find_chat_family("zephyr"), *bare, chat, error));
  ASSERT_TRUE(make_chat_template(*find_chat_family("plain"), *bare, chat, error)) << error;
  EXPECT_TRUE(chat.known());
  EXPECT_TRUE(chat.stop_ids.empty());
}

TEST(ChatTemplate, StoresControlTokensAsIds) {
  for (const Case& c : cases()) {
    ChatTemplate chat;
    std::string family;
    ASSERT_TRUE(recognise_chat_template(c.jinja, *c.tokenizer, chat, family)) << family;
    for (const auto& slot : chat.slot)
      for (const ChatTemplate::Part& part : slot) {
        EXPECT_TRUE(part.id >= 0 || !part.text.empty()) << family;
        for (const char* token : {"<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|eot_id|>", "<|start_header_id|>"})
          EXPECT_EQ(part.text.find(token), std::string::npos) << family << ": " << part.text;
      }
  }
}

// A marker that was declared as an ordinary token is one of the template all the same; the marks of thinking are text.
TEST(ChatTemplate, FindsMarkersAmongOrdinaryTokens) {
  Tokenizer::Vocabulary v;
  v.kind = Tokenizer::Kind::byte_level;
  for (const char* text : {"<|im_start|>", "<|im_end|>", "<think>", "</think>", "user", "\n"})
    v.pieces.push_back({text, 0, Tokenizer::PieceType::user_defined});
  for (int byte = 0; byte < 256; byte++) v.pieces.push_back({std::string(1, char(byte)), 0});
  Tokenizer tokenizer;
  ASSERT_TRUE(tokenizer.load(Tokenizer::to_blob(v))) << tokenizer.error;
  ChatTemplate chat;
  std::string error;
  ASSERT_TRUE(make_chat_template(*find_chat_family("qwen3-no-thinking"), tokenizer, chat, error)) << error;
  std::string ids;
  for (const auto& slot : chat.slot)
    for (const ChatTemplate::Part& part : slot) ids += part.id >= 0 ? std::to_string(part.id) : "";
  EXPECT_EQ(ids.find_first_not_of("01"), std::string::npos) << ids;
  EXPECT_EQ(chat.slot[ChatTemplate::kReplyPrefix].back().text, "assistant\n<think>\n\n</think>\n\n");
}

// The same program in other spellings.
TEST(ChatTemplate, AcceptsEquivalentSpellings) {
  const char* others[] = {
      "{%- for message in messages -%}\n  {%- if loop.first and messages[0].role != \"system\" -%}\n"
      "    {{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' -}}\n  {%- endif -%}\n"
      "  {{- ('<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n') -}}\n{%- endfor -%}\n"
      "{%- if (add_generation_prompt) -%}\n  {{- '<|im_start|>assistant\\n' -}}\n{%- endif -%}",
      "{# a note #}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
      "{{message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"};
  ChatTemplate chat, expected;
  std::string family;
  for (const char* jinja : others) {
    EXPECT_TRUE(recognise_chat_template(jinja, *chatml_tokenizer(), chat, family)) << family;
    EXPECT_EQ(chatml_tokenizer()->decode(conversation(chat, *chatml_tokenizer(), "S", "Hello!")),
              "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\nHello!"
              "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n");
  }
}

// ---- Variations ----

std::string chatml(const std::string& front = "", const std::string& before = "",
                   const std::string& content = "message['content']", const std::string& role = "message['role']",
                   const std::string& messages = "messages") {
  return front + "{% for message in " + messages + " %}" + before + "{{ '<|im_start|>' + " + role + " + '\\n' + " +
         content +
         " + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
}

std::string llama2(const std::string& system, const std::string& content, const std::string& output) {
  return "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
         "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% "
         "endif %}"
         "{% for message in loop_messages %}{% if loop.index0 == 0 and system_message != false %}{% set content = "
         "'<<SYS>>\\n' + " +
         system + " + '\\n<</SYS>>\\n\\n' + " + content + " %}{% else %}{% set content = " + content +
         " %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + " + output +
         " + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + " + output +
         " + ' ' + eos_token }}{% endif %}{% endfor %}";
}

std::string vicuna(const std::string& system) {
  return "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
         "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = 'Be nice. ' %}"
         "{% endif %}{% for message in loop_messages %}{% if loop.first %}{{ " +
         system +
         " }}{% endif %}{% if message['role'] == 'user' %}{{ ' USER: ' + message['content'].strip() }}"
         "{% elif message['role'] == 'assistant' %}{{ ' ASSISTANT: ' + message['content'].strip() + eos_token }}{% "
         "endif %}"
         "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}";
}

// Expected: with and without the system prompt, by the environment of transformers 4.57 (chat_template_judge.py); null: the
// template takes no system prompt, or is refused.
struct Variation {
  std::string jinja;
  const char *with_system, *without_system;
};

std::vector<Variation> variations() {
  return {
      // A trim belongs to its value.
      {chatml("", "", "message['content']", "message['role'] | trim"),
       "<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("", "", "message['content'] | trim"),
       "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|"
       ">user\nc<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>"
       "assistant\n"},
      {chatml("", "", "(message['content'] | trim)", "(message['role'] | upper)"),
       "<|im_start|>SYSTEM\nS<|im_end|>\n<|im_start|>USER\na<|im_end|>\n<|im_start|>ASSISTANT\nb<|im_end|>\n<|im_start|"
       ">USER\nc<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>USER\na<|im_end|>\n<|im_start|>ASSISTANT\nb<|im_end|>\n<|im_start|>USER\nc<|im_end|>\n<|im_start|>"
       "assistant\n"},
      {chatml("", "{% set content = message['content'] | trim %}", "content"),
       "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|"
       ">user\nc<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>"
       "assistant\n"},
      {chatml("",
              "{% if message['role'] == 'user' %}{% set content = message['content'].rstrip() %}{% else %}{% set "
              "content = message['content'] %}{% endif %}",
              "content"),
       "<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a<|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\n a<|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("", "", "message['content'].lstrip()"),
       "<|im_start|>system\nS\n<|im_end|>\n<|im_start|>user\na "
       "<|im_end|>\n<|im_start|>assistant\nb\n<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\na "
       "<|im_end|>\n<|im_start|>assistant\nb\n<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("", "", "message['content'].lstrip('\\n')"),
       "<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("", "", "message['content'].strip('\\n')"), nullptr, nullptr},
      {chatml("", "", "message['content'] | trim | trim + ' ' | trim"),
       "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|"
       ">user\nc<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>"
       "assistant\n"},
      {chatml("", "", "(message['content'] + ' ') | trim"),
       "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|"
       ">user\nc<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>"
       "assistant\n"},
      {chatml("", "", "('x ' + message['content']) | trim"), nullptr, nullptr},
      {llama2("system_message", "message['content']", "content"),
       "<s>[INST] <<SYS>>\n S\n\n<</SYS>>\n\n a  [/INST] \n b\n </s><s>[INST] \u3000c [/INST]",
       "<s>[INST]  a  [/INST] \n b\n </s><s>[INST] \u3000c [/INST]"},
      {llama2("system_message", "message['content'] | trim", "content"),
       "<s>[INST] <<SYS>>\n S\n\n<</SYS>>\n\na [/INST] b </s><s>[INST] c [/INST]",
       "<s>[INST] a [/INST] b </s><s>[INST] c [/INST]"},
      {llama2("system_message | trim", "message['content']", "content"),
       "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\n a  [/INST] \n b\n </s><s>[INST] \u3000c [/INST]",
       "<s>[INST]  a  [/INST] \n b\n </s><s>[INST] \u3000c [/INST]"},
      {llama2("system_message", "message['content']", "content.strip()"),
       "<s>[INST] <<SYS>>\n S\n\n<</SYS>>\n\n a [/INST] b </s><s>[INST] c [/INST]",
       "<s>[INST] a [/INST] b </s><s>[INST] c [/INST]"},
      {llama2("system_message.strip()", "message['content']", "content | trim"),
       "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\n a [/INST] b </s><s>[INST] c [/INST]",
       "<s>[INST] a [/INST] b </s><s>[INST] c [/INST]"},
      {vicuna("system_message"),
       " S\n USER: a ASSISTANT: b</s> USER: c ASSISTANT:", "Be nice.  USER: a ASSISTANT: b</s> USER: c ASSISTANT:"},
      {vicuna("system_message.strip()"),
       "S USER: a ASSISTANT: b</s> USER: c ASSISTANT:", "Be nice. USER: a ASSISTANT: b</s> USER: c ASSISTANT:"},
      {vicuna("system_message | trim"),
       "S USER: a ASSISTANT: b</s> USER: c ASSISTANT:", "Be nice. USER: a ASSISTANT: b</s> USER: c ASSISTANT:"},
      // Conditions are those that transformers evaluates.
      {chatml("{% if tools is defined %}{{ 'Tools.' }}{% endif %}"),
       "Tools.<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "Tools.<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("{% if tools is not none %}{{ 'Tools.' }}{% endif %}"),
       "<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("{% if tools or documents %}{{ 'Tools.' }}{% elif not tools %}{{ 'None.' }}{% endif %}"),
       "None.<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "None.<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("{{ 'Tools.' if tools is defined and tools is none else 'None.' }}"),
       "Tools.<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "Tools.<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("{% if not date_string is defined %}{% set date_string = '1 May' %}{% endif %}{{ date_string }}"),
       "1 May<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "1 May<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("{{ tools }}{{ custom_tools }}"),
       "None<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "None<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("",
              "{% if message['role'] == 'user' %}U{% elif message['role'] == 'assistant' %}A{% elif loop.first %}F{% "
              "else %}X{% endif %}"),
       "F<|im_start|>system\n S\n<|im_end|>\nU<|im_start|>user\n a <|im_end|>\nA<|im_start|>assistant\n\n "
       "b\n<|im_end|>\nU<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "U<|im_start|>user\n a <|im_end|>\nA<|im_start|>assistant\n\n "
       "b\n<|im_end|>\nU<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("", "{% if loop.index > 0 %}{% elif message['role'] == 'user' %}U{% endif %}"),
       "<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("", "{% if message['content'] and not message.tool_calls %}{% else %}E{% endif %}"), nullptr, nullptr},
      {chatml("", "{% if 'tool_calls' in message or message.content is not string %}E{% endif %}"),
       "<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("", "{% if message['content'] == 'Hi' %}Hi{% endif %}"), nullptr, nullptr},
      {chatml("", "{% if 'Hi' in message['content'] %}Hi{% endif %}"), nullptr, nullptr},
      {chatml("", "{% if '<tool_call>' in message['content'] %}T{% endif %}"),
       "<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("", "{% if message['content'] | length > 3 %}T{% endif %}"), nullptr, nullptr},
      // Lists and variables are those of the program.
      {chatml("{% set loop_messages = messages[1:] %}"),
       "<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("{% set loop_messages = messages %}", "", "message['content']", "message['role']", "loop_messages"),
       "<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("{% set loop_messages = messages[1:] %}", "", "message['content']", "message['role']", "loop_messages"),
       nullptr, nullptr},
      {chatml("", "", "message['content']", "message['role']", "messages[::-1]"), nullptr, nullptr},
      {chatml("", "", "message['content']", "message['role']", "messages if message['role'] != 'system'"), nullptr,
       "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("", "{{ n }}{% set n = 'n' %}{{ n }}"),
       "n<|im_start|>system\n S\n<|im_end|>\nn<|im_start|>user\n a <|im_end|>\nn<|im_start|>assistant\n\n "
       "b\n<|im_end|>\nn<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "n<|im_start|>user\n a <|im_end|>\nn<|im_start|>assistant\n\n "
       "b\n<|im_end|>\nn<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("{% set n = 'a' %}", "{{ n }}{% set n = 'b' %}"),
       "a<|im_start|>system\n S\n<|im_end|>\na<|im_start|>user\n a <|im_end|>\na<|im_start|>assistant\n\n "
       "b\n<|im_end|>\na<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "a<|im_start|>user\n a <|im_end|>\na<|im_start|>assistant\n\n "
       "b\n<|im_end|>\na<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("{% set ns = namespace(n=0) %}", "{% set ns.n = ns.n + 1 %}{% if ns.n == 1 %}{{ 'First.' }}{% endif %}"),
       "First.<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "First.<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("{% for m in messages %}{% set n = m %}{% endfor %}{{ n }}"),
       "<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("", "{% if loop.previtem is defined %}{% else %}{{ 'First.' }}{% endif %}"),
       "First.<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "First.<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("", "{% if loop.index0 % 2 == 1 %}{{ 'Odd.' }}{% endif %}"), nullptr, nullptr},
      {chatml("", "{% set message = messages[0] %}"), nullptr, nullptr},
      {chatml("", "{% if loop.last %}{% continue %}{% endif %}"), nullptr, nullptr},
      {chatml("{% macro f() %}{{ f() }}{% endmacro %}"),
       "<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("{% set x %}{% for m in messages %}{{ loop.index }}{% endfor %}{% endset %}"),
       "<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      // A template may refuse a system prompt.
      {chatml("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"), nullptr,
       "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("",
              "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% "
              "endif %}"),
       nullptr,
       "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("", "{% if message['role'] == 'system' %}{% continue %}{% endif %}"), nullptr,
       "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {chatml("", "{% if message['role'] == 'assistant' %}{{ raise_exception('no') }}{% endif %}"), nullptr, nullptr},
      {chatml("{% if not system_message %}{{ raise_exception('no') }}{% endif %}"), nullptr, nullptr},
      // White space around tags.
      {"{% for message in messages %}\n  {% if true %}\n<|im_start|>{{ message.role }}\n  {% endif %}\n{{ "
       "message.content }}<|im_end|>\n{% endfor %}\n{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% "
       "endif %}",
       "<|im_start|>system\n S\n<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n\n "
       "b\n<|im_end|>\n<|im_start|>user\n\u3000c<|im_end|>\n<|im_start|>assistant\n"},
      {"{% for message in messages +%}\n  {%+ if true +%}\n<|im_start|>{{ message.role }}\n  {%+ endif %}\n{{ "
       "message.content }}<|im_end|>\n{% endfor +%}\n{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% "
       "endif %}",
       "\n  \n<|im_start|>system\n   S\n<|im_end|>\n\n  \n<|im_start|>user\n   a <|im_end|>\n\n  "
       "\n<|im_start|>assistant\n  \n b\n<|im_end|>\n\n  \n<|im_start|>user\n  "
       "\u3000c<|im_end|>\n\n<|im_start|>assistant\n",
       "\n  \n<|im_start|>user\n   a <|im_end|>\n\n  \n<|im_start|>assistant\n  \n b\n<|im_end|>\n\n  "
       "\n<|im_start|>user\n  \u3000c<|im_end|>\n\n<|im_start|>assistant\n"},
      {"{%- for message in messages -%}\n\n  <|im_start|>{{ message.role }} {{- '\n' -}} \n {{ message.content }} "
       "<|im_end|>\n  {# a #}\n  {#- b +#}\n{%- endfor %}\n\n{% if add_generation_prompt %}{{ "
       "'<|im_start|>assistant\\n' }}{% endif %}\n\n",
       "<|im_start|>system\n S\n <|im_end|>\n<|im_start|>user\n a  <|im_end|>\n<|im_start|>assistant\n\n b\n "
       "<|im_end|>\n<|im_start|>user\n\u3000c <|im_end|>\n\n<|im_start|>assistant\n",
       "<|im_start|>user\n a  <|im_end|>\n<|im_start|>assistant\n\n b\n <|im_end|>\n<|im_start|>user\n\u3000c "
       "<|im_end|>\n\n<|im_start|>assistant\n"},
      {"\t{% for message in messages %}\t{# a -#}\n\t<|im_start|>{{ message.role + '\\n' }}\r\n{{+ message.content "
       "}}<|im_end|>\r\n\v{% endfor %}x\u2003{%- if true %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' "
       "}}{% endif %}\n{% endif %}\n",
       "\t<|im_start|>system\n\n S\n<|im_end|>\n\t<|im_start|>user\n\n a <|im_end|>\n\t<|im_start|>assistant\n\n\n "
       "b\n<|im_end|>\n\t<|im_start|>user\n\n\u3000c<|im_end|>\nx<|im_start|>assistant\n",
       "\t<|im_start|>user\n\n a <|im_end|>\n\t<|im_start|>assistant\n\n\n "
       "b\n<|im_end|>\n\t<|im_start|>user\n\n\u3000c<|im_end|>\nx<|im_start|>assistant\n"},
  };
}

TEST(ChatTemplate, VariationsMatchTransformersOrAreRefused) {
  const TokenizerPtr tokenizer = tokenizer_with({"<s>", "</s>", "<|im_start|>", "<|im_end|>"}, 0, 1, false);
  const nlohmann::json system = {{"role", "system"}, {"content", " S\n"}};
  const nlohmann::json messages = {{{"role", "user"}, {"content", " a "}},
                                   {{"role", "assistant"}, {"content", "\n b\n"}},
                                   {{"role", "user"}, {"content", "\u3000c"}}};
  nlohmann::json with_system = messages;
  with_system.insert(with_system.begin(), system);
  for (const Variation& v : variations()) {
    ChatTemplate chat;
    std::string why;
    ASSERT_EQ(recognise_chat_template(v.jinja, *tokenizer, chat, why), v.without_system != nullptr) << v.jinja << why;
    if (!v.without_system) continue;
    EXPECT_EQ(prompt_of(chat, *tokenizer, messages), v.without_system) << v.jinja;
    EXPECT_EQ(prompt_of(chat, *tokenizer, with_system), v.with_system ? v.with_system : "") << v.jinja;
  }
}

// Thinking is removed from earlier replies if, and as, the template does.
TEST(ChatTemplate, DropsThinkingAsTheTemplateDoes) {
  const TokenizerPtr tokenizer = chatml_tokenizer();
  const std::string reply = "<think>\na\n</think>\n\n b ", split = "message['content'].split('</think>')[-1]";
  const auto reply_of = [&](const std::string& content) {
    const std::string jinja =
        chatml("", "", "(" + content + " if message.role == 'assistant' else message['content'])");
    ChatTemplate chat;
    std::string why;
    return recognise_chat_template(jinja, *tokenizer, chat, why) ? edited_reply(chat, reply) : why;
  };
  EXPECT_EQ(reply_of("message['content']"), reply);
  EXPECT_EQ(reply_of(split), "\n\n b ");
  EXPECT_EQ(reply_of(split + ".lstrip('\\n')"), " b ");
  EXPECT_EQ(reply_of("(" + split + ".strip() if '</think>' in message['content'] else message['content'])"), "b");
  EXPECT_EQ(reply_of("message['content'].split('</think>')[0]"),
            "line 1: output of the thinking of a reply: not supported");
  EXPECT_EQ(reply_of("message['content'].split('</think>')[1]"), "line 1: '+' of a text: not supported");
}

// As /no_think of SmolLM3: a system prompt with it is refused, since the strings are those without it.
TEST(ChatTemplate, RecordsCommandsInSystemPrompts) {
  const TokenizerPtr tokenizer = chatml_tokenizer();
  ChatTemplate chat;
  std::string why;
  const std::string front =
      "{% if messages[0].role == 'system' %}{% if '/brief' in messages[0].content %}{{ 'Brief. ' }}{% endif %}"
      "{% set system = messages[0].content.replace('/loud', '').rstrip() %}{% endif %}";
  ASSERT_TRUE(recognise_chat_template(chatml(front), *tokenizer, chat, why)) << why;
  EXPECT_EQ(chat.commands, (std::vector<std::string>{"/brief", "/loud"}));
  EXPECT_TRUE(chat.takes("Be brief."));
  EXPECT_TRUE(chat.takes(""));
  EXPECT_FALSE(chat.takes("Be /brief."));
  EXPECT_FALSE(
      recognise_chat_template(chatml("", "{% if '/brief' in message.content %}a{% endif %}"), *tokenizer, chat, why))
      << "in messages";
}

// ---- Refused templates ----

/// The reason why a template is not recognised; the chat template must stay empty.
std::string reason(const std::string& jinja, const Tokenizer& tokenizer) {
  ChatTemplate chat;
  chat.stop_ids = {99};
  std::string why;
  EXPECT_FALSE(recognise_chat_template(jinja, tokenizer, chat, why)) << jinja;
  EXPECT_FALSE(chat.known());
  EXPECT_TRUE(chat.stop_ids.empty());
  EXPECT_NE(why, "");
  return why;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  EXPECT_NE(text.find(from), std::string::npos) << from;
  return text.replace(text.find(from), from.size(), to);
}

// ERNIE 4.5 asks whether the tokenizer has a cls_token, as others do for their special tokens.
TEST(ChatTemplate, KnowsTheSpecialTokensOfAFolder) {
  const TokenizerPtr owner = chatml_tokenizer();
  const std::string jinja =
      chatml("{% if not cls_token is defined %}{% set cls_token = 'A' %}{% endif %}{{ cls_token }}");
  const std::map<std::string, std::string> none, cls = {{"cls_token", "<|im_end|>"}, {"sep_token", "b"}};
  const auto opening = [&](const std::map<std::string, std::string>* special) {
    ChatTemplate chat;
    std::string why;
    if (!recognise_chat_template(jinja, *owner, chat, why, special)) return why;
    return written(chat, chat_probe(false, 1), *owner).substr(0, 11);
  };
  EXPECT_EQ(opening(&none), "A<|im_start");
  EXPECT_EQ(opening(&cls), "<|im_end|><");
  EXPECT_EQ(opening(nullptr), "line 1: 'cls_token': not known of this file");
}

// The reason names the line and the construct.
TEST(ChatTemplate, ReportsWhyATemplateIsRefused) {
  const TokenizerPtr owner = chatml_tokenizer();
  const Tokenizer& tokenizer = *owner;
  const std::pair<std::string, const char*> cases[] = {
      {"", "it does not write each message once, in their order"},
      {"{{ messages[0].content }}", "it does not write each message once, in their order"},
      {"{% for message in messages %}{{ message.content }}{% endfor %}", "it writes nothing around the messages"},
      {"{% for message in messages %}<|im_start|>{{ message.role + message.content }}{% endfor %}",
       "it writes no generation prompt"},
      {chatml("\n\n{{ messages | tojson }}"), "line 3: filter 'tojson' of a list: not supported"},
      {chatml("{{ messages | to_json }}"), "line 1: filter 'to_json': unknown"},
      {chatml("{{ 1 is prime }}"), "line 1: test 'prime': unknown"},
      {chatml("", "", "message['content'] | upper"), "line 1: output of a text in another case: not supported"},
      {chatml("", "{% if 'x' in message['content'] %}a{% endif %}"),
       "line 1: a search of 'x' in the content of a message: not supported"},
      {chatml("{% if system_message.x %}a{% endif %}"), "line 1: member 'x' of an undefined value: not supported"},
      {chatml("{{ pad_token }}"), "line 1: 'pad_token': not known of this file"},
      {chatml("{{ strftime_now('%H:%M') }}"), "line 1: strftime_now('%H:%M'): not supported"},
      {chatml("{{ raise_exception('no') }}"), "line 1: it raises 'no'"},
      {chatml("{% macro f(x) %}a{% endmacro %}\n{{ f(1) }}"), "line 2: macro f(): not supported"},
      {chatml("{% include 'a' %}"), "line 1: {% include %}: not supported here"},
      {chatml("{% endif %}"), "line 1: {% endif %}: not supported here"},
      {chatml("{% if true %}"), "line 1: expected {% endif %}, found the end of the template"},
      {chatml("\n") + "\n{{ 'a }}", "line 3: expected a closing quote, found the end of the template"},
      {chatml("{{ 1.5 }}"), "line 1: number 1: not supported"},
      {chatml("{% if a = b %}{% endif %}"), "line 1: expected the end of the tag, found '='"},
      {chatml("{{ ) }}"), "line 1: unexpected ')'"},
      {chatml("{{ '\\x41' }}"), "line 1: expected one of \\n \\t \\r \\\\ \\' \\\" in a string"},
      {chatml("{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}"),
       "line 1: too many steps"},
      {chatml("{% set n = namespace(t='aaaaaaaaaaaaaaaa') %}{% for i in range(9) %}"
              "{% set n.t = n.t.replace('a', 'aaaaaaaaaaaaaaaa') %}{% endfor %}"),
       "line 1: replace() to a text of more than 320000 bytes: not supported"},
      {chatml("{% set t = 'aaaaaaaaaaaaaaaa'.replace('a', '" + std::string(1000, 'a') +
              "') %}{% for i in range(1000) %}{% if t %}{% endif %}{% endfor %}"),
       "line 1: too many steps"},
      {chatml("{% set t = '" + std::string(25000, 'a') + "' %}{{ t.split('a')[0] }}"),
       "line 1: split() into more than 20000 parts: not supported"},
      {chatml("{% set t = '" + std::string(4000, 'a') +
              "'.split('b') %}{% for i in range(1000) %}{% for x in t %}"
              "{% endfor %}{% endfor %}"),
       "line 1: too many steps"},
  };
  for (const auto& [jinja, expected] : cases) EXPECT_EQ(reason(jinja, tokenizer), expected) << jinja;
  const std::string a(257, 'a');
  for (const std::string& use :
       {"'" + a + "' in 'a'", "'a'.replace('" + a + "', 'b')", "'a'.split('" + a + "')", "'a'.strip('" + a + "')"})
    EXPECT_EQ(reason(chatml("{{ " + use + " }}"), tokenizer),
              "line 1: a search of a text of more than 256 bytes: not supported")
        << use;
  EXPECT_EQ(reason(chatml("", "{% if loop.index0 == 3 %}{{ 'x' }}{% endif %}"), tokenizer),
            "strings cannot describe it: expected 'x<|im_start|>assistant\\n\\n \tmess' after 134 bytes, found "
            "'<|im_start|>assistant\\n\\n \tmessa'");
}

// A template that does anything else than write text is refused.
TEST(ChatTemplate, RunsNoPrograms) {
  const TokenizerPtr chatml = chatml_tokenizer();
  const std::string loop = "{% for message in messages %}";
  for (const std::string program :
       {"{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% for x in range(10**9) %}x{% endfor %}", "{% for x in range(999999999) %}x{% endfor %}",
        "{% for x in ''.__class__.__mro__ %}{{ x }}{% endfor %}", "{{ messages.__class__ }}", "{{ messages[0]._x }}",
        "{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages|map(attribute='x')|list }}", "{% do messages.append(1) %}", "{{ messages.append(1) }}",
        "{% while true %}{% endwhile %}"}) {
    for (const std::string& whole : {program + kSmolLm2, kSmolLm2 + program, replaced(kSmolLm2, loop, loop + program)})
      reason(whole, *chatml);
    reason(program, *chatml);
    reason("{% if false %}" + program + "{% endif %}", *chatml);
  }
}

TEST(ChatTemplate, ReportsReasonForEveryTruncation) {
  for (const Case& c : cases()) {
    const std::string whole = c.jinja;
    for (size_t n = 0; n < whole.size(); n++) {
      ChatTemplate chat;
      std::string why;
      if (recognise_chat_template(whole.substr(0, n), *c.tokenizer, chat, why))
        EXPECT_TRUE(chat.known()) << n;  // the missing part has no effect
      else
        EXPECT_NE(why, "") << n;
    }
  }
}

TEST(ChatTemplate, HandlesHostileTexts) {
  const TokenizerPtr owner = chatml_tokenizer();
  const Tokenizer& chatml = *owner;
  const std::string mark = "<|im_start|>";
  for (const char* unit : {"{", "{{", "{%", "{#", "{% if x %}", "{% for x in y %}", "'", "{{ '", "{{ (", "{{ \\", "}}",
                           "{{ x }}", "{% else %}", "{bos_token}", "\1", "{{ (a", "{% set x = "}) {
    std::string text = mark;
    while (text.size() < 20000) text += unit;
    reason(text, chatml);
  }
  reason(mark + std::string(1 << 20, '{'), chatml);
  reason(mark + std::string(1 << 20, '\n'), chatml);
  reason(mark + std::string(1000, '\0') + "\xff\xfe", chatml);
  tiny::Random random(1);
  for (const Case& c : cases())
    for (int i = 0; i < 500; i++) {
      std::string text = c.jinja;
      for (int n = 1 + random.below(3); n > 0; n--) {
        const size_t at = size_t(random.below(int(text.size())));
        if (random.below(2))
          text[at] = "{}%'\"()[]+~.| \\<>\n"[random.below(18)];
        else
          text.erase(at, size_t(1 + random.below(5)));
      }
      ChatTemplate chat;
      std::string why;
      const bool known = recognise_chat_template(text, *c.tokenizer, chat, why);
      EXPECT_EQ(known, chat.known()) << text;
    }
}

// BOS and EOS with the names of variables as texts.
TEST(ChatTemplate, HandlesTokensNamedLikeVariables) {
  const TokenizerPtr odd = tokenizer_with({"<unk>", "{bos_token}", "{eos_token}{eos_token}"}, 1, 2, true);
  ChatTemplate chat;
  std::string why;
  recognise_chat_template(kTinyLlama, *odd, chat, why);
  recognise_chat_template(kLlama2, *odd, chat, why);
  EXPECT_NE(why, "");
}

}  // namespace chat_template_test
