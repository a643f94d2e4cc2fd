#ifndef WAVEKV_TOOLS_TRACE_ERROR_PLOT_H_
#define WAVEKV_TOOLS_TRACE_ERROR_PLOT_H_

#include <string>
#include <vector>

namespace wavekv {

// A picture (SVG) of estimated errors against true ones, a dot a sample, both axes logarithmic from
// 0.0001 to 1; what lies outside stands at the edge. The band marks estimates within a factor of
// two. REQUIRES: as many estimates as errors.
std::string FormatErrorPlot(const std::string& title, const std::vector<double>& errors,
                            const std::vector<double>& estimates);

}  // namespace wavekv

#endif  // WAVEKV_TOOLS_TRACE_ERROR_PLOT_H_
