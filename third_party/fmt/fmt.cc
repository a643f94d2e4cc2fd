// Debian ships fmt's compiled part as a shared library only. Here it is compiled from the same
// package's headers, once: in every file that formats (FMT_HEADER_ONLY), it would double the time
// to build wavekv.
#include "fmt/format-inl.h"

FMT_BEGIN_NAMESPACE
namespace detail {

// What the headers declare and leave to this file.
template dragonbox::decimal_fp<float> dragonbox::to_decimal(float);
template dragonbox::decimal_fp<double> dragonbox::to_decimal(double);
template thousands_sep_result<char> thousands_sep_impl(locale_ref);
template char decimal_point_impl(locale_ref);

}  // namespace detail
FMT_END_NAMESPACE
