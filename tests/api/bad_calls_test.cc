// Every mistake a caller can make, one row each: the status, the words that name it, and that
// nothing has changed.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <ostream>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/api/small_engine.h"
#include "wavekv/engine.h"

namespace wavekv {
namespace {

using testing::AppendRandom;
using testing::Digest;
using ::testing::HasSubstr;
using testing::OpenEngine;
using testing::Random;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kNotFound = absl::StatusCode::kNotFound;
constexpr absl::StatusCode kOutOfRange = absl::StatusCode::kOutOfRange;
constexpr absl::StatusCode kExhausted = absl::StatusCode::kResourceExhausted;
constexpr absl::StatusCode kUnimplemented = absl::StatusCode::kUnimplemented;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
constexpr int64_t kTiny = std::numeric_limits<int64_t>::min();
constexpr const char* kNoSequence = "no such sequence";
constexpr const char* kNoTenant = "no such tenant";
constexpr const char* kNoPlan = "no such plan";

constexpr int64_t kRows = 5;  // of the calls that are spoilt: 2 of one sequence, 3 of another

// The arguments of a good call, to be spoilt.
struct AppendCall {
  std::vector<Sequence> sequences;
  std::vector<int32_t> cu_seqlens = {0, 2, kRows};
  int layer = 0;
  std::vector<float> key_data;
  std::vector<float> value_data;
  TensorView keys;
  TensorView values;
  Stream stream = nullptr;
};

// The same from pages of 16 tokens, keys and values apart, heads before tokens.
struct PagedCall {
  static constexpr int64_t kPages = 40;
  static constexpr int64_t kPagesMax = 20;  // of one sequence

  std::vector<Sequence> sequences;
  std::vector<int32_t> cu_seqlens = {0, 2, kRows};
  int layer = 0;
  std::vector<float> key_data;
  std::vector<float> value_data;
  std::vector<int32_t> table_data;
  PagedView keys;
  PagedView values;
  PageTable table;
  Stream stream = nullptr;
};

struct AttendCall {
  std::vector<Sequence> sequences;
  std::vector<int32_t> cu_seqlens = {0, 2, kRows};
  AttendOptions options;
  std::optional<Plan> plan;  // in place of one made of the above
  int layer = 0;
  std::vector<float> query_data;
  std::vector<float> output_data;
  std::vector<float> lse_data;
  TensorView queries;
  MutableTensorView output;
  PerHeadView lse;
  PerHeadView error_estimate;
  Stream stream = nullptr;
};

// Two tenants with sealed and growing tokens, handles of every bad kind, and another engine.
class World {
 public:
  World() : engine(OpenEngine()), other_engine(OpenEngine()) {
    alice = *engine->OpenTenant("alice");
    bob = *engine->OpenTenant("bob");
    first = Filled(alice, 300);
    second = Filled(alice, 40);
    bobs = Filled(bob, 200);
    removed = Filled(alice, 30);
    EXPECT_TRUE(alice.Remove(removed).ok());
    closed_tenant = *engine->OpenTenant("closed");
    of_closed_tenant = Filled(closed_tenant, 20);
    EXPECT_TRUE(engine->CloseTenant(closed_tenant).ok());
    tenant_of_other_engine = *other_engine->OpenTenant("alice");
    of_other_engine = *tenant_of_other_engine.CreateSequence();
    for (const Sequence& sequence : {first, second, bobs}) {
      EXPECT_TRUE(engine->BuildSegments(sequence).ok());
      EXPECT_TRUE(engine->WaitForBuilds(sequence).ok());
    }
  }

  AppendCall GoodAppend() {
    const ModelSpec& model = engine->options().model;
    AppendCall call;
    call.sequences = {first, bobs};
    call.key_data = Random(1).Gaussians(kRows * model.num_kv_heads * model.head_dim_k);
    call.value_data = Random(2).Gaussians(kRows * model.num_kv_heads * model.head_dim_v);
    call.keys = TensorView::Dense(call.key_data.data(), DType::kFloat32, kRows, model.num_kv_heads,
                                  model.head_dim_k);
    call.values = TensorView::Dense(call.value_data.data(), DType::kFloat32, kRows,
                                    model.num_kv_heads, model.head_dim_v);
    return call;
  }
  absl::Status Run(const AppendCall& call) {
    return engine->Append({call.sequences, call.cu_seqlens}, call.layer, call.keys, call.values,
                          call.stream);
  }

  PagedCall GoodPaged() {
    const ModelSpec& model = engine->options().model;
    PagedCall call;
    call.sequences = {first, bobs};
    const auto pages = [&](std::vector<float>& data, int head_dim) {
      const int64_t page_elements = 16 * model.num_kv_heads * head_dim;
      data = Random(1).Gaussians(PagedCall::kPages * page_elements);
      PagedView view;
      view.data = data.data();
      view.dtype = DType::kFloat32;
      view.num_pages = PagedCall::kPages;
      view.page_tokens = 16;
      view.num_heads = model.num_kv_heads;
      view.head_dim = head_dim;
      view.page_stride = page_elements;
      view.token_stride = head_dim;
      view.head_stride = 16 * head_dim;
      return view;
    };
    call.keys = pages(call.key_data, model.head_dim_k);
    call.values = pages(call.value_data, model.head_dim_v);
    for (int i = 0; i < 2 * PagedCall::kPagesMax; ++i) call.table_data.push_back(i);
    call.table = {call.table_data.data(), 2, PagedCall::kPagesMax, PagedCall::kPagesMax};
    return call;
  }
  absl::Status Run(const PagedCall& call) {
    return engine->AppendPaged({call.sequences, call.cu_seqlens}, call.layer, call.keys,
                               call.values, call.table, call.stream);
  }

  AttendCall GoodAttend() {
    const ModelSpec& model = engine->options().model;
    AttendCall call;
    call.sequences = {first, bobs};
    call.query_data = Random(3).Gaussians(kRows * model.num_q_heads * model.head_dim_k);
    call.output_data.assign(kRows * model.num_q_heads * model.head_dim_v, 7.0f);
    call.lse_data.assign(kRows * model.num_q_heads, 7.0f);
    call.queries = TensorView::Dense(call.query_data.data(), DType::kFloat32, kRows,
                                     model.num_q_heads, model.head_dim_k);
    call.output = MutableTensorView::Dense(call.output_data.data(), DType::kFloat32, kRows,
                                           model.num_q_heads, model.head_dim_v);
    call.lse = PerHeadView::Dense(call.lse_data.data(), kRows, model.num_q_heads);
    return call;
  }
  absl::StatusOr<Plan> PlanOf(const AttendCall& call) {
    if (call.plan.has_value()) return *call.plan;
    return engine->MakePlan({call.sequences, call.cu_seqlens}, call.options);
  }
  // Also checks that a refused call wrote nothing.
  absl::Status Run(const AttendCall& call) {
    const auto plan = PlanOf(call);
    if (!plan.ok()) return plan.status();
    const auto stats = engine->Attend(*plan, call.layer, call.queries, call.output, call.lse,
                                      call.error_estimate, call.stream);
    if (!stats.ok()) {
      for (const float value : call.output_data) EXPECT_EQ(value, 7.0f) << "partial output";
      for (const float value : call.lse_data) EXPECT_EQ(value, 7.0f) << "partial lse";
    }
    return stats.status();
  }
  absl::Status RunRetrieve(const AttendCall& call) {
    const auto plan = PlanOf(call);
    if (!plan.ok()) return plan.status();
    return engine->Retrieve(*plan, call.layer, call.queries, call.stream).status();
  }

  // Everything a refused call must leave alone.
  std::string State() {
    std::string state = engine->StatsText();
    // Attend calls of the digests below, and refusals, are counted.
    for (const char* counter : {"attend", "tokens", "bytes_dense", "bytes_read", "rejects"}) {
      for (size_t at = 0; (at = state.find(counter)) != std::string::npos;) {
        const size_t begin = state.rfind('\n', at) + 1;  // npos + 1 is 0
        state.erase(begin, state.find('\n', at) + 1 - begin);
      }
    }
    for (const Tenant& tenant : {alice, bob}) {
      const auto stats = tenant.stats();
      EXPECT_TRUE(stats.ok());
      state += std::to_string(stats->sequences) + " sequences, " +
               std::to_string(stats->host_bytes_used) + " of " +
               std::to_string(stats->host_bytes_quota) + " bytes, " +
               std::to_string(stats->evicted_sequences_total) + " evicted\n";
    }
    for (const Sequence& sequence : {first, second, bobs}) {
      const auto text = engine->Describe(sequence);
      EXPECT_TRUE(text.ok()) << text.status();
      state += std::to_string(sequence.length()) + " tokens\n" + *text;
      for (const AttendOptions& options : {AttendOptions(), AttendOptions::Exact()}) {
        const auto digest = Digest(*engine, sequence, options);
        EXPECT_TRUE(digest.ok()) << digest.status();
        for (const float value : *digest) state += std::to_string(value) + " ";
      }
    }
    return state;
  }

  std::unique_ptr<Engine> engine;
  std::unique_ptr<Engine> other_engine;
  Tenant alice, bob, closed_tenant, tenant_of_other_engine;
  Sequence first, second, bobs, removed, of_closed_tenant, of_other_engine;

 private:
  Sequence Filled(Tenant& tenant, int64_t tokens) {
    const auto sequence = tenant.CreateSequence();
    EXPECT_TRUE(sequence.ok()) << sequence.status();
    const absl::Status status = AppendRandom(*engine, *sequence, tokens, 100 + tokens);
    EXPECT_TRUE(status.ok()) << status;
    return *sequence;
  }
};

struct BadCall {
  std::string name;
  absl::StatusCode code;
  std::string fragment;  // of the message
  std::function<absl::Status(World&)> call;
};

void PrintTo(const BadCall& bad, std::ostream* out) { *out << bad.name; }

std::function<absl::Status(World&)> Append(std::function<void(World&, AppendCall&)> spoil) {
  return [spoil = std::move(spoil)](World& world) {
    AppendCall call = world.GoodAppend();
    spoil(world, call);
    return world.Run(call);
  };
}

std::function<absl::Status(World&)> Attend(std::function<void(World&, AttendCall&)> spoil) {
  return [spoil = std::move(spoil)](World& world) {
    AttendCall call = world.GoodAttend();
    spoil(world, call);
    return world.Run(call);
  };
}

std::function<absl::Status(World&)> Retrieve(std::function<void(World&, AttendCall&)> spoil) {
  return [spoil = std::move(spoil)](World& world) {
    AttendCall call = world.GoodAttend();
    spoil(world, call);
    return world.RunRetrieve(call);
  };
}

// Mistakes in a tensor that is read, the same for keys, values and queries.
template <typename Call, typename Wrap>
void AddTensorMistakes(const std::string& prefix, const std::string& name, Wrap wrap,
                       TensorView Call::*view, std::vector<float> Call::*data,
                       std::vector<BadCall>& table) {
  const auto add = [&](const char* what, absl::StatusCode code, const std::string& fragment,
                       std::function<void(Call&)> spoil) {
    table.push_back(
        {prefix + what, code, name + fragment, wrap([spoil](World&, Call& call) { spoil(call); })});
  };
  const std::string shape = " must have shape [5,";
  add("Null", kInvalid, ".data must not be null", [=](Call& c) { (c.*view).data = nullptr; });
  add("OneRowTooMany", kInvalid, shape, [=](Call& c) { ++(c.*view).num_rows; });
  add("OneRowTooFew", kInvalid, shape, [=](Call& c) { --(c.*view).num_rows; });
  add("NegativeRows", kInvalid, shape, [=](Call& c) { (c.*view).num_rows = -5; });
  add("HugeRows", kInvalid, shape, [=](Call& c) { (c.*view).num_rows = kHuge; });
  add("WrongHeads", kInvalid, shape, [=](Call& c) { (c.*view).num_heads = 1; });
  add("WrongHeadDim", kInvalid, shape, [=](Call& c) { (c.*view).head_dim += 8; });
  add("NoDType", kInvalid, ".dtype must be fp32, fp16 or bf16, got 0",
      [=](Call& c) { (c.*view).dtype = DType{0}; });
  add("UnknownDType", kInvalid, ".dtype must be fp32, fp16 or bf16, got 200",
      [=](Call& c) { (c.*view).dtype = DType{200}; });
  add("InDeviceMemory", kUnimplemented, ".memory must be host memory",
      [=](Call& c) { (c.*view).memory = Memory::kDevice; });
  add("InUnknownMemory", kUnimplemented, ".memory must be host memory",
      [=](Call& c) { (c.*view).memory = Memory{0}; });
  add("Misaligned", kInvalid, ".data must be aligned to its 4-byte elements",
      [=](Call& c) { (c.*view).data = reinterpret_cast<const char*>((c.*data).data()) + 2; });
  add("HeadStrideZero", kInvalid, ".head_stride must be at least",
      [=](Call& c) { (c.*view).head_stride = 0; });
  add("HeadStrideTooSmall", kInvalid, ".head_stride must be at least",
      [=](Call& c) { (c.*view).head_stride = 7; });
  add("HeadStrideOverflows", kInvalid, ".head_stride times",
      [=](Call& c) { (c.*view).head_stride = kHuge; });
  add("RowStrideZero", kInvalid, ".row_stride must be at least",
      [=](Call& c) { (c.*view).row_stride = 0; });
  add("RowStrideOverflows", kInvalid, ".row_stride times",
      [=](Call& c) { (c.*view).row_stride = kHuge / 4; });
  add("RowStrideUnderflows", kInvalid, ".row_stride times",
      [=](Call& c) { (c.*view).row_stride = kTiny; });
  add("NanFirst", kInvalid, " must be finite", [=](Call& c) { (c.*data).front() = kNan; });
  add("NanLast", kInvalid, " must be finite", [=](Call& c) { (c.*data).back() = kNan; });
  add("Infinite", kInvalid, " must be finite", [=](Call& c) { (c.*data)[50] = kInf; });
  add("MinusInfinite", kInvalid, " must be finite", [=](Call& c) { (c.*data)[51] = -kInf; });
}

// Mistakes in a batch and its layer, the same for Append, Attend and Retrieve.
template <typename Call, typename Wrap>
void AddBatchMistakes(const std::string& prefix, Wrap wrap, std::vector<BadCall>& table) {
  const auto add = [&](const char* what, absl::StatusCode code, const char* fragment,
                       std::function<void(World&, Call&)> spoil) {
    table.push_back({prefix + what, code, fragment, wrap(std::move(spoil))});
  };
  add("LayerNegative", kInvalid, "layer must be in [0, 2), got -1",
      [](World&, Call& c) { c.layer = -1; });
  add("LayerOutOfRange", kInvalid, "layer must be in [0, 2), got 2",
      [](World&, Call& c) { c.layer = 2; });
  add("LayerHuge", kInvalid, "got 2147483647",
      [](World&, Call& c) { c.layer = std::numeric_limits<int>::max(); });
  add("WithoutCuSeqlens", kInvalid, "cu_seqlens must have 3 entries",
      [](World&, Call& c) { c.cu_seqlens.clear(); });
  add("CuSeqlensTooShort", kInvalid, "cu_seqlens must have 3 entries (sequences + 1), got 2",
      [](World&, Call& c) {
        c.cu_seqlens = {0, kRows};
      });
  add("CuSeqlensTooLong", kInvalid, "got 4", [](World&, Call& c) {
    c.cu_seqlens = {0, 2, 4, kRows};
  });
  add("CuSeqlensNotFromZero", kInvalid, "cu_seqlens[0] must be 0, got 1", [](World&, Call& c) {
    c.cu_seqlens = {1, 2, kRows};
  });
  add("CuSeqlensDecreases", kInvalid, "cu_seqlens must not decrease, got 5 after 6",
      [](World&, Call& c) {
        c.cu_seqlens = {0, 6, kRows};
      });
  add("CuSeqlensNegative", kInvalid, "cu_seqlens must not decrease", [](World&, Call& c) {
    c.cu_seqlens = {0, -3, kRows};
  });
  add("CuSeqlensBeyondTheRows", kInvalid, "must have shape [6,", [](World&, Call& c) {
    c.cu_seqlens = {0, 2, 6};
  });
  add("CuSeqlensHuge", kInvalid, "must have shape [2147483647,", [](World&, Call& c) {
    c.cu_seqlens = {0, 2, std::numeric_limits<int32_t>::max()};
  });
  add("SameSequenceTwice", kInvalid, "twice", [](World& w, Call& c) {
    c.sequences = {w.first, w.first};
  });
  add("DefaultSequence", kNotFound, kNoSequence, [](World& w, Call& c) {
    c.sequences = {w.first, Sequence()};
  });
  add("RemovedSequence", kNotFound, kNoSequence, [](World& w, Call& c) {
    c.sequences = {w.first, w.removed};
  });
  add("SequenceOfAClosedTenant", kNotFound, kNoSequence, [](World& w, Call& c) {
    c.sequences = {w.of_closed_tenant, w.first};
  });
  add("SequenceOfAnotherEngine", kNotFound, kNoSequence, [](World& w, Call& c) {
    c.sequences = {w.first, w.of_other_engine};
  });
  add("Stream", kUnimplemented, "stream must be null",
      [](World& w, Call& c) { c.stream = w.engine.get(); });
}

void AddAppendMistakes(std::vector<BadCall>& table) {
  const auto wrap = [](auto spoil) { return Append(std::move(spoil)); };
  AddBatchMistakes<AppendCall>("Append", wrap, table);
  AddTensorMistakes<AppendCall>("AppendKeys", "keys", wrap, &AppendCall::keys,
                                &AppendCall::key_data, table);
  AddTensorMistakes<AppendCall>("AppendValues", "values", wrap, &AppendCall::values,
                                &AppendCall::value_data, table);
  const auto add = [&](const char* what, absl::StatusCode code, const char* fragment,
                       std::function<void(World&, AppendCall&)> spoil) {
    table.push_back({what, code, fragment, Append(std::move(spoil))});
  };
  add("AppendKeysBeyondFp16", kInvalid, "keys must be finite in fp16",
      [](World&, AppendCall& c) { c.key_data[70] = 70000.0f; });
  add("AppendValuesBeyondFp16", kInvalid, "values must be finite in fp16",
      [](World&, AppendCall& c) { c.value_data[3] = -1e30f; });
  add("AppendNanInFp16Source", kInvalid, "keys must be finite", [](World&, AppendCall& c) {
    // 0x7e00 is NaN in fp16; the low halves of the floats stand for the heads' rows.
    for (float& value : c.key_data) value = std::bit_cast<float>(0x3c003c00u);
    c.key_data[60] = std::bit_cast<float>(0x3c007e00u);
    c.keys.dtype = DType::kFloat16;
  });
  add("AppendNanInBf16Source", kInvalid, "values must be finite", [](World&, AppendCall& c) {
    for (float& value : c.value_data) value = std::bit_cast<float>(0x3f803f80u);
    c.value_data[30] = std::bit_cast<float>(0x7fc03f80u);
    c.values.dtype = DType::kBFloat16;
  });
  table.push_back({"AppendThatCannotFit", kExhausted, "requested", [](World& world) {
                     return AppendRandom(*world.engine, world.first, 60000, 1);
                   }});
}

void AddPagedMistakes(std::vector<BadCall>& table) {
  const auto add = [&](const char* what, absl::StatusCode code, const char* fragment,
                       std::function<void(World&, PagedCall&)> spoil) {
    table.push_back({std::string("Paged") + what, code, fragment, [spoil](World& world) {
                       PagedCall call = world.GoodPaged();
                       spoil(world, call);
                       return world.Run(call);
                     }});
  };
  add("LayerOutOfRange", kInvalid, "layer must be in [0, 2)",
      [](World&, PagedCall& c) { c.layer = 2; });
  add("Stream", kUnimplemented, "stream must be null",
      [](World& w, PagedCall& c) { c.stream = w.engine.get(); });
  add("RemovedSequence", kNotFound, kNoSequence, [](World& w, PagedCall& c) {
    c.sequences = {w.first, w.removed};
  });
  add("SameSequenceTwice", kInvalid, "twice", [](World& w, PagedCall& c) {
    c.sequences = {w.first, w.first};
  });
  add("CuSeqlensDecreases", kInvalid, "cu_seqlens must not decrease", [](World&, PagedCall& c) {
    c.cu_seqlens = {0, 6, kRows};
  });
  add("KeysNull", kInvalid, "keys.data must not be null",
      [](World&, PagedCall& c) { c.keys.data = nullptr; });
  add("ValuesNull", kInvalid, "values.data must not be null",
      [](World&, PagedCall& c) { c.values.data = nullptr; });
  add("KeysInDeviceMemory", kUnimplemented, "keys.memory",
      [](World&, PagedCall& c) { c.keys.memory = Memory::kDevice; });
  add("ValuesUnknownDType", kInvalid, "values.dtype",
      [](World&, PagedCall& c) { c.values.dtype = DType{9}; });
  add("KeysWrongHeads", kInvalid, "keys must have shape",
      [](World&, PagedCall& c) { c.keys.num_heads = 3; });
  add("ValuesWrongHeadDim", kInvalid, "values must have shape",
      [](World&, PagedCall& c) { c.values.head_dim = 16; });
  add("WithoutPages", kInvalid, "at least one page",
      [](World&, PagedCall& c) { c.keys.num_pages = 0; });
  add("NegativePages", kInvalid, "at least one page",
      [](World&, PagedCall& c) { c.values.num_pages = -1; });
  add("PagesWithoutTokens", kInvalid, "at least one token",
      [](World&, PagedCall& c) { c.keys.page_tokens = c.values.page_tokens = 0; });
  add("PagesOfDifferentSize", kInvalid, "values.page_tokens must be that of keys (16), got 8",
      [](World&, PagedCall& c) { c.values.page_tokens = 8; });
  add("PageStrideOverflows", kInvalid, "keys.page_stride times 40 overflows",
      [](World&, PagedCall& c) { c.keys.page_stride = kHuge; });
  add("TokenStrideZero", kInvalid, "stride", [](World&, PagedCall& c) { c.keys.token_stride = 0; });
  add("HeadStrideOverflows", kInvalid, "values.head_stride times",
      [](World&, PagedCall& c) { c.values.head_stride = kTiny; });
  add("TableNull", kInvalid, "table.data must not be null",
      [](World&, PagedCall& c) { c.table.data = nullptr; });
  add("TableOfFewerSequences", kInvalid, "table must have shape [2,",
      [](World&, PagedCall& c) { c.table.num_sequences = 1; });
  add("TableWithNegativePages", kInvalid, "table must have shape",
      [](World&, PagedCall& c) { c.table.pages_max = -1; });
  add("TableTooShort", kInvalid, "table.pages_max must be at least 19 for 302 tokens",
      [](World&, PagedCall& c) { c.table.pages_max = 10; });
  add("TableRowStrideOverflows", kInvalid, "table.row_stride",
      [](World&, PagedCall& c) { c.table.row_stride = kHuge; });
  add("TableRowsOverlap", kInvalid, "table.row_stride",
      [](World&, PagedCall& c) { c.table.row_stride = 1; });
  add("PageNegative", kInvalid, "got -1", [](World&, PagedCall& c) { c.table_data[18] = -1; });
  add("PageOutOfRange", kInvalid, "table[1][12] must be in [0, 40)",
      [](World&, PagedCall& c) { c.table_data[20 + 12] = 40; });
  add("KeysNan", kInvalid, "keys must be finite",
      [](World&, PagedCall& c) { c.key_data.assign(c.key_data.size(), kNan); });
  add("ValuesBeyondFp16", kInvalid, "values must be finite in fp16",
      [](World&, PagedCall& c) { c.value_data.assign(c.value_data.size(), 1e6f); });
}

void AddAttendMistakes(std::vector<BadCall>& table) {
  const auto attend = [](auto spoil) { return Attend(std::move(spoil)); };
  const auto retrieve = [](auto spoil) { return Retrieve(std::move(spoil)); };
  AddBatchMistakes<AttendCall>("Attend", attend, table);
  AddBatchMistakes<AttendCall>("Retrieve", retrieve, table);
  AddTensorMistakes<AttendCall>("AttendQueries", "queries", attend, &AttendCall::queries,
                                &AttendCall::query_data, table);
  AddTensorMistakes<AttendCall>("RetrieveQueries", "queries", retrieve, &AttendCall::queries,
                                &AttendCall::query_data, table);

  const auto add = [&](const char* what, absl::StatusCode code, const char* fragment,
                       std::function<void(World&, AttendCall&)> spoil) {
    table.push_back({what, code, fragment, Attend(std::move(spoil))});
  };
  add("AttendDefaultPlan", kNotFound, kNoPlan, [](World&, AttendCall& c) { c.plan = Plan(); });
  add("AttendPlanOfAnotherEngine", kNotFound, kNoPlan, [](World& w, AttendCall& c) {
    const int32_t cu_seqlens[] = {0, 1};
    c.plan = *w.other_engine->MakePlan({{&w.of_other_engine, 1}, cu_seqlens});
  });
  add("AttendPlanOfARemovedSequence", kNotFound, kNoSequence, [](World& w, AttendCall& c) {
    const Sequence gone = *w.alice.CreateSequence();
    c.sequences = {w.first, gone};
    c.plan = *w.PlanOf(c);
    EXPECT_TRUE(w.alice.Remove(gone).ok());
  });
  table.push_back({"RetrieveDefaultPlan", kNotFound, kNoPlan,
                   Retrieve([](World&, AttendCall& c) { c.plan = Plan(); })});

  add("AttendOutputNull", kInvalid, "output.data must not be null",
      [](World&, AttendCall& c) { c.output.data = nullptr; });
  add("AttendOutputWrongRows", kInvalid, "output must have shape [5, 4, 8]",
      [](World&, AttendCall& c) { c.output.num_rows = 4; });
  add("AttendOutputWrongHeads", kInvalid, "output must have shape [5, 4, 8]",
      [](World&, AttendCall& c) { c.output.num_heads = 2; });
  add("AttendOutputWrongHeadDim", kInvalid, "output must have shape [5, 4, 8]",
      [](World&, AttendCall& c) { c.output.head_dim = 16; });
  add("AttendOutputUnknownDType", kInvalid, "output.dtype",
      [](World&, AttendCall& c) { c.output.dtype = DType{4}; });
  add("AttendOutputInDeviceMemory", kUnimplemented, "output.memory",
      [](World&, AttendCall& c) { c.output.memory = Memory::kDevice; });
  add("AttendOutputMisaligned", kInvalid, "output.data must be aligned", [](World&, AttendCall& c) {
    c.output.data = reinterpret_cast<char*>(c.output_data.data()) + 1;
  });
  add("AttendOutputHeadStrideTooSmall", kInvalid, "output.head_stride",
      [](World&, AttendCall& c) { c.output.head_stride = 4; });
  add("AttendOutputRowStrideZero", kInvalid, "output.row_stride",
      [](World&, AttendCall& c) { c.output.row_stride = 0; });
  add("AttendOutputRowStrideOverflows", kInvalid, "output.row_stride times",
      [](World&, AttendCall& c) { c.output.row_stride = kTiny; });
  add("AttendOutputRowsOverlapHeads", kInvalid, "output.row_stride and head_stride",
      [](World&, AttendCall& c) { c.output.row_stride = c.output.head_stride; });
  add("AttendLseWrongRows", kInvalid, "lse must have shape [5, 4]",
      [](World&, AttendCall& c) { c.lse.num_rows = 6; });
  add("AttendLseWrongHeads", kInvalid, "lse must have shape [5, 4]",
      [](World&, AttendCall& c) { c.lse.num_heads = -4; });
  add("AttendLseRowStrideZero", kInvalid, "lse.row_stride",
      [](World&, AttendCall& c) { c.lse.row_stride = 0; });
  add("AttendLseHeadStrideOverflows", kInvalid, "lse.head_stride times",
      [](World&, AttendCall& c) { c.lse.head_stride = kHuge; });
  add("AttendLseMisaligned", kInvalid, "lse.data must be aligned", [](World&, AttendCall& c) {
    c.lse.data = reinterpret_cast<float*>(reinterpret_cast<char*>(c.lse_data.data()) + 2);
  });
  add("AttendErrorEstimateWrongRows", kInvalid, "error_estimate must have shape [5, 4]",
      [](World&, AttendCall& c) {
        c.error_estimate = c.lse;
        c.error_estimate.num_rows = 6;
      });
  add("AttendLseRowsOverlapHeads", kInvalid, "lse.row_stride and head_stride",
      [](World&, AttendCall& c) { c.lse.row_stride = c.lse.head_stride; });

  add("PlanRetrievalNegative", kInvalid, "retrieval must be a ratio in [0, 1]",
      [](World&, AttendCall& c) { c.options.retrieval = Budget::Ratio(-0.5); });
  add("PlanRetrievalAboveOne", kInvalid, "got ratio 1.5",
      [](World&, AttendCall& c) { c.options.retrieval = Budget::Ratio(1.5); });
  add("PlanRetrievalNan", kInvalid, "retrieval",
      [](World&, AttendCall& c) { c.options.retrieval = Budget::Ratio(kNan); });
  add("PlanEstimationAboveOne", kInvalid, "estimation must be a ratio in [0, 1]",
      [](World&, AttendCall& c) { c.options.estimation = Budget::Ratio(2); });
  add("PlanEstimationInfinite", kInvalid, "estimation",
      [](World&, AttendCall& c) { c.options.estimation = Budget::Ratio(kInf); });
  add("PlanOpenNegative", kInvalid, "open must be a ratio in [0, 1]",
      [](World&, AttendCall& c) { c.options.open = Budget::Ratio(-1); });
  add("PlanExactBelowNegative", kInvalid, "exact_below_tokens must be >= 0, or -1",
      [](World&, AttendCall& c) { c.options.exact_below_tokens = -2; });
  add("PlanTargetErrorNan", kInvalid, "target_error must be finite and >= 0, got nan",
      [](World&, AttendCall& c) { c.options.target_error = kNan; });
  add("PlanUnknownMass", kInvalid, "mass must be kLowerBound or kSecondOrder, got 3",
      [](World&, AttendCall& c) { c.options.mass = MassEstimate{3}; });
  add("PlanUnknownLseBase", kInvalid, "lse_base must be kE or k2, got 10",
      [](World&, AttendCall& c) { c.options.lse_base = LseBase{10}; });
}

void AddTenantMistakes(std::vector<BadCall>& table) {
  const auto add = [&](const char* name, absl::StatusCode code, const char* fragment,
                       std::function<absl::Status(World&)> call) {
    table.push_back({name, code, fragment, std::move(call)});
  };
  add("OpenTenantWithoutId", kInvalid, "tenant id must have 1 to 128 bytes, got 0",
      [](World& w) { return w.engine->OpenTenant("").status(); });
  add("OpenTenantWithALongId", kInvalid, "got 129",
      [](World& w) { return w.engine->OpenTenant(std::string(129, 'x')).status(); });
  add("OpenTenantTwice", absl::StatusCode::kAlreadyExists, "tenant id",
      [](World& w) { return w.engine->OpenTenant("alice").status(); });
  add("OpenTenantNegativeQuota", kInvalid, "quota.host_bytes must be >= 0",
      [](World& w) { return w.engine->OpenTenant("new", {.host_bytes = -1}).status(); });
  add("OpenTenantNegativeMaxSequences", kInvalid, "quota.max_sequences must be >= 0",
      [](World& w) { return w.engine->OpenTenant("new", {.max_sequences = -1}).status(); });
  add("OpenTenantUnknownOnLimit", kInvalid, "quota.on_limit", [](World& w) {
    return w.engine->OpenTenant("new", {.on_limit = TenantQuota::OnLimit{5}}).status();
  });
  add("CloseDefaultTenant", kNotFound, kNoTenant,
      [](World& w) { return w.engine->CloseTenant(Tenant()); });
  add("CloseTenantTwice", kNotFound, kNoTenant,
      [](World& w) { return w.engine->CloseTenant(w.closed_tenant); });
  add("CloseTenantOfAnotherEngine", kNotFound, kNoTenant,
      [](World& w) { return w.engine->CloseTenant(w.tenant_of_other_engine); });
  add("SetQuotaNegative", kInvalid, "quota.host_bytes",
      [](World& w) { return w.alice.SetQuota({.host_bytes = -4096}); });
  add("SetQuotaOfADefaultTenant", kNotFound, kNoTenant,
      [](World&) { return Tenant().SetQuota({}); });
  add("SetQuotaOfAClosedTenant", kNotFound, kNoTenant,
      [](World& w) { return w.closed_tenant.SetQuota({}); });
  add("StatsOfADefaultTenant", kNotFound, kNoTenant,
      [](World&) { return Tenant().stats().status(); });
  add("StatsOfAClosedTenant", kNotFound, kNoTenant,
      [](World& w) { return w.closed_tenant.stats().status(); });
  add("CreateSequenceOfADefaultTenant", kNotFound, kNoTenant,
      [](World&) { return Tenant().CreateSequence().status(); });
  add("CreateSequenceOfAClosedTenant", kNotFound, kNoTenant,
      [](World& w) { return w.closed_tenant.CreateSequence().status(); });
}

void AddSequenceMistakes(std::vector<BadCall>& table) {
  struct Handle {
    const char* name;
    std::function<Sequence(World&)> of;
  };
  const std::vector<Handle> handles = {
      {"Default", [](World&) { return Sequence(); }},
      {"Removed", [](World& w) { return w.removed; }},
      {"OfAClosedTenant", [](World& w) { return w.of_closed_tenant; }},
      {"OfAnotherEngine", [](World& w) { return w.of_other_engine; }},
      {"OfAnotherTenant", [](World& w) { return w.bobs; }},
  };
  for (const auto& [name, of] : handles) {
    const auto add = [&, of = of](const std::string& what,
                                  std::function<absl::Status(World&, const Sequence&)> call) {
      table.push_back(
          {what + name, kNotFound, kNoSequence, [of, call](World& w) { return call(w, of(w)); }});
    };
    add("Fork", [](World& w, const Sequence& s) { return w.alice.Fork(s).status(); });
    add("ForkNothingOf", [](World& w, const Sequence& s) { return w.alice.Fork(s, 0).status(); });
    add("Truncate", [](World& w, const Sequence& s) { return w.alice.Truncate(s, 0); });
    add("Remove", [](World& w, const Sequence& s) { return w.alice.Remove(s); });
    // The engine serves all of its tenants.
    if (std::string(name) == "OfAnotherTenant") continue;
    add("BuildSegments", [](World& w, const Sequence& s) { return w.engine->BuildSegments(s); });
    add("WaitForBuilds",
        [](World& w, const Sequence& s) { return w.engine->WaitForBuilds(s, absl::Seconds(1)); });
    add("Describe", [](World& w, const Sequence& s) { return w.engine->Describe(s).status(); });
  }
  const auto add = [&](const char* name, absl::StatusCode code, const char* fragment,
                       std::function<absl::Status(World&)> call) {
    table.push_back({name, code, fragment, std::move(call)});
  };
  add("ForkBeyondTheLength", kOutOfRange, "prefix_tokens must be in [0, 300]",
      [](World& w) { return w.alice.Fork(w.first, 301).status(); });
  add("ForkANegativePrefix", kOutOfRange, "got -1",
      [](World& w) { return w.alice.Fork(w.first, -1).status(); });
  add("ForkAHugePrefix", kOutOfRange, "got 9223372036854775807",
      [](World& w) { return w.alice.Fork(w.first, kHuge).status(); });
  add("ForkByADefaultTenant", kNotFound, kNoTenant,
      [](World& w) { return Tenant().Fork(w.first).status(); });
  add("TruncateBeyondTheLength", kOutOfRange, "new_length must be in [0, 300]",
      [](World& w) { return w.alice.Truncate(w.first, 301); });
  add("TruncateToANegativeLength", kOutOfRange, "got -9223372036854775808",
      [](World& w) { return w.alice.Truncate(w.first, kTiny); });
  add("TruncateByADefaultTenant", kNotFound, kNoTenant,
      [](World& w) { return Tenant().Truncate(w.first, 0); });
  add("RemoveByADefaultTenant", kNotFound, kNoTenant,
      [](World& w) { return Tenant().Remove(w.first); });
}

std::vector<BadCall> BadCalls() {
  std::vector<BadCall> table;
  AddAppendMistakes(table);
  AddPagedMistakes(table);
  AddAttendMistakes(table);
  AddTenantMistakes(table);
  AddSequenceMistakes(table);
  return table;
}

// One world for all: what a bad call changed would fail the next one too.
class BadCallTest : public ::testing::TestWithParam<BadCall> {
 protected:
  static void SetUpTestSuite() { world_ = std::make_unique<World>(); }
  static void TearDownTestSuite() { world_.reset(); }

  static std::unique_ptr<World> world_;
};

std::unique_ptr<World> BadCallTest::world_;

TEST_P(BadCallTest, IsNamedAndChangesNothing) {
  World& world = *world_;
  const std::string before = world.State();
  const absl::Status status = GetParam().call(world);
  EXPECT_EQ(status.code(), GetParam().code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().fragment));
  EXPECT_EQ(world.State(), before);
  // And the engine goes on.
  const absl::Status good = world.Run(world.GoodAppend());
  EXPECT_TRUE(good.ok()) << good;
  EXPECT_TRUE(world.alice.Truncate(world.first, 300).ok());
  EXPECT_TRUE(world.bob.Truncate(world.bobs, 200).ok());
}

INSTANTIATE_TEST_SUITE_P(Api, BadCallTest, ::testing::ValuesIn(BadCalls()),
                         [](const auto& test) { return test.param.name; });

TEST(BadCallTableTest, CallsDifferAndMeetEveryPublicFunction) {
  std::set<std::string> names;
  for (const BadCall& bad : BadCalls()) {
    EXPECT_TRUE(names.insert(bad.name).second) << bad.name;
    EXPECT_FALSE(bad.fragment.empty()) << bad.name;
  }
  EXPECT_GE(names.size(), 200u);
  for (const char* function :
       {"OpenTenant", "CloseTenant", "CloseDefaultTenant", "Append", "Paged", "BuildSegments",
        "WaitForBuilds", "Plan", "Attend", "Retrieve", "Describe", "CreateSequence", "Fork",
        "Truncate", "Remove", "SetQuota", "StatsOf"}) {
    const auto has = [&](const std::string& name) { return name.rfind(function, 0) == 0; };
    EXPECT_TRUE(std::any_of(names.begin(), names.end(), has)) << function;
  }
}

TEST(GoodCallTest, ArgumentsThatTheBadCallsSpoilAreGood) {
  World world;
  const absl::Status append = world.Run(world.GoodAppend());
  EXPECT_TRUE(append.ok()) << append;
  const absl::Status paged = world.Run(world.GoodPaged());
  EXPECT_TRUE(paged.ok()) << paged;
  AttendCall call = world.GoodAttend();
  const absl::Status attend = world.Run(call);
  EXPECT_TRUE(attend.ok()) << attend;
  for (const float value : call.output_data) EXPECT_NE(value, 7.0f);
  const absl::Status retrieve = world.RunRetrieve(world.GoodAttend());
  EXPECT_TRUE(retrieve.ok()) << retrieve;
}

TEST(GoodCallTest, BatchesWithoutRowsDoNothing) {
  World world;
  const std::string before = world.State();
  const std::vector<std::vector<Sequence>> batches = {
      {}, {world.second}, {world.second, world.bobs}};
  for (const std::vector<Sequence>& sequences : batches) {
    const std::vector<int32_t> cu_seqlens(sequences.size() + 1, 0);
    // Without rows there may be no memory, and strides mean nothing.
    const absl::Status append = world.engine->Append(
        {sequences, cu_seqlens}, 0, {nullptr, DType::kFloat32, 0, 2, 16, kHuge, kTiny},
        {nullptr, DType::kFloat32, 0, 2, 8, kHuge, kTiny});
    EXPECT_TRUE(append.ok()) << append;
    const auto plan = world.engine->MakePlan({sequences, cu_seqlens});
    ASSERT_TRUE(plan.ok()) << plan.status();
    const auto stats =
        world.engine->Attend(*plan, 0, {nullptr, DType::kFloat32, 0, 4, 16, kHuge, kTiny},
                             {nullptr, DType::kFloat32, 0, 4, 8, kHuge, kTiny});
    ASSERT_TRUE(stats.ok()) << stats.status();
    EXPECT_EQ(stats->rows, 0);
    const auto retrieved =
        world.engine->Retrieve(*plan, 0, {nullptr, DType::kFloat32, 0, 4, 16, kHuge, kTiny});
    ASSERT_TRUE(retrieved.ok()) << retrieved.status();
    EXPECT_TRUE(retrieved->empty());
  }
  EXPECT_EQ(world.State(), before);
}

TEST(GoodCallTest, SequencesWithoutRowsBesideOneWithOneMayHaveAnyRowStride) {
  World world;
  AppendCall append = world.GoodAppend();
  append.sequences = {world.first, world.second, world.bobs};
  append.cu_seqlens = {0, 0, 1, 1};
  append.keys.num_rows = append.values.num_rows = 1;
  append.keys.row_stride = append.values.row_stride = kHuge;
  const absl::Status appended = world.Run(append);
  EXPECT_TRUE(appended.ok()) << appended;
  AttendCall attend = world.GoodAttend();
  attend.sequences = append.sequences;
  attend.cu_seqlens = append.cu_seqlens;
  attend.queries.num_rows = attend.output.num_rows = attend.lse.num_rows = 1;
  attend.queries.row_stride = attend.output.row_stride = attend.lse.row_stride = kHuge;
  const absl::Status attended = world.Run(attend);
  EXPECT_TRUE(attended.ok()) << attended;
}

TEST(GoodCallTest, WaitForBuildsTakesAnyTimeout) {
  World world;
  for (const absl::Duration timeout :
       {absl::ZeroDuration(), absl::Seconds(-5), -absl::InfiniteDuration(),
        absl::InfiniteDuration(), absl::Hours(int64_t{1} << 40)}) {
    const absl::Status status = world.engine->WaitForBuilds(world.first, timeout);
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST(GoodCallTest, HandlesThatOutliveTheEngineAnswerNotFound) {
  World world;
  world.engine.reset();
  EXPECT_FALSE(world.first.valid());
  EXPECT_EQ(world.first.length(), 0);
  EXPECT_EQ(world.alice.CreateSequence().status().code(), kNotFound);
  EXPECT_EQ(world.alice.Fork(world.first).status().code(), kNotFound);
  EXPECT_EQ(world.alice.Truncate(world.first, 0).code(), kNotFound);
  EXPECT_EQ(world.alice.Remove(world.first).code(), kNotFound);
  EXPECT_EQ(world.alice.SetQuota({}).code(), kNotFound);
  EXPECT_EQ(world.alice.stats().status().code(), kNotFound);
}

}  // namespace
}  // namespace wavekv
