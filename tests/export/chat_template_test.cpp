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

/// The prompt of a chat with this template for these messages; the last message is the user's.
std::string prompt_of(const ChatTemplate& chat, const Tokenizer& tokenizer, const nlohmann::json& messages) {
  const auto encode = [&](std::string_view text, bool bos) { return tokenizer.encode(text, bos); };
  cli::Conversation conversation(chat, encode, "");
  for (const auto& message : messages) {
    const std::string role = message["role"], content = message["content"];
    if (role == "system") conversation.system = content;
    if (role == "user") conversation.turns.push_back({content, "", {}});
    if (role == "assistant") conversation.turns.back().reply = content;
  }
  return tokenizer.decode(conversation.ids());
}

// Conversations of 1, 2 and 5 turns, with and without a system prompt, of each family, byte by byte: with the template
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
      const std::string bos(tokenizer->piece(tokenizer->bos())), text = c["text"];
      const std::string expected = (v["add_bos"] && text.rfind(bos, 0) != 0 ? bos : "") + text;
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
  chat.default_system = "before";
  std::string error;
  EXPECT_FALSE(make_chat_template(*find_chat_family("chatml"), *llama2_tokenizer(), chat, error));
  EXPECT_EQ(error, "expected the token <|im_start|> in the vocabulary, found none");
  EXPECT_EQ(chat.default_system, "before");
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

TEST(ChatTemplate, KeepsDefaultSystemPrompt) {
  ChatTemplate chat;
  std::string family;
  ASSERT_TRUE(recognise_chat_template(kSmolLm2, *chatml_tokenizer(), chat, family)) << family;
  EXPECT_EQ(chat.default_system, "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
  ASSERT_TRUE(recognise_chat_template(kTinyLlama, *llama2_tokenizer(), chat, family)) << family;
  EXPECT_EQ(chat.default_system, "");
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

/// The reason why a template is not recognised; the chat template must stay empty.
std::string reason(const std::string& jinja, const Tokenizer& tokenizer) {
  ChatTemplate chat;
  chat.default_system = "before";
  std::string why;
  EXPECT_FALSE(recognise_chat_template(jinja, tokenizer, chat, why)) << why;
  EXPECT_FALSE(chat.known());
  EXPECT_EQ(chat.default_system, "");
  EXPECT_NE(why, "");
  return why;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  EXPECT_NE(text.find(from), std::string::npos) << from;
  return text.replace(text.find(from), from.size(), to);
}

TEST(ChatTemplate, ReportsUnknownSteps) {
  const TokenizerPtr owner = chatml_tokenizer();
  const Tokenizer& chatml = *owner;
  EXPECT_EQ(reason("", chatml), "not of a known family");
  EXPECT_EQ(reason("{{ messages[0].content }}", chatml), "not of a known family");
  EXPECT_EQ(reason("<|im_start|>Cutting Knowledge Date: December 2023", chatml),
            "outputs a system turn with dates even without a system prompt");
  EXPECT_EQ(reason(kSmolLm2, *llama2_tokenizer()), "expected the token <|im_start|> in the vocabulary, found none");
  EXPECT_EQ(reason(replaced(kSmolLm2, "<|im_start|>assistant\n", "<|im_start|>Assistant\n"), chatml),
            "unknown step of ChatML: add_generation_prompt: <|im_start|>Assistant\\n");
  EXPECT_EQ(
      reason(replaced(kSmolLm2, "message['content']", "message['content'] | upper"), chatml).find("unknown step of"),
      0u);
  EXPECT_EQ(reason(replaced(kSmolLm2, "{% if add_generation_prompt %}", ""), chatml), "{% endif %}: unknown here");
  EXPECT_EQ(reason(replaced(kSmolLm2, "{% endif %}{{'<|im_start|>'", "{{'<|im_start|>'"), chatml).find("{% endfor %}"),
            0u);
  EXPECT_EQ(reason(std::string(kSmolLm2) + kSmolLm2, chatml).find("unexpected here: "), 0u);
  EXPECT_EQ(reason("{% for message in messages %}<|im_start|>{% endfor %}", chatml).find("unknown step of ChatML"), 0u);
}

// A template with any unknown step is not recognised.
TEST(ChatTemplate, RunsNoPrograms) {
  const TokenizerPtr chatml = chatml_tokenizer();
  const std::string loop = "{% for message in messages %}";
  for (const std::string program :
       {"{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% for x in range(10**9) %}x{% endfor %}", "{% for x in ''.__class__.__mro__ %}{{ x }}{% endfor %}",
        "{% set x = namespace(n=0) %}", "{% include '/etc/passwd' %}", "{% import 'os' as os %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ messages|map(attribute='x')|list }}",
        "{{ strftime_now('%d') }}", "{% do messages.append(1) %}", "{% while true %}{% endwhile %}"}) {
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
    for (int i = 0; i < 3000; i++) {
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
