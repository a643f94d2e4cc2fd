#include "examples/tinylm/model.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/examples/test_files.h"
#include "tests/testing/naive_attention.h"
#include "tools/safetensors/safetensors.h"

namespace tinylm {
namespace {

using testing::DataDirectory;
using testing::DataFile;
using ::testing::HasSubstr;
using testing::TemporaryFile;
using testing::WriteTemporaryFile;

// Keeps keys and values as they come and attends to them by the definition.
class NaiveCache : public Attention {
 public:
  explicit NaiveCache(const ModelConfig& config)
      : config_(config), keys_(config.n_layers), values_(config.n_layers) {}

  absl::Status BeginStep(int64_t /*num_rows*/) override { return absl::OkStatus(); }

  absl::Status Append(int layer, const wavekv::TensorView& keys,
                      const wavekv::TensorView& values) override {
    AppendRows(keys, &keys_[layer]);
    AppendRows(values, &values_[layer]);
    return absl::OkStatus();
  }

  absl::Status Attend(int layer, const wavekv::TensorView& queries,
                      const wavekv::MutableTensorView& output) override {
    const int head_dim = config_.head_dim;
    const int group_size = config_.n_heads / config_.n_kv_heads;
    for (int head = 0; head < config_.n_heads; ++head) {
      const int kv_head = head / group_size;
      wavekv::testing::NaiveAttentionInput input;
      input.keys = HeadColumns(keys_[layer], kv_head);
      input.values = HeadColumns(values_[layer], kv_head);
      input.head_dim_k = input.head_dim_v = head_dim;
      input.scale = config_.softmax_scale;
      const auto num_tokens = static_cast<int64_t>(input.keys.size()) / head_dim;
      for (int64_t row = 0; row < queries.num_rows; ++row) {
        const float* query = At(queries, row, head);
        input.queries.insert(input.queries.end(), query, query + head_dim);
        input.visible_end.push_back(num_tokens - queries.num_rows + row + 1);
      }
      const auto state = wavekv::testing::NaiveAttention(input);
      for (int64_t row = 0; row < queries.num_rows; ++row) {
        float* to =
            static_cast<float*>(output.data) + row * output.row_stride + head * output.head_stride;
        std::copy_n(&state.output[row * head_dim], head_dim, to);
      }
    }
    return absl::OkStatus();
  }

 private:
  static const float* At(const wavekv::TensorView& view, int64_t row, int64_t head) {
    return static_cast<const float*>(view.data) + row * view.row_stride + head * view.head_stride;
  }

  // To [tokens, n_kv_heads, head_dim].
  static void AppendRows(const wavekv::TensorView& view, std::vector<float>* rows) {
    for (int64_t row = 0; row < view.num_rows; ++row) {
      for (int64_t head = 0; head < view.num_heads; ++head) {
        rows->insert(rows->end(), At(view, row, head), At(view, row, head) + view.head_dim);
      }
    }
  }

  std::vector<float> HeadColumns(const std::vector<float>& rows, int kv_head) const {
    const int64_t width = int64_t{config_.n_kv_heads} * config_.head_dim;
    std::vector<float> columns;
    for (auto row = rows.begin(); row != rows.end(); row += width) {
      const auto begin = row + kv_head * config_.head_dim;
      columns.insert(columns.end(), begin, begin + config_.head_dim);
    }
    return columns;
  }

  const ModelConfig config_;
  std::vector<std::vector<float>> keys_;    // per layer
  std::vector<std::vector<float>> values_;  // per layer
};

std::unique_ptr<Model> LoadModel(int num_threads) {
  auto model = Model::Load(DataDirectory(), wavekv::MakeThreadPool(num_threads));
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

int64_t ArgMax(const float* logits, int64_t count) {
  return std::max_element(logits, logits + count) - logits;
}

// Logits of all tokens, fed in chunks of these sizes.
std::vector<float> AllLogits(Model* model, absl::Span<const int32_t> tokens,
                             const std::vector<int64_t>& chunks) {
  NaiveCache cache(model->config());
  TokenHistory history;
  std::vector<float> all;
  for (const int64_t chunk : chunks) {
    std::vector<float> logits;
    const absl::Status status =
        model->Forward(tokens.subspan(history.num_tokens, chunk), chunk, &history, &cache, &logits);
    EXPECT_TRUE(status.ok()) << status;
    all.insert(all.end(), logits.begin(), logits.end());
  }
  EXPECT_EQ(history.num_tokens, static_cast<int64_t>(tokens.size()));
  return all;
}

TEST(ModelTest, LogitsEqualTheTestVectorsToRounding) {
  const auto vectors = safetensors::File::Read(DataFile("testvec.safetensors"));
  ASSERT_TRUE(vectors.ok()) << vectors.status();
  const auto tokens = vectors->Int32s("tokens", {512});
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  const auto model = LoadModel(2);
  const int64_t vocab_size = model->config().vocab_size;
  const auto expected = vectors->Floats("logits", {512, vocab_size});
  ASSERT_TRUE(expected.ok()) << expected.status();

  const std::vector<float> logits = AllLogits(model.get(), *tokens, {512});
  double error_max = 0.0;
  for (int64_t row = 0; row < 512; ++row) {
    const float* got = &logits[row * vocab_size];
    const float* want = &(*expected)[row * vocab_size];
    EXPECT_EQ(ArgMax(got, vocab_size), ArgMax(want, vocab_size)) << "row " << row;
    double difference = 0.0;
    double norm = 0.0;
    for (int64_t i = 0; i < vocab_size; ++i) {
      difference += std::pow(double{got[i]} - want[i], 2);
      norm += std::pow(double{want[i]}, 2);
    }
    error_max = std::max(error_max, std::sqrt(difference / norm));
  }
  EXPECT_LT(error_max, 1e-4);
  RecordProperty("relative_error_max", std::to_string(error_max));
}

TEST(ModelTest, TokensMayComeInChunksOfAnySize) {
  const auto vectors = safetensors::File::Read(DataFile("testvec.safetensors"));
  ASSERT_TRUE(vectors.ok()) << vectors.status();
  const std::vector<int32_t> tokens = *vectors->Int32s("tokens", {512});
  const auto model = LoadModel(1);
  const auto prompt = absl::MakeConstSpan(tokens).first(130);
  const std::vector<float> at_once = AllLogits(model.get(), prompt, {130});
  const std::vector<float> in_chunks = AllLogits(model.get(), prompt, {1, 1, 2, 65, 60, 1});
  ASSERT_EQ(at_once.size(), in_chunks.size());
  for (size_t i = 0; i < at_once.size(); ++i) ASSERT_NEAR(at_once[i], in_chunks[i], 2e-3) << i;
}

TEST(ModelTest, LogitsDoNotDependOnTheNumberOfThreads) {
  const std::vector<int32_t> tokens(200, 17);
  EXPECT_EQ(AllLogits(LoadModel(1).get(), tokens, {200}),
            AllLogits(LoadModel(3).get(), tokens, {200}));
}

TEST(ModelTest, RefusesTokensItCannotEmbed) {
  const auto model = LoadModel(1);
  NaiveCache cache(model->config());
  TokenHistory history;
  std::vector<float> logits;
  EXPECT_THAT(model->Forward({1, 4096}, 1, &history, &cache, &logits).ToString(),
              HasSubstr("from 0 to 4095, got 4096"));
  EXPECT_FALSE(model->Forward({-1}, 1, &history, &cache, &logits).ok());
  EXPECT_FALSE(model->Forward({}, 0, &history, &cache, &logits).ok());
  EXPECT_FALSE(model->Forward({1}, 2, &history, &cache, &logits).ok());
  EXPECT_EQ(history.num_tokens, 0);
}

constexpr char kSmallConfig[] = R"({
  "vocab_size": 2, "d_model": 2, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8,
  "ffn": 2, "rope_theta": 1e4, "rms_eps": 1e-5, "embed_scale": 1.0, "softmax_scale": 0.35,
  "input_prev_tokens": 2, "rope_style": "half"})";

TEST(ModelConfigTest, ReadsTheShippedFile) {
  const auto config = ReadModelConfig(DataFile("config.json"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->n_layers, 4);
  EXPECT_EQ(config->kv_spec().gqa_group_size(), 2);
  EXPECT_EQ(config->kv_spec().head_dim_v, 128);
}

TEST(ModelConfigTest, NamesTheFieldThatIsWrong) {
  ASSERT_TRUE(ParseModelConfig(kSmallConfig).ok());
  const auto error_with = [](const std::string& from, const std::string& to) {
    std::string text = kSmallConfig;
    text.replace(text.find(from), from.size(), to);
    return ParseModelConfig(text).status().ToString();
  };
  EXPECT_THAT(error_with("\"ffn\"", "\"fnn\""), HasSubstr("ffn: expected an integer"));
  EXPECT_THAT(error_with("\"ffn\": 2", "\"ffn\": 0"), HasSubstr("got 0"));
  EXPECT_THAT(error_with("\"ffn\": 2", "\"ffn\": 2.5"), HasSubstr("got 2.5"));
  EXPECT_THAT(error_with("\"ffn\": 2", "\"ffn\": 99999999999"), HasSubstr("got 99999999999"));
  EXPECT_THAT(error_with("1e4", "\"x\""), HasSubstr("rope_theta: expected a number above 0"));
  EXPECT_THAT(error_with("1e-5", "-1"), HasSubstr("rms_eps"));
  EXPECT_THAT(error_with("\"n_kv_heads\": 1", "\"n_kv_heads\": 3"),
              HasSubstr("n_heads: expected a multiple of n_kv_heads = 3, got 2"));
  EXPECT_THAT(error_with("\"head_dim\": 8", "\"head_dim\": 7"), HasSubstr("head_dim"));
  EXPECT_THAT(error_with("\"half\"", "\"interleaved\""), HasSubstr("rope_style"));
  EXPECT_THAT(error_with("tokens\": 2", "tokens\": 1"), HasSubstr("input_prev_tokens"));
  EXPECT_FALSE(ParseModelConfig("").ok());
  EXPECT_FALSE(ParseModelConfig("[1]").ok());
}

// A directory with kSmallConfig and the tensors it needs, but for `wrong`, which gets `values` of
// shape [values.size()] (left out if there are none).
std::string LoadError(const std::string& wrong, const std::vector<float>& values) {
  const std::string directory = TemporaryFile("model");
  std::filesystem::create_directories(directory);
  std::ofstream(directory + "/config.json") << kSmallConfig;
  safetensors::Writer writer;
  const auto add = [&](const std::string& name, const safetensors::Shape& shape) {
    int64_t size = 1;
    for (const int64_t n : shape) size *= n;
    if (name != wrong) {
      EXPECT_TRUE(writer.AddHalves(name, shape, std::vector<float>(size, 0.5f)).ok());
    } else if (!values.empty()) {
      EXPECT_TRUE(writer.AddHalves(name, {static_cast<int64_t>(values.size())}, values).ok());
    }
  };
  add("emb", {2, 2});
  add("prev1.weight", {2, 2});
  add("prev2.weight", {2, 2});
  add("lnf.weight", {2});
  add("layers.0.ln1.weight", {2});
  add("layers.0.ln2.weight", {2});
  add("layers.0.wq.weight", {16, 2});
  add("layers.0.wk.weight", {8, 2});
  add("layers.0.wv.weight", {8, 2});
  add("layers.0.wo.weight", {2, 16});
  add("layers.0.w1.weight", {2, 2});
  add("layers.0.w3.weight", {2, 2});
  add("layers.0.w2.weight", {2, 2});
  EXPECT_TRUE(writer.Write(directory + "/model.safetensors").ok());
  return Model::Load(directory, wavekv::MakeThreadPool(1)).status().ToString();
}

TEST(ModelTest, NamesTheWeightThatIsWrong) {
  EXPECT_EQ(LoadError("none", {}), "OK");
  EXPECT_THAT(LoadError("layers.0.wk.weight", {}),
              HasSubstr("tensor 'layers.0.wk.weight' is missing"));
  EXPECT_THAT(LoadError("layers.0.ln2.weight", {1.0f}),
              HasSubstr("tensor 'layers.0.ln2.weight': expected shape [2], got [1]"));
  EXPECT_THAT(LoadError("lnf.weight", {1.0f, NAN}),
              HasSubstr("tensor 'lnf.weight' has a NaN or an infinity"));
}

TEST(ModelTest, NamesTheFileThatIsMissing) {
  const auto model = Model::Load("/nonexistent", wavekv::MakeThreadPool(1));
  EXPECT_EQ(model.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(model.status().ToString(), HasSubstr("/nonexistent/config.json"));
}

}  // namespace
}  // namespace tinylm
