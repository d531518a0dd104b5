// tokenizer.hpp: converts between text and token ids, for Llama models. One header, C++17, no dependencies.
//
//   pocket::Tokenizer tokenizer;
//   if (!tokenizer.load(model.tokenizer_bytes())) { puts(tokenizer.error.c_str()); return 1; }  // of a model file
//   std::vector<int> ids = tokenizer.encode("Once upon a time");     // starts with BOS if the model uses it
//   std::string text = tokenizer.decode(ids);
//   pocket::Tokenizer::Stream stream(tokenizer);                     // or decode one id at a time:
//   for (int id : ids) std::cout << stream.push(id);                 // whole UTF-8 characters only
//   std::cout << stream.flush();
//
// tokenizer.load_sentencepiece(bytes) loads a SentencePiece .model file instead.
//
// Both kinds of tokenizer are byte-pair encoding (BPE; Sennrich et al. 2016, arxiv.org/abs/1508.07909): start from
// small symbols, then repeatedly merge the best pair of neighbours that the vocabulary has a piece for. They differ in
// what a symbol is and in which pair is best:
//
//                            SentencePiece (Llama 2, TinyLlama)         byte-level (GPT-2, SmolLM2, Llama 3)
//   initial symbols          characters; a space is written U+2581      bytes
//   scope of merging         the whole text                             one word, split off by a pattern
//   best pair                highest score, then leftmost               earliest learned merge, then leftmost
//   symbol without a piece   its UTF-8 bytes, one token each            dropped (only if a byte has no piece)
//
// Text is bytes with a length: NUL is an ordinary character, and invalid UTF-8 becomes U+FFFD. Text never becomes a
// control token, whatever it contains; a program adds control tokens by id. A loaded Tokenizer is immutable, so any
// number of threads may share it.
//
// No function of a Tokenizer, a Stream or a ChatTemplate throws. If memory runs out, load(), encode() and decode() return
// false, Stream::failed() is true, and chat_turn() returns no ids. The short forms encode(text) and decode(ids) return an
// empty result, which a program may take for that of an empty text: it should check a result of false instead, or use
// ids_of() and printed_text(), which throw std::bad_alloc, as do the functions for converters.
//
// Contents: 1 interface · 2 UTF-8 · 3 merging · 4 encoding · 5 splitting into words · 6 decoding ·
//           7 loading: the blob · 8 loading: SentencePiece .model files · 9 Unicode letters and numbers ·
//           10 conversations
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <new>
#include <queue>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

// Source files compiled with different -m flags must not share inline functions: of all copies the linker keeps one,
// whose instructions the CPU may lack. So the flags are part of every name: a macro that is defined is pasted as 1.
#ifndef POCKET_ISA
#define POCKET_PASTE(A, B, C, D, E, F, G, H, I, J, K, L, M, N) isa_##A##B##C##D##E##F##G##H##I##J##K##L##M##N
#define POCKET_PASTE_VALUES(...) POCKET_PASTE(__VA_ARGS__)
#define POCKET_ISA                                                                                                   \
  POCKET_PASTE_VALUES(__SSE3__, __SSSE3__, __SSE4_1__, __SSE4_2__, __POPCNT__, __AVX__, __FMA__, __BMI2__, __AVX2__, \
                      __AVX512F__, __AVX512VL__, __AVX512VNNI__, __ARM_FEATURE_SVE, __ARM_FEATURE_DOTPROD)
#endif

namespace pocket {
inline namespace POCKET_ISA {

// ====================================================================================================================
// 1. Interface
// ====================================================================================================================

namespace tokenizer_detail {
struct BlobHeader;
struct Symbol;

// Finds, at every byte of a text, the longest of some pieces that starts there. Takes time in proportion to the text, for
// any pieces: the automaton of Aho and Corasick (1975) of the reversed pieces reads the text from its end.
class PieceFinder {
 public:
  // Piece sizes are 1 to 65535 bytes.
  PieceFinder() = default;  // no pieces
  explicit PieceFinder(std::vector<std::string_view> pieces);
  bool empty() const { return nodes_.empty(); }
  // (bytes of text): the size of the piece; 0: none starts there.
  std::vector<uint16_t> find(std::string_view text) const;

 private:
  // A node stands for the last bytes of some pieces. Nodes are in the order of their depth; the root is node 0.
  struct Node {
    uint32_t children;  // the first one; they end where those of the next node begin, and are sorted by byte
    uint32_t shorter;   // the node of the longest of its prefixes that is a node; of the root: the root
    uint16_t longest;   // size of the longest piece that it starts with; 0: none
    uint8_t byte;       // its first byte
  };
  uint32_t next(uint32_t node, uint8_t byte) const;
  std::vector<Node> nodes_;
};
}  // namespace tokenizer_detail

class Tokenizer {
 public:
  enum class Kind : uint32_t { sentencepiece = 1, byte_level = 2 };
  // Values 1 to 6 as in sentencepiece_model.proto. A user-defined piece was defined when SentencePiece trained the
  // vocabulary, and is found in the normalized text. The others were added later by another library: an added token is
  // cut out of the text before anything else, and each stretch between is normalized and encoded on its own; a normalized
  // added token is cut out of the normalized text.
  enum class PieceType : uint8_t {
    normal = 1,
    unknown = 2,
    control = 3,
    user_defined = 4,
    unused = 5,
    byte = 6,
    added = 7,
    added_normalized = 8
  };
  // Bits: settings of a control or added token. White space before or after it belongs to it; it is none where it
  // touches a word. (Of the last, only control tokens have it, and then no chat template can contain them.)
  enum Strip : uint8_t { kStripLeft = 1, kStripRight = 2, kSingleWord = 4 };
  // Byte-level BPE: the pattern that splits a text into words.
  enum class Split : uint32_t { none = 0, gpt2 = 1, smollm = 2, llama3 = 3 };

  // An entry of the vocabulary.
  struct Piece {
    std::string text;  // byte-level: the raw bytes; SentencePiece: U+2581 stands for a space, <0x41> for a byte
    float score = 0;   // SentencePiece: pairs with a higher score merge first
    PieceType type = PieceType::normal;
    uint8_t strip = 0;  // bits of Strip
  };

  // A complete tokenizer definition. Readers of tokenizer files fill it; to_blob() serializes it.
  struct Vocabulary {
    Kind kind = Kind::sentencepiece;
    std::vector<Piece> pieces;                // indexed by id
    std::vector<std::pair<int, int>> merges;  // byte-level: pairs of ids, in the order learned
    int bos = -1, eos = -1, unk = -1;         // ids of beginning of sequence, end of sequence, unknown; -1: none
    bool add_bos = false;                     // encode() starts with BOS
    // The SentencePiece normalizer:
    bool add_dummy_prefix = false;          // adds a space before the text, and before each stretch after a token
    bool prefix_only_at_start = false;      // ... only before the text
    bool remove_extra_whitespaces = false;  // strips spaces at both ends, collapses repeated spaces
    bool escape_whitespaces = false;        // writes a space as U+2581
    bool byte_fallback = false;             // a character without a piece becomes its bytes; otherwise `unk`
    // Spaces are the work of the pre-tokenizer Metaspace of Hugging Face: none is added before a space, and normalized
    // added tokens have been cut out before.
    bool metaspace = false;
    std::string unk_surface;  // the text that `unk` decodes to
    // Byte-level:
    Split split = Split::none;
    bool ignore_merges = false;  // a word that is itself a piece becomes that piece without merging
  };

  // Loads the blob stored in a model file, or returned by to_blob(). The bytes are copied. On failure returns false and
  // sets `error` to the field, the expected value and the value found.
  bool load(std::string_view blob);
  // Loads the contents of a SentencePiece .model file in the same way.
  bool load_sentencepiece(std::string_view model);
  std::string error;

  // For converters: parses a SentencePiece .model file. Rejects models that are not BPE and normalizers with a
  // character map. On failure returns false and sets `error`.
  static bool parse_sentencepiece(std::string_view model, Vocabulary& out, std::string& error);
  // For converters: the blob that load() reads.
  static std::string to_blob(const Vocabulary& vocabulary);

  // Stores the ids of a text. `bos`: it begins a sequence, with BOS if the model uses it; otherwise it continues one after
  // a control token, which for some models means without the added space. Takes O(n log n) time. Returns false, and no
  // ids, if nothing is loaded, memory runs out, or the text is longer than 1 GiB.
  [[nodiscard]] bool encode(std::string_view text, bool bos, std::vector<int>& ids) const;
  // Returns the ids; none where the function above returns false.
  std::vector<int> encode(std::string_view text, bool bos = true) const;
  // Stores the text of the ids. Ids out of range are skipped. SentencePiece: control tokens are skipped and the space
  // added by encode() is removed. Byte-level: control tokens are written out. Returns false, and "", if memory runs out.
  [[nodiscard]] bool decode(const std::vector<int>& ids, std::string& text) const;
  // Returns the text; "" where the function above returns false.
  std::string decode(const std::vector<int>& ids) const;

  // Decodes one id at a time. The concatenated output equals that of decode().
  class Stream {
   public:
    explicit Stream(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
    // Returns the text that the id completes: whole UTF-8 characters. The bytes of an incomplete one are kept.
    std::string push(int id);
    // Ends the text: returns the kept bytes as U+FFFD. The next push() starts a new text.
    std::string flush();
    // Whether memory ran out in a push() or flush(), which then returned "".
    bool failed() const { return failed_; }

   private:
    void push_piece(int id, std::string& out);
    void drain(bool all, std::string& out);

    const Tokenizer* tokenizer_;
    std::string pending_;         // bytes of an incomplete character
    bool has_output_ = false;     // the text so far is not empty
    bool at_start_ = true;        // SentencePiece: a leading space would be the one added by encode()
    bool removed_space_ = false;  // SentencePiece: the leading space of the last piece was removed
    bool failed_ = false;
  };

  // Returns the id of the control, user-defined or added piece with this text, or -1.
  int find(std::string_view text) const;
  // Whether text can become this piece as a whole, without merging: it is user-defined or added.
  bool is_marker(int id) const;
  // For converters, and before the tokenizer is shared: turns markers among these ids into control tokens, which text
  // never becomes. On failure returns false, and nothing is loaded.
  bool make_control(const std::vector<int>& ids);
  // The blob that is loaded.
  const std::string& blob() const { return blob_; }
  // Returns the text of a piece; "" if the id is out of range.
  std::string_view piece(int id) const;
  // Returns the type of a piece; `unused` if the id is out of range.
  PieceType type(int id) const;
  // Returns the bits of Strip of a piece.
  uint8_t strip(int id) const;
  // The number of pieces.
  int size() const { return int(n_pieces_); }
  // Returns a number of ids that encode() reaches or exceeds, in a fraction of its time: the size of the text, without
  // white space and unknown bytes, divided by that of the longest piece; 0 if unknown characters share one id, or the
  // normalizer removes spaces.
  size_t least_ids(std::string_view text) const;
  // The ids of "beginning of sequence" and "end of sequence"; -1: none.
  int bos() const { return bos_; }
  int eos() const { return eos_; }
  // Whether encode() starts with BOS.
  bool adds_bos() const { return add_bos_; }
  Kind kind() const { return kind_; }

 private:
  // Maps keys to ints (ids or ranks) by hash, with open addressing. The keys are stored elsewhere: the caller compares
  // them with equal(value). Of equal keys, the first inserted is kept.
  class HashIndex {
   public:
    void reserve(size_t n) {
      size_t size = 16;
      while (size < 2 * n) size *= 2;
      slots_.assign(size, -1);
    }
    template <class Equal> int find(uint64_t hash, const Equal& equal) const {
      if (slots_.empty()) return -1;
      return slots_[slot(hash, equal)];
    }
    template <class Equal> void insert(uint64_t hash, int value, const Equal& equal) {
      int& s = slots_[slot(hash, equal)];
      if (s < 0) s = value;
    }

   private:
    template <class Equal> size_t slot(uint64_t hash, const Equal& equal) const {
      size_t i = hash & (slots_.size() - 1);
      while (slots_[i] >= 0 && !equal(slots_[i])) i = (i + 1) & (slots_.size() - 1);
      return i;
    }
    std::vector<int> slots_;  // -1: empty; the size is a power of two
  };

  using Symbol = tokenizer_detail::Symbol;

  // Tokens that are cut out of a text.
  struct Markers {
    std::unordered_map<std::string, int> ids;  // by the text that is searched
    tokenizer_detail::PieceFinder finder;
  };

  bool check_header(const tokenizer_detail::BlobHeader& h);
  bool parse_blob();
  bool check_pieces();
  bool index_pieces();
  void index_markers();
  bool index_merges();
  bool fail(const std::string& field, const std::string& expected, const std::string& found);

  template <class T> T at(size_t offset) const;
  float score(int id) const { return at<float>(scores_at_ + 4 * size_t(id)); }
  std::pair<int, int> merge(int rank) const;
  std::string_view unk_surface() const { return std::string_view(blob_).substr(unk_surface_at_); }
  int find_piece(std::string_view text) const;
  int find_merge(int left, int right) const;
  template <class Stretch, class Token>
  void cut(const Markers& markers, std::string_view text, const Stretch& stretch, const Token& token) const;
  std::string normalize(std::string_view text, bool at_start) const;
  void encode_stretch(std::string_view text, bool at_start, std::vector<int>& ids) const;
  void encode_sentencepiece(std::string_view text, std::vector<int>& ids) const;
  void append_ids(std::string_view symbol, int id, const std::unordered_map<int, size_t>& left_sizes,
                  bool& after_unknown, std::vector<int>& ids) const;
  void encode_byte_level(std::string_view text, std::vector<int>& ids) const;
  void encode_word(std::string_view word, std::vector<Symbol>& symbols, std::vector<int>& ids) const;

  std::string blob_;  // the only copy of the vocabulary; the members below are fields of it, offsets and indices
  Kind kind_ = Kind::sentencepiece;
  Split split_ = Split::none;
  bool add_bos_ = false, add_dummy_prefix_ = false, prefix_only_at_start_ = false, metaspace_ = false,
       remove_extra_whitespaces_ = false, escape_whitespaces_ = false, byte_fallback_ = false, ignore_merges_ = false;
  int bos_ = -1, eos_ = -1, unk_ = -1;
  size_t n_pieces_ = 0, n_merges_ = 0;
  size_t ends_at_ = 0, scores_at_ = 0, merges_at_ = 0, types_at_ = 0, text_at_ = 0, unk_surface_at_ = 0;  // offsets
  int byte_id_[256] = {};    // id of each byte; -1: no piece
  HashIndex by_text_;        // ids of the pieces that text can become
  HashIndex by_pair_;        // ranks of the merges, by left and right id
  std::vector<int> merged_;  // by rank: id of the merged piece
  tokenizer_detail::PieceFinder user_defined_;
  Markers added_, added_normalized_;
  size_t longest_piece_ = 1;  // of by_text_, in bytes
};

// For programs: the ids of a text, and the text of ids. Throw std::bad_alloc where encode() and decode() return false.
inline std::vector<int> ids_of(const Tokenizer& tokenizer, std::string_view text, bool bos = true);
inline std::string text_of(const Tokenizer& tokenizer, const std::vector<int>& ids);

// Returns the text of the next id of a stream as a program prints it. A control token has none. Throws std::bad_alloc if
// the stream has failed.
inline std::string printed_text(const Tokenizer& tokenizer, Tokenizer::Stream& stream, int id);
// The same for the end of a text: flush().
inline std::string printed_rest(Tokenizer::Stream& stream);

// Whether a character acts on a terminal or on the order of a line instead of being shown: a control character, a line
// or paragraph separator, or an explicit change of the writing direction.
inline bool acts_on_terminal(char32_t code);
// Returns a text without such characters except newline and tab, and with U+FFFD for invalid UTF-8, so that it is safe
// to print on a terminal.
inline std::string without_controls(const std::string& text);
// The same as a part of one line, for messages that quote file names or names in a file: line breaks and tabs become
// spaces.
inline std::string one_line(const std::string& text);

// ====================================================================================================================
// 2. UTF-8
// ====================================================================================================================

namespace tokenizer_detail {

inline constexpr char kSpaceMark[] = "\xE2\x96\x81";    // U+2581: a space in SentencePiece pieces
inline constexpr char kReplacement[] = "\xEF\xBF\xBD";  // U+FFFD: replaces invalid UTF-8
// Fits into the string object itself, so that a handler of std::bad_alloc can assign it.
inline constexpr char kOutOfMemory[] = "out of memory";

// The result of decoding one character.
struct Utf8 {
  enum State { whole, cut_short, invalid } state;
  size_t length;  // bytes of the character; if not whole, of its valid prefix, at least 1
  char32_t code;
};

// Decodes the character at the start of s, which is not empty. The range of the second byte excludes overlong forms,
// surrogates and code points above U+10FFFF (The Unicode Standard, table 3-7).
inline Utf8 read_utf8(std::string_view s) {
  const uint8_t first = uint8_t(s[0]);
  if (first < 0x80) return {Utf8::whole, 1, first};
  if (first < 0xC2 || first > 0xF4) return {Utf8::invalid, 1, 0};
  const size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  char32_t code = first & (0x7F >> length);
  for (size_t i = 1; i < length; i++) {
    if (i == s.size()) return {Utf8::cut_short, i, 0};
    const uint8_t byte = uint8_t(s[i]);
    if (byte < low || byte > high) return {Utf8::invalid, i, 0};
    code = code << 6 | (byte & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8::whole, length, code};
}

// Moves the character at the start of s to the end of out. Invalid UTF-8 becomes one U+FFFD per byte (each_byte, as in
// SentencePiece) or one per maximal valid prefix (as Unicode recommends and Rust does).
inline void take_character(std::string_view& s, bool each_byte, std::string& out) {
  const Utf8 c = read_utf8(s);
  const size_t n = c.state == Utf8::whole || !each_byte ? c.length : 1;
  if (c.state == Utf8::whole)
    out.append(s, 0, n);
  else
    out += kReplacement;
  s.remove_prefix(n);
}

// The value of a byte piece, <0x00> to <0xFF>; -1 for any other text.
inline int byte_value(std::string_view piece) {
  if (piece.size() != 6 || piece.substr(0, 3) != "<0x" || piece[5] != '>') return -1;
  int value = 0;
  for (char c : piece.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

// ====================================================================================================================
// 3. Merging
// ====================================================================================================================

// A token or a part of one. The symbols of a text form a list, linked by index.
struct Symbol {
  uint32_t begin, size;  // bytes; size 0: merged into the previous symbol
  int id;                // of its piece; -1: none
  int prev, next;        // -1 at the ends
};

// Appends a symbol to the list.
inline void append_symbol(std::vector<Symbol>& symbols, size_t begin, size_t size, int id) {
  const int i = int(symbols.size());
  if (i > 0) symbols.back().next = i;
  symbols.push_back({uint32_t(begin), uint32_t(size), id, i - 1, -1});
}

// The result of merging two neighbours.
struct Joined {
  int id = -1;       // -1: the pair does not merge
  double score = 0;  // the highest merges first
};

// A pair that may be merged.
struct Candidate {
  double score;
  int id, left;
  uint32_t left_size, right_size;
  bool operator<(const Candidate& o) const { return score != o.score ? score < o.score : left > o.left; }
};

// Merges neighbours, the highest score first and the leftmost of equal scores first, until no pair merges.
// join(left, right) -> Joined. Merging a pair leaves outdated candidates in the queue; a candidate is valid only if the
// sizes of both symbols are unchanged.
template <class Join> void join_symbols(std::vector<Symbol>& symbols, const Join& join) {
  std::vector<Candidate> pairs;
  pairs.reserve(symbols.size());
  std::priority_queue<Candidate> queue(std::less<Candidate>(), std::move(pairs));
  const auto consider = [&](int i) {
    if (i < 0 || symbols[i].next < 0) return;
    const Symbol &left = symbols[i], &right = symbols[left.next];
    if (const Joined j = join(left, right); j.id >= 0) queue.push({j.score, j.id, i, left.size, right.size});
  };
  for (size_t i = 0; i < symbols.size(); i++) consider(int(i));
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.left];
    if (left.size != best.left_size || left.next < 0 || symbols[left.next].size != best.right_size) continue;
    Symbol& right = symbols[left.next];
    left.size += right.size;
    left.id = best.id;
    left.next = right.next;
    right.size = 0;
    if (left.next >= 0) symbols[left.next].prev = best.left;
    consider(left.prev);
    consider(best.left);
  }
}

// ---- User-defined pieces ----

inline PieceFinder::PieceFinder(std::vector<std::string_view> pieces) {
  const auto byte_of = [](std::string_view piece, size_t depth) { return uint8_t(piece[piece.size() - 1 - depth]); };
  const auto less = [](char a, char b) { return uint8_t(a) < uint8_t(b); };
  std::sort(pieces.begin(), pieces.end(), [&](std::string_view a, std::string_view b) {
    return std::lexicographical_compare(a.rbegin(), a.rend(), b.rbegin(), b.rend(), less);
  });
  size_t nodes = 2;  // with the root and the end
  for (size_t i = 0; i < pieces.size(); i++) {
    const std::string_view before = i > 0 ? pieces[i - 1] : std::string_view(), piece = pieces[i];
    const auto shared = std::mismatch(piece.rbegin(), piece.rend(), before.rbegin(), before.rend()).first;
    nodes += size_t(piece.rend() - shared);
  }
  nodes_.reserve(nodes);
  using Range = std::pair<size_t, size_t>;  // of the pieces that end with the bytes of a node
  std::vector<Range> level = {{0, pieces.size()}}, deeper;
  nodes_.push_back({0, 0, 0, 0});
  uint32_t node = 0;
  for (size_t depth = 0; !level.empty(); depth++, level.swap(deeper), deeper.clear())
    for (auto [i, end] : level) {
      nodes_[node].children = uint32_t(nodes_.size());
      if (i < end && pieces[i].size() == depth) i++;  // the piece of the node itself
      for (size_t j = i; i < end; i = j) {
        const uint8_t byte = byte_of(pieces[i], depth);
        while (j < end && byte_of(pieces[j], depth) == byte) j++;
        const uint32_t shorter = depth == 0 ? 0 : next(nodes_[node].shorter, byte);
        const bool whole = pieces[i].size() == depth + 1;
        nodes_.push_back({0, shorter, whole ? uint16_t(depth + 1) : nodes_[shorter].longest, byte});
        deeper.push_back({i, j});
      }
      node++;
    }
  nodes_.push_back({uint32_t(nodes_.size()), 0, 0, 0});  // the end of the last node's children
}

// The node of the longest text that starts with `byte` and continues with the text of `node`, or with the beginning of it.
inline uint32_t PieceFinder::next(uint32_t node, uint8_t byte) const {
  for (;; node = nodes_[node].shorter) {
    const auto begin = nodes_.begin() + nodes_[node].children, end = nodes_.begin() + nodes_[node + 1].children;
    const auto child = std::lower_bound(begin, end, byte, [](const Node& n, uint8_t b) { return n.byte < b; });
    if (child != end && child->byte == byte) return uint32_t(child - nodes_.begin());
    if (node == 0) return 0;
  }
}

inline std::vector<uint16_t> PieceFinder::find(std::string_view text) const {
  std::vector<uint16_t> found(text.size());
  uint32_t node = 0;
  for (size_t i = nodes_.empty() ? 0 : text.size(); i-- > 0;) {
    node = next(node, uint8_t(text[i]));
    found[i] = nodes_[node].longest;
  }
  return found;
}

// ---- White space next to a token ----

inline bool is_space(char32_t code);  // section 9

// The size of a text without the white space at its end, or at its start.
inline size_t without_trailing_space(std::string_view s) {
  while (!s.empty()) {
    size_t last = s.size() - 1;
    while (last > 0 && (uint8_t(s[last]) & 0xC0) == 0x80) last--;
    if (!is_space(read_utf8(s.substr(last)).code)) break;
    s.remove_suffix(s.size() - last);
  }
  return s.size();
}
inline size_t without_leading_space(std::string_view s) {
  while (!s.empty() && is_space(read_utf8(s).code)) s.remove_prefix(read_utf8(s).length);
  return s.size();
}

// ---- Words ----

// Calls each(word) for the words of a text in order; their concatenation is the text. Defined in section 5.
template <class Each> void for_each_word(Tokenizer::Split split, std::string_view text, const Each& each);

}  // namespace tokenizer_detail

// ====================================================================================================================
// 4. Encoding
// ====================================================================================================================

inline bool Tokenizer::encode(std::string_view text, bool bos, std::vector<int>& ids) const try {
  constexpr size_t kMaxText = size_t(1) << 30;  // Symbol::begin has 32 bits, and a byte may become three (U+FFFD)
  ids.clear();
  if (n_pieces_ == 0 || text.size() > kMaxText) return false;
  if (bos && add_bos_) ids.push_back(bos_);
  std::string valid;
  if (kind_ == Kind::byte_level) {
    valid.reserve(text.size());
    while (!text.empty()) tokenizer_detail::take_character(text, false, valid);
    text = valid;
  }
  cut(
      added_, text,
      [&](std::string_view stretch) { encode_stretch(stretch, bos && stretch.data() == text.data(), ids); },
      [&](int id) { ids.push_back(id); });
  return true;
} catch (const std::exception&) {  // out of memory
  ids.clear();
  return false;
}

inline std::vector<int> Tokenizer::encode(std::string_view text, bool bos) const {
  std::vector<int> ids;
  if (!encode(text, bos, ids)) ids.clear();
  return ids;
}

inline std::vector<int> ids_of(const Tokenizer& tokenizer, std::string_view text, bool bos) {
  std::vector<int> ids;
  if (!tokenizer.encode(text, bos, ids)) throw std::bad_alloc();
  return ids;
}

inline size_t Tokenizer::least_ids(std::string_view text) const {
  if (kind_ == Kind::sentencepiece && (!byte_fallback_ || remove_extra_whitespaces_)) return 0;
  const auto counts = [this](char c) { return c != ' ' && !(c >= '\t' && c <= '\r') && byte_id_[uint8_t(c)] >= 0; };
  return size_t(std::count_if(text.begin(), text.end(), counts)) / longest_piece_;
}

// Calls stretch(text) and token(id) for the parts of a text in order: the tokens that it contains, leftmost first and the
// longest of those that start together, and what is between them without the white space that belongs to a token. (The
// rules of Hugging Face's tokenizers.)
template <class Stretch, class Token>
void Tokenizer::cut(const Markers& markers, std::string_view text, const Stretch& stretch, const Token& token) const {
  using namespace tokenizer_detail;
  if (markers.finder.empty()) {
    if (!text.empty()) stretch(text);
    return;
  }
  const std::vector<uint16_t> found = markers.finder.find(text);
  size_t begin = 0;  // of the stretch
  for (size_t i = 0; i < text.size(); i += std::max<size_t>(found[i], 1)) {
    if (found[i] == 0) continue;
    const int id = markers.ids.at(std::string(text.substr(i, found[i])));
    const std::string_view before = text.substr(begin, i > begin ? i - begin : 0);
    const size_t kept = strip(id) & kStripLeft ? without_trailing_space(before) : before.size();
    if (kept > 0) stretch(before.substr(0, kept));
    token(id);
    if (strip(id) & kStripRight)  // what the token before has stripped is not read again
      begin = text.size() - without_leading_space(text.substr(std::max(begin, i + found[i])));
    else
      begin = i + found[i];
  }
  if (begin < text.size()) stretch(text.substr(begin));
}

// Encodes the text between added tokens. at_start: it begins a sequence.
inline void Tokenizer::encode_stretch(std::string_view text, bool at_start, std::vector<int>& ids) const {
  const auto token = [&](int id) { ids.push_back(id); };
  if (kind_ == Kind::byte_level) {
    cut(
        added_normalized_, text, [&](std::string_view words) { encode_byte_level(words, ids); }, token);
  } else if (metaspace_) {
    const auto encode = [&](std::string_view part) {
      encode_sentencepiece(normalize(part, at_start && part.data() == text.data()), ids);
    };
    cut(added_normalized_, text, encode, token);
  } else {
    const std::string normalized = normalize(text, at_start);
    cut(
        added_normalized_, normalized, [&](std::string_view part) { encode_sentencepiece(part, ids); }, token);
  }
}

// The SentencePiece normalizer with the "identity" rules (normalizer.cc). Where a space is only added at the start of a
// sequence, a stretch keeps the spaces that it begins with.
inline std::string Tokenizer::normalize(std::string_view text, bool at_start) const {
  const std::string_view space = escape_whitespaces_ ? tokenizer_detail::kSpaceMark : " ";
  const bool strips_start = remove_extra_whitespaces_ && !prefix_only_at_start_;
  const std::vector<uint16_t> user_defined = user_defined_.find(text);
  size_t i = 0;
  while (strips_start && i < text.size() && text[i] == ' ' && user_defined[i] <= 1) i++;
  std::string out;
  if (i == text.size()) return out;
  out.reserve(text.size() + text.size() / 2 + 3);
  const bool has_space = metaspace_ && (text[0] == ' ' || text.substr(0, space.size()) == space);
  if (add_dummy_prefix_ && (at_start || !prefix_only_at_start_) && !has_space) out += space;
  bool after_space = strips_start;
  while (i < text.size()) {
    std::string_view rest = text.substr(i);
    std::string part;
    if (user_defined[i] > 0)
      part = rest.substr(0, user_defined[i]);
    else
      tokenizer_detail::take_character(rest, true, part);
    i += user_defined[i] > 0 ? part.size() : text.size() - i - rest.size();
    const size_t from = after_space ? std::min(part.find_first_not_of(' '), part.size()) : 0;
    for (char c : part.substr(from)) c == ' ' ? out += space : out += c;
    if (from < part.size()) after_space = remove_extra_whitespaces_ && part.back() == ' ';
  }
  while (remove_extra_whitespaces_ && out.size() >= space.size() &&
         out.compare(out.size() - space.size(), space.size(), space) == 0)
    out.resize(out.size() - space.size());
  return out;
}

inline void Tokenizer::encode_sentencepiece(std::string_view text, std::vector<int>& ids) const {
  using namespace tokenizer_detail;
  const std::vector<uint16_t> user_defined = user_defined_.find(text);
  std::vector<Symbol> symbols;
  symbols.reserve(text.size());
  for (size_t i = 0; i < text.size(); i += symbols.back().size) {
    const size_t size = user_defined[i] ? user_defined[i] : read_utf8(text.substr(i)).length;
    append_symbol(symbols, i, size, find_piece(text.substr(i, size)));
  }
  std::unordered_map<int, size_t> left_sizes;  // id of an unused piece -> bytes of its left part
  join_symbols(symbols, [&](const Symbol& left, const Symbol& right) -> Joined {
    if (type(left.id) == PieceType::user_defined || type(right.id) == PieceType::user_defined) return {};
    if (size_t(left.size) + right.size > longest_piece_) return {};
    const int id = find_piece(text.substr(left.begin, left.size + right.size));
    if (id < 0) return {};
    if (type(id) == PieceType::unused) left_sizes[id] = left.size;
    return {id, score(id)};
  });
  bool after_unknown = false;
  for (int i = symbols.empty() ? -1 : 0; i >= 0; i = symbols[i].next)
    append_ids(text.substr(symbols[i].begin, symbols[i].size), symbols[i].id, left_sizes, after_unknown, ids);
}

// Appends the ids of a symbol. An unused piece is split into its parts again; consecutive unknown characters become
// one `unk`.
inline void Tokenizer::append_ids(std::string_view symbol, int id, const std::unordered_map<int, size_t>& left_sizes,
                                  bool& after_unknown, std::vector<int>& ids) const {
  if (id < 0 && byte_fallback_) {
    for (char c : symbol) ids.push_back(byte_id_[uint8_t(c)]);
  } else if (id < 0) {
    if (!after_unknown) ids.push_back(unk_);
  } else if (const auto parts = left_sizes.find(id); parts != left_sizes.end()) {
    const std::string_view left = symbol.substr(0, parts->second), right = symbol.substr(parts->second);
    append_ids(left, find_piece(left), left_sizes, after_unknown, ids);
    append_ids(right, find_piece(right), left_sizes, after_unknown, ids);
    return;
  } else {
    ids.push_back(id);
  }
  after_unknown = id < 0;
}

inline void Tokenizer::encode_byte_level(std::string_view text, std::vector<int>& ids) const {
  std::vector<Symbol> symbols;
  tokenizer_detail::for_each_word(split_, text, [&](std::string_view word) { encode_word(word, symbols, ids); });
}

// `symbols` is scratch memory, reused for every word.
inline void Tokenizer::encode_word(std::string_view word, std::vector<Symbol>& symbols, std::vector<int>& ids) const {
  using namespace tokenizer_detail;
  if (const int id = ignore_merges_ ? find_piece(word) : -1; id >= 0) {
    ids.push_back(id);
    return;
  }
  symbols.clear();
  for (size_t i = 0; i < word.size(); i++)
    if (const int id = byte_id_[uint8_t(word[i])]; id >= 0) append_symbol(symbols, i, 1, id);
  join_symbols(symbols, [&](const Symbol& left, const Symbol& right) -> Joined {
    const int rank = find_merge(left.id, right.id);
    return rank < 0 ? Joined{} : Joined{merged_[size_t(rank)], -double(rank)};
  });
  for (int i = symbols.empty() ? -1 : 0; i >= 0; i = symbols[i].next) ids.push_back(symbols[i].id);
}

// ====================================================================================================================
// 5. Splitting into words
// ====================================================================================================================

namespace tokenizer_detail {

enum class Class : uint8_t { letter, number, space, other };  // \p{L}, \p{N}, \s, any other character

inline Class class_of(char32_t code);       // section 9
inline bool is_more_number(char32_t code);  // in Rust's is_numeric, which follows a newer Unicode, but not in \p{N}

struct Character {
  char32_t code;
  Class kind;
  uint32_t begin;  // byte offset in the text
};

// Returns the end of the word that starts at character i. Reads no character from `end` on; i < end.
using WordEnd = size_t (*)(const Character* c, size_t i, size_t end);

// The first character from i on that is not of this class.
inline size_t skip_class(const Character* c, size_t i, size_t end, Class kind) {
  while (i < end && c[i].kind == kind) i++;
  return i;
}
inline bool is_newline(char32_t code) { return code == '\r' || code == '\n'; }

// '(s|t|re|ve|m|ll|d); i if there is no match. Case-insensitive matching includes U+017F, long s.
inline size_t contraction_end(const Character* c, size_t i, size_t end, bool ignore_case) {
  static constexpr const char* kEndings[] = {"s", "t", "re", "ve", "m", "ll", "d"};
  const auto lower = [&](char32_t code) -> char32_t {
    if (!ignore_case) return code;
    return code >= 'A' && code <= 'Z' ? code + 32 : code == 0x17F ? 's' : code;
  };
  if (c[i].code != '\'') return i;
  for (const char* ending : kEndings) {
    size_t n = 0;
    while (ending[n] && i + 1 + n < end && lower(c[i + 1 + n].code) == char32_t(ending[n])) n++;
    if (!ending[n]) return i + 1 + n;
  }
  return i;
}

// \s+(?!\S)|\s+: consecutive white space; the last of several characters is left to the following word.
inline size_t space_end(const Character* c, size_t i, size_t end) {
  const size_t j = skip_class(c, i, end, Class::space);
  return j < end && j - i > 1 ? j - 1 : j;
}

// GPT-2: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
inline size_t gpt2_word_end(const Character* c, size_t i, size_t end) {
  if (const size_t j = contraction_end(c, i, end, false); j > i) return j;
  const size_t k = i + (c[i].code == ' ' && i + 1 < end);
  return c[k].kind != Class::space ? skip_class(c, k, end, c[k].kind) : space_end(c, i, end);
}

// Llama 3: (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|
//          \s*[\r\n]+|\s+(?!\S)|\s+
inline size_t llama3_word_end(const Character* c, size_t i, size_t end) {
  if (const size_t j = contraction_end(c, i, end, true); j > i) return j;
  const bool may_lead = (c[i].kind == Class::space || c[i].kind == Class::other) && !is_newline(c[i].code);
  size_t k = i + (may_lead && i + 1 < end);
  if (c[k].kind == Class::letter) return skip_class(c, k, end, Class::letter);
  if (c[i].kind == Class::number) return skip_class(c, i, std::min(end, i + 3), Class::number);
  k = i + (c[i].code == ' ' && i + 1 < end);
  if (c[k].kind == Class::other) {
    size_t j = skip_class(c, k, end, Class::other);
    while (j < end && is_newline(c[j].code)) j++;
    return j;
  }
  for (size_t j = skip_class(c, i, end, Class::space); j > i; j--)
    if (is_newline(c[j - 1].code)) return j;
  return space_end(c, i, end);
}

template <class Each> void for_each_word(Tokenizer::Split split, std::string_view text, const Each& each) {
  if (text.empty()) return;
  if (split == Tokenizer::Split::none) return each(text);
  std::vector<Character> c;
  c.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Utf8 u = read_utf8(text.substr(i));
    const bool number = split == Tokenizer::Split::smollm && is_more_number(u.code);
    c.push_back({u.code, number ? Class::number : class_of(u.code), uint32_t(i)});
    i += u.length;
  }
  const WordEnd word_end = split == Tokenizer::Split::llama3 ? llama3_word_end : gpt2_word_end;
  // SmolLM: each digit is a word, and the pattern of GPT-2 applies to each section between digits by itself.
  const auto section_end = [&](size_t i) {
    if (split != Tokenizer::Split::smollm) return c.size();
    if (c[i].kind == Class::number) return i + 1;
    while (i < c.size() && c[i].kind != Class::number) i++;
    return i;
  };
  for (size_t i = 0; i < c.size();) {
    for (const size_t end = section_end(i); i < end;) {
      const size_t j = word_end(c.data(), i, end), to = j < c.size() ? c[j].begin : text.size();
      each(text.substr(c[i].begin, to - c[i].begin));
      i = j;
    }
  }
}

}  // namespace tokenizer_detail

// ====================================================================================================================
// 6. Decoding
// ====================================================================================================================

inline bool Tokenizer::decode(const std::vector<int>& ids, std::string& text) const try {
  text.clear();
  Stream stream(*this);
  for (int id : ids) text += stream.push(id);
  text += stream.flush();
  if (stream.failed()) text.clear();
  return !stream.failed();
} catch (const std::exception&) {  // out of memory
  text.clear();
  return false;
}

inline std::string Tokenizer::decode(const std::vector<int>& ids) const {
  std::string text;
  if (!decode(ids, text)) text.clear();
  return text;
}

inline std::string text_of(const Tokenizer& tokenizer, const std::vector<int>& ids) {
  std::string text;
  if (!tokenizer.decode(ids, text)) throw std::bad_alloc();
  return text;
}

// A byte may continue the pending character; any other SentencePiece piece ends it.
inline std::string Tokenizer::Stream::push(int id) try {
  std::string out;
  if (tokenizer_->kind_ == Kind::byte_level) {
    pending_ += tokenizer_->piece(id);
    drain(false, out);
  } else if (tokenizer_->type(id) == PieceType::byte) {
    pending_ += char(tokenizer_detail::byte_value(tokenizer_->piece(id)));
    drain(false, out);
  } else {
    drain(true, out);
    push_piece(id, out);
  }
  return out;
} catch (const std::exception&) {  // out of memory
  failed_ = true;
  return {};
}

// A SentencePiece piece that is not a byte. Removes its leading space where encode() would have added one: at the start
// of the text, and only once unless the normalizer strips all leading spaces.
inline void Tokenizer::Stream::push_piece(int id, std::string& out) {
  using namespace tokenizer_detail;
  constexpr size_t kMark = sizeof kSpaceMark - 1;
  if (removed_space_ || has_output_) at_start_ = false;
  removed_space_ = false;
  const size_t before = out.size();
  std::string_view piece = tokenizer_->piece(id);
  if (tokenizer_->type(id) == PieceType::unknown) {
    out += tokenizer_->unk_surface();
  } else if (tokenizer_->type(id) != PieceType::control) {
    const bool strips = tokenizer_->add_dummy_prefix_ || tokenizer_->remove_extra_whitespaces_;
    if (at_start_ && strips && piece.substr(0, kMark) == kSpaceMark) {
      piece.remove_prefix(kMark);
      removed_space_ = !tokenizer_->remove_extra_whitespaces_;
    }
    for (size_t mark; (mark = piece.find(kSpaceMark)) != piece.npos; piece.remove_prefix(mark + kMark))
      out.append(piece, 0, mark) += ' ';
    out += piece;
  }
  has_output_ |= out.size() > before;
}

// Moves whole characters from pending_ to out; if `all`, also the incomplete rest, as U+FFFD.
inline void Tokenizer::Stream::drain(bool all, std::string& out) {
  using namespace tokenizer_detail;
  std::string_view rest = pending_;
  while (!rest.empty() && (all || read_utf8(rest).state != Utf8::cut_short))
    take_character(rest, tokenizer_->kind_ == Kind::sentencepiece, out);
  has_output_ |= rest.size() < pending_.size();
  pending_.erase(0, pending_.size() - rest.size());
}

inline std::string Tokenizer::Stream::flush() try {
  std::string out;
  drain(true, out);
  has_output_ = removed_space_ = false;
  at_start_ = true;
  return out;
} catch (const std::exception&) {  // out of memory
  failed_ = true;
  return {};
}

inline std::string printed_text(const Tokenizer& tokenizer, Tokenizer::Stream& stream, int id) {
  if (tokenizer.type(id) == Tokenizer::PieceType::control) return "";
  std::string text = stream.push(id);
  if (stream.failed()) throw std::bad_alloc();
  return text;
}

inline std::string printed_rest(Tokenizer::Stream& stream) {
  std::string text = stream.flush();
  if (stream.failed()) throw std::bad_alloc();
  return text;
}

inline bool acts_on_terminal(char32_t code) {
  return code < 32 || (code >= 127 && code < 160) || (code >= 0x2028 && code <= 0x202E) ||
         (code >= 0x2066 && code <= 0x2069);
}

inline std::string without_controls(const std::string& text) {
  std::string clean;
  for (std::string_view rest = text; !rest.empty();) {
    const tokenizer_detail::Utf8 c = tokenizer_detail::read_utf8(rest);
    if (c.state == c.whole && acts_on_terminal(c.code) && c.code != '\n' && c.code != '\t')
      rest.remove_prefix(c.length);
    else
      tokenizer_detail::take_character(rest, false, clean);
  }
  return clean;
}

inline std::string one_line(const std::string& text) {
  std::string line = without_controls(text);
  for (char& c : line)
    if (c == '\n' || c == '\t') c = ' ';
  return line;
}

// ====================================================================================================================
// 7. Loading: the blob
// ====================================================================================================================
//
//   BlobHeader | end of each text | scores  | merges  | types | texts | unk_surface
//                uint32             float32   2 int32   uint8   bytes   bytes
//
// Little-endian, without padding. Text i occupies bytes end[i - 1] to end[i] of the texts. Only SentencePiece
// tokenizers have scores. A type is a PieceType, plus 16 times the bits of Strip. In version 1 all tokens that text can
// become as a whole are user-defined.

namespace tokenizer_detail {

struct BlobHeader {
  char magic[4];
  uint32_t version, kind, flags;
  int32_t bos, eos, unk;
  uint32_t split, n_pieces, n_merges, text_bytes, unk_surface_bytes;
};
inline constexpr char kBlobMagic[] = "PTOK";
inline constexpr uint32_t kBlobVersion = 2, kMaxPieces = 1 << 22, kMaxPieceBytes = 4096;
enum Flag : uint32_t {
  kAddBos = 1,
  kAddDummyPrefix = 2,
  kRemoveExtraWhitespaces = 4,
  kEscapeWhitespaces = 8,
  kByteFallback = 16,
  kIgnoreMerges = 32,
  kPrefixOnlyAtStart = 64,
  kMetaspace = 128,
  kAllFlags = 255
};
inline constexpr int kTypeMask = 15, kStripShift = 4;  // of the byte with the type of a piece and the bits of Strip

template <class T> void append_bytes(std::string& out, const T& value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

// FNV-1a
inline uint64_t hash_text(std::string_view text) {
  uint64_t h = 0xCBF29CE484222325;
  for (char c : text) h = (h ^ uint8_t(c)) * 0x100000001B3;
  return h ^ h >> 32;
}
inline uint64_t hash_pair(int left, int right) {
  const uint64_t h = (uint64_t(uint32_t(left)) << 32 | uint32_t(right)) * 0x9E3779B97F4A7C15;
  return h ^ h >> 32;
}

}  // namespace tokenizer_detail

inline std::string Tokenizer::to_blob(const Vocabulary& v) {
  using namespace tokenizer_detail;
  BlobHeader h = {};
  std::memcpy(h.magic, kBlobMagic, 4);
  h.version = kBlobVersion;
  h.kind = uint32_t(v.kind);
  h.flags = v.add_bos * kAddBos | v.add_dummy_prefix * kAddDummyPrefix |
            v.remove_extra_whitespaces * kRemoveExtraWhitespaces | v.escape_whitespaces * kEscapeWhitespaces |
            v.byte_fallback * kByteFallback | v.ignore_merges * kIgnoreMerges |
            v.prefix_only_at_start * kPrefixOnlyAtStart | v.metaspace * kMetaspace;
  h.bos = v.bos;
  h.eos = v.eos;
  h.unk = v.unk;
  h.split = uint32_t(v.split);
  h.n_pieces = uint32_t(v.pieces.size());
  h.n_merges = uint32_t(v.merges.size());
  for (const Piece& p : v.pieces) h.text_bytes += uint32_t(p.text.size());
  h.unk_surface_bytes = uint32_t(v.unk_surface.size());
  std::string blob;
  append_bytes(blob, h);
  uint32_t end = 0;
  for (const Piece& p : v.pieces) {
    end += uint32_t(p.text.size());
    append_bytes(blob, end);
  }
  if (v.kind == Kind::sentencepiece)
    for (const Piece& p : v.pieces) append_bytes(blob, p.score);
  for (const auto& [left, right] : v.merges) {
    append_bytes(blob, int32_t(left));
    append_bytes(blob, int32_t(right));
  }
  for (const Piece& p : v.pieces) append_bytes(blob, uint8_t(int(p.type) | p.strip << kStripShift));
  for (const Piece& p : v.pieces) blob += p.text;
  return blob += v.unk_surface;
}

template <class T> T Tokenizer::at(size_t offset) const {
  T value;
  std::memcpy(&value, blob_.data() + offset, sizeof value);
  return value;
}
inline std::pair<int, int> Tokenizer::merge(int rank) const {
  const size_t offset = merges_at_ + 8 * size_t(rank);
  return {at<int32_t>(offset), at<int32_t>(offset + 4)};
}
inline std::string_view Tokenizer::piece(int id) const {
  if (id < 0 || size_t(id) >= n_pieces_) return {};
  const size_t begin = id == 0 ? 0 : at<uint32_t>(ends_at_ + 4 * size_t(id - 1));
  return std::string_view(blob_).substr(text_at_ + begin, at<uint32_t>(ends_at_ + 4 * size_t(id)) - begin);
}
inline Tokenizer::PieceType Tokenizer::type(int id) const {
  if (id < 0 || size_t(id) >= n_pieces_) return PieceType::unused;
  return PieceType(blob_[types_at_ + size_t(id)] & tokenizer_detail::kTypeMask);
}
inline uint8_t Tokenizer::strip(int id) const {
  if (id < 0 || size_t(id) >= n_pieces_) return 0;
  return uint8_t(uint8_t(blob_[types_at_ + size_t(id)]) >> tokenizer_detail::kStripShift);
}
inline bool Tokenizer::is_marker(int id) const {
  return type(id) == PieceType::user_defined || type(id) == PieceType::added || type(id) == PieceType::added_normalized;
}

// The id of the piece that text can become; -1: none.
inline int Tokenizer::find_piece(std::string_view text) const {
  return by_text_.find(tokenizer_detail::hash_text(text), [&](int id) { return piece(id) == text; });
}
// The rank of a merge; -1 if the pair does not merge.
inline int Tokenizer::find_merge(int left, int right) const {
  return by_pair_.find(tokenizer_detail::hash_pair(left, right),
                       [&](int rank) { return merge(rank) == std::make_pair(left, right); });
}

inline int Tokenizer::find(std::string_view text) const {
  for (int id = 0; id < size(); id++)
    if ((type(id) == PieceType::control || is_marker(id)) && piece(id) == text) return id;
  return -1;
}

inline bool Tokenizer::make_control(const std::vector<int>& ids) try {
  std::string blob;  // a copy, once there is something to change
  for (const int id : ids) {
    if (!is_marker(id)) continue;
    if (blob.empty()) blob = blob_;
    blob[types_at_ + size_t(id)] = char(int(PieceType::control) | strip(id) << tokenizer_detail::kStripShift);
  }
  return blob.empty() || load(blob);
} catch (const std::exception&) {
  error = tokenizer_detail::kOutOfMemory;
  return false;
}

inline bool Tokenizer::load(std::string_view blob) {
  Tokenizer loaded;
  try {
    loaded.blob_ = blob;
    if (loaded.parse_blob() && loaded.check_pieces() && loaded.index_pieces() && loaded.index_merges()) {
      *this = std::move(loaded);
      return true;
    }
  } catch (const std::exception&) {
    loaded.error = tokenizer_detail::kOutOfMemory;
  }
  std::string why = std::move(loaded.error);
  *this = Tokenizer();
  error = std::move(why);
  return false;
}

inline bool Tokenizer::load_sentencepiece(std::string_view model) {
  std::string why, blob;
  try {
    Vocabulary v;
    if (parse_sentencepiece(model, v, why)) blob = to_blob(v);
  } catch (const std::exception&) {
    why = tokenizer_detail::kOutOfMemory;
  }
  if (why.empty()) return load(blob);
  *this = Tokenizer();
  error = std::move(why);
  return false;
}

inline bool Tokenizer::fail(const std::string& field, const std::string& expected, const std::string& found) {
  error = "tokenizer: " + field + ": expected " + expected + ", found " + found;
  return false;
}

// Checks the range of every header field; parse_blob() checks the sizes.
inline bool Tokenizer::check_header(const tokenizer_detail::BlobHeader& h) {
  using namespace tokenizer_detail;
  if (std::memcmp(h.magic, kBlobMagic, 4)) return fail("magic", kBlobMagic, "other bytes: not a tokenizer blob");
  const int64_t last_id = int64_t(h.n_pieces) - 1;
  const bool needs_unk = h.kind == uint32_t(Kind::sentencepiece) && !(h.flags & kByteFallback);
  const struct {
    const char* name;
    int64_t value, low, high;
  } fields[] = {{"version", h.version, 1, kBlobVersion},
                {"kind", h.kind, 1, 2},
                {"flags", h.flags, 0, kAllFlags},
                {"split", h.split, 0, 3},
                {"pieces", h.n_pieces, 1, kMaxPieces},
                {"bos", h.bos, h.flags & kAddBos ? 0 : -1, last_id},
                {"eos", h.eos, -1, last_id},
                {"unk", h.unk, needs_unk ? 0 : -1, last_id},
                {"bytes of unk_surface", h.unk_surface_bytes, 0, kMaxPieceBytes}};
  for (const auto& f : fields)
    if (f.value < f.low || f.value > f.high)
      return fail(f.name, std::to_string(f.low) + " to " + std::to_string(f.high), std::to_string(f.value));
  return true;
}

// Reads the header and locates the sections; their sizes must add up to the size of the blob.
inline bool Tokenizer::parse_blob() {
  using namespace tokenizer_detail;
  if (blob_.size() < sizeof(BlobHeader))
    return fail("size", "at least " + std::to_string(sizeof(BlobHeader)) + " bytes", std::to_string(blob_.size()));
  const auto h = at<BlobHeader>(0);
  if (!check_header(h)) return false;
  kind_ = Kind(h.kind);
  split_ = Split(h.split);
  add_bos_ = h.flags & kAddBos;
  add_dummy_prefix_ = h.flags & kAddDummyPrefix;
  remove_extra_whitespaces_ = h.flags & kRemoveExtraWhitespaces;
  escape_whitespaces_ = h.flags & kEscapeWhitespaces;
  byte_fallback_ = h.flags & kByteFallback;
  prefix_only_at_start_ = h.flags & kPrefixOnlyAtStart;
  metaspace_ = h.flags & kMetaspace;
  ignore_merges_ = h.flags & kIgnoreMerges;
  bos_ = h.bos;
  eos_ = h.eos;
  unk_ = h.unk;
  n_pieces_ = h.n_pieces;
  n_merges_ = h.n_merges;
  uint64_t end = sizeof h;
  const auto section = [&](uint64_t bytes) {
    const uint64_t begin = end;
    end += bytes;
    return size_t(begin);
  };
  ends_at_ = section(4 * uint64_t(h.n_pieces));
  scores_at_ = section(kind_ == Kind::sentencepiece ? 4 * uint64_t(h.n_pieces) : 0);
  merges_at_ = section(8 * uint64_t(h.n_merges));
  types_at_ = section(h.n_pieces);
  text_at_ = section(h.text_bytes);
  unk_surface_at_ = section(h.unk_surface_bytes);
  if (end != blob_.size()) return fail("size", std::to_string(end) + " bytes", std::to_string(blob_.size()));
  return true;
}

inline bool Tokenizer::check_pieces() {
  uint32_t begin = 0;
  for (size_t i = 0; i < n_pieces_; i++) {
    const uint32_t end = at<uint32_t>(ends_at_ + 4 * i), limit = uint32_t(unk_surface_at_ - text_at_);
    const std::string name = "piece " + std::to_string(i);
    if (end < begin || end - begin > tokenizer_detail::kMaxPieceBytes || end > limit)
      return fail(name + ": end of text",
                  std::to_string(begin) + " to " + std::to_string(limit) + " and at most " +
                      std::to_string(tokenizer_detail::kMaxPieceBytes) + " bytes of text",
                  std::to_string(end));
    begin = end;
    const int type = int(this->type(int(i)));
    if (type < int(PieceType::normal) || type > int(PieceType::added_normalized) || strip(int(i)) > 7)
      return fail(name + ": type", "1 to 8, and 0 to 7 times 16", std::to_string(uint8_t(blob_[types_at_ + i])));
    if (kind_ == Kind::sentencepiece && !std::isfinite(score(int(i))))
      return fail(name + ": score", "a finite number", std::to_string(score(int(i))));
    if (PieceType(type) == PieceType::byte && tokenizer_detail::byte_value(piece(int(i))) < 0)
      return fail(name + ": text", "a byte as <0x41>", "'" + std::string(piece(int(i))) + "'");
  }
  return begin + text_at_ == unk_surface_at_ ||
         fail("texts", std::to_string(begin) + " bytes", std::to_string(unk_surface_at_ - text_at_));
}

inline bool Tokenizer::index_pieces() {
  by_text_.reserve(n_pieces_);
  for (int& id : byte_id_) id = -1;
  longest_piece_ = 1;
  for (int id = 0; id < size(); id++) {
    const std::string_view text = piece(id);
    const PieceType t = type(id);
    if (t == PieceType::byte) byte_id_[tokenizer_detail::byte_value(text)] = id;
    if (t != PieceType::normal && !is_marker(id) && !(t == PieceType::unused && kind_ == Kind::sentencepiece)) continue;
    longest_piece_ = std::max(longest_piece_, text.size());
    // SentencePiece merges unused pieces too, and append_ids() splits them again. It knows nothing of added tokens.
    if (kind_ == Kind::sentencepiece && (t == PieceType::added || t == PieceType::added_normalized)) continue;
    by_text_.insert(tokenizer_detail::hash_text(text), id, [&](int other) { return piece(other) == text; });
    if (kind_ == Kind::byte_level && text.size() == 1 && t == PieceType::normal) byte_id_[uint8_t(text[0])] = id;
  }
  index_markers();
  for (int byte = 0; byte < 256 && byte_fallback_; byte++)
    if (byte_id_[byte] < 0) return fail("byte_fallback", "a piece for each byte", "none for " + std::to_string(byte));
  return true;
}

// Of markers with equal texts, the first counts.
inline void Tokenizer::index_markers() {
  std::vector<std::string_view> user_defined;
  for (int id = 0; id < size(); id++) {
    const PieceType t = type(id);
    if (!is_marker(id) || piece(id).empty()) continue;
    if (t == PieceType::user_defined && kind_ == Kind::sentencepiece) {
      if (find_piece(piece(id)) == id) user_defined.push_back(piece(id));
      continue;
    }
    // The normalizer also applies to the text of a normalized token. Metaspace is no normalizer.
    const bool normalized = t == PieceType::added_normalized && kind_ == Kind::sentencepiece && !metaspace_;
    std::string text = normalized ? normalize(piece(id), true) : std::string(piece(id));
    if (!text.empty()) (t == PieceType::added_normalized ? added_normalized_ : added_).ids.emplace(std::move(text), id);
  }
  if (!user_defined.empty()) user_defined_ = tokenizer_detail::PieceFinder(std::move(user_defined));
  for (Markers* markers : {&added_, &added_normalized_}) {
    std::vector<std::string_view> texts;
    for (const auto& marker : markers->ids) texts.push_back(marker.first);
    if (!texts.empty()) markers->finder = tokenizer_detail::PieceFinder(std::move(texts));
  }
}

inline bool Tokenizer::index_merges() {
  by_pair_.reserve(n_merges_);
  merged_.resize(n_merges_);
  std::string text;
  for (int rank = 0; rank < int(n_merges_); rank++) {
    const auto [left, right] = merge(rank);
    const std::string name = "merge " + std::to_string(rank);
    for (int id : {left, right})
      if (id < 0 || id >= size()) return fail(name, "ids of 0 to " + std::to_string(size() - 1), std::to_string(id));
    text.assign(piece(left)).append(piece(right));
    merged_[size_t(rank)] = find_piece(text);
    if (merged_[size_t(rank)] < 0) return fail(name, "a piece for the merged text", "no piece '" + text + "'");
    by_pair_.insert(tokenizer_detail::hash_pair(left, right), rank,
                    [&, pair = merge(rank)](int other) { return merge(other) == pair; });
  }
  return true;
}

// ====================================================================================================================
// 8. Loading: SentencePiece .model files
// ====================================================================================================================
//
// A .model file is a protobuf message (sentencepiece_model.proto): a sequence of fields. A field is a varint, which is
// number * 8 + wire type, and a value: a varint (wire type 0), 8 bytes (1), a length and that number of bytes (2), or
// 4 bytes (5).

namespace tokenizer_detail {

struct Field {
  uint64_t number, wire_type;
  uint64_t value;          // of wire type 0
  std::string_view bytes;  // of the other wire types
};

// Moves a varint from the start of s to value; false if it is malformed.
inline bool take_varint(std::string_view& s, uint64_t& value) {
  value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (s.empty()) return false;
    const uint8_t byte = uint8_t(s[0]);
    s.remove_prefix(1);
    value |= uint64_t(byte & 127) << shift;
    if (byte < 128) return true;
  }
  return false;
}

// Moves a field from the start of s to f; false if it is malformed.
inline bool take_field(std::string_view& s, Field& f) {
  uint64_t tag, size = 0;
  if (!take_varint(s, tag) || tag >> 3 == 0) return false;
  f = {tag >> 3, tag & 7, 0, {}};
  if (f.wire_type == 0) return take_varint(s, f.value);
  if (f.wire_type == 2 && !take_varint(s, size)) return false;
  if (f.wire_type != 1 && f.wire_type != 2 && f.wire_type != 5) return false;
  if (f.wire_type != 2) size = f.wire_type == 1 ? 8 : 4;
  if (size > s.size()) return false;
  f.bytes = s.substr(0, size_t(size));
  s.remove_prefix(size_t(size));
  return true;
}

// A field to read, and the variable that receives its value. The type of the variable determines the wire type.
struct Target {
  uint64_t number;
  const char* name;
  std::variant<uint64_t*, std::string_view*, float*> variable;
};
inline constexpr uint64_t kWireTypes[] = {0, 2, 5};  // of the alternatives of Target::variable

inline void assign(const Target& target, const Field& f) {
  if (const auto varint = std::get_if<uint64_t*>(&target.variable)) **varint = f.value;
  if (const auto text = std::get_if<std::string_view*>(&target.variable)) **text = f.bytes;
  if (const auto number = std::get_if<float*>(&target.variable)) std::memcpy(*number, f.bytes.data(), sizeof **number);
}

// Reads the target fields of a message and skips the others. Of a repeated field the last value is kept.
inline bool read_message(std::string_view s, const std::string& where, std::initializer_list<Target> targets,
                         std::string& error) {
  for (Field f; !s.empty();) {
    if (!take_field(s, f)) {
      error = "tokenizer: " + where + ": expected protobuf fields, found " + std::to_string(s.size()) +
              " bytes of invalid data";
      return false;
    }
    for (const Target& target : targets) {
      if (target.number != f.number) continue;
      const uint64_t type = kWireTypes[target.variable.index()];
      if (f.wire_type != type) {
        error = "tokenizer: " + where + ": " + target.name + ": expected wire type " + std::to_string(type) +
                ", found " + std::to_string(f.wire_type);
        return false;
      }
      assign(target, f);
    }
  }
  return true;
}

struct TrainerSpec {
  uint64_t model_type = 1, byte_fallback = 0, whitespace_as_suffix = 0;
  std::string_view unk_surface = " \xE2\x81\x87 ", bos_piece = "<s>", eos_piece = "</s>";

  bool read(std::string_view s, std::string& error) {
    if (!read_message(s, "trainer_spec",
                      {{3, "model_type", &model_type},
                       {24, "treat_whitespace_as_suffix", &whitespace_as_suffix},
                       {35, "byte_fallback", &byte_fallback},
                       {44, "unk_surface", &unk_surface},
                       {46, "bos_piece", &bos_piece},
                       {47, "eos_piece", &eos_piece}},
                      error))
      return false;
    static constexpr const char* kNames[] = {"unknown", "unigram", "BPE", "word", "char"};
    if (model_type != 2)
      error = std::string("tokenizer: model_type: expected BPE, found ") + kNames[model_type < 5 ? model_type : 0];
    else if (whitespace_as_suffix)
      error = "tokenizer: treat_whitespace_as_suffix: expected false, found true";
    return error.empty();
  }
};

struct NormalizerSpec {
  uint64_t add_dummy_prefix = 1, remove_extra_whitespaces = 1, escape_whitespaces = 1;
  std::string_view rules = "a character map", map;

  bool read(std::string_view s, const char* name, std::string& error) {
    if (!read_message(s, name,
                      {{1, "name", &rules},
                       {2, "precompiled_charsmap", &map},
                       {3, "add_dummy_prefix", &add_dummy_prefix},
                       {4, "remove_extra_whitespaces", &remove_extra_whitespaces},
                       {5, "escape_whitespaces", &escape_whitespaces}},
                      error))
      return false;
    if (!map.empty())
      error = std::string("tokenizer: ") + name + ": expected identity, found " + std::string(rules) +
              ", which changes characters";
    return error.empty();
  }
};

inline bool read_piece(std::string_view s, Tokenizer::Vocabulary& out, std::string& error) {
  const std::string where = "piece " + std::to_string(out.pieces.size());
  std::string_view text;
  uint64_t type = 1;
  float score = 0;
  if (!read_message(s, where, {{1, "piece", &text}, {2, "score", &score}, {3, "type", &type}}, error)) return false;
  if (type < 1 || type > 6)
    error = "tokenizer: " + where + ": type: expected 1 to 6, found " + std::to_string(type);
  else if (text.empty())
    error = "tokenizer: " + where + ": piece: expected a text, found none";
  else
    out.pieces.push_back({std::string(text), score, Tokenizer::PieceType(type)});
  return error.empty();
}

// The messages of a .model file besides its pieces.
struct ModelSpecs {
  TrainerSpec trainer;
  NormalizerSpec normalizer, denormalizer;
  bool has_trainer = false;
};

// Reads one field of a .model file.
inline bool read_model_field(const Field& f, Tokenizer::Vocabulary& out, ModelSpecs& specs, std::string& error) {
  switch (f.number) {
    case 1:
      return read_piece(f.bytes, out, error);
    case 2:
      specs.has_trainer = true;
      return specs.trainer.read(f.bytes, error);
    case 3:
      return specs.normalizer.read(f.bytes, "normalizer_spec", error);
    case 5:
      return f.wire_type != 2 || specs.denormalizer.read(f.bytes, "denormalizer_spec", error);
    default:
      return true;
  }
}

}  // namespace tokenizer_detail

inline bool Tokenizer::parse_sentencepiece(std::string_view model, Vocabulary& out, std::string& error) {
  using namespace tokenizer_detail;
  out = Vocabulary();
  error.clear();
  ModelSpecs specs;
  size_t pieces = 0;
  std::string_view rest = model;
  for (Field f; take_field(rest, f);) pieces += f.number == 1 && !f.bytes.empty();
  out.pieces.reserve(pieces);
  for (Field f; !model.empty();) {
    if (!take_field(model, f) || (f.number <= 3 && f.wire_type != 2)) {
      error = "tokenizer: expected a SentencePiece model, found invalid data after " +
              std::to_string(out.pieces.size()) + " pieces";
      return false;
    }
    if (!read_model_field(f, out, specs, error)) return false;
  }
  if (out.pieces.empty() || !specs.has_trainer) {
    error = "tokenizer: expected a SentencePiece model, found no pieces or no trainer_spec";
    return false;
  }
  for (size_t i = 0; i < out.pieces.size(); i++) {
    const Piece& p = out.pieces[i];
    if (p.type == PieceType::unknown) out.unk = int(i);
    if (p.type == PieceType::control && p.text == specs.trainer.bos_piece) out.bos = int(i);
    if (p.type == PieceType::control && p.text == specs.trainer.eos_piece) out.eos = int(i);
  }
  out.add_bos = out.bos >= 0;
  out.add_dummy_prefix = specs.normalizer.add_dummy_prefix;
  out.escape_whitespaces = specs.normalizer.escape_whitespaces;
  out.remove_extra_whitespaces = specs.normalizer.remove_extra_whitespaces;
  out.byte_fallback = specs.trainer.byte_fallback;
  out.unk_surface = specs.trainer.unk_surface;
  return true;
}

// ====================================================================================================================
// 9. Unicode letters and numbers: general categories L and N, and White_Space
// ====================================================================================================================

namespace tokenizer_detail {

struct CodePoints {
  uint32_t first, last;
};

// clang-format off
inline constexpr CodePoints kLetters[] = {  // \p{L}
    {0x41, 0x5A}, {0x61, 0x7A}, {0xAA, 0xAA}, {0xB5, 0xB5}, {0xBA, 0xBA}, {0xC0, 0xD6}, {0xD8, 0xF6}, {0xF8, 0x2C1},
    {0x2C6, 0x2D1}, {0x2E0, 0x2E4}, {0x2EC, 0x2EC}, {0x2EE, 0x2EE}, {0x370, 0x374}, {0x376, 0x377}, {0x37A, 0x37D},
    {0x37F, 0x37F}, {0x386, 0x386}, {0x388, 0x38A}, {0x38C, 0x38C}, {0x38E, 0x3A1}, {0x3A3, 0x3F5}, {0x3F7, 0x481},
    {0x48A, 0x52F}, {0x531, 0x556}, {0x559, 0x559}, {0x560, 0x588}, {0x5D0, 0x5EA}, {0x5EF, 0x5F2}, {0x620, 0x64A},
    {0x66E, 0x66F}, {0x671, 0x6D3}, {0x6D5, 0x6D5}, {0x6E5, 0x6E6}, {0x6EE, 0x6EF}, {0x6FA, 0x6FC}, {0x6FF, 0x6FF},
    {0x710, 0x710}, {0x712, 0x72F}, {0x74D, 0x7A5}, {0x7B1, 0x7B1}, {0x7CA, 0x7EA}, {0x7F4, 0x7F5}, {0x7FA, 0x7FA},
    {0x800, 0x815}, {0x81A, 0x81A}, {0x824, 0x824}, {0x828, 0x828}, {0x840, 0x858}, {0x860, 0x86A}, {0x870, 0x887},
    {0x889, 0x88E}, {0x8A0, 0x8C9}, {0x904, 0x939}, {0x93D, 0x93D}, {0x950, 0x950}, {0x958, 0x961}, {0x971, 0x980},
    {0x985, 0x98C}, {0x98F, 0x990}, {0x993, 0x9A8}, {0x9AA, 0x9B0}, {0x9B2, 0x9B2}, {0x9B6, 0x9B9}, {0x9BD, 0x9BD},
    {0x9CE, 0x9CE}, {0x9DC, 0x9DD}, {0x9DF, 0x9E1}, {0x9F0, 0x9F1}, {0x9FC, 0x9FC}, {0xA05, 0xA0A}, {0xA0F, 0xA10},
    {0xA13, 0xA28}, {0xA2A, 0xA30}, {0xA32, 0xA33}, {0xA35, 0xA36}, {0xA38, 0xA39}, {0xA59, 0xA5C}, {0xA5E, 0xA5E},
    {0xA72, 0xA74}, {0xA85, 0xA8D}, {0xA8F, 0xA91}, {0xA93, 0xAA8}, {0xAAA, 0xAB0}, {0xAB2, 0xAB3}, {0xAB5, 0xAB9},
    {0xABD, 0xABD}, {0xAD0, 0xAD0}, {0xAE0, 0xAE1}, {0xAF9, 0xAF9}, {0xB05, 0xB0C}, {0xB0F, 0xB10}, {0xB13, 0xB28},
    {0xB2A, 0xB30}, {0xB32, 0xB33}, {0xB35, 0xB39}, {0xB3D, 0xB3D}, {0xB5C, 0xB5D}, {0xB5F, 0xB61}, {0xB71, 0xB71},
    {0xB83, 0xB83}, {0xB85, 0xB8A}, {0xB8E, 0xB90}, {0xB92, 0xB95}, {0xB99, 0xB9A}, {0xB9C, 0xB9C}, {0xB9E, 0xB9F},
    {0xBA3, 0xBA4}, {0xBA8, 0xBAA}, {0xBAE, 0xBB9}, {0xBD0, 0xBD0}, {0xC05, 0xC0C}, {0xC0E, 0xC10}, {0xC12, 0xC28},
    {0xC2A, 0xC39}, {0xC3D, 0xC3D}, {0xC58, 0xC5A}, {0xC5D, 0xC5D}, {0xC60, 0xC61}, {0xC80, 0xC80}, {0xC85, 0xC8C},
    {0xC8E, 0xC90}, {0xC92, 0xCA8}, {0xCAA, 0xCB3}, {0xCB5, 0xCB9}, {0xCBD, 0xCBD}, {0xCDD, 0xCDE}, {0xCE0, 0xCE1},
    {0xCF1, 0xCF2}, {0xD04, 0xD0C}, {0xD0E, 0xD10}, {0xD12, 0xD3A}, {0xD3D, 0xD3D}, {0xD4E, 0xD4E}, {0xD54, 0xD56},
    {0xD5F, 0xD61}, {0xD7A, 0xD7F}, {0xD85, 0xD96}, {0xD9A, 0xDB1}, {0xDB3, 0xDBB}, {0xDBD, 0xDBD}, {0xDC0, 0xDC6},
    {0xE01, 0xE30}, {0xE32, 0xE33}, {0xE40, 0xE46}, {0xE81, 0xE82}, {0xE84, 0xE84}, {0xE86, 0xE8A}, {0xE8C, 0xEA3},
    {0xEA5, 0xEA5}, {0xEA7, 0xEB0}, {0xEB2, 0xEB3}, {0xEBD, 0xEBD}, {0xEC0, 0xEC4}, {0xEC6, 0xEC6}, {0xEDC, 0xEDF},
    {0xF00, 0xF00}, {0xF40, 0xF47}, {0xF49, 0xF6C}, {0xF88, 0xF8C}, {0x1000, 0x102A}, {0x103F, 0x103F},
    {0x1050, 0x1055}, {0x105A, 0x105D}, {0x1061, 0x1061}, {0x1065, 0x1066}, {0x106E, 0x1070}, {0x1075, 0x1081},
    {0x108E, 0x108E}, {0x10A0, 0x10C5}, {0x10C7, 0x10C7}, {0x10CD, 0x10CD}, {0x10D0, 0x10FA}, {0x10FC, 0x1248},
    {0x124A, 0x124D}, {0x1250, 0x1256}, {0x1258, 0x1258}, {0x125A, 0x125D}, {0x1260, 0x1288}, {0x128A, 0x128D},
    {0x1290, 0x12B0}, {0x12B2, 0x12B5}, {0x12B8, 0x12BE}, {0x12C0, 0x12C0}, {0x12C2, 0x12C5}, {0x12C8, 0x12D6},
    {0x12D8, 0x1310}, {0x1312, 0x1315}, {0x1318, 0x135A}, {0x1380, 0x138F}, {0x13A0, 0x13F5}, {0x13F8, 0x13FD},
    {0x1401, 0x166C}, {0x166F, 0x167F}, {0x1681, 0x169A}, {0x16A0, 0x16EA}, {0x16F1, 0x16F8}, {0x1700, 0x1711},
    {0x171F, 0x1731}, {0x1740, 0x1751}, {0x1760, 0x176C}, {0x176E, 0x1770}, {0x1780, 0x17B3}, {0x17D7, 0x17D7},
    {0x17DC, 0x17DC}, {0x1820, 0x1878}, {0x1880, 0x1884}, {0x1887, 0x18A8}, {0x18AA, 0x18AA}, {0x18B0, 0x18F5},
    {0x1900, 0x191E}, {0x1950, 0x196D}, {0x1970, 0x1974}, {0x1980, 0x19AB}, {0x19B0, 0x19C9}, {0x1A00, 0x1A16},
    {0x1A20, 0x1A54}, {0x1AA7, 0x1AA7}, {0x1B05, 0x1B33}, {0x1B45, 0x1B4C}, {0x1B83, 0x1BA0}, {0x1BAE, 0x1BAF},
    {0x1BBA, 0x1BE5}, {0x1C00, 0x1C23}, {0x1C4D, 0x1C4F}, {0x1C5A, 0x1C7D}, {0x1C80, 0x1C8A}, {0x1C90, 0x1CBA},
    {0x1CBD, 0x1CBF}, {0x1CE9, 0x1CEC}, {0x1CEE, 0x1CF3}, {0x1CF5, 0x1CF6}, {0x1CFA, 0x1CFA}, {0x1D00, 0x1DBF},
    {0x1E00, 0x1F15}, {0x1F18, 0x1F1D}, {0x1F20, 0x1F45}, {0x1F48, 0x1F4D}, {0x1F50, 0x1F57}, {0x1F59, 0x1F59},
    {0x1F5B, 0x1F5B}, {0x1F5D, 0x1F5D}, {0x1F5F, 0x1F7D}, {0x1F80, 0x1FB4}, {0x1FB6, 0x1FBC}, {0x1FBE, 0x1FBE},
    {0x1FC2, 0x1FC4}, {0x1FC6, 0x1FCC}, {0x1FD0, 0x1FD3}, {0x1FD6, 0x1FDB}, {0x1FE0, 0x1FEC}, {0x1FF2, 0x1FF4},
    {0x1FF6, 0x1FFC}, {0x2071, 0x2071}, {0x207F, 0x207F}, {0x2090, 0x209C}, {0x2102, 0x2102}, {0x2107, 0x2107},
    {0x210A, 0x2113}, {0x2115, 0x2115}, {0x2119, 0x211D}, {0x2124, 0x2124}, {0x2126, 0x2126}, {0x2128, 0x2128},
    {0x212A, 0x212D}, {0x212F, 0x2139}, {0x213C, 0x213F}, {0x2145, 0x2149}, {0x214E, 0x214E}, {0x2183, 0x2184},
    {0x2C00, 0x2CE4}, {0x2CEB, 0x2CEE}, {0x2CF2, 0x2CF3}, {0x2D00, 0x2D25}, {0x2D27, 0x2D27}, {0x2D2D, 0x2D2D},
    {0x2D30, 0x2D67}, {0x2D6F, 0x2D6F}, {0x2D80, 0x2D96}, {0x2DA0, 0x2DA6}, {0x2DA8, 0x2DAE}, {0x2DB0, 0x2DB6},
    {0x2DB8, 0x2DBE}, {0x2DC0, 0x2DC6}, {0x2DC8, 0x2DCE}, {0x2DD0, 0x2DD6}, {0x2DD8, 0x2DDE}, {0x2E2F, 0x2E2F},
    {0x3005, 0x3006}, {0x3031, 0x3035}, {0x303B, 0x303C}, {0x3041, 0x3096}, {0x309D, 0x309F}, {0x30A1, 0x30FA},
    {0x30FC, 0x30FF}, {0x3105, 0x312F}, {0x3131, 0x318E}, {0x31A0, 0x31BF}, {0x31F0, 0x31FF}, {0x3400, 0x4DBF},
    {0x4E00, 0xA48C}, {0xA4D0, 0xA4FD}, {0xA500, 0xA60C}, {0xA610, 0xA61F}, {0xA62A, 0xA62B}, {0xA640, 0xA66E},
    {0xA67F, 0xA69D}, {0xA6A0, 0xA6E5}, {0xA717, 0xA71F}, {0xA722, 0xA788}, {0xA78B, 0xA7CD}, {0xA7D0, 0xA7D1},
    {0xA7D3, 0xA7D3}, {0xA7D5, 0xA7DC}, {0xA7F2, 0xA801}, {0xA803, 0xA805}, {0xA807, 0xA80A}, {0xA80C, 0xA822},
    {0xA840, 0xA873}, {0xA882, 0xA8B3}, {0xA8F2, 0xA8F7}, {0xA8FB, 0xA8FB}, {0xA8FD, 0xA8FE}, {0xA90A, 0xA925},
    {0xA930, 0xA946}, {0xA960, 0xA97C}, {0xA984, 0xA9B2}, {0xA9CF, 0xA9CF}, {0xA9E0, 0xA9E4}, {0xA9E6, 0xA9EF},
    {0xA9FA, 0xA9FE}, {0xAA00, 0xAA28}, {0xAA40, 0xAA42}, {0xAA44, 0xAA4B}, {0xAA60, 0xAA76}, {0xAA7A, 0xAA7A},
    {0xAA7E, 0xAAAF}, {0xAAB1, 0xAAB1}, {0xAAB5, 0xAAB6}, {0xAAB9, 0xAABD}, {0xAAC0, 0xAAC0}, {0xAAC2, 0xAAC2},
    {0xAADB, 0xAADD}, {0xAAE0, 0xAAEA}, {0xAAF2, 0xAAF4}, {0xAB01, 0xAB06}, {0xAB09, 0xAB0E}, {0xAB11, 0xAB16},
    {0xAB20, 0xAB26}, {0xAB28, 0xAB2E}, {0xAB30, 0xAB5A}, {0xAB5C, 0xAB69}, {0xAB70, 0xABE2}, {0xAC00, 0xD7A3},
    {0xD7B0, 0xD7C6}, {0xD7CB, 0xD7FB}, {0xF900, 0xFA6D}, {0xFA70, 0xFAD9}, {0xFB00, 0xFB06}, {0xFB13, 0xFB17},
    {0xFB1D, 0xFB1D}, {0xFB1F, 0xFB28}, {0xFB2A, 0xFB36}, {0xFB38, 0xFB3C}, {0xFB3E, 0xFB3E}, {0xFB40, 0xFB41},
    {0xFB43, 0xFB44}, {0xFB46, 0xFBB1}, {0xFBD3, 0xFD3D}, {0xFD50, 0xFD8F}, {0xFD92, 0xFDC7}, {0xFDF0, 0xFDFB},
    {0xFE70, 0xFE74}, {0xFE76, 0xFEFC}, {0xFF21, 0xFF3A}, {0xFF41, 0xFF5A}, {0xFF66, 0xFFBE}, {0xFFC2, 0xFFC7},
    {0xFFCA, 0xFFCF}, {0xFFD2, 0xFFD7}, {0xFFDA, 0xFFDC}, {0x10000, 0x1000B}, {0x1000D, 0x10026}, {0x10028, 0x1003A},
    {0x1003C, 0x1003D}, {0x1003F, 0x1004D}, {0x10050, 0x1005D}, {0x10080, 0x100FA}, {0x10280, 0x1029C},
    {0x102A0, 0x102D0}, {0x10300, 0x1031F}, {0x1032D, 0x10340}, {0x10342, 0x10349}, {0x10350, 0x10375},
    {0x10380, 0x1039D}, {0x103A0, 0x103C3}, {0x103C8, 0x103CF}, {0x10400, 0x1049D}, {0x104B0, 0x104D3},
    {0x104D8, 0x104FB}, {0x10500, 0x10527}, {0x10530, 0x10563}, {0x10570, 0x1057A}, {0x1057C, 0x1058A},
    {0x1058C, 0x10592}, {0x10594, 0x10595}, {0x10597, 0x105A1}, {0x105A3, 0x105B1}, {0x105B3, 0x105B9},
    {0x105BB, 0x105BC}, {0x105C0, 0x105F3}, {0x10600, 0x10736}, {0x10740, 0x10755}, {0x10760, 0x10767},
    {0x10780, 0x10785}, {0x10787, 0x107B0}, {0x107B2, 0x107BA}, {0x10800, 0x10805}, {0x10808, 0x10808},
    {0x1080A, 0x10835}, {0x10837, 0x10838}, {0x1083C, 0x1083C}, {0x1083F, 0x10855}, {0x10860, 0x10876},
    {0x10880, 0x1089E}, {0x108E0, 0x108F2}, {0x108F4, 0x108F5}, {0x10900, 0x10915}, {0x10920, 0x10939},
    {0x10980, 0x109B7}, {0x109BE, 0x109BF}, {0x10A00, 0x10A00}, {0x10A10, 0x10A13}, {0x10A15, 0x10A17},
    {0x10A19, 0x10A35}, {0x10A60, 0x10A7C}, {0x10A80, 0x10A9C}, {0x10AC0, 0x10AC7}, {0x10AC9, 0x10AE4},
    {0x10B00, 0x10B35}, {0x10B40, 0x10B55}, {0x10B60, 0x10B72}, {0x10B80, 0x10B91}, {0x10C00, 0x10C48},
    {0x10C80, 0x10CB2}, {0x10CC0, 0x10CF2}, {0x10D00, 0x10D23}, {0x10D4A, 0x10D65}, {0x10D6F, 0x10D85},
    {0x10E80, 0x10EA9}, {0x10EB0, 0x10EB1}, {0x10EC2, 0x10EC4}, {0x10F00, 0x10F1C}, {0x10F27, 0x10F27},
    {0x10F30, 0x10F45}, {0x10F70, 0x10F81}, {0x10FB0, 0x10FC4}, {0x10FE0, 0x10FF6}, {0x11003, 0x11037},
    {0x11071, 0x11072}, {0x11075, 0x11075}, {0x11083, 0x110AF}, {0x110D0, 0x110E8}, {0x11103, 0x11126},
    {0x11144, 0x11144}, {0x11147, 0x11147}, {0x11150, 0x11172}, {0x11176, 0x11176}, {0x11183, 0x111B2},
    {0x111C1, 0x111C4}, {0x111DA, 0x111DA}, {0x111DC, 0x111DC}, {0x11200, 0x11211}, {0x11213, 0x1122B},
    {0x1123F, 0x11240}, {0x11280, 0x11286}, {0x11288, 0x11288}, {0x1128A, 0x1128D}, {0x1128F, 0x1129D},
    {0x1129F, 0x112A8}, {0x112B0, 0x112DE}, {0x11305, 0x1130C}, {0x1130F, 0x11310}, {0x11313, 0x11328},
    {0x1132A, 0x11330}, {0x11332, 0x11333}, {0x11335, 0x11339}, {0x1133D, 0x1133D}, {0x11350, 0x11350},
    {0x1135D, 0x11361}, {0x11380, 0x11389}, {0x1138B, 0x1138B}, {0x1138E, 0x1138E}, {0x11390, 0x113B5},
    {0x113B7, 0x113B7}, {0x113D1, 0x113D1}, {0x113D3, 0x113D3}, {0x11400, 0x11434}, {0x11447, 0x1144A},
    {0x1145F, 0x11461}, {0x11480, 0x114AF}, {0x114C4, 0x114C5}, {0x114C7, 0x114C7}, {0x11580, 0x115AE},
    {0x115D8, 0x115DB}, {0x11600, 0x1162F}, {0x11644, 0x11644}, {0x11680, 0x116AA}, {0x116B8, 0x116B8},
    {0x11700, 0x1171A}, {0x11740, 0x11746}, {0x11800, 0x1182B}, {0x118A0, 0x118DF}, {0x118FF, 0x11906},
    {0x11909, 0x11909}, {0x1190C, 0x11913}, {0x11915, 0x11916}, {0x11918, 0x1192F}, {0x1193F, 0x1193F},
    {0x11941, 0x11941}, {0x119A0, 0x119A7}, {0x119AA, 0x119D0}, {0x119E1, 0x119E1}, {0x119E3, 0x119E3},
    {0x11A00, 0x11A00}, {0x11A0B, 0x11A32}, {0x11A3A, 0x11A3A}, {0x11A50, 0x11A50}, {0x11A5C, 0x11A89},
    {0x11A9D, 0x11A9D}, {0x11AB0, 0x11AF8}, {0x11BC0, 0x11BE0}, {0x11C00, 0x11C08}, {0x11C0A, 0x11C2E},
    {0x11C40, 0x11C40}, {0x11C72, 0x11C8F}, {0x11D00, 0x11D06}, {0x11D08, 0x11D09}, {0x11D0B, 0x11D30},
    {0x11D46, 0x11D46}, {0x11D60, 0x11D65}, {0x11D67, 0x11D68}, {0x11D6A, 0x11D89}, {0x11D98, 0x11D98},
    {0x11EE0, 0x11EF2}, {0x11F02, 0x11F02}, {0x11F04, 0x11F10}, {0x11F12, 0x11F33}, {0x11FB0, 0x11FB0},
    {0x12000, 0x12399}, {0x12480, 0x12543}, {0x12F90, 0x12FF0}, {0x13000, 0x1342F}, {0x13441, 0x13446},
    {0x13460, 0x143FA}, {0x14400, 0x14646}, {0x16100, 0x1611D}, {0x16800, 0x16A38}, {0x16A40, 0x16A5E},
    {0x16A70, 0x16ABE}, {0x16AD0, 0x16AED}, {0x16B00, 0x16B2F}, {0x16B40, 0x16B43}, {0x16B63, 0x16B77},
    {0x16B7D, 0x16B8F}, {0x16D40, 0x16D6C}, {0x16E40, 0x16E7F}, {0x16F00, 0x16F4A}, {0x16F50, 0x16F50},
    {0x16F93, 0x16F9F}, {0x16FE0, 0x16FE1}, {0x16FE3, 0x16FE3}, {0x17000, 0x187F7}, {0x18800, 0x18CD5},
    {0x18CFF, 0x18D08}, {0x1AFF0, 0x1AFF3}, {0x1AFF5, 0x1AFFB}, {0x1AFFD, 0x1AFFE}, {0x1B000, 0x1B122},
    {0x1B132, 0x1B132}, {0x1B150, 0x1B152}, {0x1B155, 0x1B155}, {0x1B164, 0x1B167}, {0x1B170, 0x1B2FB},
    {0x1BC00, 0x1BC6A}, {0x1BC70, 0x1BC7C}, {0x1BC80, 0x1BC88}, {0x1BC90, 0x1BC99}, {0x1D400, 0x1D454},
    {0x1D456, 0x1D49C}, {0x1D49E, 0x1D49F}, {0x1D4A2, 0x1D4A2}, {0x1D4A5, 0x1D4A6}, {0x1D4A9, 0x1D4AC},
    {0x1D4AE, 0x1D4B9}, {0x1D4BB, 0x1D4BB}, {0x1D4BD, 0x1D4C3}, {0x1D4C5, 0x1D505}, {0x1D507, 0x1D50A},
    {0x1D50D, 0x1D514}, {0x1D516, 0x1D51C}, {0x1D51E, 0x1D539}, {0x1D53B, 0x1D53E}, {0x1D540, 0x1D544},
    {0x1D546, 0x1D546}, {0x1D54A, 0x1D550}, {0x1D552, 0x1D6A5}, {0x1D6A8, 0x1D6C0}, {0x1D6C2, 0x1D6DA},
    {0x1D6DC, 0x1D6FA}, {0x1D6FC, 0x1D714}, {0x1D716, 0x1D734}, {0x1D736, 0x1D74E}, {0x1D750, 0x1D76E},
    {0x1D770, 0x1D788}, {0x1D78A, 0x1D7A8}, {0x1D7AA, 0x1D7C2}, {0x1D7C4, 0x1D7CB}, {0x1DF00, 0x1DF1E},
    {0x1DF25, 0x1DF2A}, {0x1E030, 0x1E06D}, {0x1E100, 0x1E12C}, {0x1E137, 0x1E13D}, {0x1E14E, 0x1E14E},
    {0x1E290, 0x1E2AD}, {0x1E2C0, 0x1E2EB}, {0x1E4D0, 0x1E4EB}, {0x1E5D0, 0x1E5ED}, {0x1E5F0, 0x1E5F0},
    {0x1E7E0, 0x1E7E6}, {0x1E7E8, 0x1E7EB}, {0x1E7ED, 0x1E7EE}, {0x1E7F0, 0x1E7FE}, {0x1E800, 0x1E8C4},
    {0x1E900, 0x1E943}, {0x1E94B, 0x1E94B}, {0x1EE00, 0x1EE03}, {0x1EE05, 0x1EE1F}, {0x1EE21, 0x1EE22},
    {0x1EE24, 0x1EE24}, {0x1EE27, 0x1EE27}, {0x1EE29, 0x1EE32}, {0x1EE34, 0x1EE37}, {0x1EE39, 0x1EE39},
    {0x1EE3B, 0x1EE3B}, {0x1EE42, 0x1EE42}, {0x1EE47, 0x1EE47}, {0x1EE49, 0x1EE49}, {0x1EE4B, 0x1EE4B},
    {0x1EE4D, 0x1EE4F}, {0x1EE51, 0x1EE52}, {0x1EE54, 0x1EE54}, {0x1EE57, 0x1EE57}, {0x1EE59, 0x1EE59},
    {0x1EE5B, 0x1EE5B}, {0x1EE5D, 0x1EE5D}, {0x1EE5F, 0x1EE5F}, {0x1EE61, 0x1EE62}, {0x1EE64, 0x1EE64},
    {0x1EE67, 0x1EE6A}, {0x1EE6C, 0x1EE72}, {0x1EE74, 0x1EE77}, {0x1EE79, 0x1EE7C}, {0x1EE7E, 0x1EE7E},
    {0x1EE80, 0x1EE89}, {0x1EE8B, 0x1EE9B}, {0x1EEA1, 0x1EEA3}, {0x1EEA5, 0x1EEA9}, {0x1EEAB, 0x1EEBB},
    {0x20000, 0x2A6DF}, {0x2A700, 0x2B739}, {0x2B740, 0x2B81D}, {0x2B820, 0x2CEA1}, {0x2CEB0, 0x2EBE0},
    {0x2EBF0, 0x2EE5D}, {0x2F800, 0x2FA1D}, {0x30000, 0x3134A}, {0x31350, 0x323AF},
};

inline constexpr CodePoints kNumbers[] = {  // \p{N}
    {0x30, 0x39}, {0xB2, 0xB3}, {0xB9, 0xB9}, {0xBC, 0xBE}, {0x660, 0x669}, {0x6F0, 0x6F9}, {0x7C0, 0x7C9},
    {0x966, 0x96F}, {0x9E6, 0x9EF}, {0x9F4, 0x9F9}, {0xA66, 0xA6F}, {0xAE6, 0xAEF}, {0xB66, 0xB6F}, {0xB72, 0xB77},
    {0xBE6, 0xBF2}, {0xC66, 0xC6F}, {0xC78, 0xC7E}, {0xCE6, 0xCEF}, {0xD58, 0xD5E}, {0xD66, 0xD78}, {0xDE6, 0xDEF},
    {0xE50, 0xE59}, {0xED0, 0xED9}, {0xF20, 0xF33}, {0x1040, 0x1049}, {0x1090, 0x1099}, {0x1369, 0x137C},
    {0x16EE, 0x16F0}, {0x17E0, 0x17E9}, {0x17F0, 0x17F9}, {0x1810, 0x1819}, {0x1946, 0x194F}, {0x19D0, 0x19DA},
    {0x1A80, 0x1A89}, {0x1A90, 0x1A99}, {0x1B50, 0x1B59}, {0x1BB0, 0x1BB9}, {0x1C40, 0x1C49}, {0x1C50, 0x1C59},
    {0x2070, 0x2070}, {0x2074, 0x2079}, {0x2080, 0x2089}, {0x2150, 0x2182}, {0x2185, 0x2189}, {0x2460, 0x249B},
    {0x24EA, 0x24FF}, {0x2776, 0x2793}, {0x2CFD, 0x2CFD}, {0x3007, 0x3007}, {0x3021, 0x3029}, {0x3038, 0x303A},
    {0x3192, 0x3195}, {0x3220, 0x3229}, {0x3248, 0x324F}, {0x3251, 0x325F}, {0x3280, 0x3289}, {0x32B1, 0x32BF},
    {0xA620, 0xA629}, {0xA6E6, 0xA6EF}, {0xA830, 0xA835}, {0xA8D0, 0xA8D9}, {0xA900, 0xA909}, {0xA9D0, 0xA9D9},
    {0xA9F0, 0xA9F9}, {0xAA50, 0xAA59}, {0xABF0, 0xABF9}, {0xFF10, 0xFF19}, {0x10107, 0x10133}, {0x10140, 0x10178},
    {0x1018A, 0x1018B}, {0x102E1, 0x102FB}, {0x10320, 0x10323}, {0x10341, 0x10341}, {0x1034A, 0x1034A},
    {0x103D1, 0x103D5}, {0x104A0, 0x104A9}, {0x10858, 0x1085F}, {0x10879, 0x1087F}, {0x108A7, 0x108AF},
    {0x108FB, 0x108FF}, {0x10916, 0x1091B}, {0x109BC, 0x109BD}, {0x109C0, 0x109CF}, {0x109D2, 0x109FF},
    {0x10A40, 0x10A48}, {0x10A7D, 0x10A7E}, {0x10A9D, 0x10A9F}, {0x10AEB, 0x10AEF}, {0x10B58, 0x10B5F},
    {0x10B78, 0x10B7F}, {0x10BA9, 0x10BAF}, {0x10CFA, 0x10CFF}, {0x10D30, 0x10D39}, {0x10D40, 0x10D49},
    {0x10E60, 0x10E7E}, {0x10F1D, 0x10F26}, {0x10F51, 0x10F54}, {0x10FC5, 0x10FCB}, {0x11052, 0x1106F},
    {0x110F0, 0x110F9}, {0x11136, 0x1113F}, {0x111D0, 0x111D9}, {0x111E1, 0x111F4}, {0x112F0, 0x112F9},
    {0x11450, 0x11459}, {0x114D0, 0x114D9}, {0x11650, 0x11659}, {0x116C0, 0x116C9}, {0x116D0, 0x116E3},
    {0x11730, 0x1173B}, {0x118E0, 0x118F2}, {0x11950, 0x11959}, {0x11BF0, 0x11BF9}, {0x11C50, 0x11C6C},
    {0x11D50, 0x11D59}, {0x11DA0, 0x11DA9}, {0x11F50, 0x11F59}, {0x11FC0, 0x11FD4}, {0x12400, 0x1246E},
    {0x16130, 0x16139}, {0x16A60, 0x16A69}, {0x16AC0, 0x16AC9}, {0x16B50, 0x16B59}, {0x16B5B, 0x16B61},
    {0x16D70, 0x16D79}, {0x16E80, 0x16E96}, {0x1CCF0, 0x1CCF9}, {0x1D2C0, 0x1D2D3}, {0x1D2E0, 0x1D2F3},
    {0x1D360, 0x1D378}, {0x1D7CE, 0x1D7FF}, {0x1E140, 0x1E149}, {0x1E2F0, 0x1E2F9}, {0x1E4F0, 0x1E4F9},
    {0x1E5F1, 0x1E5FA}, {0x1E8C7, 0x1E8CF}, {0x1E950, 0x1E959}, {0x1EC71, 0x1ECAB}, {0x1ECAD, 0x1ECAF},
    {0x1ECB1, 0x1ECB4}, {0x1ED01, 0x1ED2D}, {0x1ED2F, 0x1ED3D}, {0x1F100, 0x1F10C}, {0x1FBF0, 0x1FBF9},
};
// clang-format on

// Binary search; the ranges are in ascending order.
template <size_t N> bool contains(const CodePoints (&ranges)[N], char32_t code) {
  const CodePoints* after = std::upper_bound(std::begin(ranges), std::end(ranges), uint32_t(code),
                                             [](uint32_t c, const CodePoints& r) { return c < r.first; });
  return after != ranges && code <= (after - 1)->last;
}

inline bool is_space(char32_t code) {
  static constexpr CodePoints kSpaces[] = {{0x9, 0xD},       {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},
                                           {0x1680, 0x1680}, {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F},
                                           {0x205F, 0x205F}, {0x3000, 0x3000}};
  return contains(kSpaces, code);
}

inline Class class_of(char32_t code) {
  if (contains(kLetters, code)) return Class::letter;
  if (contains(kNumbers, code)) return Class::number;
  if (is_space(code)) return Class::space;
  return Class::other;
}

inline bool is_more_number(char32_t code) {
  return (code >= 0x11DE0 && code <= 0x11DE9) || (code >= 0x16FF4 && code <= 0x16FF6);
}

}  // namespace tokenizer_detail

// ====================================================================================================================
// 10. Conversations: from turns to tokens
// ====================================================================================================================
//
// A model file describes the layout of a conversation as data, not as a program:
//
//   stop ids | default system prompt | for each slot: its parts, each an id (-1: text) and a text | trim, if not 0
//   count, int32 each                  count, then each part; a text is its size and its bytes
//
// An id has the bits of Tokenizer::Strip in bits 24 and 25.

// The strings around the turns of a conversation. A part is a control token or plain text.
struct ChatTemplate {
  struct Part {
    int id = -1;  // a control token; -1: text
    std::string text;
    uint8_t strip = 0;  // of a control token: bits of Tokenizer::Strip
  };
  using Parts = std::vector<Part>;
  enum Slot { kSystemPrefix, kSystemSuffix, kFirstUserPrefix, kUserPrefix, kUserSuffix, kReplyPrefix, kReplySuffix };
  static constexpr int kSlots = 7;
  enum Trim : unsigned { kTrimSystem = 1, kTrimUser = 2, kTrimReply = 4 };

  Parts slot[kSlots];          // kFirstUserPrefix replaces kUserPrefix right after a system turn
  std::string default_system;  // the system prompt if the user gives none; "": no system turn
  std::vector<int> stop_ids;   // tokens that end a reply, or a text
  unsigned trim = 0;           // bits of Trim: turns whose leading and trailing white space is removed
  std::string error;           // of load()

  // Whether there is a template: a model that was not trained on conversations has none.
  bool known() const {
    return std::any_of(std::begin(slot), std::end(slot), [](const Parts& parts) { return !parts.empty(); });
  }

  // The ids of all tokens that the template contains.
  std::vector<int> ids() const {
    std::vector<int> all = stop_ids;
    for (const Parts& parts : slot)
      for (const Part& part : parts)
        if (part.id >= 0) all.push_back(part.id);
    return all;
  }

  // Reads the chat section of a model file (Model::chat_bytes). On failure returns false with `error` set, and the
  // template is empty.
  bool load(std::string_view bytes, int vocab_size);
};

inline bool ChatTemplate::load(std::string_view bytes, int vocab_size) try {
  *this = {};
  bool ok = true;
  const auto take = [&](size_t n) {
    ok = ok && n <= bytes.size();
    const std::string_view taken = ok ? bytes.substr(0, n) : std::string_view();
    bytes.remove_prefix(taken.size());
    return taken;
  };
  const auto number = [&] {
    uint32_t value = 0;
    const std::string_view raw = take(sizeof value);
    if (ok) std::memcpy(&value, raw.data(), sizeof value);
    return value;
  };
  const auto refuse = [&](const std::string& expected, const std::string& found) {
    *this = {};
    error = "section chat: expected " + expected + ", found " + found;
    return false;
  };
  for (uint32_t left = number(); ok && left > 0; left--) {
    stop_ids.push_back(int(number()));
    if (ok && (stop_ids.back() < 0 || stop_ids.back() >= vocab_size))
      return refuse("stop ids within the vocabulary", std::to_string(stop_ids.back()));
  }
  default_system = std::string(take(number()));
  for (Parts& parts : slot)
    for (uint32_t left = number(); ok && left > 0; left--) {
      const int word = int(number()), strip = word < 0 ? 0 : word >> 24, id = word < 0 ? word : word & 0xFFFFFF;
      if (id < -1 || id >= vocab_size || strip > 3) return refuse("ids within the vocabulary", std::to_string(word));
      parts.push_back({id, std::string(take(number())), uint8_t(strip)});
    }
  if (ok && !bytes.empty()) trim = number();
  if (ok && bytes.empty() && trim <= 7) return true;
  return refuse("a complete template", "one that does not match its size");
} catch (const std::exception&) {
  *this = {};
  error = tokenizer_detail::kOutOfMemory;
  return false;
}

// Turns text into ids, as Tokenizer::encode() does. Throws std::bad_alloc on failure, as ids_of() does.
using Encode = std::function<std::vector<int>(std::string_view text, bool bos)>;

// Without white space at both ends.
inline std::string trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\n\v\f\r";
  const size_t from = std::min(text.find_first_not_of(kSpace), text.size());
  return std::string(text.substr(from, text.find_last_not_of(kSpace) + 1 - from));
}

// For programs: the text and control tokens before a reply: `message` as the next user turn, after the end of the last reply or, if
// it is the first turn, after the system prompt.
inline ChatTemplate::Parts chat_parts(const ChatTemplate& chat, const std::string& system, const std::string& message,
                                      bool first) {
  ChatTemplate::Parts parts;
  const auto add = [&](ChatTemplate::Slot slot) {
    parts.insert(parts.end(), chat.slot[slot].begin(), chat.slot[slot].end());
  };
  const auto add_text = [&](const std::string& text, ChatTemplate::Trim trim) {
    parts.push_back({-1, chat.trim & trim ? trimmed(text) : text});
  };
  const std::string& prompt = system.empty() ? chat.default_system : system;
  if (first && !prompt.empty()) {
    add(ChatTemplate::kSystemPrefix);
    add_text(prompt, ChatTemplate::kTrimSystem);
    add(ChatTemplate::kSystemSuffix);
    add(ChatTemplate::kFirstUserPrefix);
  } else {
    if (!first) add(ChatTemplate::kReplySuffix);
    add(ChatTemplate::kUserPrefix);
  }
  add_text(message, ChatTemplate::kTrimUser);
  add(ChatTemplate::kUserSuffix);
  add(ChatTemplate::kReplyPrefix);
  return parts;
}

// For programs: their token ids; bos: they begin a sequence. Text between two control tokens is encoded in one piece, so
// that no token boundary depends on which part it came from, and without the white space that belongs to the tokens.
inline std::vector<int> encode_parts(const ChatTemplate::Parts& parts, const Encode& encode, bool bos) {
  std::vector<int> ids;
  std::string text;
  uint8_t strip = 0;  // of the control token before the text
  const auto flush = [&](uint8_t next) {
    if (strip & Tokenizer::kStripRight) text.erase(0, text.size() - tokenizer_detail::without_leading_space(text));
    if (next & Tokenizer::kStripLeft) text.resize(tokenizer_detail::without_trailing_space(text));
    if (text.empty()) return;
    const std::vector<int> more = encode(text, std::exchange(bos, false));
    ids.insert(ids.end(), more.begin(), more.end());
    text.clear();
  };
  for (const ChatTemplate::Part& part : parts) {
    text += part.text;
    if (part.id < 0) continue;
    flush(part.strip);
    const bool first = std::exchange(bos, false);
    if (first) ids = encode("", true);  // BOS, or nothing
    if (!first || ids.empty() || ids[0] != part.id) ids.push_back(part.id);
    strip = part.strip;
  }
  flush(0);
  return bos ? encode("", true) : ids;
}

// Both at once: the token ids of a turn. Returns no ids if memory runs out, which Session::forward() refuses.
inline std::vector<int> chat_turn(const ChatTemplate& chat, const Encode& encode, const std::string& system,
                                  const std::string& message, bool first) try {
  return encode_parts(chat_parts(chat, system, message, first), encode, first);
} catch (const std::bad_alloc&) {
  return {};
}

// Notices that a text has locked into a loop: it ends in one passage repeated at least four times and for 96 tokens.
// Lists, tables and refrains repeat too, but not for that long.
class LoopWatch {
 public:
  static constexpr size_t kTokens = 96, kTimes = 4, kLongest = 128;  // kLongest: of the passage, tokens

  // True once the tokens so far end in a loop.
  bool push(int id) {
    ids_.push_back(id);
    for (size_t p = 1; p <= std::min(kLongest, ids_.size() - 1); p++) {
      repeated_[p] = ids_[ids_.size() - 1 - p] == id ? repeated_[p] + 1 : 0;
      if (repeated_[p] + p < std::max(kTokens, kTimes * p)) continue;
      period_ = p;
      return true;
    }
    return false;
  }
  size_t period() const { return period_; }                         // tokens of the passage
  size_t kept() const { return ids_.size() - repeated_[period_]; }  // tokens up to the end of its first occurrence

 private:
  std::vector<int> ids_;
  size_t repeated_[kLongest + 1] = {};  // by period: how many of the last tokens equal the token one period earlier
  size_t period_ = 0;
};

}  // namespace POCKET_ISA
}  // namespace pocket
