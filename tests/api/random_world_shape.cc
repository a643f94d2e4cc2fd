#include "tests/api/random_world_shape.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "fmt/format.h"
#include "tests/testing/random.h"

namespace wavekv::testing {
namespace {

template <typename T, size_t kCount>
T OneOf(Random& random, const T (&choices)[kCount]) {
  return choices[random.Integer(0, static_cast<int64_t>(kCount) - 1)];
}

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

// Of a block at least.
constexpr int64_t kSectorBytes = 512;
// Calls at a time that read tiers, and what one reads at once: tokens of an exact piece and of one
// of a zone.
constexpr int64_t kFetches = 4;
constexpr int64_t kExactTokens = 1024;
constexpr int64_t kZoneTokens = 256;

// Less in the arena, as rows are elsewhere. Blocks of one sector; at worst a cache that hardly
// holds what a call reads at once.
void DrawTiers(Random& random, EngineOptions& options) {
  options.arena_bytes = options.arena_bytes * 2 / 3;
  TierOptions& tiers = options.tiers;
  const char* directory = std::getenv("TEST_TMPDIR");
  tiers.directory = directory == nullptr ? "/tmp" : directory;
  const ModelSpec& model = options.model;
  const int64_t token_bytes = model.key_row_bytes() + model.value_row_bytes();
  const int64_t sector_tokens = std::max<int64_t>(1, kSectorBytes / token_bytes);
  tiers.block_tokens = OneOf<int64_t>(random, {1, sector_tokens, sector_tokens, sector_tokens});
  tiers.replacement = OneOf<const char*>(random, {"lru", "slru", "s3fifo"});
  const int64_t block_bytes =
      (tiers.block_tokens * token_bytes + kSectorBytes - 1) / kSectorBytes * kSectorBytes;
  const int64_t cluster_tokens = options.index.cluster_tokens_max;
  const int64_t blocks_at_once =
      std::max(kZoneTokens, kExactTokens / tiers.block_tokens + kExactTokens / 64 + 8) +
      cluster_tokens;
  tiers.cache_bytes =
      OneOf<int64_t>(random, {1, 1, 2, 8}) * 2 * kFetches * blocks_at_once * block_bytes;
}

}  // namespace

WorldShape DrawShape(uint64_t seed) {
  Random random(seed);
  WorldShape shape;
  ModelSpec& model = shape.options.model;
  model.num_layers = static_cast<int>(random.Integer(1, 3));
  model.num_kv_heads = static_cast<int>(random.Integer(1, 3));
  model.num_q_heads = model.num_kv_heads * OneOf(random, {1, 1, 2, 4});
  model.head_dim_k = OneOf(random, {8, 16, 16, 24, 40});
  model.head_dim_v = OneOf(random, {8, 8, 16, 24});
  model.kv_dtype = OneOf(random, kDTypes);
  if (random.Integer(0, 4) == 0) model.softmax_scale = 0.5f;

  IndexOptions& index = shape.options.index;
  // Mostly several updates to a segment, which are merged then.
  index.segment_tokens = OneOf<int64_t>(random, {64, 128, 128, 192});
  index.update_tokens = random.Integer(0, 3) > 0 ? 64 : index.segment_tokens;
  index.tokens_per_cluster = OneOf(random, {1, 4, 16, 16, 50});
  index.cluster_tokens_max =
      index.tokens_per_cluster * static_cast<int>(OneOf<int64_t>(random, {1, 2, 4}));
  index.kmeans_iterations = static_cast<int>(random.Integer(0, 3));
  index.sink_tokens = OneOf<int64_t>(random, {0, 1, 4, 4, 70});
  index.window_tokens = OneOf<int64_t>(random, {0, 1, 16, 64, 100});
  index.statistics = OneOf(random, {StatisticsFormat::kFloat32, StatisticsFormat::kInt8,
                                    StatisticsFormat::kInt4, StatisticsFormat::kInt4});
  index.code_bits = OneOf(random, {0, 1, 2, 4});
  index.clusters_per_super = OneOf(random, {1, 3, 16, 16});
  index.seed = seed;

  shape.options.worker_threads = static_cast<int>(random.Integer(1, 3));
  shape.options.build_threads = 1;
  shape.num_tenants = static_cast<int>(random.Integer(2, 4));

  // Room for a third of what the sequences may grow to, in blocks.
  const int64_t chunk_bytes = std::max<int64_t>(4096, 64 * model.token_bytes());
  shape.options.arena_bytes =
      shape.num_sequences_max * model.num_layers * (shape.length_max / 64 + 2) * chunk_bytes / 3;
  if (random.Integer(0, 1) == 0) DrawTiers(random, shape.options);
  return shape;
}

std::string ToString(const WorldShape& shape) {
  const EngineOptions& options = shape.options;
  const ModelSpec& model = options.model;
  const IndexOptions& index = options.index;
  return fmt::format(
      "layers {} q_heads {} kv_heads {} head_dim {}/{} {} scale {} segment {} update {} cluster "
      "{}..{} super {} iterations {} sink {} window {} statistics {} code bits {} arena {} threads "
      "{}+{} tenants {} tiers {}",
      model.num_layers, model.num_q_heads, model.num_kv_heads, model.head_dim_k, model.head_dim_v,
      DTypeName(model.kv_dtype), model.softmax_scale, index.segment_tokens, index.update_tokens,
      index.tokens_per_cluster, index.cluster_tokens_max, index.clusters_per_super,
      index.kmeans_iterations, index.sink_tokens, index.window_tokens,
      StatisticsFormatName(index.statistics), index.code_bits, options.arena_bytes,
      options.worker_threads, options.build_threads, shape.num_tenants,
      options.tiers.directory.empty()
          ? "none"
          : fmt::format("block {} cache {} {}", options.tiers.block_tokens,
                        options.tiers.cache_bytes, options.tiers.replacement));
}

}  // namespace wavekv::testing
