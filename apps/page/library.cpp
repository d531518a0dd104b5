// library.cpp: the C library of the page: that of apps/c, and what the page alone needs, a look inside a text.
#include "../c/pocketllama.cpp"

#include "../cli/token_text.hpp"
#include "../explain/explain.hpp"

extern "C" {

// The data of apps/explain, as JSON, for the first `end` tokens of a session, of which those from position `prompt` on were
// chosen with these settings. ended: because the model ended the text there. Valid until the next call; null: an error.
const char* pocket_page_explain(const pocket_session* session, int prompt, int end, int ended,
                                const pocket_sampling* sampling) {
  static std::string data;
  return guarded<const char*>(nullptr, [&]() -> const char* {
    if (!present(session, sampling)) return nullptr;
    if (prompt < 1 || end < prompt || size_t(end) > session->ids.size()) fail("explain: no such tokens");
    const OpenModel& open = *session->open;
    SessionOptions options = session->options;
    options.context = end;
    Session again(open.model, options);
    if (!again.error.empty()) fail(again.error);
    cli::TokenText text_of(open.tokenizer);
    explain::Text text = {"this model",
                          session->reply ? "chat" : "generate",
                          {session->ids.begin(), session->ids.begin() + end},
                          sampler_options(*sampling),
                          false,
                          [&](int id) { return text_of(id); }};
    data = explain::explain_again(again, text, size_t(prompt), ended != 0, open.tokenizer, [] { return true; });
    if (data.empty()) fail(again.error);
    return data.c_str();
  });
}
}
