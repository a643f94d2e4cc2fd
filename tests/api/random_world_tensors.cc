#include "tests/api/random_world_tensors.h"

#include <algorithm>
#include <numeric>

namespace wavekv::testing {
namespace {

// Drawing gaussians one by one would be most of a world's time.
const std::vector<float>& GaussianPool() {
  static const std::vector<float>* const pool =
      new std::vector<float>(Random(20240607).Gaussians(1 << 17));
  return *pool;
}

void AddFromPool(Random& random, int64_t count, float scale, std::vector<float>& rows) {
  const std::vector<float>& pool = GaussianPool();
  int64_t at = random.Integer(0, static_cast<int64_t>(pool.size()) - 1);
  for (int64_t i = 0; i < count; ++i) {
    rows.push_back(scale * pool[at]);
    if (++at == static_cast<int64_t>(pool.size())) at = 0;
  }
}

int64_t Slack(Random& random) { return random.Integer(0, 2) == 0 ? random.Integer(1, 9) : 0; }

}  // namespace

DType DrawDType(Random& random) { return DType{static_cast<uint8_t>(random.Integer(1, 3))}; }

std::vector<float> DrawRows(Random& random, int64_t num_rows, int64_t num_heads, int64_t head_dim) {
  const int64_t row_elements = num_heads * head_dim;
  std::vector<float> rows;
  rows.reserve(num_rows * row_elements);
  const int64_t kind = random.Integer(0, 9);
  if (kind > 1) {
    AddFromPool(random, num_rows * row_elements, kind == 2 ? 3.0f : 1.0f, rows);
    return rows;
  }
  const int64_t num_different = kind == 0 ? 1 : random.Integer(1, 4);
  std::vector<float> different;
  AddFromPool(random, num_different * row_elements, 1.0f, different);
  for (int64_t row = 0; row < num_rows; ++row) {
    const auto first = different.begin() + random.Integer(0, num_different - 1) * row_elements;
    rows.insert(rows.end(), first, first + row_elements);
  }
  return rows;
}

CallerTensor::CallerTensor(Random& random, int64_t num_rows, int64_t num_heads, int64_t head_dim) {
  view_.dtype = DrawDType(random);
  view_.num_rows = num_rows;
  view_.num_heads = num_heads;
  view_.head_dim = head_dim;
  if (random.Integer(0, 2) == 0) {  // heads before rows
    view_.row_stride = head_dim + Slack(random);
    view_.head_stride = num_rows * view_.row_stride + Slack(random);
  } else {
    view_.head_stride = head_dim + Slack(random);
    view_.row_stride = num_heads * view_.head_stride + Slack(random);
  }
  const int64_t first = Slack(random);  // breaks alignment to more than an element
  const int64_t elements = std::max<int64_t>(
      1, first + (num_rows > 0 ? ElementOf(num_rows - 1, num_heads - 1, head_dim) : 0) +
             Slack(random));
  bytes_.assign(elements * DTypeBytes(view_.dtype), kFiller);
  view_.data = bytes_.data() + first * DTypeBytes(view_.dtype);
}

template <typename Visit>
void CallerTensor::ForEachElement(const Visit& visit) const {
  for (int64_t row = 0; row < view_.num_rows; ++row) {
    for (int64_t head = 0; head < view_.num_heads; ++head) {
      for (int64_t d = 0; d < view_.head_dim; ++d) visit(ElementOf(row, head, d));
    }
  }
}

void CallerTensor::Fill(std::vector<float>& values) {
  values = Rounded(values, view_.dtype);
  std::byte* const data = static_cast<std::byte*>(mutable_view().data);
  size_t i = 0;
  ForEachElement([&](int64_t element) { StoreElement(data, view_.dtype, element, values[i++]); });
}

MutableTensorView CallerTensor::mutable_view() {
  return {const_cast<void*>(view_.data),
          view_.dtype,
          view_.num_rows,
          view_.num_heads,
          view_.head_dim,
          view_.row_stride,
          view_.head_stride,
          view_.memory};
}

std::vector<float> CallerTensor::Read() const {
  std::vector<float> values;
  const auto* const data = static_cast<const std::byte*>(view_.data);
  ForEachElement(
      [&](int64_t element) { values.push_back(LoadElement(data, view_.dtype, element)); });
  return values;
}

bool CallerTensor::FillerIsIntact() const {
  std::vector<std::byte> rest = bytes_;
  const int64_t first = static_cast<const std::byte*>(view_.data) - bytes_.data();
  const int64_t size = DTypeBytes(view_.dtype);
  ForEachElement(
      [&](int64_t element) { std::fill_n(rest.begin() + first + element * size, size, kFiller); });
  return std::all_of(rest.begin(), rest.end(), [](std::byte b) { return b == kFiller; });
}

CallerPages::CallerPages(Random& random, const std::vector<int64_t>& lengths,
                         const std::vector<int32_t>& cu_seqlens, int64_t num_heads,
                         int64_t head_dim_k, int64_t head_dim_v, std::vector<float>& key_rows,
                         std::vector<float>& value_rows)
    : page_tokens_(int64_t{1} << random.Integer(0, 6)),
      num_sequences_(static_cast<int64_t>(lengths.size())) {
  const auto num_rows = [&](size_t i) { return cu_seqlens[i + 1] - cu_seqlens[i]; };
  int64_t num_pages = 1;
  for (size_t i = 0; i < lengths.size(); ++i) {
    pages_max_ = std::max(pages_max_, (lengths[i] + num_rows(i) + page_tokens_ - 1) / page_tokens_);
    num_pages += num_rows(i) / page_tokens_ + 2;
  }
  pages_max_ += random.Integer(0, 2);
  std::vector<int32_t> free_pages(num_pages);
  std::iota(free_pages.begin(), free_pages.end(), 0);
  std::shuffle(free_pages.begin(), free_pages.end(), random.engine());
  keys_ = MakePool(random, num_pages, num_heads, head_dim_k);
  values_ = MakePool(random, num_pages, num_heads, head_dim_v);
  key_rows = Rounded(key_rows, keys_.view.dtype);
  value_rows = Rounded(value_rows, values_.view.dtype);

  constexpr int32_t kNoPage = -77;  // of positions that are not read
  table_.assign(std::max<int64_t>(1, num_sequences_ * pages_max_), kNoPage);
  const auto store = [&](Pool& pool, int32_t page, int64_t slot, const float* row) {
    const PagedView& view = pool.view;
    for (int64_t head = 0; head < view.num_heads; ++head) {
      for (int64_t d = 0; d < view.head_dim; ++d) {
        StoreElement(
            pool.bytes.data(), view.dtype,
            page * view.page_stride + slot * view.token_stride + head * view.head_stride + d,
            row[head * view.head_dim + d]);
      }
    }
  };
  for (size_t i = 0; i < lengths.size(); ++i) {
    for (int64_t row = 0; row < num_rows(i); ++row) {
      const int64_t position = lengths[i] + row;
      int32_t& page = table_[i * pages_max_ + position / page_tokens_];
      if (page == kNoPage) {
        page = free_pages.back();
        free_pages.pop_back();
      }
      const int64_t at = cu_seqlens[i] + row;
      store(keys_, page, position % page_tokens_, key_rows.data() + at * num_heads * head_dim_k);
      store(values_, page, position % page_tokens_,
            value_rows.data() + at * num_heads * head_dim_v);
    }
  }
}

CallerPages::Pool CallerPages::MakePool(Random& random, int64_t num_pages, int64_t num_heads,
                                        int64_t head_dim) const {
  Pool pool;
  PagedView& view = pool.view;
  view.dtype = DrawDType(random);
  view.num_pages = num_pages;
  view.page_tokens = page_tokens_;
  view.num_heads = num_heads;
  view.head_dim = head_dim;
  if (random.Integer(0, 1) == 0) {
    view.head_stride = head_dim + Slack(random);
    view.token_stride = num_heads * view.head_stride + Slack(random);
    view.page_stride = page_tokens_ * view.token_stride;
  } else {
    view.token_stride = head_dim + Slack(random);
    view.head_stride = page_tokens_ * view.token_stride + Slack(random);
    view.page_stride = num_heads * view.head_stride;
  }
  view.page_stride += Slack(random);
  pool.bytes.assign(num_pages * view.page_stride * DTypeBytes(view.dtype), CallerTensor::kFiller);
  view.data = pool.bytes.data();
  return pool;
}

PageTable CallerPages::table() const {
  return {table_.data(), num_sequences_, pages_max_, pages_max_};
}

}  // namespace wavekv::testing
