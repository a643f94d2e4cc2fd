// Early return on error; Debian's Abseil does not ship these.
#ifndef WAVEKV_STORAGE_STATUS_MACROS_H_
#define WAVEKV_STORAGE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define WAVEKV_CONCAT_INNER(a, b) a##b
#define WAVEKV_CONCAT(a, b) WAVEKV_CONCAT_INNER(a, b)

#define WAVEKV_RETURN_IF_ERROR(expression)                                                    \
  do {                                                                                        \
    if (absl::Status wavekv_status = (expression); !wavekv_status.ok()) return wavekv_status; \
  } while (false)

#define WAVEKV_ASSIGN_OR_RETURN(declaration, expression) \
  WAVEKV_ASSIGN_OR_RETURN_INNER(WAVEKV_CONCAT(wavekv_or_, __LINE__), declaration, expression)

#define WAVEKV_ASSIGN_OR_RETURN_INNER(result, declaration, expression) \
  auto result = (expression);                                          \
  if (!result.ok()) return std::move(result).status();                 \
  declaration = std::move(result).value()

#endif  // WAVEKV_STORAGE_STATUS_MACROS_H_
