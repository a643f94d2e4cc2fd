#include "tools/trace/eval_report.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace wavekv {
namespace {

using Json = nlohmann::ordered_json;

const char* MassName(MassEstimate mass) {
  return mass == MassEstimate::kSecondOrder ? "second-order" : "lower-bound";
}

const char* ZonesName(Zones zones) {
  return zones == Zones::kSketch ? "sketch" : zones == Zones::kPaper ? "paper" : "clusters";
}

// As --retrieval takes it.
std::string BudgetText(const Budget& budget) {
  return budget.is_ratio() ? fmt::format("{:.6g}", budget.ratio())
                           : fmt::format("{}t", budget.tokens());
}

std::string CsvField(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  return absl::StrCat("\"", absl::StrReplaceAll(text, {{"\"", "\"\""}}), "\"");
}

// What is read behind the retrieval: codes or value means.
const Budget& SecondBudget(const AttendOptions& options) {
  return options.zones == Zones::kSketch ? options.sketch : options.estimation;
}

// Names and values of a row's numbers, in the order of columns.
std::vector<std::pair<std::string, double>> Numbers(const EvalArguments& arguments,
                                                    const TraceSummary& summary) {
  std::vector<std::pair<std::string, double>> numbers = {
      {"rel_err_mean", summary.rel_err_mean},
      {"rel_err_p95", summary.rel_err_p95},
      {"rel_err_p99", summary.rel_err_p99},
      {"rel_err_max", summary.rel_err_max},
      {"error_estimate_correlation", summary.error_estimate_correlation},
      {"error_estimate_within_2", summary.error_estimate_within_2},
      {"mass", summary.mass},
      {"indexed_mass", summary.indexed_mass},
  };
  for (size_t i = 0; i < summary.recalls.size(); ++i) {
    numbers.emplace_back(absl::StrCat("recall", arguments.eval.recall_ks[i]), summary.recalls[i]);
  }
  const std::pair<std::string, double> costs[] = {
      {"tokens_visible", summary.tokens_visible},
      {"tokens_exact", summary.tokens_exact},
      {"exact_tokens_ratio", summary.exact_tokens_ratio},
      {"bytes_dense", summary.bytes_dense},
      {"bytes_read", summary.bytes_read},
      {"bytes_ratio", summary.bytes_ratio},
      {"indexed_bytes_ratio", summary.indexed_bytes_ratio},
  };
  numbers.insert(numbers.end(), std::begin(costs), std::end(costs));
  return numbers;
}

std::string FormatTable(const EvalArguments& arguments, const EvalReport& report) {
  std::string text;
  const auto header = [&] {
    absl::StrAppend(&text, fmt::format("{:>5} {:>4} {:>8} {:>9} {:>9} {:>4} {:>6}", "layer", "head",
                                       "zones", "retrieval", "next", "open", "target"));
    for (const int64_t k : arguments.eval.recall_ks) {
      absl::StrAppend(&text, fmt::format(" {:>10}", fmt::format("recall@{}", k)));
    }
    absl::StrAppend(
        &text, fmt::format(" {:>6} {:>7} {:>8} {:>7} {:>7} {:>7} {:>8} {:>6} {:>9} {:>6} {:>9} "
                           "{:>5} {:>5}\n",
                           "mass", "indexed", "err mean", "p95", "p99", "max", "tokens", "%", "KiB",
                           "%", "indexed %", "corr", "in 2x"));
  };
  const auto line = [&](const std::string& layer, const std::string& head, size_t budget,
                        const TraceSummary& summary) {
    const AttendOptions& options = arguments.eval.budgets[budget];
    absl::StrAppend(&text, fmt::format("{:>5} {:>4} {:>8} {:>9} {:>9} {:>4} {:>6.4g}", layer, head,
                                       ZonesName(options.zones), BudgetText(options.retrieval),
                                       BudgetText(SecondBudget(options)), BudgetText(options.open),
                                       options.target_error));
    for (const double recall : summary.recalls) {
      absl::StrAppend(&text, fmt::format(" {:>10.4f}", recall));
    }
    absl::StrAppend(
        &text,
        fmt::format(" {:>6.4f} {:>7.4f} {:>8.4f} {:>7.4f} {:>7.4f} {:>7.4f} {:>8.1f} {:>6.2f} "
                    "{:>9.1f} {:>6.2f} {:>9.2f} {:>5.2f} {:>5.2f}\n",
                    summary.mass, summary.indexed_mass, summary.rel_err_mean, summary.rel_err_p95,
                    summary.rel_err_p99, summary.rel_err_max, summary.tokens_exact,
                    100.0 * summary.exact_tokens_ratio, summary.bytes_read / 1024.0,
                    100.0 * summary.bytes_ratio, 100.0 * summary.indexed_bytes_ratio,
                    summary.error_estimate_correlation, summary.error_estimate_within_2));
  };
  const std::string* file = nullptr;
  for (const EvalRow& row : report.rows) {
    if (file == nullptr || *file != row.file) {
      absl::StrAppend(&text, file == nullptr ? "" : "\n", row.file, "\n");
      header();
    }
    file = &row.file;
    line(absl::StrCat(row.layer), absl::StrCat(row.kv_head), row.budget, row.summary);
  }
  absl::StrAppend(&text, "\noverall, ", report.budgets[0].num_samples, " samples\n");
  header();
  for (size_t i = 0; i < report.budgets.size(); ++i) line("all", "all", i, report.budgets[i]);
  return text;
}

std::string FormatCsv(const EvalArguments& arguments, const EvalReport& report) {
  std::string text =
      "file,layer,kv_head,zones,retrieval,sketch,estimation,open,target_error,mass_estimate,"
      "samples";
  for (const auto& [name, value] : Numbers(arguments, report.budgets[0])) {
    absl::StrAppend(&text, ",", name);
  }
  absl::StrAppend(&text, "\n");
  const auto line = [&](const std::string& file, const std::string& layer, const std::string& head,
                        size_t budget, const TraceSummary& summary) {
    const AttendOptions& options = arguments.eval.budgets[budget];
    absl::StrAppend(&text, CsvField(file), ",", layer, ",", head, ",");
    absl::StrAppend(&text, ZonesName(options.zones), ",", BudgetText(options.retrieval), ",",
                    BudgetText(options.sketch), ",", BudgetText(options.estimation), ",",
                    BudgetText(options.open), ",", options.target_error, ",",
                    MassName(options.mass), ",", summary.num_samples);
    for (const auto& [name, value] : Numbers(arguments, summary)) {
      absl::StrAppend(&text, ",", fmt::format("{:.9g}", value));
    }
    absl::StrAppend(&text, "\n");
  };
  for (const EvalRow& row : report.rows) {
    line(row.file, absl::StrCat(row.layer), absl::StrCat(row.kv_head), row.budget, row.summary);
  }
  for (size_t i = 0; i < report.budgets.size(); ++i) {
    line("overall", "all", "all", i, report.budgets[i]);
  }
  return text;
}

Json BudgetJson(const Budget& budget) {
  if (budget.is_ratio()) return budget.ratio();
  return BudgetText(budget);
}

void AddSummary(const EvalArguments& arguments, size_t budget, const TraceSummary& summary,
                Json& json) {
  const AttendOptions& options = arguments.eval.budgets[budget];
  json["zones"] = ZonesName(options.zones);
  json["retrieval"] = BudgetJson(options.retrieval);
  json["sketch"] = BudgetJson(options.sketch);
  json["estimation"] = BudgetJson(options.estimation);
  json["open"] = BudgetJson(options.open);
  json["target_error"] = options.target_error;
  json["mass_estimate"] = MassName(options.mass);
  json["default"] = budget == arguments.default_budget;
  json["samples"] = summary.num_samples;
  for (const auto& [name, value] : Numbers(arguments, summary)) json[name] = value;
}

std::string FormatJson(const EvalArguments& arguments, const EvalReport& report) {
  Json json;
  json["files"] = arguments.files;
  json["scale"] = arguments.eval.scale_factor;
  json["grow"] = arguments.eval.grow;
  json["query_type"] = arguments.query_type.empty() ? "all" : arguments.query_type;
  json["rows"] = Json::array();
  for (const EvalRow& row : report.rows) {
    Json object;
    object["file"] = row.file;
    object["layer"] = row.layer;
    object["kv_head"] = row.kv_head;
    AddSummary(arguments, row.budget, row.summary, object);
    json["rows"].push_back(std::move(object));
  }
  json["budgets"] = Json::array();
  for (size_t i = 0; i < report.budgets.size(); ++i) {
    Json object;
    AddSummary(arguments, i, report.budgets[i], object);
    json["budgets"].push_back(std::move(object));
  }
  json["overall"] = json["budgets"][arguments.default_budget];
  // File names need not be UTF-8.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

std::string BudgetTitle(const EvalArguments& arguments, size_t budget) {
  const AttendOptions& options = arguments.eval.budgets[budget];
  std::string title = absl::StrCat(ZonesName(options.zones), " ", BudgetText(options.retrieval),
                                   ", ", BudgetText(SecondBudget(options)));
  if (options.target_error > 0.0) {
    absl::StrAppend(&title, fmt::format(", target {:.6g}", options.target_error));
  }
  return title;
}

std::string FormatReport(const EvalArguments& arguments, const EvalReport& report) {
  switch (arguments.format) {
    case EvalArguments::Format::kTable:
      return FormatTable(arguments, report);
    case EvalArguments::Format::kCsv:
      return FormatCsv(arguments, report);
    case EvalArguments::Format::kJson:
      break;
  }
  return FormatJson(arguments, report);
}

}  // namespace wavekv
