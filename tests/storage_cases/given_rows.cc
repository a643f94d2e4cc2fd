#include "tests/storage_cases/given_rows.h"

#include <algorithm>
#include <string>

#include "fmt/format.h"
#include "storage/status_macros.h"
#include "tools/safetensors/safetensors.h"

namespace wavekv::testing {

absl::StatusOr<std::vector<float>> LiteralRows(const v1::TensorSource::Literal& literal,
                                               const WantedRows& wanted) {
  if (literal.rows_size() != wanted.num_rows) {
    return absl::InvalidArgumentError(
        fmt::format("literal.rows must be {}, one for each token, "
                    "got {}",
                    wanted.num_rows, literal.rows_size()));
  }
  std::vector<float> rows(wanted.num_rows * wanted.num_heads * wanted.head_dim, 0.0f);
  float* out = rows.data();
  for (int row = 0; row < literal.rows_size(); ++row) {
    const auto& values = literal.rows(row).values();
    if (values.size() > wanted.head_dim) {
      return absl::InvalidArgumentError(
          fmt::format("literal.rows[{}].values must be at most head_dim = {} numbers, got {}", row,
                      wanted.head_dim, values.size()));
    }
    for (int head = 0; head < wanted.num_heads; ++head, out += wanted.head_dim) {
      std::copy(values.begin(), values.end(), out);
    }
  }
  return rows;
}

absl::StatusOr<std::vector<float>> FileRows(const v1::TensorSource::File& source,
                                            const WantedRows& wanted) {
  const auto file = safetensors::File::Read(source.path());
  if (!file.ok()) {
    return absl::Status(file.status().code(),
                        fmt::format("file.path: {}", std::string(file.status().message())));
  }
  const auto tensor = file->tensors().find(source.tensor());
  if (tensor == file->tensors().end()) {
    return absl::NotFoundError(fmt::format("file.tensor must be one of those in {}, got \"{}\"",
                                           source.path(), safetensors::Printable(source.tensor())));
  }
  const safetensors::Shape& shape = tensor->second.shape;
  const bool every_head =
      shape == safetensors::Shape{shape.empty() ? 0 : shape[0], wanted.head_dim};
  if (!every_head &&
      (shape.size() != 3 || shape[1] != wanted.num_heads || shape[2] != wanted.head_dim)) {
    return absl::InvalidArgumentError(fmt::format(
        "file.tensor \"{}\" must have shape {} or {}, got {}", source.tensor(),
        safetensors::ShapeString({safetensors::kAnySize, wanted.num_heads, wanted.head_dim}),
        safetensors::ShapeString({safetensors::kAnySize, wanted.head_dim}),
        safetensors::ShapeString(shape)));
  }
  const auto first = source.first_row();
  const auto num_rows = static_cast<uint64_t>(shape[0]);
  if (first > num_rows || static_cast<uint64_t>(wanted.num_rows) > num_rows - first) {
    return absl::InvalidArgumentError(
        fmt::format("file.first_row: {} rows from row {} must lie within the {} rows of tensor "
                    "\"{}\"",
                    wanted.num_rows, first, num_rows, source.tensor()));
  }
  const auto all = file->Floats(source.tensor(), shape);
  if (!all.ok()) {
    return absl::Status(all.status().code(),
                        fmt::format("file.tensor: {}", std::string(all.status().message())));
  }
  const int copies = every_head ? wanted.num_heads : 1;
  const int64_t width = every_head ? wanted.head_dim : wanted.num_heads * wanted.head_dim;
  std::vector<float> rows;
  rows.reserve(wanted.num_rows * copies * width);
  for (int64_t row = 0; row < wanted.num_rows; ++row) {
    const auto begin = all->begin() + (static_cast<int64_t>(first) + row) * width;
    for (int copy = 0; copy < copies; ++copy) rows.insert(rows.end(), begin, begin + width);
  }
  return rows;
}

}  // namespace wavekv::testing
