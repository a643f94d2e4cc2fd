#include "tools/trace/error_plot.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "fmt/format.h"

namespace wavekv {
namespace {

constexpr int kDecades = 4;
constexpr double kSide = 400.0;  // of the square the dots lie in
constexpr double kLeft = 60.0;
constexpr double kTop = 40.0;

// Distance from the axes' origin.
double Along(double error) {
  const double decades = std::log10(std::max(error, 1e-300)) + kDecades;
  return std::clamp(decades / kDecades, 0.0, 1.0) * kSide;
}

std::string Line(double x1, double y1, double x2, double y2, const char* style) {
  return fmt::format("<path d=\"M{:.1f} {:.1f}L{:.1f} {:.1f}\" {}/>\n", kLeft + x1,
                     kTop + kSide - y1, kLeft + x2, kTop + kSide - y2, style);
}

std::string Text(double x, double y, const char* style, const std::string& text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" {}>{}</text>\n", x, y, style, text);
}

}  // namespace

std::string FormatErrorPlot(const std::string& title, const std::vector<double>& errors,
                            const std::vector<double>& estimates) {
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} "
      "{1}\" font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" "
      "fill=\"white\"/>\n",
      kLeft + kSide + 30, kTop + kSide + 60);
  const double factor2 = std::log10(2.0) / kDecades * kSide;
  // The band: from the origin along both axes, and to the far corner.
  svg += fmt::format(
      "<path d=\"M{0:.1f} {1:.1f}V{2:.1f}L{3:.1f} {4:.1f}H{5:.1f}V{6:.1f}L{7:.1f} {1:.1f}Z\" "
      "fill=\"#e4ecf5\"/>\n",
      kLeft, kTop + kSide, kTop + kSide - factor2, kLeft + kSide - factor2, kTop, kLeft + kSide,
      kTop + factor2, kLeft + factor2);
  for (int decade = 0; decade <= kDecades; ++decade) {
    const double at = kSide * decade / kDecades;
    const std::string label = fmt::format("{:g}", std::pow(10.0, decade - kDecades));
    svg += Line(at, 0.0, at, kSide, "stroke=\"#cccccc\"");
    svg += Line(0.0, at, kSide, at, "stroke=\"#cccccc\"");
    svg += Text(kLeft + at, kTop + kSide + 18, "text-anchor=\"middle\"", label);
    svg += Text(kLeft - 6, kTop + kSide - at + 4, "text-anchor=\"end\"", label);
  }
  svg += Line(0.0, 0.0, kSide, kSide, "stroke=\"#3b6ea5\"");
  svg +=
      "<g stroke=\"black\" stroke-opacity=\"0.35\" stroke-width=\"3\" stroke-linecap=\"round\">\n"
      "<path d=\"";
  for (size_t i = 0; i < errors.size(); ++i) {
    absl::StrAppend(&svg, fmt::format("M{:.1f} {:.1f}h0", kLeft + Along(estimates[i]),
                                      kTop + kSide - Along(errors[i])));
  }
  svg += "\"/>\n</g>\n";
  svg += Text(kLeft + kSide / 2, kTop + kSide + 42, "text-anchor=\"middle\"", "estimated error");
  svg += Text(0.0, 0.0,
              fmt::format("transform=\"translate(14 {}) rotate(-90)\" text-anchor=\"middle\"",
                          kTop + kSide / 2)
                  .c_str(),
              "true error");
  svg += Text(kLeft, 24.0, "font-weight=\"bold\"",
              absl::StrReplaceAll(title, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}}));
  return svg + "</svg>\n";
}

}  // namespace wavekv
