// Early return for absl::Status and absl::StatusOr.
#ifndef WAVEKV_EXAMPLES_TINYLM_STATUS_MACROS_H_
#define WAVEKV_EXAMPLES_TINYLM_STATUS_MACROS_H_

#include <utility>

#define TINYLM_RETURN_IF_ERROR(expression)                                            \
  do {                                                                                \
    if (auto tinylm_status = (expression); !tinylm_status.ok()) return tinylm_status; \
  } while (false)

#define TINYLM_CONCAT_INNER(a, b) a##b
#define TINYLM_CONCAT(a, b) TINYLM_CONCAT_INNER(a, b)

// TINYLM_ASSIGN_OR_RETURN(auto value, MakeValue());
#define TINYLM_ASSIGN_OR_RETURN(declaration, expression) \
  TINYLM_ASSIGN_OR_RETURN_INNER(TINYLM_CONCAT(status_or_, __LINE__), declaration, expression)

#define TINYLM_ASSIGN_OR_RETURN_INNER(status_or, declaration, expression) \
  auto status_or = (expression);                                          \
  if (!status_or.ok()) return status_or.status();                         \
  declaration = *std::move(status_or)

#endif  // WAVEKV_EXAMPLES_TINYLM_STATUS_MACROS_H_
