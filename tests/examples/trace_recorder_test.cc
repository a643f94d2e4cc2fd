#include "examples/tinylm/trace_recorder.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/examples/test_files.h"
#include "tools/safetensors/safetensors.h"

namespace tinylm {
namespace {

using ::testing::ElementsAre;
using testing::TemporaryFile;
using wavekv::DType;
using wavekv::MutableTensorView;
using wavekv::TensorView;

// Counts what reaches it.
class CountingAttention : public Attention {
 public:
  absl::Status BeginStep(int64_t num_rows) override {
    rows += num_rows;
    return absl::OkStatus();
  }
  absl::Status Append(int, const TensorView&, const TensorView&) override {
    ++appends;
    return absl::OkStatus();
  }
  absl::Status Attend(int, const TensorView&, const MutableTensorView&) override {
    ++attends;
    return absl::OkStatus();
  }

  int64_t rows = 0;
  int appends = 0;
  int attends = 0;
};

TEST(TraceRecorderTest, RecordsEachHeadByItselfAndTheLastQueriesAlone) {
  ModelConfig config;
  config.n_layers = 1;
  config.n_heads = 4;
  config.n_kv_heads = 2;
  config.head_dim = 2;
  config.softmax_scale = 0.5;
  CountingAttention inner;
  TraceRecorder recorder(config, /*first_query_position=*/2, &inner);

  int next = 0;
  const auto rows = [&](int64_t count, int heads) {  // 0, 1, 2, ... over everything recorded
    std::vector<float> values(count * heads * 2);
    for (float& value : values) value = static_cast<float>(next++);
    return values;
  };
  const auto view = [](const std::vector<float>& values, int64_t count, int heads) {
    return TensorView::Dense(values.data(), DType::kFloat32, count, heads, 2);
  };
  for (const int64_t count : {3, 1}) {
    const auto keys = rows(count, 2);
    const auto values = rows(count, 2);
    const auto queries = rows(count, 4);
    std::vector<float> output(queries.size());
    ASSERT_TRUE(recorder.BeginStep(count).ok());
    ASSERT_TRUE(recorder.Append(0, view(keys, count, 2), view(values, count, 2)).ok());
    ASSERT_TRUE(recorder
                    .Attend(0, view(queries, count, 4),
                            MutableTensorView::Dense(output.data(), DType::kFloat32, count, 4, 2))
                    .ok());
  }
  EXPECT_EQ(inner.rows, 4);
  EXPECT_EQ(inner.appends, 2);
  EXPECT_EQ(inner.attends, 2);

  const std::string path = TemporaryFile("safetensors");
  EXPECT_FALSE(recorder.Write(path, {7, 8, 9}, 3).ok());
  ASSERT_TRUE(recorder.Write(path, {7, 8, 9, 10}, 3).ok());
  const auto file = safetensors::File::Read(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(*file->Floats("layer0.kvhead1.k", {4, 2}), ElementsAre(2, 3, 6, 7, 10, 11, 50, 51));
  EXPECT_THAT(*file->Floats("layer0.kvhead0.v", {4, 2}),
              ElementsAre(12, 13, 16, 17, 20, 21, 52, 53));
  EXPECT_THAT(*file->Floats("layer0.kvhead1.q", {2, 2, 2}),
              ElementsAre(44, 45, 46, 47, 60, 61, 62, 63));
  EXPECT_THAT(*file->Int32s("positions", {2}), ElementsAre(2, 3));
  EXPECT_THAT(*file->Int32s("query_type", {2}), ElementsAre(0, 0));
  EXPECT_THAT(*file->Int32s("tokens", {4}), ElementsAre(7, 8, 9, 10));
  EXPECT_EQ(file->tensors().at("layer0.kvhead0.k").dtype, safetensors::DType::kF16);
  EXPECT_EQ(file->metadata().at("softmax_scale"), "0.5");
  EXPECT_EQ(file->metadata().at("n_tokens"), "4");
  EXPECT_EQ(file->metadata().at("n_context"), "3");
  EXPECT_EQ(file->metadata().at("q_heads_per_kv"), "2");
}

}  // namespace
}  // namespace tinylm
