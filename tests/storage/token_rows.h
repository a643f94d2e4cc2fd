// Rows that say which token they belong to: written into chunks, and found again wherever a layer
// keeps them.
#ifndef WAVEKV_TESTS_STORAGE_TOKEN_ROWS_H_
#define WAVEKV_TESTS_STORAGE_TOKEN_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "storage/layer_cache.h"
#include "storage/memory_account.h"
#include "storage/segment.h"
#include "tests/testing/random.h"

namespace wavekv::testing {

// A token's name. Equal names have equal rows, different names different ones.
using Token = uint32_t;

// [first, first + count).
std::vector<Token> Tokens(Token first, int64_t count);

class TokenRows {
 public:
  explicit TokenRows(const ModelSpec& model) : model_(model) {}

  // Writes K and V of all kv heads into row `row`.
  void Write(Token token, const RowChunk& chunk, int64_t row) const;

  // Prepares, writes and commits. What PrepareAppend says.
  absl::Status Append(LayerCache& cache, MemoryAccount& account,
                      const std::vector<Token>& tokens) const;

  // Fails the test unless the contents are exactly these tokens, byte for byte, each at its
  // position and once, and every part of the layer lies where LayerContents says.
  void ExpectContents(const LayerContents& contents, const CutRule& rule,
                      const std::vector<Token>& tokens) const;

  // Seals a pending segment in clusters drawn at random: what storage keeps must not depend on how
  // the index was made.
  absl::Status Seal(Segment& segment, MemoryAccount& account, Random& random) const;

 private:
  std::vector<std::byte> Row(Token token, int kv_head, bool is_value) const;
  void ExpectRange(const KvRange& range, int kv_head, const std::vector<Token>& tokens,
                   std::vector<int>& times_seen) const;

  const ModelSpec model_;
};

}  // namespace wavekv::testing

#endif  // WAVEKV_TESTS_STORAGE_TOKEN_ROWS_H_
