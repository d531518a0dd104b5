// draft_speed.hpp: the speed at which a model generates texts with the guesses of a draft model, compared with
// its speed without them.
#pragma once

#include "../cli/draft_model.hpp"
#include "../cli/llama.hpp"
#include "progress.hpp"
#include "text_model.hpp"

namespace pocket::bench {

/// Beginnings of texts, for models without a chat template.
inline constexpr const char* kBeginnings[] = {
    "Once upon a time", "The dog and the cat", "One day, a girl named Lily",   "It was a dark night and",
    "The king said",    "In the garden",       "Tom was sad because his ball", "My grandmother always told me that",
};

/// Messages to chat models: facts, explanations, lists, stories, code, and text to rewrite.
inline constexpr const char* kMessages[] = {
    "What is the capital of France?",
    "Why is the sky blue? Explain it to a child.",
    "List five vegetables and how to cook them.",
    "Tell me a short story about a lighthouse.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Translate into French: The weather is nice today, so we walk to the market.",
    "Give me three tips to sleep better.",
    "Write a polite email that asks my landlord to repair the heating.",
};

/// The speed of all texts at a temperature, and the guesses. A text's first token comes from its prompt and is not
/// counted.
struct DraftSpeed {
  float temperature;
  size_t texts = 0, tokens = 0;                 // tokens: generated, of all texts
  double plain_seconds = 0, draft_seconds = 0;  // without and with guesses
  size_t proposed = 0, accepted = 0;            // guesses, right guesses

  double plain_tok_s() const { return double(tokens) / plain_seconds; }
  double draft_tok_s() const { return double(tokens) / draft_seconds; }
  double ratio() const { return plain_seconds / draft_seconds; }
  /// Each right guess saves a pass.
  double tokens_per_pass() const { return double(tokens) / double(tokens - accepted); }
};

/// Generates each text without and with guesses, in turns. Throws Failure, also if a text differs.
class DraftTest {
 public:
  DraftTest(const std::string& file, const std::string& draft_file, const SessionOptions& options, bool quick)
      : large_(file),
        small_(draft_file, Load::map, large_, file),
        options_(options),
        tokens_(quick ? 24 : 128),
        prompts_(prompts()),
        progress_(2 * prompts_.size()) {
    options_.context = std::min(large_.trained_context(), 2048);
    session_ = std::make_unique<Session>(large_.model, options_);
    check_open(*session_);
  }

  /// At temperature 0, and at ./run's default.
  std::vector<DraftSpeed> run() { return {at_temperature(0), at_temperature(0.8f)}; }

 private:
  struct Text {
    std::vector<int> ids;  // with the prompt
    double seconds = 0;    // from its first new token to its last
    size_t proposed = 0, accepted = 0;
  };

  std::vector<std::vector<int>> prompts() {
    const ChatTemplate& chat = *large_.chat_template();
    const auto encode = [&](std::string_view text, bool bos) { return large_.encode(text, bos); };
    std::vector<std::vector<int>> all;
    if (chat.known())
      for (const char* message : kMessages) all.push_back(chat_turn(chat, encode, "", message, true));
    else
      for (const char* beginning : kBeginnings) all.push_back(large_.encode_prompt(beginning));
    return all;
  }

  DraftSpeed at_temperature(float temperature) {
    DraftSpeed speed{temperature};
    char step[48];
    std::snprintf(step, sizeof step, "texts at temperature %g", double(temperature));
    for (size_t i = 0; i < prompts_.size(); i++) {
      progress_(step);
      const bool draft_first = i % 2 == 1;  // so that a drift of the machine's speed favors neither
      Text plain, draft;
      if (draft_first) draft = write(i, temperature, true);
      plain = write(i, temperature, false);
      if (!draft_first) draft = write(i, temperature, true);
      if (draft.ids != plain.ids) throw Failure{1, "--draft changed a text, which is a bug; please report this CPU"};
      speed.texts++;
      speed.tokens += plain.ids.size() - std::min(plain.ids.size(), prompts_[i].size() + 1);
      speed.plain_seconds += plain.seconds;
      speed.draft_seconds += draft.seconds;
      speed.proposed += draft.proposed;
      speed.accepted += draft.accepted;
    }
    return speed;
  }

  /// Generates the text of a prompt as ./run does: the draft starts anew, and processes the prompt after its first
  /// token.
  Text write(size_t number, float temperature, bool with_draft) {
    const std::vector<int>& prompt = prompts_[number];
    Text text;
    text.ids = prompt;
    Sampler pick({temperature, 0.9f, number});
    std::unique_ptr<Draft> draft;
    if (with_draft) draft = small_.start(options_, text.ids);
    double first = 0;
    const auto on_token = [&](int id) {
      if (text.ids.size() == prompt.size()) first = seconds();
      text.ids.push_back(id);
      return !interrupted;
    };
    session_->rewind(0);
    const Propose propose = [&] { return draft->propose(pick); };
    const bool good = generate(*session_, pick, prompt, tokens_, stop_ids(), on_token, draft ? propose : Propose());
    text.seconds = first > 0 ? seconds() - first : 0;
    stop_if_interrupted();
    if (!good) throw_failure(*session_);
    if (!draft) return text;
    draft->settle();
    text.proposed = draft->proposed;
    text.accepted = draft->accepted;
    return text;
  }

  const std::vector<int>& stop_ids() {
    const ChatTemplate& chat = *large_.chat_template();
    return chat.known() ? chat.stop_ids : large_.file().stop_ids;
  }

  cli::Llama large_;
  cli::DraftModel small_;
  SessionOptions options_;
  int tokens_;  // of a text, at most
  std::vector<std::vector<int>> prompts_;
  Progress progress_;
  std::unique_ptr<Session> session_;
};

}  // namespace pocket::bench
