// own_text.hpp: a model writes text for its draft to learn from: the text that it will write when the draft proposes.
//
//     chat model   the opening of its chat template; as the message, what the model writes there, or after one of the
//                  given beginnings of messages; then its reply. The replies have temperatures 0, 0.3, 0.6 and 0.9 in
//                  turn, since a draft serves all of them
//     other model  a text from its beginning (BOS), at temperatures 0.7 to 1
//
// Text i depends only on the model, the beginnings, the seed and i: the file is the same for any number of threads and
// interruptions, and on every day.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../export/program.hpp"
#include "examples.hpp"
#include "messages.hpp"
#include "own_text_file.hpp"
#include "progress_line.hpp"

namespace pocket {

// A model that writes text, with its tokenizer, which outlive the object.
class TextSource {
 public:
  static constexpr int kLongestText = 512, kLongestMessage = 128;  // tokens

  // messages: only for a chat model. Throws Failure if the chat template is invalid, or a message too long.
  TextSource(const Model& model, const Tokenizer& tokenizer, uint64_t seed, const Messages& messages = {})
      : model(model), tokenizer(tokenizer), longest(std::min(kLongestText, model.config.max_seq_len)), seed_(seed) {
    if (!chat_.load(model.chat_bytes(), model.vocab_size())) throw Failure{1, chat_.error};
    if (chat_.known())
      opening_ = encode_parts(dated(chat_.slot[ChatTemplate::kOpening]), encode_, true);
    else
      opening_ = ids_of(tokenizer, "");
    for (const auto slot : {ChatTemplate::kUserSuffix, ChatTemplate::kReplyPrefix})
      message_end_.insert(message_end_.end(), chat_.slot[slot].begin(), chat_.slot[slot].end());
    message_end_ = dated(message_end_);
    if (opening_.empty()) opening_.push_back(std::max(0, tokenizer.eos()));
    if (messages.lines.empty()) return;
    if (!chat()) throw Failure{2, "--messages: requires a chat model as the teacher"};
    for (const std::string& line : messages.lines) {
      beginnings_.push_back(encode_(line, false));
      if (const size_t n = beginnings_.back().size(); n >= size_t(std::min(kLongestMessage, longest / 2)))
        throw Failure{1, messages.path + ": expected messages of fewer than " +
                             std::to_string(std::min(kLongestMessage, longest / 2)) + " tokens, found " +
                             std::to_string(n) + " in '" + line.substr(0, 40) + "'"};
    }
  }

  TextSource(const TextSource&) = delete;
  TextSource& operator=(const TextSource&) = delete;

  const Model& model;
  const Tokenizer& tokenizer;
  const int longest;  // tokens of a text

  bool chat() const { return chat_.known(); }
  const std::vector<int>& opening() const { return opening_; }
  // How the message of a text begins; empty: as the model likes.
  std::vector<int> beginning(int64_t number) const {
    if (beginnings_.empty()) return {};
    uint64_t state = seed_ - uint64_t(number) - 1;  // sampler() counts upwards
    return beginnings_[next_random(state) % beginnings_.size()];
  }
  bool ends(int id) const {
    return id == tokenizer.eos() || std::find(chat_.stop_ids.begin(), chat_.stop_ids.end(), id) != chat_.stop_ids.end();
  }
  // Whether a message ends with this token: with the template's end of a message, or with a stop id.
  bool ends_message(int id) const { return ends(id) || (!message_end_.empty() && message_end_[0].id == id); }
  // Where a message ends, if its end is a text in the template; npos: not yet.
  size_t end_of_message(const std::string& text) const {
    return message_end_.empty() || message_end_[0].text.empty() ? text.npos : text.find(message_end_[0].text);
  }
  // The tokens up to the reply to a message.
  std::vector<int> until_reply(const std::string& message) const {
    return encode_parts(dated(chat_parts(chat_, "", message, true)), encode_, true);
  }
  // Of text `number`; message: of the message in it, not of the reply.
  Sampler sampler(int64_t number, bool message) const {
    uint64_t state = seed_ + uint64_t(number) * 2 + message;
    const float turn = float(number % 4);
    const float temperature = message ? 0.8f : chat() ? 0.3f * turn : 0.7f + 0.1f * turn;
    return Sampler({temperature, 1, next_random(state)});
  }

 private:
  const Encode encode_ = [this](std::string_view text, bool bos) { return ids_of(tokenizer, text, bos); };
  ChatTemplate chat_;
  ChatTemplate::Parts message_end_;
  std::vector<int> opening_;
  std::vector<std::vector<int>> beginnings_;  // of messages
  uint64_t seed_;
};

namespace own_text_detail {

// The most likely next tokens, with their probabilities. work: scratch memory.
inline std::vector<Candidate> candidates_of(const float* logits, int n, std::vector<float>& work) {
  std::vector<Candidate> best;
  const auto likelier = [](const Candidate& a, const Candidate& b) { return a.p > b.p; };
  for (int id = 0; id < n; id++) {
    if (best.size() == kMostCandidates && !(logits[id] > best.back().p)) continue;
    if (best.size() == kMostCandidates) best.pop_back();
    const Candidate c = {id, logits[id]};
    best.insert(std::upper_bound(best.begin(), best.end(), c, likelier), c);
  }
  work.assign(logits, logits + n);
  const float top = best[0].p;
  for (float& x : work) x -= top;
  exp_in_place(work.data(), n);
  double sum = 0;
  for (const float x : work) sum += double(x);
  for (Candidate& c : best) c.p = stored_probability(float(double(work[size_t(c.id)]) / sum));
  while (best.size() > 1 && best.back().p == 0) best.pop_back();
  return best;
}

}  // namespace own_text_detail

// A text in the making.
class TextInProgress {
 public:
  // opening: a session that is after the opening. Throws Failure.
  TextInProgress(const TextSource& source, int64_t number, Workspace& workspace, const Session& opening)
      : number(number),
        session(workspace, {source.longest}),
        source_(source),
        writes_message_(source.chat()),
        pick_(source.sampler(number, writes_message_)) {
    give(source.opening());
    const int known = int(text.size()) - 1;
    if (!session.error.empty() || !session.fork(opening, known)) throw Failure{1, session.error};
    std::vector<int> ids = source.beginning(number);
    ids.insert(ids.begin(), text.back().id);
    text.pop_back();
    give(ids);
  }

  const int64_t number;
  Session session;
  OwnText text;

  // The tokens for the next pass of the session.
  const std::vector<int>& next() const { return next_; }

  // Continues the text by one token, from the logits after next(). False once the text is complete.
  bool take(const float* logits, std::vector<float>& work) {
    const int id = pick_(logits, source_.model.vocab_size());
    if (id < 0) throw std::bad_alloc();
    text.push_back({id, own_text_detail::candidates_of(logits, source_.model.vocab_size(), work)});
    next_ = {id};
    if (int(text.size()) >= source_.longest || loop_.push(id)) return false;
    return writes_message_ ? continue_message(id) : !source_.ends(id);
  }

 private:
  // Appends tokens that the model did not choose.
  void give(const std::vector<int>& ids) {
    for (const int id : ids) text.push_back({id, {}});
    next_ = ids;
  }

  bool continue_message(int id) {
    const bool end = source_.ends_message(id);
    std::vector<int> ids;
    for (size_t i = source_.opening().size(); i + end < text.size(); i++) ids.push_back(text[i].id);
    const std::string message = text_of(source_.tokenizer, ids);
    const size_t at = source_.end_of_message(message);
    if (!end && at == message.npos) return int(ids.size()) < TextSource::kLongestMessage;
    return begin_reply(message.substr(0, at));
  }

  // Replaces the end of the message by the end that the template gives it, and the beginning of the reply. The tokens of
  // a message that a user types may differ from those that the model wrote for the same text. False if there is no room
  // for a reply.
  bool begin_reply(const std::string& message) {
    const std::vector<int> ids = source_.until_reply(message);
    if (ids.empty()) throw std::bad_alloc();
    if (int(ids.size()) >= source_.longest) return false;
    const OwnToken end = text.back();
    const size_t message_end = text.size() - 1;
    size_t same = 0;
    while (same < message_end && same + 1 < ids.size() && text[same].id == ids[same]) same++;
    text.resize(same);
    session.rewind(int(same));
    give({ids.begin() + ptrdiff_t(same), ids.end()});
    if (same == message_end && text[same].id == end.id) text[same].candidates = end.candidates;
    writes_message_ = false;
    pick_ = source_.sampler(number, false);
    return true;
  }

  const TextSource& source_;
  bool writes_message_;
  Sampler pick_;
  LoopWatch loop_;
  std::vector<int> next_;
};

// Writes texts to a file until it has enough tokens.
class OwnTextWriter {
 public:
  OwnTextWriter(const TextSource& source, OwnTextFile& file, int threads)
      : source_(source),
        file_(file),
        workspace_(source.model, {0, threads}),
        opening_(workspace_, {source.longest}),
        pool_(threads),
        work_(size_t(pool_.threads())) {}

  // Throws Failure.
  void write(int64_t tokens) {
    written_ = file_.count_tokens();
    started_ = int64_t(file_.texts.size());
    if (written_ >= tokens) return;
    if (!workspace_.error.empty()) throw Failure{1, workspace_.error};
    const std::vector<int>& ids = source_.opening();
    if (!opening_.forward(ids.data(), ids.size())) throw Failure{1, opening_.error};
    std::fprintf(stderr, "train: the teacher writes its own text: %lld tokens%s\n", static_cast<long long>(tokens),
                 written_ ? (", has " + std::to_string(written_)).c_str() : "");
    const int64_t before = written_;
    const double start = seconds();
    while (written_ < tokens) {
      while (int(unfinished_.size()) < at_once(tokens))
        unfinished_.push_back(std::make_unique<TextInProgress>(source_, started_++, workspace_, opening_));
      pass();
      if (interrupted)
        throw Failure{130, "interrupted after " + std::to_string(written_) + " of " + std::to_string(tokens) +
                               " tokens of own text; to continue, give the same command"};
      append_complete(tokens);
      show(before, tokens, seconds() - start);
    }
    line_.clear();
  }

 private:
  static constexpr int64_t kAtOnce = 32;  // texts that are written at the same time, at most

  // As many texts as the missing tokens need at least. A text does not depend on the others.
  int at_once(int64_t tokens) const {
    int64_t missing = tokens - written_;
    for (const auto& [number, text] : complete_) missing -= int64_t(text.size());
    return int(std::min(kAtOnce, (missing + source_.longest - 1) / source_.longest));
  }

  // Adds a token to every text, and takes out those that are complete.
  void pass() {
    std::vector<char> complete(unfinished_.size());
    std::vector<Step> steps;
    for (const auto& text : unfinished_) steps.push_back({&text->session, text->next().data(), text->next().size()});
    if (!workspace_.forward(steps.data(), steps.size()))
      for (const auto& text : unfinished_)
        if (!text->session.error.empty()) throw Failure{1, text->session.error};
    pool_.parallel_for(int(unfinished_.size()), [&](int i, int thread) {
      complete[size_t(i)] = !unfinished_[size_t(i)]->take(steps[size_t(i)].logits, work_[size_t(thread)]);
    });
    for (size_t i = unfinished_.size(); i-- > 0;) {
      TextInProgress& text = *unfinished_[i];
      if (!complete[i]) continue;
      complete_[text.number] = std::move(text.text);
      unfinished_.erase(unfinished_.begin() + ptrdiff_t(i));
    }
  }

  // Texts are appended in the order of their numbers, whichever is complete first.
  void append_complete(int64_t tokens) {
    for (auto i = complete_.begin();
         i != complete_.end() && i->first == int64_t(file_.texts.size()) && written_ < tokens; i = complete_.erase(i)) {
      written_ += int64_t(i->second.size());
      if (!file_.append(std::move(i->second))) throw Failure{1, file_.error};
    }
  }

  void show(int64_t before, int64_t tokens, double time) {
    int64_t done = written_ - before;  // with the unfinished texts
    for (const auto& text : unfinished_) done += int64_t(text->text.size());
    for (const auto& [number, text] : complete_) done += int64_t(text.size());
    const double speed = double(done) / time;
    char line[160];
    std::snprintf(line, sizeof line, "own text: %lld of %lld tokens, %.0f tokens/s, %s left",
                  static_cast<long long>(std::min(before + done, tokens)), static_cast<long long>(tokens), speed,
                  duration_text(std::max(0.0, double(tokens - before - done) / speed)).c_str());
    line_.show(line);
  }

  const TextSource& source_;
  OwnTextFile& file_;
  Workspace workspace_;
  Session opening_;                       // after the opening, which texts continue
  Pool pool_;                             // chooses tokens
  std::vector<std::vector<float>> work_;  // of each thread
  std::vector<std::unique_ptr<TextInProgress>> unfinished_;
  std::map<int64_t, OwnText> complete_;  // by number: those that wait for an earlier one
  int64_t started_ = 0, written_ = 0;    // texts; tokens in the file
  ProgressLine line_;
};

}  // namespace pocket
