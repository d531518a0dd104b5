// deflate.hpp: packs bytes as RFC 1951 describes, which browsers and zlib unpack. Attention weights are mostly small, and
// equal bytes seldom come in the same order again: so each byte has its own Huffman code, and there are no references to
// earlier bytes.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace pocket::explain {

class Deflate {
 public:
  static std::string pack(const std::vector<uint8_t>& bytes) {
    Deflate d;
    size_t begin = 0;
    do {
      const size_t end = std::min(bytes.size(), begin + kBlock);
      d.block(bytes.data() + begin, bytes.data() + end, end == bytes.size());
      begin = end;
    } while (begin < bytes.size());
    for (; d.n_ > 0; d.n_ -= 8, d.waiting_ >>= 8) d.out_ += char(d.waiting_ & 255);
    return d.out_;
  }

 private:
  static constexpr size_t kBlock = 32768;                // bytes that share a code
  static constexpr int kEnd = 256, kSymbols = kEnd + 1;  // the symbols: bytes, and the end of a block
  static constexpr int kLongest = 15;                    // bits of a code
  using Counts = std::array<uint32_t, kSymbols>;
  using Lengths = std::array<int, kSymbols>;  // bits of the code of each symbol; 0: it does not occur

  // The lengths of Huffman codes: the two rarest nodes become one, until one is left.
  static Lengths code_lengths(Counts counts) {
    struct Node {
      uint32_t count;
      std::vector<int> symbols;
    };
    const auto rarer = [](const Node& a, const Node& b) {  // a strict order, so that every library makes the same heap
      return a.count != b.count ? a.count > b.count : a.symbols[0] > b.symbols[0];
    };
    while (true) {
      Lengths lengths = {};
      std::vector<Node> heap;
      for (int s = 0; s < kSymbols; s++)
        if (counts[size_t(s)]) heap.push_back({counts[size_t(s)], {s}});
      if (heap.size() == 1) heap.push_back({1, {heap[0].symbols[0] == 0 ? 1 : 0}});  // a code needs two symbols
      std::make_heap(heap.begin(), heap.end(), rarer);
      while (heap.size() > 1) {
        std::pop_heap(heap.begin(), heap.end(), rarer);
        Node a = std::move(heap.back());
        heap.pop_back();
        std::pop_heap(heap.begin(), heap.end(), rarer);
        Node& b = heap.back();
        b.count += a.count;
        b.symbols.insert(b.symbols.end(), a.symbols.begin(), a.symbols.end());
        for (const int s : b.symbols) lengths[size_t(s)]++;
        std::push_heap(heap.begin(), heap.end(), rarer);
      }
      if (*std::max_element(lengths.begin(), lengths.end()) <= kLongest) return lengths;
      for (uint32_t& c : counts) c = (c + 1) / 2;  // rare symbols get shorter codes
    }
  }

  void block(const uint8_t* begin, const uint8_t* end, bool last) {
    Counts counts = {}, others = {};  // two, since equal bytes follow each other
    const uint8_t* at = begin;
    for (; end - at > 1; at += 2) {
      counts[at[0]]++;
      others[at[1]]++;
    }
    if (at < end) counts[*at]++;
    for (size_t i = 0; i < kEnd; i++) counts[i] += others[i];
    counts[kEnd] = 1;
    const Lengths lengths = code_lengths(counts);
    put(last, 1);
    put(2, 2);               // with codes of its own:
    put(kSymbols - 257, 5);  // as many as there are symbols
    put(0, 5);               // and one for distances, which does not occur
    put(19 - 4, 4);          // the code in which the lengths of the codes are written: 4 bits for each of 0 to 15
    for (int i = 0; i < 19; i++) put(i < 3 ? 0 : 4, 3);
    for (const int length : lengths) put(reversed(uint32_t(length), 4), 4);
    put(0, 4);
    Counts codes = {};
    uint32_t code = 0;
    for (int bits = 1; bits <= kLongest; bits++, code *= 2)
      for (size_t s = 0; s < kSymbols; s++)
        if (lengths[s] == bits) codes[s] = reversed(code++, bits);
    for (at = begin; at < end; at++) put(codes[*at], lengths[*at]);
    put(codes[kEnd], lengths[kEnd]);
  }

  // Codes are written from their highest bit on.
  static uint32_t reversed(uint32_t code, int bits) {
    uint32_t out = 0;
    for (int i = 0; i < bits; i++) out |= (code >> i & 1) << (bits - 1 - i);
    return out;
  }
  void put(uint32_t value, int bits) {
    waiting_ |= uint64_t(value) << n_;
    n_ += bits;
    if (n_ < 32) return;
    const char four[] = {char(waiting_), char(waiting_ >> 8), char(waiting_ >> 16), char(waiting_ >> 24)};
    out_.append(four, 4);
    waiting_ >>= 32;
    n_ -= 32;
  }

  std::string out_;
  uint64_t waiting_ = 0;
  int n_ = 0;
};

}  // namespace pocket::explain
