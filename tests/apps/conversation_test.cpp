// conversation_test.cpp: the conversation of a chat without a model: its tokens, dropped turns, JSON files, and the
// detection of loops.
#include "../../apps/cli/conversation.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "../support/test_data.hpp"
#include "../support/tiny_model.hpp"

namespace conversation_test {

using namespace pocket;
using cli::Conversation;

// A token for each byte, numbered from 10; 1 is BOS.
std::vector<int> encode(std::string_view text, bool bos) {
  std::vector<int> ids(bos ? 1 : 0, 1);
  for (char c : text) ids.push_back(10 + uint8_t(c));
  return ids;
}

// A template with turns in brackets: S[system] U[message] R[reply].
ChatTemplate brackets() {
  ChatTemplate chat;
  chat.slot[ChatTemplate::kSystemPrefix] = {{-1, "S["}};
  chat.slot[ChatTemplate::kSystemSuffix] = {{-1, "]"}};
  for (const auto slot : {ChatTemplate::kFirstUserPrefix, ChatTemplate::kUserPrefix, ChatTemplate::kOpening})
    chat.slot[slot] = {{-1, "U["}};
  chat.slot[ChatTemplate::kUserSuffix] = {{-1, "]"}};
  chat.slot[ChatTemplate::kReplyPrefix] = chat.slot[ChatTemplate::kPastReplyPrefix] = {{-1, "R[\n"}};
  chat.slot[ChatTemplate::kReplySuffix] = {{-1, "]"}};
  return chat;
}

// The tokens that the model processes, as a text: ^ is BOS, <7> a generated token.
std::string tokens_of(const Conversation& conversation) {
  std::string text;
  for (int id : conversation.ids())
    text += id == 1 ? "^" : id < 10 ? "<" + std::to_string(id) + ">" : std::string(1, char(id - 10));
  return text;
}

// ---- Tokens ----

TEST(Conversation, KeepsTheTokensOfGeneratedReplies) {
  const ChatTemplate chat = brackets();
  Conversation conversation(chat, encode, "kind");
  EXPECT_EQ(tokens_of(conversation), "^");
  conversation.turns = {{"one", "1", {}}, {"two", "22", {2, 2}}, {"three", "", {}}};
  EXPECT_EQ(tokens_of(conversation), "^S[kind]U[one]R[\n1]U[two]R[\n<2><2>]U[three]R[\n");
  conversation.turns.back().reply_ids = {3};
  EXPECT_EQ(tokens_of(conversation), "^S[kind]U[one]R[\n1]U[two]R[\n<2><2>]U[three]R[\n<3>") << "a reply in progress";
}

TEST(Conversation, LoadedRepliesAreWrittenAsTheTemplateDoes) {
  ChatTemplate chat = brackets();
  Conversation conversation(chat, encode, "");
  conversation.turns = {{"one", " 1 \n", {}}, {"two", "2", {2}}, {"three", "", {}}};
  chat.slot[ChatTemplate::kPastReplyPrefix] = {{-1, "r["}};
  EXPECT_EQ(tokens_of(conversation), "^U[one]r[ 1 \n]U[two]R[\n<2>]U[three]R[\n");
  chat.edit[ChatTemplate::kReplyText] = ChatTemplate::kTrim;
  EXPECT_EQ(tokens_of(conversation), "^U[one]r[1]U[two]R[\n<2>]U[three]R[\n");
}

// Where the template says so, as those of Qwen3 and DeepSeek R1.
TEST(Conversation, ThinkingOfEarlierRepliesIsDropped) {
  ChatTemplate chat = brackets();
  chat.edit[ChatTemplate::kThinkingReplyText] = ChatTemplate::kDropThinking | ChatTemplate::kTrimNewlines;
  chat.slot[ChatTemplate::kReplyPrefix] = {{-1, "R[<think>"}};
  Conversation conversation(chat, encode, "", [](std::string_view text) { return text.size(); });
  conversation.turns = {{"one", "Hm.</think>\n\n1", {2, 2, 2, 2, 2, 2, 2, 2, 2}}, {"two", "Hm.", {3}}};
  EXPECT_EQ(tokens_of(conversation), "^U[one]R[\n1]U[two]R[<think><3>") << "a reply in progress keeps it";
  EXPECT_LE(conversation.least_tokens(), conversation.ids().size());
  conversation.turns.push_back({"three", "", {}});
  EXPECT_EQ(tokens_of(conversation), "^U[one]R[\n1]U[two]R[\nHm.]U[three]R[<think>");
}

TEST(Conversation, SystemPromptMayMoveToTheLastMessage) {
  ChatTemplate chat = brackets();
  chat.system_in_last_turn = true;
  chat.slot[ChatTemplate::kSystemPrefix] = chat.slot[ChatTemplate::kFirstUserPrefix] = {};
  chat.slot[ChatTemplate::kSystemSuffix] = {{-1, ": "}};
  Conversation conversation(chat, encode, "kind");
  conversation.turns = {{"one", "", {}}};
  EXPECT_EQ(tokens_of(conversation), "^U[kind: one]R[\n");
  conversation.turns = {{"one", "1", {2}}, {"two", "", {}}};
  EXPECT_EQ(tokens_of(conversation), "^U[one]R[\n<2>]U[kind: two]R[\n");
}

// ---- Dropped turns ----

TEST(Conversation, DropsTheOldestTurnsAndKeepsTheSystemPrompt) {
  const ChatTemplate chat = brackets();
  Conversation conversation(chat, encode, "kind");
  for (const char* word : {"one", "two", "three", "four"}) conversation.turns.push_back({word, "r", {}});
  const size_t whole = conversation.ids().size();
  EXPECT_EQ(conversation.make_room(whole, whole), 0u) << "it fits";
  EXPECT_EQ(conversation.make_room(whole - 1, whole - 1), 1u);
  EXPECT_EQ(tokens_of(conversation), "^S[kind]U[two]R[\nr]U[three]R[\nr]U[four]R[\nr");
  EXPECT_EQ(conversation.active(), 3u);
  EXPECT_EQ(conversation.dropped(), 1u);
  EXPECT_EQ(conversation.make_room(0, 0), 2u) << "the last turn is never dropped";
  EXPECT_EQ(tokens_of(conversation), "^S[kind]U[four]R[\nr");
  EXPECT_EQ(conversation.make_room(0, 0), 0u);
  EXPECT_EQ(conversation.turns.size(), 4u) << "dropped turns can still be saved";
}

// Only the texts near the end are encoded, and none that cannot fit.
TEST(Conversation, TimeToDropTurnsDoesNotDependOnTheirNumber) {
  const ChatTemplate chat = brackets();
  size_t encoded = 0;
  const auto counting = [&](std::string_view text, bool bos) {
    encoded += text.size();
    return encode(text, bos);
  };
  for (const size_t turns : {1000, 100000}) {
    Conversation conversation(chat, counting, "kind", [](std::string_view text) { return text.size(); });
    conversation.turns.assign(turns, {"some words", "a reply", {}});
    conversation.turns[turns - 3].message.assign(1 << 20, 'x');
    conversation.turns.push_back({"new", "", {}});
    encoded = 0;
    EXPECT_EQ(conversation.make_room(1000, 500), turns - 2);
    EXPECT_LT(encoded, 10000u) << turns;
    EXPECT_EQ(tokens_of(conversation), "^S[kind]U[some words]R[\na reply]U[some words]R[\na reply]U[new]R[\n");
  }
}

TEST(Conversation, DropsAsManyTurnsAsOneByOne) {
  const ChatTemplate chat = brackets();
  tiny::Random random(1);
  for (int i = 0; i < 300; i++) {
    Conversation conversation(chat, encode, i % 2 ? "kind" : "");
    for (int k = random.below(20); k >= 0; k--)
      conversation.turns.push_back(
          {std::string(size_t(random.below(30)), 'x'), std::string(size_t(random.below(9)), 'y'), {}});
    const size_t most = size_t(random.below(400)), target = most / 2, all = conversation.ids().size();
    std::vector<size_t> sizes;  // without the first 0, 1, ... turns
    for (size_t first = 0; first < conversation.turns.size(); first++) {
      Conversation rest(chat, encode, i % 2 ? "kind" : "");
      rest.turns.assign(conversation.turns.begin() + long(first), conversation.turns.end());
      sizes.push_back(rest.ids().size());
    }
    size_t expected = 0;
    while (all > most && expected + 1 < sizes.size() && sizes[expected] > target) expected++;
    EXPECT_EQ(conversation.make_room(most, target), expected) << i;
  }
}

TEST(Conversation, UndoRemovesTheLastTurnAndRestoresDroppedTurns) {
  const ChatTemplate chat = brackets();
  Conversation conversation(chat, encode, "");
  for (const char* word : {"one", "two", "three"}) conversation.turns.push_back({word, "r", {}});
  conversation.make_room(0, 0);
  EXPECT_TRUE(conversation.undo());
  EXPECT_EQ(tokens_of(conversation), "^U[one]R[\nr]U[two]R[\nr");
  EXPECT_TRUE(conversation.undo());
  EXPECT_TRUE(conversation.undo());
  EXPECT_EQ(tokens_of(conversation), "^");
  EXPECT_FALSE(conversation.undo());
}

TEST(Conversation, ResetKeepsTheSystemPrompt) {
  const ChatTemplate chat = brackets();
  Conversation conversation(chat, encode, "kind");
  conversation.turns = {{"one", "1", {}}, {"two", "2", {}}};
  conversation.make_room(0, 0);
  conversation.reset();
  EXPECT_EQ(conversation.dropped(), 0u);
  conversation.turns.push_back({"new", "", {}});
  EXPECT_EQ(tokens_of(conversation), "^S[kind]U[new]R[\n");
}

// ---- JSON files ----

TEST(Conversation, LoadsASavedFileUnchanged) {
  const ChatTemplate chat = brackets();
  const TemporaryFolder t;
  std::string all;
  for (int c = 0; c < 128; c++) all += char(c);
  Conversation conversation(chat, encode, "k\"ind\\");
  conversation.turns = {{all, "\xF0\x9F\x99\x82 \xE4\xBD\xA0", {}}, {"</s> {\"role\": 1}", "", {}}};
  const std::string file = t.write("c.json", conversation.to_json());
  const auto json = nlohmann::json::parse(read_file(file));
  ASSERT_EQ(json.size(), 5u);
  EXPECT_EQ(json[0], (nlohmann::json{{"role", "system"}, {"content", "k\"ind\\"}}));
  EXPECT_EQ(json[1], (nlohmann::json{{"role", "user"}, {"content", all}}));
  EXPECT_EQ(json[2]["role"], "assistant");

  Conversation other(chat, encode, "other");
  std::string error;
  ASSERT_TRUE(other.load(file, error)) << error;
  EXPECT_EQ(other.system, conversation.system);
  EXPECT_EQ(other.to_json(), conversation.to_json());
  EXPECT_EQ(other.ids(), conversation.ids());

  ASSERT_TRUE(other.load(t.write("d",
                                 "{\"model\": 1, \"messages\": [{\"content\": \"a\", \"role\": \"user\"},"
                                 "{\"role\": \"assistant\", \"content\": \"b\"}]}"),
                         error))
      << error;
  EXPECT_EQ(tokens_of(other), "^S[k\"ind\\]U[a]R[\nb") << "the system prompt stays";
  ASSERT_TRUE(other.load(t.write("e", "[]"), error)) << error;
  EXPECT_TRUE(other.turns.empty());
}

TEST(Conversation, InvalidFileLeavesItUnchanged) {
  const ChatTemplate chat = brackets();
  const TemporaryFolder t;
  Conversation conversation(chat, encode, "kind");
  conversation.turns = {{"one", "1", {}}, {"two", "2", {}}};
  const std::string before = conversation.to_json();
  const std::string user = "{\"role\":\"user\",\"content\":\"a\"}",
                    model = "{\"role\":\"assistant\",\"content\":\"b\"}",
                    system = "{\"role\":\"system\",\"content\":\"c\"}";
  const std::pair<std::string, std::string> cases[] = {
      {"", "expected JSON, found an empty file"},
      {"hello", "expected a value, found 'h'"},
      {"7", "expected a list of messages, found 7"},
      {"{}", "expected a list of messages, found nothing"},
      {"{\"messages\":{}}", "expected a list of messages, found an object"},
      {"[7]", "\"role\": expected a string, found nothing"},
      {"[{\"role\":\"user\"}]", "\"content\": expected a string, found nothing"},
      {"[{\"role\":\"user\",\"content\":[]}]", "\"content\": expected a string, found an array"},
      {"[{\"role\":\"tool\",\"content\":\"\"}]", "\"role\": expected user, found \"tool\""},
      {"[" + user + "," + user + "]", "expected assistant, found \"user\""},
      {"[" + model + "]", "expected user, found \"assistant\""},
      {"[" + user + "," + model + "," + system + "]", "expected user, found \"system\""},
      {"[" + user + "," + system + "]", "expected assistant, found \"system\""},
      {"[" + user + "]", "expected a reply to the last message, found none"},
      {"[" + user + "," + model + "]]", "expected the end of the text, found ']'"},
      {"[" + user + ",{\"role\":\"assistant\",\"content\":\"\xFF\"}]", "expected UTF-8"},
      {std::string(1000, '['), "at most 256 levels"}};
  std::string error;
  for (const auto& [text, why] : cases) {
    EXPECT_FALSE(conversation.load(t.write("broken", text), error)) << text;
    EXPECT_NE(error.find("broken"), std::string::npos) << error;
    EXPECT_NE(error.find(why), std::string::npos) << error << " of " << text;
    EXPECT_EQ(conversation.to_json(), before) << text;
  }
  for (size_t n = 0; n + 2 < before.size(); n++)  // without its last bracket and newline
    EXPECT_FALSE(conversation.load(t.write("broken", before.substr(0, n)), error)) << n;
  EXPECT_FALSE(conversation.load(t.file("none"), error));
  EXPECT_FALSE(conversation.load(t.path(), error));
  EXPECT_FALSE(conversation.load("/dev/zero", error));
  EXPECT_EQ(conversation.to_json(), before);
}

TEST(Conversation, LoadRefusesASystemPromptThatTheTemplateDoesNotTake) {
  ChatTemplate chat = brackets();
  chat.commands = {"/no_think"};
  const TemporaryFolder t;
  Conversation conversation(chat, encode, "");
  const auto load = [&](const std::string& system) {
    std::string error;
    conversation.load(t.write("c.json", "[{\"role\": \"system\", \"content\": \"" + system + "\"}]"), error);
    return error;
  };
  EXPECT_EQ(load("Be kind."), "");
  EXPECT_NE(load("Be kind. /no_think").find("treats '/no_think' in a system prompt"), std::string::npos);
  chat.no_system = true;
  EXPECT_NE(load("Be kind.").find("the chat template takes no system prompt"), std::string::npos);
  EXPECT_EQ(load(""), "");
}

// ---- Loops ----

// Number of tokens after which a loop is detected; 0: never.
size_t loops_after(const std::vector<int>& ids, LoopWatch watch = {}) {
  for (size_t i = 0; i < ids.size(); i++)
    if (watch.push(ids[i])) return i + 1;
  return 0;
}

TEST(LoopWatch, DetectsARepeatedPassage) {
  for (int period : {1, 2, 3, 7, 24, 25, 60, 128})
    for (int before : {0, 5, 200}) {
      std::vector<int> ids;
      for (int i = 0; i < before; i++) ids.push_back(1000 + i);
      for (int i = 0; i < 1000; i++) ids.push_back(i % period);
      LoopWatch watch;
      size_t n = 0;
      while (n < ids.size() && !watch.push(ids[n])) n++;
      EXPECT_EQ(n + 1, size_t(before + std::max(96, 4 * period))) << period;
      EXPECT_EQ(watch.period(), size_t(period));
      EXPECT_EQ(watch.kept(), size_t(before + period)) << "one repetition";
    }
}

TEST(LoopWatch, IgnoresTextsThatGoOn) {
  std::vector<int> counting, almost, rare, few;
  for (int i = 0; i < 3000; i++) {
    counting.insert(counting.end(), {1, 2, 100 + i});   // "1, ", "2, ", ...
    almost.push_back(i % 90 == 89 ? 1000 + i : i % 3);  // a refrain, and then something new
    rare.push_back(i % 129);                            // a passage longer than LoopWatch::kLongest
    few.push_back(i % 400 < 99 ? i % 33 : 10000 + i);   // three times
  }
  for (const auto& ids : {counting, almost, rare, few}) EXPECT_EQ(loops_after(ids), 0u);
  EXPECT_EQ(loops_after({}), 0u);
  EXPECT_EQ(loops_after({1}), 0u);
}

}  // namespace conversation_test
