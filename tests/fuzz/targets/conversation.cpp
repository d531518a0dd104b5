// Chat histories (/load).
#include "../../../apps/cli/conversation.hpp"
#include "../target.hpp"

namespace fuzz::conversation {

using namespace pocket;

void run(std::string_view input) {
  static ReusedFile file("chat.json"), saved("saved.json");
  ChatTemplate chat;
  chat.slot[ChatTemplate::kUserPrefix] = {{1, ""}, {-1, "User: "}};
  chat.slot[ChatTemplate::kReplyPrefix] = {{-1, "Reply:"}};
  chat.edit[ChatTemplate::kReplyText] = ChatTemplate::kTrim;
  chat.edit[ChatTemplate::kThinkingReplyText] = ChatTemplate::kDropThinking;
  const Encode encode = [](std::string_view text, bool) { return std::vector<int>(text.begin(), text.end()); };
  const cli::Conversation::Least least = [](std::string_view text) { return text.size(); };
  cli::Conversation conversation(chat, encode, "", least), again(chat, encode, "");
  std::string error;
  if (!conversation.load(file.write(input), error)) return require(!error.empty(), "conversation: an error");
  require(again.load(saved.write(conversation.to_json()), error), "conversation: /load reads what /save writes");
  require(again.system == conversation.system && again.ids() == conversation.ids(), "conversation: the same tokens");
  conversation.make_room(80, 40);
  again.make_room(80, 40);
  require(conversation.active() <= 1 || conversation.ids().size() <= 80, "conversation: it fits the context");
  require(conversation.dropped() == again.dropped(), "conversation: the lower bound changes nothing");
}

std::vector<std::string> seeds() {
  return {R"([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"},
 {"role": "assistant", "content": " Hi"}])",
          R"({"messages": [{"role": "user", "content": "A longer message"}, {"role": "assistant", "content": "A reply"},
 {"role": "user", "content": "B"}, {"role": "assistant", "content": "C"}]})"};
}

const Registered target({"conversation", run, seeds});

}  // namespace fuzz::conversation
