// deflate.hpp: packs bytes as RFC 1951 describes, which browsers and zlib unpack. Attention weights are mostly small, and
// equal bytes seldom come in the same order again: so each byte has its own Huffman code, and there are no references to
// earlier bytes.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
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
    d.out_.resize(d.size_ + (d.n_ > 0));
    return std::move(d.out_);
  }

 private:
  static constexpr size_t kBlock = 32768;                // bytes that share a code
  static constexpr int kEnd = 256, kSymbols = kEnd + 1;  // the symbols: bytes, and the end of a block
  static constexpr int kLongest = 15;                    // bits of a code
  static constexpr size_t kHead = 256;                   // more bytes than those of a block before its codes
  using Counts = std::array<uint32_t, kSymbols>;
  using Lengths = std::array<int, kSymbols>;  // bits of the code of each symbol; 0: it does not occur

  // The lengths of Huffman codes: the two rarest nodes become the children of a new one, until one is left. The leaves are
  // sorted, and no new node is rarer than those before it, so that the rarest node is the next leaf or the next new one.
  static Lengths code_lengths(Counts counts) {
    struct Node {
      uint32_t count;
      int symbol;
      size_t parent;
    };
    while (true) {
      std::vector<Node> nodes;
      for (int s = 0; s < kSymbols; s++)
        if (counts[size_t(s)]) nodes.push_back({counts[size_t(s)], s, 0});
      if (nodes.size() == 1) nodes.push_back({1, nodes[0].symbol == 0 ? 1 : 0, 0});  // a code needs two symbols
      std::sort(nodes.begin(), nodes.end(), [](const Node& a, const Node& b) {
        return a.count != b.count ? a.count < b.count : a.symbol < b.symbol;
      });
      const size_t leaves = nodes.size();
      size_t leaf = 0, inner = leaves;  // the next ones
      const auto take_rarest = [&] {
        const bool is_leaf = leaf < leaves && (inner == nodes.size() || nodes[leaf].count <= nodes[inner].count);
        return is_leaf ? leaf++ : inner++;
      };
      while (nodes.size() < 2 * leaves - 1) {
        const size_t a = take_rarest(), b = take_rarest();
        nodes[a].parent = nodes[b].parent = nodes.size();
        nodes.push_back({nodes[a].count + nodes[b].count, -1, 0});
      }
      Lengths lengths = {};
      std::vector<int> depth(nodes.size());
      for (size_t i = nodes.size() - 1; i-- > 0;) {
        depth[i] = depth[nodes[i].parent] + 1;
        if (i < leaves) lengths[size_t(nodes[i].symbol)] = depth[i];
      }
      if (*std::max_element(lengths.begin(), lengths.end()) <= kLongest) return lengths;
      for (uint32_t& c : counts) c = (c + 1) / 2;  // rare symbols get shorter codes
    }
  }

  void block(const uint8_t* begin, const uint8_t* end, bool last) {
    Counts every[4] = {};  // of every fourth byte: equal bytes follow each other, and each addition waits for the last
    const uint8_t* at = begin;
    for (; end - at >= 4; at += 4) {
      every[0][at[0]]++;
      every[1][at[1]]++;
      every[2][at[2]]++;
      every[3][at[3]]++;
    }
    for (; at < end; at++) every[0][*at]++;
    Counts counts;
    for (size_t s = 0; s < kSymbols; s++) counts[s] = every[0][s] + every[1][s] + every[2][s] + every[3][s];
    counts[kEnd] = 1;
    const Lengths lengths = code_lengths(counts);
    size_t bits_in_all = 0;
    for (size_t s = 0; s < kSymbols; s++) bits_in_all += counts[s] * size_t(lengths[s]);
    out_.resize(size_ + kHead + bits_in_all / 8 + 2 * sizeof waiting_);
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
    for (at = begin; end - at >= 3; at += 3) {
      const int one = lengths[at[0]], two = one + lengths[at[1]];
      put(codes[at[0]] | uint64_t(codes[at[1]]) << one | uint64_t(codes[at[2]]) << two, two + lengths[at[2]]);
    }
    for (; at < end; at++) put(codes[*at], lengths[*at]);
    put(codes[kEnd], lengths[kEnd]);
  }

  // Codes are written from their highest bit on.
  static uint32_t reversed(uint32_t code, int bits) {
    uint32_t out = 0;
    for (int i = 0; i < bits; i++) out |= (code >> i & 1) << (bits - 1 - i);
    return out;
  }
  // At most 56 bits: three codes. out_ has room for them, and for the bytes after them.
  void put(uint64_t value, int bits) {
    waiting_ |= value << n_;
    n_ += bits;
    std::memcpy(&out_[size_], &waiting_, sizeof waiting_);  // the lowest byte first
    size_ += size_t(n_ / 8);
    waiting_ >>= n_ / 8 * 8;
    n_ %= 8;
  }

  std::string out_;
  size_t size_ = 0;       // whole bytes in out_
  uint64_t waiting_ = 0;  // the bits of the next byte
  int n_ = 0;             // how many: 0 to 7
};

}  // namespace pocket::explain
